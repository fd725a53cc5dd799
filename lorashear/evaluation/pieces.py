"""What was found of a model so far, piece by piece, so that a run that was stopped goes on behind the last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Pieces:
    """JSON values in one order, each with its place; those of a ``file`` outlive the process. Two runs that find the same at once do not
    disturb each other: a piece that is there twice is there once."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        found = dict(_read(file)) if file and file.exists() else {}
        self.found = [found[at] for at in range(len(found)) if at in found]

    def add(self, piece: Any) -> None:
        """The next one, which is kept from now on."""
        if self._file:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                # On a line of its own, even behind one that was not written to its end.
                file.write(f"\n{json.dumps([len(self.found), piece])}\n")
        self.found.append(piece)


def _read(file: Path) -> list[tuple[int, Any]]:
    """Places and pieces; a line that is not whole is none."""
    found: list[tuple[int, Any]] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            at, piece = json.loads(line)
        except (ValueError, TypeError):
            continue
        found.append((at, piece))
    return found
