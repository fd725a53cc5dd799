"""How far a long write is, in a file that outlasts being killed, so that a later run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorashear.errors import LorashearError


@dataclass
class Journal:
    """What is being written (``job``, a hash of all that decides the bytes), and how much of each file.

    A position counts only bytes that were flushed to disk before it was noted.
    """

    path: Path
    job: str
    positions: dict[str, int]

    @classmethod
    def begin(cls, path: Path, job: str) -> Journal:
        """A new one."""
        journal = cls(path, job, {})
        journal._write()
        return journal

    @classmethod
    def resume(cls, path: Path, job: str) -> Journal:
        """The one that an earlier run left.

        Raises:
            LorashearError: it cannot be read, or is of another job.
        """
        again = "leave --resume out to start again"
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            held, positions = content["job"], content["positions"]
            positions = {str(name): int(position) for name, position in positions.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LorashearError(f"'{path}' does not say how far an earlier run was: {again}") from error
        if held != job:
            raise LorashearError(
                f"'{path}' is of another request, or the files that it names have changed since: {again}"
            )
        return cls(path, job, positions)

    def position(self, file: str) -> int:
        """How many bytes of a file are there."""
        return self.positions.get(file, 0)

    def note(self, file: str, position: int) -> None:
        """So many bytes of a file are on disk."""
        self.positions[file] = position
        self._write()

    def close(self) -> None:
        """All is written, or nothing is left."""
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        content: Mapping[str, Any] = {"job": self.job, "positions": self.positions}
        fresh = self.path.with_name(f"{self.path.name}.new")
        with fresh.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(content))
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self.path)
