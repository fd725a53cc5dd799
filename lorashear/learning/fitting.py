"""How large a model is, and whether the dense one fits into memory beside the pruned one that learns from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from transformers import PreTrainedModel

from lorashear.config import DISTILL, Training
from lorashear.disk.estimate import Estimate, Sizes
from lorashear.learning import launched, sharding
from lorashear.likelihood import batch_size
from lorashear.terminal.stages import Say
from lorashear.text.calibration import window_length

T = TypeVar("T", bound=Training)
SETTLED = "settled.json"


def settled(settings: T, estimate: Callable[[T], Estimate], say: Say | None = None) -> T:
    """The settings with the share of the loss that the dense model has, where nobody has said it: `DISTILL` if it fits, or need
    not be in memory; else none, and that is said."""
    if settings.distill is not None or settings.tokens is None:
        return settings
    wanted = replace(settings, distill=DISTILL)
    if settings.distill_top_k is not None:
        return wanted
    needed, there = estimate(wanted).memory, available(settings.device)
    if needed <= there:
        return wanted
    if say:
        say(
            f"training beside the dense model takes {needed / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB are free: the text "
            "alone is learned from; --distill-top-k 32 lets the dense model teach from a file, and --distill 0.8 as it is"
        )
    return replace(settings, distill=0.0)


def kept(work: Path, settings: T) -> T:
    """The settings with what an earlier run in a folder for work has settled, which goes on; else with what this one has."""
    path = work / SETTLED
    if path.exists():
        return replace(settings, **json.loads(path.read_text(encoding="utf-8")))
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"distill": settings.distill}), encoding="utf-8")
    return settings


def sizes(twin: PreTrainedModel, settings: Training) -> Sizes:
    """Of a model and what it will read."""
    table: Any = twin.get_input_embeddings()
    vocabulary, hidden = map(int, table.weight.shape)
    length = window_length(twin.config, settings)
    return Sizes(
        tuple(tuple(p.shape) for p in twin.parameters()),
        batch_size(length, vocabulary) * length,
        length,
        hidden,
        vocabulary,
        int(getattr(twin.config.get_text_config(), "num_hidden_layers", None) or 1),
    )


def shares(settings: Training) -> int:
    """How many processes hold a part of the weights each."""
    return launched.count() if sharding.wanted(settings.fsdp) else 1


def available(device: str) -> int:
    """Bytes of memory that are free on a device, for this process where several share it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return psutil.virtual_memory().available // launched.count()
