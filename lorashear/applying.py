"""`apply`: a plan and a checkpoint give the sliced folder, tensor by tensor. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lorashear.checkpoint import Checkpoint, resolve
from lorashear.folder import write_folder
from lorashear.output import output_folder
from lorashear.plans import Plan


def apply(
    plan: Plan,
    model: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the slice that a plan describes: what compensation or training changed is not in it.

    Raises:
        LorashearError: the model cannot be read, is not the plan's, or the output folder cannot be used.
    """
    source = Checkpoint.open(resolve(model, revision))
    target = Path(out)
    with output_folder(target, source=source.folder, overwrite=overwrite, bytes_needed=source.bytes) as folder:
        write_folder(plan, source, folder, progress=progress)
