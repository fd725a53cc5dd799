"""`apply`: a plan and a checkpoint give the sliced folder, tensor by tensor. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from lorashear.config import ADAPTER
from lorashear.disk.checkpoint import Checkpoint, resolve
from lorashear.disk.estimate import Estimate
from lorashear.disk.folder import wanted_slice, write_folder
from lorashear.disk.layout import SHARD_BYTES
from lorashear.disk.lora import Adapter
from lorashear.disk.output import resumable_folder
from lorashear.errors import LorashearError
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
    lora: str | Path | None = None,
    adapter: str = "merge",
    shard_bytes: int = SHARD_BYTES,
    estimated: Callable[[Estimate], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Write the slice that a plan describes: what compensation or training changed is not in it.

    Args:
        resume: go on with what an earlier run with the same plan, model and shard size left when it was stopped.
        dry_run: stop after the estimate; nothing is written.
        check_contents: read all weights first and hold them against the plan's hash, which `compile` notes.
        lora: the folder of a trained LoRA adapter of the model.
        adapter: "merge" adds it to the weights, "keep" writes it cut to fit, as an adapter of peft, into ``out/adapter``.
        shard_bytes: the size of a file, exceeded only by a tensor that is larger.
        estimated: called with the estimate before work begins.
        progress: called with the bytes written and the bytes to write.

    Returns:
        What it took, as estimated before.

    Raises:
        LorashearError: the model cannot be read, is not the plan's, or the output folder cannot be used.
    """
    source = Checkpoint.open(resolve(model, revision))
    trained = _adapter(plan, lora, adapter, source)
    wanted = wanted_slice(
        plan,
        source,
        shard_bytes=shard_bytes,
        check_contents=check_contents,
        merged=trained if adapter == "merge" else None,
    )
    estimate = Estimate.of(wanted, Path(out))
    if estimated:
        estimated(estimate)
    if dry_run:
        return estimate
    with resumable_folder(
        Path(out),
        job=_job(plan, source, shard_bytes, trained, adapter),
        resume=resume,
        source=source.folder,
        overwrite=overwrite,
        bytes_needed=estimate.written,
    ) as (folder, journal):
        kept = trained if adapter == "keep" else None
        write_folder(plan, wanted, folder, journal=journal, kept=kept, progress=progress)
    return estimate


def _adapter(plan: Plan, folder: str | Path | None, how: str, source: Checkpoint) -> Adapter | None:
    if how not in ADAPTER:
        raise LorashearError(f"adapter is {how}; there are {', '.join(ADAPTER)}")
    if folder is None:
        return None
    found = Adapter.open(folder, source.apart(plan.stacks), plan.parameters)
    if how == "merge":
        found.check_mergeable()
    return found


def _job(plan: Plan, source: Checkpoint, shard_bytes: int, adapter: Adapter | None, how: str) -> str:
    """A hash of what decides the bytes of the result: the plan, the files as they are now, the shard size."""
    tensors = [*source.tensors.values(), *(adapter.held.tensors.values() if adapter else ())]
    files = sorted({info.file for info in tensors})
    states = [(file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([plan.to_json(), states, shard_bytes, how]).encode()).hexdigest()
