"""Tasks of a user's own in the harness's task files: whatever metrics they have."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from lorashear.evaluation import harness
from lorashear.evaluation.asked import Asked
from lorashear.evaluation.choices import positions
from lorashear.evaluation.measures import Finding, Told, known, noise
from lorashear.evaluation.pieces import Pieces
from lorashear.evaluation.subjects import Subject
from lorashear.evaluation.task_files import TaskFile
from lorashear.evaluation.uncertainty import paired_error


@dataclass(frozen=True)
class OfTaskFile:
    """On the task that a file describes."""

    file: TaskFile
    asked: Asked

    @property
    def name(self) -> str:
        """Of the task."""
        return self.file.name

    @cached_property
    def sha256(self) -> str:
        """Of the task's files, and of its data."""
        found = hashlib.sha256()
        for path in self.file.files:
            found.update(hashlib.sha256(path.read_bytes()).digest())
        return found.hexdigest()

    @property
    def about(self) -> dict[str, Any]:
        """For the report."""
        config = self.file.config
        split = config.get("test_split") or config.get("validation_split")
        data = {"file": str(self.file.path), "split": split, "sha256": self.sha256}
        return {"kind": "harness", "name": self.name, "data": data, "limit": self.asked.limit, "seed": harness.SEED}

    def of(self, subject: Subject, model: nn.Module, progress: Told, pieces: Pieces) -> Finding:
        """The harness's metrics, with its standard errors."""
        found = harness.run(model, subject.reader, [self.file.path], limit=self.asked.limit, progress=progress)[
            self.name
        ]
        errors = {name: known(error) for name, error in found.errors.items()}
        result = {"metrics": found.metrics, "errors": errors, "context": positions(model, subject.reader)}
        return Finding(result, {name: values.tolist() for name, values in found.items.items()})

    def difference(self, first: Finding, other: Finding) -> dict[str, Any]:
        """Of each metric; its standard error by pairs of items where each of them has a value that the metric is the mean of."""
        found: dict[str, Any] = {"metrics": {}, "errors": {}, "noise": {}}
        for name, value in first.result["metrics"].items():
            difference = other.result["metrics"][name] - value
            errors = [each.result["errors"].get(name) for each in (first, other)]
            error = None if None in errors else math.hypot(*errors)
            one, two = first.each.get(name), other.each.get(name)
            if one and two and math.isclose(sum(one) / len(one), value, rel_tol=1e-9, abs_tol=1e-12):
                error = known(paired_error(two, one))
            found["metrics"][name], found["errors"][name] = difference, error
            found["noise"][name] = noise(difference, error)
        return found
