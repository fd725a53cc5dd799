"""What training has come to, on disk now and then, so that a run that was stopped goes on to the same result.

A snapshot is one file of safetensors: what is trained, the optimizer's moments, the state of what is random, and what goes
along with training. The base model is not in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorashear.config import STATES
from lorashear.errors import LorashearError

UNFINISHED = "new"


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """What training leaves in a folder is written here; LorashearError where the disk takes no more."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise LorashearError(
            f"the state of training cannot be written to '{folder}': {error}; make room there"
        ) from error


@dataclass
class Snapshots:
    """In a folder, which is made when the first is written; ``every`` so many steps, or seconds where ``seconds`` are given."""

    folder: Path
    steps: int | None = None
    seconds: float | None = 600.0
    saved: Callable[[int], None] | None = None
    """Called with the step of each that is on disk."""

    def __post_init__(self) -> None:
        self._saved = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether one is to be written after this step."""
        if self.steps is not None:
            return step % self.steps == 0
        return self.seconds is not None and time.monotonic() - self._saved >= self.seconds

    def save(self, step: int, state: Mapping[str, Tensor]) -> None:
        """The state after a step; it appears whole or not at all.

        Raises:
            LorashearError: the disk takes no more.
        """
        with written_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = self.folder / UNFINISHED
            save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, fresh)
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())
            fresh.replace(self.folder / f"step-{step:08}.safetensors")
        if self.saved:
            self.saved(step)
        for old in self._files()[:-STATES]:
            old.unlink()
        self._saved = time.monotonic()

    def last(self) -> tuple[int, dict[str, Tensor]]:
        """The steps that were done, and the state after them: (0, {}) where there is none."""
        for path in reversed(self._files()):
            try:
                return int(path.stem.removeprefix("step-")), load_file(path)
            except (OSError, SafetensorError, ValueError):
                continue
        return 0, {}

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))
