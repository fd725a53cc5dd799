"""Where what took long to find out is kept."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """``$LORASHEAR_CACHE``, by default ``~/.cache/lorashear``."""
    given = os.environ.get("LORASHEAR_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "lorashear"
