"""Recovery: a pruned result learns again what it lost, through LoRA, beside the dense model that it came from.

First on text, whose subsets are drawn by what each has lost; then, where there are instructions, on those and some of the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from transformers import PreTrainedModel

from lorashear import models, results
from lorashear.config import Settings
from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.folder import BESIDE, write_adapter, write_folder
from lorashear.disk.lora import Adapter, held_in
from lorashear.disk.slicing import Slice
from lorashear.disk.storage import Storage, tied
from lorashear.disk.stored import as_stored, take
from lorashear.learning import budget, curves, fitting, hyperparameters, recovery_curves, training
from lorashear.learning.mixture import Mixture
from lorashear.learning.teaching import Online, Remembered, remember
from lorashear.learning.training import LOG, WHOLE, Left
from lorashear.likelihood import mean_loss
from lorashear.plans import Plan
from lorashear.run import Run
from lorashear.viewer import result

ALIKE = "nothing says what a subset of the text has lost: all are drawn alike, and the text alone is learned from"


def recover(run: Run, pruned: Path, folder: Path, before: Mapping[str, Any]) -> None:
    """Train a pruned result on the text of a run, and write what it becomes, with plan and report, into ``folder``.

    ``before`` is the report of the result as it is.

    Raises:
        LorashearError: the loss stops being a number.
    """
    settings, stage = fitting.kept(run.work, run.settings), run.stage
    run = replace(run, settings=settings)
    plan, _ = results.read(pruned)
    with stage("train"):
        left = sum(map(len, plan.removed.values())), before["parameters"]["after"]
        record = run.together(train, pruned, _remembered(run), left=lambda: left)
    with stage("merge" if settings.adapter == "merge" else "keep"):
        adapter = run.place(record["stages"][-1]["name"])
        plan = write(run, plan, pruned, adapter, folder)
        logs = [run.place(each["name"]) / LOG for each in record["stages"]]
        curves.keep(_joined([pruned / "lorashear" / LOG, *logs], run.work / LOG), folder / "lorashear")
    with stage("evaluate"):
        after = run.judged(run.pruned(folder))
    recovery_curves.keep(record, folder / "lorashear")
    results.write(results.recovered(before, run, plan, record, after), folder)
    result.renew(pruned, folder)


def train(run: Run, pruned: Path, kept: Remembered | None = None, left: Left | None = None) -> dict[str, Any]:
    """Train a pruned result, stage by stage, and leave each one's adapter in its place; what was done, for the report.

    Args:
        kept: what the dense model says, where it is not to be in memory.
        left: for `training.adapt`.
    """
    settings, windows = run.settings, run.windows
    assert windows is not None
    dense = run.sharded(run.dense()) if run.source else None
    lost = _losses(run, dense) if run.source else None
    teacher = (kept or Online(dense)) if settings.distill and run.source and windows.subsets else None
    del dense
    model = run.sharded(run.whole(pruned) if settings.full else run.learner(pruned, pruned / BESIDE))
    done: list[dict[str, Any]] = []
    transferred = budget.transferred(settings, windows) if isinstance(settings, Settings) and windows.subsets else 0
    for number, stage in enumerate(budget.stages(settings, windows)):
        hyper = hyperparameters.of(settings, model, stage.steps)
        schedule = stage.before + stage.steps
        hyper = replace(hyper, rate=stage.rate * hyper.rate, before=stage.before, schedule=schedule)
        hyper = hyper if teacher is not None else replace(hyper, distill=0.0)
        dynamic = settings.mixture == "dynamic"
        mixture = Mixture(stage.subsets, hyper, fixed=stage.fixed, dense=lost, dynamic=dynamic, stage=number)
        record = training.adapt(
            model,
            mixture,
            run.place(stage.name),
            partial(run.stage.stepped, stage.name),
            teacher=teacher,
            snapshots=run.snapshots(stage.name),
            left=left,
            processes=run.processes,
            earlier=transferred + sum(each["steps"] for each in done),
        )
        done.append({"name": stage.name, **record})
    return {
        "dense": run.name if lost is not None else None,
        "why": run.why,
        "dense_loss": lost,
        "subsets": [subset.name for subset in windows.every],
        "mixture": settings.mixture,
        "examples": windows.examples,
        "stages": done,
    }


def _remembered(run: Run) -> Remembered | None:
    """What the dense model says of all that may be drawn, where it is not to be in memory."""
    settings, windows, source = run.settings, run.windows, run.source
    if not (settings.distill and settings.distill_top_k and source and windows and windows.subsets):
        return None
    known = [source.identity(), *([held_in(run.lora).identity()] if run.lora else [])]
    return remember(
        run.dense,
        [subset.training for subset in windows.subsets],
        settings.distill_top_k,
        "".join(known),
        f"{settings.dtype} on {settings.device}",
        run.stage.progress,
    )


def _losses(run: Run, dense: Any) -> dict[str, float]:
    """Of the dense model, in nats a token, on what is held out of each subset."""
    assert run.windows is not None
    held = {subset.name: subset.heldout for subset in run.windows.every}
    return {name: mean_loss(dense, rows, run.processes) for name, rows in held.items() if len(rows)}


def _joined(logs: list[Path], target: Path) -> Path:
    """The logs of stages of training, those that there are, as one whose steps are counted through."""
    found = [line for log in logs if log.exists() for line in log.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**json.loads(line), "step": step}) + "\n" for step, line in enumerate(found, 1)]
    target.write_text("".join(lines), encoding="utf-8")
    return target


def write(run: Run, plan: Plan, pruned: Path, adapter: Path, folder: Path) -> Plan:
    """Write a pruned model and its adapter, merged or kept beside it, or all its weights, into an empty ``folder``.

    ``adapter`` is where `training.adapt` has left what was trained.

    Returns:
        The plan, with the hash of every tensor that is no plain slice.
    """
    small, settings, progress = Checkpoint.open(pruned), run.settings, partial(run.stage.progress, "merge")
    twin = models.twin_of(pruned, trust_remote_code=run.trust_remote_code)
    if settings.full:
        weights = _weights(adapter / WHOLE, Storage.of(small, twin), tied(twin))
        write_folder(plan, Slice.of(small, {}, weights, settings.shard_bytes), folder, progress=progress)
        source = {new: name for name, new in plan.names.items() if new is not None}
        return noted(plan, folder, {source.get(name, name): name for name in weights})
    found = opened(adapter, small, twin)
    merge = settings.adapter == "merge"
    write_folder(
        plan,
        Slice.of(small, {}, shard_bytes=settings.shard_bytes, merged=found if merge else None),
        folder,
        progress=progress,
    )
    if merge:
        source = {new: name for name, new in plan.names.items() if new is not None}
        return noted(plan, folder, {source.get(name, name): name for name in found.adapted})
    write_adapter(found, {}, folder / BESIDE)
    return plan


def _weights(path: Path, storage: Storage, first: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Weights that were trained as a whole, as they are stored."""
    with safe_open(path, "pt") as file:
        return {
            name: as_stored(take(part, file.get_tensor(first.get(part.parameter, part.parameter))), info.dtype)
            for name, part in storage.parts.items()
            if (info := storage.source.tensors.get(name)) and first.get(part.parameter, part.parameter) in file.keys()
        }


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
