"""What work will take, known before it begins: bytes read and written, room on the disk, memory. No torch here."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lorashear.config import BATCH, STATES, Settings, Training
from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.slicing import Slice, buffer_bytes

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Sizes:
    """Of a model and what it reads: the shapes of its parameters, the tokens that go through it at once to measure a loss, those of
    a window, the width of its residual stream, the pieces of its vocabulary, its layers."""

    shapes: tuple[tuple[int, ...], ...]
    batch: int
    length: int
    hidden: int
    vocabulary: int
    layers: int

    @property
    def weights(self) -> int:
        """How many it has."""
        return sum(map(math.prod, self.shapes))

    @property
    def sides(self) -> int:
        """Rows and columns of all matrices."""
        return sum(sum(shape) for shape in self.shapes if len(shape) == 2)


@dataclass(frozen=True)
class Estimate:
    """Bytes: ``read`` and ``written`` at most, the latter exactly for a slice, but for files of some kilobytes beside the
    tensors; ``room`` on the disk at most while it works, ``free`` there now; ``memory`` at most on ``device``, beyond the
    interpreter and what it imports."""

    read: int
    written: int
    room: int
    free: int
    memory: int
    device: str = "cpu"

    @classmethod
    def of(cls, wanted: Slice, target: Path) -> Self:
        """For a slice that goes to a folder, which need not exist yet."""
        return cls(
            read=wanted.source.bytes,
            written=wanted.layout.bytes,
            room=wanted.layout.bytes,
            free=_free(target),
            memory=buffer_bytes(wanted),
        )

    @classmethod
    def of_compile(
        cls, source: Checkpoint, sizes: Sizes, settings: Settings, target: Path, *, tokens: int, shares: int = 1
    ) -> Self:
        """For a model of these sizes.

        ``tokens`` are calibrated on, 0 without text, when nothing is refitted; ``shares`` is how many processes hold a part of the
        weights each while they train.

        The model is held once to compute with and, at most, once more as refitted weights; the widest input of a matrix
        has a covariance in float32 and five matrices of its size in float64 while it is ordered and refitted; three states
        of the residual stream are held for every token, and four of the widest input and two of the logits for a batch.

        To train, the pruned model and, where it distils, the dense one are held; for LHSPG the dense one twice, and what it
        fades to. What is trained is held five times in float32 (itself, its gradient, two moments, as it last was good); and for a part of
        a batch the input and output of every matrix thrice, and six times the logits in float32; where activations are computed
        twice, only those of one layer, and four states of the residual stream for each.
        """
        itemsize = _itemsize(settings)
        rows, widest = max(
            (shape for shape in sizes.shapes if len(shape) == 2), key=lambda shape: shape[1], default=(0, 0)
        )
        weights = sizes.weights * itemsize
        refit = 44 * widest**2 + 16 * rows * widest + weights + 3 * tokens * sizes.hidden * itemsize
        measured = sizes.batch * (4 * widest + 2 * sizes.vocabulary) * itemsize
        copies = 3 if settings.lhspg else 1 - settings.share + _beside(settings)
        training = _training(sizes, settings, 1 - settings.share) + _held(copies * weights, sizes, 2 * weights, shares)
        passes = 2 if settings.tokens else 1  # the pruned model is written, read and merged
        return cls(
            read=4 * source.bytes * passes,  # looked through for NaN, loaded, hashed, sliced
            written=source.bytes * passes,
            room=source.bytes * passes + (_states(sizes, settings) if settings.tokens else 0),
            free=_free(target),
            memory=max(weights + (refit + measured if tokens else 0), training if settings.tokens else 0),
            device=settings.device,
        )

    @classmethod
    def of_recover(
        cls, pruned: Checkpoint, sizes: Sizes, dense: int, settings: Training, target: Path, *, shares: int = 1
    ) -> Self:
        """For a pruned model of these sizes beside a dense one of so many parameters, as `of_compile`."""
        itemsize = _itemsize(settings)
        weights = itemsize * (sizes.weights + dense * _beside(settings))
        return cls(
            read=2 * pruned.bytes + 2 * dense * itemsize,
            written=pruned.bytes,
            room=pruned.bytes + _states(sizes, settings),
            free=_free(target),
            memory=_training(sizes, settings, 1.0) + _held(weights, sizes, weights, shares),
            device=settings.device,
        )

    def __str__(self) -> str:
        read, written, free, most = map(_said, (self.read, self.written, self.free, self.memory))
        on = "" if self.device == "cpu" else f" on {self.device}"
        return f"reads {read} at most, writes {written} ({free} are free), in {most} of memory{on}, beside what the program itself takes"


def _said(count: int) -> str:
    """Bytes with three digits."""
    unit, name = next((each for each in UNITS if count >= each[0]), (1, "bytes"))
    return f"{float(f'{count / unit:.3g}'):g} {name}"


def _itemsize(settings: Training) -> int:
    """Bytes of a weight that is computed with."""
    return 4 if settings.dtype == "float32" or (settings.dtype is None and settings.device == "cpu") else 2


def _beside(settings: Training) -> int:
    """Whether the dense model is in memory while the pruned one trains; where nobody has said so, it is asked whether it fits."""
    return int(settings.distill != 0 and settings.distill_top_k is None)


def _training(sizes: Sizes, settings: Training, kept: float) -> int:
    """Bytes that training takes beside the models, of which it trains one with the share ``kept`` of the weights."""
    part = settings.micro_batch * sizes.length if settings.micro_batch else min(sizes.batch, BATCH * sizes.length)
    states = 3 * sizes.sides
    if settings.gradient_checkpointing:
        states = states // sizes.layers + 4 * sizes.layers * sizes.hidden
    trained = _trained(sizes, settings, kept)
    return round(20 * trained) + part * (states * _itemsize(settings) + 24 * sizes.vocabulary)


def _states(sizes: Sizes, settings: Training) -> int:
    """Bytes on the disk of what training leaves there until its end: a value and two moments in float32 for what is trained, in the
    states that are kept and the one that is being written; and its value behind each of three stages."""
    return round(4 * (3 * (STATES + 1) + 3) * _trained(sizes, settings, 1.0))


def _trained(sizes: Sizes, settings: Training, kept: float) -> float:
    """How many weights are trained, of a model that keeps so much of them."""
    return sizes.weights * kept if settings.full else settings.rank * sizes.sides


def _held(models: float, sizes: Sizes, every: float, shares: int) -> int:
    """Bytes of the weights of models, of which a layer each is gathered while it computes where they lie in parts."""
    return round(models / shares) + (round(every) // sizes.layers if shares > 1 else 0)


def _free(target: Path) -> int:
    target = target.expanduser().resolve()
    return shutil.disk_usage(next(folder for folder in (target, *target.parents) if folder.exists())).free
