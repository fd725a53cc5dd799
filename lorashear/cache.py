"""Where what took long to find out is kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lorashear.errors import LorashearError


def folder() -> Path:
    """``$LORASHEAR_CACHE``, by default ``~/.cache/lorashear``."""
    given = os.environ.get("LORASHEAR_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "lorashear"


def check_room(folder: Path, needed: int, what: str, less: str) -> None:
    """Make a folder for so many bytes at most; ``what`` they are and how to need ``less`` is said where there is no room.

    Raises:
        LorashearError: it cannot be made, or the disk lacks the space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise LorashearError(
            f"{what} is kept in '{folder}', which cannot be made ({error.strerror}); set LORASHEAR_CACHE to another folder"
        ) from None
    if free < needed:
        raise LorashearError(
            f"{what} may need {needed / 1e9:.2f} GB in '{folder}', but only {free / 1e9:.2f} GB are free there; make room, "
            f"{less}, or set LORASHEAR_CACHE to another folder"
        )
