"""What a run that was stopped has found already, so that the same one, or one like it, goes on from there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorashear import cache
from lorashear.disk.checkpoint import json_object
from lorashear.disk.folder import write_json
from lorashear.disk.output import output_file
from lorashear.errors import LorashearError
from lorashear.evaluation.measures import Finding, Measure
from lorashear.evaluation.pieces import Pieces
from lorashear.evaluation.subjects import Subject

DAYS = 30
"""After which nobody goes on."""


@dataclass
class Unfinished:
    """Files of the cache, which are gone when the run has ended: what is reported was found by the run that reports it, or by one that
    was stopped before it. ``made_with`` is what computes, and how."""

    made_with: Any
    _files: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._folder = cache.folder() / "evaluations"
        cache.check_room(self._folder, 1 << 20, "what was found", "ask for less")
        for old in self._folder.glob("*.json*"):
            if time.time() - old.stat().st_mtime > 86400 * DAYS:
                old.unlink(missing_ok=True)

    def finding(self, subject: Subject, measure: Measure, find: Callable[[Pieces], Finding]) -> Finding:
        """What was found before of the same weights, tokenizer and data, or else what is found now, behind the pieces that were."""
        known = [subject.sha256, subject.reads, subject.trust_remote_code, measure.about, self.made_with]
        name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        path, pieces = self._folder / f"{name}.json", self._folder / f"{name}.jsonl"
        self._files += [path, pieces]
        if path.exists():
            held = json_object(path.read_bytes(), f"'{path}'")
            return Finding(held["result"], held["each"])
        try:
            found = find(Pieces(pieces))
        except LorashearError:  # it would come out again
            pieces.unlink(missing_ok=True)
            raise
        with output_file(path, overwrite=True) as work:
            write_json(work, asdict(found))
        pieces.unlink(missing_ok=True)
        return found

    def done(self) -> None:
        """Nothing is left to go on with."""
        for path in self._files:
            path.unlink(missing_ok=True)
