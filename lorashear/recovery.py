"""Recovery: a pruned model learns again what it lost, through LoRA, beside the dense model that it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lorashear import models, training
from lorashear.checkpoint import Checkpoint
from lorashear.config import Settings
from lorashear.folder import write_adapter, write_folder
from lorashear.lora import Adapter
from lorashear.plans import Plan
from lorashear.slicing import Slice
from lorashear.storage import Storage

LOG = "training.jsonl"


def recover(
    model: torch.nn.Module,
    teacher: torch.nn.Module | None,
    windows: torch.Tensor,
    settings: Settings,
    adapter: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Train a LoRA adapter of a pruned model and save it into the folder ``adapter``, with a log of its steps.

    Args:
        model: changed in place: it carries the adapter afterwards.
        teacher: the dense model to stay close to.
        windows: token ids to train on, int64 [windows, length].
        progress: called with the steps done, and the steps.

    Returns:
        What was done, for the report.

    Raises:
        LorashearError: the model has no linear map, or the loss stops being a number.
    """
    recipe = recipe_of(settings, model, windows.shape[1])
    carrying = training.adapted(model, rank=recipe.rank, seed=settings.seed)
    adapter.mkdir()
    with (adapter / LOG).open("w", encoding="utf-8") as log:

        def stepped(step: training.Step) -> None:
            print(json.dumps(asdict(step)), file=log, flush=True)
            progress(step.step, recipe.steps)

        training.train(carrying, windows, recipe, teacher=teacher, stepped=stepped)
    carrying.save_pretrained(adapter)
    return {**asdict(recipe), "tokens": recipe.steps * recipe.batch * windows.shape[1], "windows": len(windows)}


def recipe_of(settings: Settings, model: Any, length: int) -> training.Recipe:
    """How a model is trained on windows of ``length`` tokens."""
    assert settings.tokens is not None
    hidden = model.get_input_embeddings().weight.shape[1]
    rate = settings.learning_rate or training.default_rate(hidden)
    recipe = training.Recipe(0, rate, rank=settings.rank, distill=settings.distill, seed=settings.seed)
    return replace(recipe, steps=max(1, round(settings.tokens / (recipe.batch * length))))


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
    parts = Storage.of(small, models.build_twin(models.read_config(pruned))).parts
    names = {part.parameter: name for name, part in parts.items() if not part.fixed}
    found = Adapter.open(adapter, small, names)
    merge = settings.adapter == "merge"
    write_folder(plan, Slice.of(small, {}, merged=found if merge else None), folder, progress=progress)
    shutil.copyfile(adapter / LOG, folder / "lorashear" / LOG)
    if not merge:
        write_adapter(found, {}, folder / "adapter")
        return plan
    original = {new: name for name, new in plan.names.items() if new is not None}
    result = Checkpoint.open(folder)
    hashes = {original.get(n, n): hashlib.sha256(result.read(n).tobytes()).hexdigest() for n in found.adapted}
    plan = replace(plan, changed={**plan.changed, **hashes})
    plan.save(folder / "lorashear" / "plan.json")
    return plan
