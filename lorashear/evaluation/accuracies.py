"""Accuracy on multiple choice, with its standard error, and where it is no better than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from lorashear.emission.declared import vocabulary
from lorashear.evaluation import harness
from lorashear.evaluation.asked import Asked
from lorashear.evaluation.choices import positions, score
from lorashear.evaluation.items import Suite
from lorashear.evaluation.measures import NOISE, Finding, Told, known, noise
from lorashear.evaluation.pieces import Pieces
from lorashear.evaluation.subjects import Subject
from lorashear.evaluation.uncertainty import mean_error, paired_error
from lorashear.likelihood import batch_size

KINDS = ("accuracy", "normalised")
"""By the likelihood of the whole choice, and by that for each of its characters."""

FEWEST = 6
"""Items that two models must answer differently for a difference to be more than noise: by a sign test, five of five still are."""


@dataclass(frozen=True)
class OfSuite:
    """On the items of one task, of which the limit is known."""

    suite: Suite
    asked: Asked

    @property
    def name(self) -> str:
        """Of the task."""
        return self.suite.name

    @property
    def about(self) -> dict[str, Any]:
        """For the report."""
        return {
            "kind": "choices",
            "name": self.name,
            "data": self.suite.source,
            "items": len(self.suite.items),
            "chance": self.suite.chance,
            "chance_error": self.suite.chance_error,
            "limit": self.asked.limit,
            "seed": self.asked.seed,
            "by": "lm_eval" if self.asked.harness else "lorashear",
        }

    def of(self, subject: Subject, model: nn.Module, progress: Told, pieces: Pieces) -> Finding:
        """The share of items whose gold choice is the likeliest; ``truncated`` counts choices whose beginning did not fit the context,
        which is all that the model can read."""
        if self.asked.harness:
            rows = min(8, batch_size(positions(model, subject.reader), vocabulary(subject.config)))
            found = harness.score(model, subject.reader, [self.suite], batch=rows, progress=progress)[self.name]
            each = {"accuracy": found.correct, "normalised": found.normalised}
            return finding(each, self.suite, context=positions(model, subject.reader))
        own = score(model, subject.reader, self.suite, progress=progress, pieces=pieces)
        each = {"accuracy": own.correct, "normalised": own.normalised}
        context = positions(model, subject.reader)
        return finding(each, self.suite, context=context, truncated=own.truncated)

    def difference(self, first: Finding, other: Finding) -> dict[str, Any]:
        """In shares, of the same items."""
        return compared(first, other)


def finding(each: Mapping[str, np.ndarray], suite: Suite, **more: Any) -> Finding:
    """Of what is right, item by item, by kind."""
    result: dict[str, Any] = {}
    for kind, right in each.items():
        share = float(np.mean(right))
        guessed = at_chance(share, suite.chance, suite.chance_error)
        result |= {kind: share, f"{kind}_error": known(mean_error(right)), f"{kind}_at_chance": guessed}
    return Finding({**result, **more}, {kind: np.asarray(right, float).tolist() for kind, right in each.items()})


def compared(first: Finding, other: Finding) -> dict[str, Any]:
    """The differences of shares of the same items, by kind."""
    found: dict[str, Any] = {}
    for kind in first.each:
        difference = other.result[kind] - first.result[kind]
        error = known(paired_error(other.each[kind], first.each[kind]))
        few = int(np.not_equal(first.each[kind], other.each[kind]).sum()) < FEWEST
        doubtful = None if error is None else few or noise(difference, error)
        found |= {kind: difference, f"{kind}_error": error, f"{kind}_noise": doubtful}
    return found


def at_chance(share: float, chance: float, error: float) -> bool:
    """Whether a share is no better than guessing could have been, whose standard error this is."""
    return share <= chance + NOISE * error


def average(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several tasks, each counted alike, as tables in the literature have it; their errors are independent of each other."""
    count = len(figures)

    def mean(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind in KINDS:
            found[kind] = float(np.mean([each[kind] for each in several]))
            errors = [each[f"{kind}_error"] for each in several]
            found[f"{kind}_error"] = None if None in errors else math.hypot(*errors) / count
        return found

    results = [mean([figure["results"][i] for figure in figures]) for i in range(len(figures[0]["results"]))]
    differences: list[Any] = [None]
    for i in range(1, len(results)):
        found = mean([figure["differences"][i] for figure in figures])
        differences.append(found | {f"{kind}_noise": noise(found[kind], found[f"{kind}_error"]) for kind in KINDS})
    chance = float(np.mean([figure["chance"] for figure in figures]))
    error = math.hypot(*(figure["chance_error"] for figure in figures)) / count
    for result in results:
        result |= {f"{kind}_at_chance": at_chance(result[kind], chance, error) for kind in KINDS}
    return {
        "kind": "average",
        "name": f"average of {count} tasks",
        "of": [figure["name"] for figure in figures],
        "chance": chance,
        "chance_error": error,
        "results": results,
        "differences": differences,
    }
