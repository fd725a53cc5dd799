"""What a run that was stopped has found already, so that the same one goes on from there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from lorashear import cache
from lorashear.checkpoint import json_object
from lorashear.evaluation.asked import Asked
from lorashear.evaluation.measures import Finding, Measure
from lorashear.evaluation.subjects import Subject
from lorashear.folder import write_json
from lorashear.output import output_file


@dataclass(frozen=True)
class Unfinished:
    """In a folder of the cache, which is gone when the run has ended: what is reported was computed by the run that reports it, or by
    one that was stopped before it."""

    folder: Path

    @classmethod
    def of(cls, asked: Asked, subjects: Sequence[Subject], measures: Sequence[Measure], made_with: Any) -> Self:
        """Found by all that decides what will be found: what is asked for, weights, data and versions."""
        known = [asdict(asked), [each.sha256 for each in subjects], [each.about for each in measures], made_with]
        name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        return cls(cache.folder() / "evaluations" / name)

    def finding(self, model: int, measure: int, find: Callable[[], Finding]) -> Finding:
        """What was found before, or else what is found now."""
        path = self.folder / f"{model}-{measure}.json"
        if path.exists():
            held = json_object(path.read_bytes(), f"'{path}'")
            return Finding(held["result"], held["each"])
        found = find()
        cache.check_room(self.folder, 100 * sum(map(len, found.each.values())), "what was found", "ask for less")
        with output_file(path, overwrite=True) as work:
            write_json(work, asdict(found))
        return found

    def done(self) -> None:
        """Nothing is left to go on with."""
        shutil.rmtree(self.folder, ignore_errors=True)
