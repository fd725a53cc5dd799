"""`apply`: a plan and a checkpoint give the sliced folder, tensor by tensor. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from lorashear.checkpoint import Checkpoint, resolve
from lorashear.estimate import Estimate
from lorashear.folder import wanted_slice, write_folder
from lorashear.layout import SHARD_BYTES
from lorashear.output import resumable_folder
from lorashear.plans import Plan


def apply(
    plan: Plan,
    model: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    check_contents: bool = False,
    shard_bytes: int = SHARD_BYTES,
    estimated: Callable[[Estimate], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Write the slice that a plan describes: what compensation or training changed is not in it.

    Args:
        resume: go on with what an earlier run with the same plan, model and shard size left when it was stopped.
        dry_run: stop after the estimate; nothing is written.
        check_contents: read all weights first and hold them against the plan's hash, which `compile` notes.
        shard_bytes: the size of a file, exceeded only by a tensor that is larger.
        estimated: called with the estimate before work begins.
        progress: called with the bytes written and the bytes to write.

    Returns:
        What it took, as estimated before.

    Raises:
        LorashearError: the model cannot be read, is not the plan's, or the output folder cannot be used.
    """
    source = Checkpoint.open(resolve(model, revision))
    wanted = wanted_slice(plan, source, shard_bytes=shard_bytes, check_contents=check_contents)
    estimate = Estimate.of(wanted, Path(out))
    if estimated:
        estimated(estimate)
    if dry_run:
        return estimate
    with resumable_folder(
        Path(out),
        job=_job(plan, source, shard_bytes),
        resume=resume,
        source=source.folder,
        overwrite=overwrite,
        bytes_needed=estimate.written,
    ) as (folder, journal):
        write_folder(plan, wanted, folder, journal=journal, progress=progress)
    return estimate


def _job(plan: Plan, source: Checkpoint, shard_bytes: int) -> str:
    """A hash of what decides the bytes of the result: the plan, the model's files as they are now, the shard size."""
    files = sorted({info.file for info in source.tensors.values()})
    states = [(file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([plan.to_json(), states, shard_bytes]).encode()).hexdigest()
