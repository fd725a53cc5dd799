"""What models cost to run, as figures of a report: all of them in memory at once, by turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from lorashear.evaluation.asked import Asked
from lorashear.evaluation.bandwidth import explained
from lorashear.evaluation.greedy import SEED
from lorashear.evaluation.speed import Cost, measure
from lorashear.evaluation.subjects import Subject, short
from lorashear.terminal.stages import Progress

OF_ALL = ("name", "batch", "prompt", "tokens", "rounds")
"""What is the same for all models, or said of them elsewhere."""
RATIOS = ("cache_bytes", "weight_bytes", "read_bytes", "peak_bytes")
"""Whose ratio is one of the figures themselves; that of speeds is within each round (see `Cost`)."""


def figures(
    subjects: Sequence[Subject], loaded: Sequence[nn.Module], asked: Asked, progress: Progress
) -> list[dict[str, Any]]:
    """One of each batch size. Raises LorashearError as `measure` does."""
    names = short([each.name for each in subjects])
    models = dict(zip(names, loaded, strict=True))
    folders = {
        name: each.folder for name, each in zip(names, subjects, strict=True) if each.folder and not each.adapter
    }
    costs = measure(
        models,
        batches=asked.batches,
        prompt=asked.prompt,
        tokens=asked.new_tokens,
        rounds=asked.rounds,
        warm_up=asked.warm_up,
        folders=folders,
        trust_remote_code=any(each.trust_remote_code for each in subjects),
        progress=progress,
    )
    count = len(subjects)
    return [_figure(costs[start : start + count], asked) for start in range(0, len(costs), count)]


def _figure(costs: Sequence[Cost], asked: Asked) -> dict[str, Any]:
    first = costs[0]
    return {
        "kind": "speed",
        "name": f"batch {first.batch}",
        "batch": first.batch,
        "prompt": first.prompt,
        "tokens": first.tokens,
        "rounds": first.rounds,
        "warm_up": asked.warm_up,
        "seed": SEED,
        "results": [{name: value for name, value in asdict(cost).items() if name not in OF_ALL} for cost in costs],
        "differences": [None, *(_ratios(first, cost) for cost in costs[1:])],
    }


def _ratios(first: Cost, other: Cost) -> dict[str, Any]:
    """To the first model, and why decoding gained what it did."""
    found: dict[str, Any] = {
        "prefill": other.prefill_ratio,
        "decode": other.decode_ratio,
        "decode_bound": other.decode_bound,
    }
    found["time_to_first_token"] = 1 / other.prefill_ratio
    found |= {"prefill_noise": other.prefill_noise, "decode_noise": other.decode_noise}
    found["explained"] = explained(first, other)
    for name in RATIOS:
        one, two = getattr(first, name), getattr(other, name)
        found[name] = two / one if one and two else None
    return found
