"""Tasks of a user's own in the harness's task files: whatever metrics they have."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from torch import nn

from lorashear.evaluation import harness
from lorashear.evaluation.asked import Asked
from lorashear.evaluation.choices import positions
from lorashear.evaluation.measures import Finding, Told, known, noise
from lorashear.evaluation.subjects import Subject
from lorashear.evaluation.task_files import task_config
from lorashear.evaluation.uncertainty import paired_error


@dataclass(frozen=True)
class OfTaskFile:
    """On the task that a file describes."""

    path: str
    asked: Asked

    @property
    def name(self) -> str:
        """Of the task. Raises LorashearError where the file is no such task."""
        return str(task_config(self.path)["task"])

    @property
    def about(self) -> dict[str, Any]:
        """For the report."""
        return {"kind": "harness", "name": self.name, "data": _origin(self.path), "limit": self.asked.limit}

    def of(self, subject: Subject, model: nn.Module, progress: Told) -> Finding:
        """The harness's metrics, with its standard errors."""
        progress(0, 1)
        found = harness.run(model, subject.reader, [self.path], limit=self.asked.limit)[self.name]
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


def _origin(path: str) -> dict[str, Any]:
    """The file, and a hash of it and of all data that it names."""
    found = hashlib.sha256(Path(path).read_bytes())
    for place in _files(task_config(path)["dataset_kwargs"]["data_files"]):
        for each in sorted(glob(place, recursive=True)):
            found.update(hashlib.sha256(Path(each).read_bytes()).digest())
    return {"file": path, "sha256": found.hexdigest()}


def _files(named: Any) -> list[str]:
    """Of one or several, or by split."""
    if isinstance(named, dict):
        named = list(named.values())
    return [place for each in named for place in _files(each)] if isinstance(named, list) else [str(named)]
