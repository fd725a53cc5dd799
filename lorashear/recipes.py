"""How adapters are trained: how long, how fast, and on which windows in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorashear.config import BATCH, Settings
from lorashear.data import tokens_in

WARM_UP = 0.1  # share of the steps in which the rate rises to its highest: a pruned model's first gradients are large


@dataclass(frozen=True)
class Recipe:
    """How adapters are trained."""

    steps: int
    rate: float  # the highest learning rate; a cosine leads down from it to zero
    rank: int = Settings.rank
    batch: int = BATCH  # windows a step, of all processes together
    distill: float = Settings.distill  # share of the loss that the dense model has, the rest that of the text itself
    seed: int = 0
    micro_batch: int | None = None  # windows at once in each process; by default as many as keep the logits small

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, the first one being 1: a straight rise, then a cosine to zero at the last step."""
        done, rise = step - 1, max(1, round(WARM_UP * self.steps))
        if done < rise:
            return self.rate * ((done + 1) / rise)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, self.steps - rise)))

    def batches(self, windows: Tensor) -> Iterator[Tensor]:
        """[batch, length] for each step, from one shuffled pass over the windows after another.

        Which windows a step sees depends on the seed and the step alone.
        """
        order = torch.empty(0, dtype=torch.long)
        for turn, _ in enumerate(range(self.steps)):
            while len(order) < self.batch:
                generator = torch.Generator().manual_seed(1_000_003 * self.seed + turn)
                order = torch.cat([order, torch.randperm(len(windows), generator=generator)])
            yield windows[order[: self.batch]]
            order = order[self.batch :]


def recipe(settings: Settings, model: Any, windows: Tensor) -> Recipe:
    """How a PeftModel is trained on as many tokens of some windows as the settings say."""
    assert settings.tokens is not None
    rate = settings.learning_rate or default_rate(model.get_input_embeddings().weight.shape[1])
    steps = max(1, round(settings.tokens * len(windows) / (settings.batch * tokens_in(windows))))
    ranks = [config.r for config in model.peft_config.values()]
    return Recipe(steps, rate, max(ranks), settings.batch, settings.distill, settings.seed, settings.micro_batch)


def default_rate(hidden: int) -> float:
    """The highest learning rate for a model of this width: 5e-4 · (2000 / hidden)^0.78.

    Measured for LoRA at α = 32 on models of the LLaMA family (Schulman et al., LoRA Without Regret, 2025).
    """
    return 5e-4 * (2000 / hidden) ** 0.78
