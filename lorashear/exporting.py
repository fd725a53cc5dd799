"""`export`: a result in the format of an engine."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from lorashear.checkpoint import Checkpoint
from lorashear.errors import LorashearError
from lorashear.output import output_folder

FORMATS = ("safetensors",)


def export(model: object, format: str, path: str | Path) -> None:
    """Write a model or result folder to ``path`` in a format ("safetensors": an ordinary model folder).

    Raises:
        LorashearError: an unknown format, no model, or the target is in use.
    """
    if format not in FORMATS:
        raise LorashearError(f"there is no export to {format}; there is {', '.join(FORMATS)}")
    if isinstance(model, str | Path):
        _copy(Path(model), Path(path))
        return
    save = getattr(model, "save_pretrained", None)
    if save is None:
        raise LorashearError(f"export takes a folder or a transformers model, and {type(model).__name__} is neither")
    with tempfile.TemporaryDirectory(prefix="lorashear-") as scratch:
        save(scratch)
        _copy(Path(scratch), Path(path))


def _copy(folder: Path, target: Path) -> None:
    source = Checkpoint.open(folder)
    with output_folder(target, source=folder, overwrite=False, bytes_needed=source.bytes) as work:
        shutil.copytree(folder, work, dirs_exist_ok=True)
