"""What work will take, known before it begins: bytes read and written, room on the disk, memory. No torch here."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lorashear.checkpoint import Checkpoint
from lorashear.config import BATCH, Settings
from lorashear.slicing import Slice, buffer_bytes


@dataclass(frozen=True)
class Estimate:
    """Bytes: ``read`` and ``written`` at most, the latter exactly for a slice, but for files of some kilobytes beside the
    tensors; ``free`` on the disk now; ``memory`` at most on ``device``, beyond the interpreter and what it imports."""

    read: int
    written: int
    free: int
    memory: int
    device: str = "cpu"

    @classmethod
    def of(cls, wanted: Slice, target: Path) -> Self:
        """For a slice that goes to a folder, which need not exist yet."""
        return cls(
            read=wanted.source.bytes, written=wanted.layout.bytes, free=_free(target), memory=buffer_bytes(wanted)
        )

    @classmethod
    def of_compile(
        cls,
        source: Checkpoint,
        shapes: Collection[tuple[int, ...]],
        settings: Settings,
        target: Path,
        *,
        tokens: int,
        batch: int,
        length: int,
        hidden: int,
        vocabulary: int,
        layers: int,
        shares: int = 1,
    ) -> Self:
        """For a model whose parameters have these shapes.

        ``tokens`` are calibrated on, and ``batch`` go through the model at once to measure a loss: 0 without text, when
        nothing is refitted. ``length`` is that of a window; ``shares`` is how many processes hold a part of the weights each
        while they train.

        The model is held once to compute with and, at most, once more as refitted weights; the widest input of a matrix
        has a covariance in float32 and five matrices of its size in float64 while it is ordered and refitted; three states
        of the residual stream are held for every token, and four of the widest input and two of the logits for a batch.

        To train, the pruned model and, where it distils, the dense one are held; for LHSPG the dense one twice, and what it
        fades to. What is trained is held five times in float32 (itself, its gradient, two moments, as it last was good); and for a part of
        a batch the input and output of every matrix thrice, and six times the logits in float32; where activations are computed
        twice, only those of one layer, and four states of the residual stream for each.
        """
        itemsize = 4 if settings.dtype == "float32" or (settings.dtype is None and settings.device == "cpu") else 2
        rows, widest = max((shape for shape in shapes if len(shape) == 2), key=lambda shape: shape[1], default=(0, 0))
        weights = sum(map(math.prod, shapes)) * itemsize
        refit = 44 * widest**2 + 16 * rows * widest + weights + 3 * tokens * hidden * itemsize
        measured = batch * (4 * widest + 2 * vocabulary) * itemsize
        sides = sum(sum(shape) for shape in shapes if len(shape) == 2)
        part = settings.micro_batch * length if settings.micro_batch else min(batch, BATCH * length)
        kept = 3 * sides
        if settings.gradient_checkpointing:
            kept = kept // layers + 4 * layers * hidden
        trained = sum(map(math.prod, shapes)) * (1 - settings.ratio) if settings.full else settings.rank * sides
        training = round(20 * trained) + part * (kept * itemsize + 24 * vocabulary)
        copies = 3 if settings.lhspg else 1 - settings.ratio + (1 if settings.distill else 0)
        gathered = 2 * weights // layers if shares > 1 else 0  # of a layer of each model, while it computes
        training += round(copies * weights / shares) + gathered
        passes = 2 if settings.tokens else 1  # the pruned model is written, read and merged
        return cls(
            read=4 * source.bytes * passes,  # looked through for NaN, loaded, hashed, sliced
            written=source.bytes * passes,
            free=_free(target),
            memory=max(weights + (refit + measured if tokens else 0), training if settings.tokens else 0),
            device=settings.device,
        )

    def __str__(self) -> str:
        read, written, free = (f"{count / 1e9:.2f} GB" for count in (self.read, self.written, self.free))
        on = "" if self.device == "cpu" else f" on {self.device}"
        most = f"{self.memory / 1e9:.2f} GB" if self.memory > 1e9 else f"{self.memory / 1e6:.0f} MB"
        return f"reads {read} at most, writes {written} ({free} are free), in {most} of memory{on}"


def _free(target: Path) -> int:
    target = target.expanduser().resolve()
    return shutil.disk_usage(next(folder for folder in (target, *target.parents) if folder.exists())).free
