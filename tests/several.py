"""Trainings that one process does, or several that a launcher has started: `python several.py OUT` writes what came of them."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from lorashear import models
from lorashear.adapters import quiet
from lorashear.learning import sharding, training
from lorashear.learning.mixture import Mixture
from lorashear.learning.processes import Processes
from lorashear.learning.sharding import SharedWeights, full
from lorashear.learning.teaching import Online
from lorashear.text.data import READ
from lorashear_passes.lhspg import Lhspg, Schedule
from lorashear_passes.surgery import Settings, units
from test_lhspg import batches
from test_theorem import random_llama

STEPS = 7
FORMS = {
    "LoRA": None,
    "decay": (Schedule(1, 2, 2), Settings()),
    "half-space": (Schedule(1, 2, 2, "half-space"), Settings(criterion="lora", compensate=False)),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CASES = [*product(FORMS, ("whole", "sharded"), ("float32",)), ("LoRA", "sharded", "bfloat16")]


def learner(dtype: str) -> Any:
    """The same one in every process."""
    torch.manual_seed(1)
    with quiet():
        return get_peft_model(
            random_llama("tied").to(DTYPES[dtype]), LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"])
        )


def trained(processes: Processes, form: str, how: str, dtype: str) -> dict[str, Any]:
    """The losses of the steps, the weights afterwards, and what was removed; three windows a step."""
    model, teacher = learner(dtype), random_llama("tied").to(DTYPES[dtype])
    companion = None
    if settings := FORMS[form]:
        chosen = dict(models.analysed(model).only(("head", "query", "ffn")).items())
        widths = {name: -(-units(group) // 2) for name, group in chosen.items()}
        weights = SharedWeights(model, processes, lambda: learner(dtype))
        companion = Lhspg(model, chosen, widths, batches(), *settings, weights)
    if how == "sharded" and processes.size > 1:
        sharding.shard(model, processes)
        sharding.shard(teacher, processes)
    steps: list[dict[str, float]] = []
    text = torch.cat([batch["input_ids"] for batch in batches(4)])
    text[::2, :3] = READ - text[::2, :3]  # of which the dense model says nothing, so that a process may have none other
    training.train(
        model,
        Mixture.of(text, training.Hyperparameters(STEPS, 1e-2, batch=3, micro_batch=1)),
        teacher=Online(teacher),
        companion=companion,
        stepped=lambda step: steps.append({"loss": step.loss, "text": step.text}),
        processes=processes,
    )
    here = sum(sharding.local(parameter.detach()).numel() for parameter in model.parameters())
    return {
        "steps": steps,
        "weights": {name: full(parameter.detach()) for name, parameter in model.named_parameters()},
        "removed": companion.removed if companion else {},
        "here": here,
    }


if __name__ == "__main__":
    together = Processes()
    found = {case: trained(together, *case) for case in CASES}
    torch.save(found, Path(sys.argv[1]) / f"{together.rank}.pt")
