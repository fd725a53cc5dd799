"""Recovery: a pruned result learns again what it lost, through LoRA, beside the dense model that it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lorashear import curves, models, recipes, results, training
from lorashear.checkpoint import Checkpoint
from lorashear.config import Settings
from lorashear.folder import BESIDE, write_adapter, write_folder
from lorashear.lora import Adapter
from lorashear.plans import Plan
from lorashear.run import Run
from lorashear.slicing import Slice
from lorashear.storage import Storage
from lorashear.training import LOG, Left


def recover(run: Run, pruned: Path, folder: Path) -> None:
    """Train a pruned result on the text of a run, and write what it becomes, with plan, report and card, into ``folder``.

    Raises:
        LorashearError: the loss stops being a number.
    """
    settings, stage = run.settings, run.stage
    plan, before = results.read(pruned)
    with stage("train"):
        left = sum(map(len, plan.removed.values())), before["parameters"]["after"]
        record = run.together(train, pruned, left=lambda: left)
    with stage("merge" if settings.adapter == "merge" else "keep"):
        plan = write(plan, pruned, run.work, settings, folder, partial(stage.progress, "merge"))
    with stage("evaluate"):
        after = run.judged(run.pruned(folder))
    results.write(results.trained(before, run, plan, record, after), plan, folder)


def train(run: Run, pruned: Path, left: Left | None = None) -> dict[str, Any]:
    """Train a pruned result, and leave the adapter in the run's folder for work; what was done, for the report.

    ``left`` is for `training.adapt`.
    """
    assert run.windows is not None
    windows = run.windows.training
    small = run.learner(pruned)
    recipe = recipes.recipe(run.settings, small, windows)
    return training.adapt(
        run.sharded(small),
        windows,
        recipe,
        run.work,
        partial(run.stage.stepped, "train"),
        teacher=run.teacher(),
        snapshots=run.snapshots,
        left=left,
        processes=run.processes,
    )


def write(
    plan: Plan,
    pruned: Path,
    adapter: Path,
    settings: Settings,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Write a pruned model and its adapter, merged or kept beside it, into an empty ``folder``.

    Returns:
        The plan, with the hash of every tensor that is no plain slice.
    """
    small = Checkpoint.open(pruned)
    found = opened(adapter, small, models.build_twin(models.read_config(pruned)))
    merge = settings.adapter == "merge"
    write_folder(
        plan,
        Slice.of(small, {}, shard_bytes=settings.shard_bytes, merged=found if merge else None),
        folder,
        progress=progress,
    )
    curves.keep(adapter / LOG, folder / "lorashear")
    if merge:
        source = {new: name for name, new in plan.names.items() if new is not None}
        return noted(plan, folder, {source.get(name, name): name for name in found.adapted})
    write_adapter(found, {}, folder / BESIDE)
    return plan


def opened(adapter: Path, base: Checkpoint, twin: PreTrainedModel) -> Adapter:
    """An adapter that was trained on the model of a checkpoint, whose names on disk may be other ones."""
    storage = Storage.of(base, twin)
    return Adapter.open(adapter, storage.source, storage.named)


def noted(plan: Plan, folder: Path, merged: Mapping[str, str]) -> Plan:
    """The plan in ``folder`` with the hashes of tensors that an adapter has changed: what the source calls them, and the
    result."""
    result = Checkpoint.open(folder)
    hashes = {name: hashlib.sha256(result.read(new).tobytes()).hexdigest() for name, new in merged.items()}
    plan = replace(plan, changed={**plan.changed, **hashes})
    plan.save(folder / "lorashear" / "plan.json")
    return plan
