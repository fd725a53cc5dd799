"""How adapters are trained: how long and how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lorashear.config import BATCH, DISTILL, Training

WARM_UP = 0.1  # share of the steps in which the rate rises to its highest: a pruned model's first gradients are large

WHOLE = 0.1
"""Of the best learning rate of LoRA is that of all weights (Schulman et al., LoRA Without Regret, 2025)."""


@dataclass(frozen=True)
class Hyperparameters:
    """How adapters are trained."""

    steps: int
    rate: float  # the highest learning rate; a cosine leads down from it to zero
    rank: int = Training.rank  # 0 where all weights are trained
    batch: int = BATCH  # windows a step, of all processes together
    distill: float = DISTILL  # share of the loss that the dense model has, the rest that of the text itself
    seed: int = 0
    micro_batch: int | None = None  # windows at once in each process; by default as many as keep the logits small
    before: int = 0  # steps of the same schedule that another training did
    schedule: int | None = None  # all of its steps, where they are not just these

    def done(self, step: int) -> float:
        """The share of the schedule's steps that are done before this one, the first one being 1."""
        return (self.before + step - 1) / (self.schedule or self.steps)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, the first one being 1: a straight rise, then a cosine to zero at the last step."""
        every = self.schedule or self.steps
        done, rise = self.before + step - 1, max(1, round(WARM_UP * every))
        if done < rise:
            return self.rate * ((done + 1) / rise)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, every - rise)))


def of(settings: Training, model: Any, steps: int) -> Hyperparameters:
    """How a PeftModel, or a model as a whole, is trained in so many steps, by the settings."""
    adapters = getattr(model, "peft_config", {}).values()
    rate = default_rate(model.get_input_embeddings().weight.shape[1]) * (1 if adapters else WHOLE)
    rank = max((config.r for config in adapters), default=0)
    return Hyperparameters(
        steps,
        settings.learning_rate or rate,
        rank,
        settings.batch,
        settings.distill or 0.0,
        settings.seed,
        settings.micro_batch,
    )


def default_rate(hidden: int) -> float:
    """The highest learning rate for a model of this width: 5e-4 · (2000 / hidden)^0.78.

    Measured for LoRA at α = 32 on models of the LLaMA family (Schulman et al., LoRA Without Regret, 2025).
    """
    return 5e-4 * (2000 / hidden) ** 0.78
