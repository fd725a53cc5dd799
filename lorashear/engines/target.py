"""What a format of an engine is: whether it can hold a result, and how that is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorashear.disk.checkpoint import Checkpoint

Told = Callable[[int, int], None]
"""Called with how much is written, and all."""


@dataclass(frozen=True)
class Wish:
    """What may be chosen: ``dtype`` of the weights, as stored by default, in the words of the format."""

    dtype: str | None = None


class Target(Protocol):
    """A format. Its writer gets a path on the disk where the export will be, which becomes that once all is written."""

    @property
    def name(self) -> str:
        """As `--to` has it."""
        ...

    @property
    def engines(self) -> str:
        """Who loads it."""
        ...

    @property
    def is_file(self) -> bool:
        """Whether it is one file, and not a folder."""
        ...

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Those that its weights can have."""
        ...

    def refusal(self, source: Checkpoint) -> str | None:
        """Why it cannot hold a model, in half a sentence; None where it can. Reads no weights, and imports no engine."""
        ...

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """That the export takes on the disk, about."""
        ...

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """Write it, tensor by tensor, and say what was done that one should know, or nothing.

        Raises LorashearError where a package is missing, with the line that installs it.
        """
        ...
