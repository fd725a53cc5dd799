"""The files of a checkpoint before a byte of them is written: which tensor goes where, every header, the index.

Layout of a safetensors file: u64 length of the header, the header as JSON, the tensors without gaps. No torch here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lorashear.disk.checkpoint import INDEX, NUMPY_DTYPES, SINGLE

SHARD_BYTES = 5_000_000_000
"""Where a checkpoint is split unless asked otherwise: the default of huggingface_hub."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Placed:
    """A tensor and where it begins, counted from the start of its file."""

    name: str
    dtype: str
    shape: Shape
    begin: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize

    @property
    def end(self) -> int:
        return self.begin + self.bytes


@dataclass(frozen=True)
class Shard:
    """One file: its name, all that stands before the tensors, and the tensors in the order in which they lie."""

    name: str
    header: bytes
    tensors: tuple[Placed, ...]

    @property
    def bytes(self) -> int:
        return self.tensors[-1].end if self.tensors else len(self.header)


@dataclass(frozen=True)
class Layout:
    """All files of a checkpoint. With one shard there is no index."""

    shards: tuple[Shard, ...]

    @cached_property
    def index(self) -> bytes:
        """The index file; empty where there is none."""
        if len(self.shards) == 1:
            return b""
        tensors = [(each, shard.name) for shard in self.shards for each in shard.tensors]
        weight_map = {each.name: file for each, file in tensors}
        content = {"metadata": {"total_size": sum(each.bytes for each, _ in tensors)}, "weight_map": weight_map}
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files."""
        return (*(shard.name for shard in self.shards), *((INDEX,) if self.index else ()))

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(shard.bytes for shard in self.shards) + len(self.index)


def layout(tensors: Mapping[str, tuple[str, Shape]], most: int = SHARD_BYTES) -> Layout:
    """Tensors by name, each with its dtype and shape, filled in order into as few shards as that order allows.

    A shard exceeds ``most`` bytes of tensors only where a single tensor does.
    """
    shards: list[list[str]] = [[]]
    used = 0
    for name in tensors:
        size = Placed(name, *tensors[name], 0).bytes
        if shards[-1] and used + size > most:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    single = len(shards) == 1
    files = [SINGLE if single else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    return Layout(
        tuple(_shard(file, {n: tensors[n] for n in names}) for file, names in zip(files, shards, strict=True))
    )


def _shard(file: str, tensors: Mapping[str, tuple[str, Shape]]) -> Shard:
    # Wide dtypes first keeps every tensor aligned; safetensors orders so itself, then this changes nothing.
    ordered = sorted(tensors, key=lambda name: -NUMPY_DTYPES[tensors[name][0]].itemsize)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    placed: list[Placed] = []
    position = 0
    for name in ordered:
        each = Placed(name, *tensors[name], position)
        placed.append(each)
        position = each.end
        entries[name] = {"dtype": each.dtype, "shape": each.shape, "data_offsets": [each.begin, each.end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin aligned
    header = len(text).to_bytes(8, "little") + text
    return Shard(
        file, header, tuple(Placed(each.name, each.dtype, each.shape, len(header) + each.begin) for each in placed)
    )
