"""Recovery: a pruned model learns again what it lost, through LoRA, beside the dense model that it came from."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lorashear import models, training
from lorashear.checkpoint import Checkpoint
from lorashear.config import Settings
from lorashear.folder import BESIDE, write_adapter, write_folder
from lorashear.lora import Adapter
from lorashear.plans import Plan
from lorashear.slicing import Slice
from lorashear.storage import Storage
from lorashear.training import LOG


def recover(
    model: Any,
    teacher: torch.nn.Module | None,
    windows: torch.Tensor,
    settings: Settings,
    adapter: Path,
    shown: training.Shown,
) -> dict[str, Any]:
    """Train the LoRA adapter of a pruned model and save it into the folder ``adapter``, with a log of its steps.

    Args:
        model: the PeftModel.
        teacher: the dense model to stay close to.
        windows: token ids to train on, int64 [windows, length].
        shown: called with the steps done, and the steps.

    Returns:
        What was done, for the report.

    Raises:
        LorashearError: the loss stops being a number.
    """
    recipe = training.recipe(settings, model, windows)
    with training.logged(adapter, recipe.steps, shown) as stepped:
        training.train(model, windows, recipe, teacher=teacher, stepped=stepped)
    model.save_pretrained(adapter)
    return training.record(recipe, windows)


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
    shutil.copyfile(adapter / LOG, folder / "lorashear" / LOG)
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
