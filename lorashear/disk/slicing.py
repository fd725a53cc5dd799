"""Cutting tensors on disk: reads a checkpoint, writes a smaller one, never holds more than two small buffers.

Nothing here imports torch. The gather moves bytes and knows no dtypes; only a scale looks at the numbers.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from lorashear.disk.checkpoint import FLOATS, INDEX, NUMPY_DTYPES, Checkpoint, as_float, not_finite, rounded
from lorashear.disk.journal import Journal
from lorashear.disk.layout import SHARD_BYTES, Layout, layout
from lorashear.disk.lora import Adapter
from lorashear.disk.output import NewFile
from lorashear.errors import LorashearError
from lorashear_ir.groups import TensorCut

_BLOCK = 1 << 20  # bytes; measured best for gather and pwrite (a block stays in the cache between the two)

SYNC_BYTES = 64_000_000
"""How much is written before the disk is asked to keep it, beside the writing of more: about what a stop may cost."""

_WHOLE = TensorCut({})
_Buffers = tuple[np.ndarray, np.ndarray]


def sliced(array: np.ndarray, cut: TensorCut, dtype: str) -> np.ndarray:
    """One array cut in memory, for checks: equals byte for byte what `write_slice` writes.

    `dtype` is the stored one ("BF16", then `array` holds uint16 bits). Raises LorashearError for indices out of range
    and for a scale that does not fit the dtype.
    """
    _final_shape("in memory", array.shape, cut)
    for dim, kept in cut.keep.items():
        array = np.take(array, np.asarray(kept, np.intp), axis=dim)
    return _scaled("in memory", array.reshape(-1), cut, dtype).reshape(array.shape)


@dataclass(frozen=True)
class Slice:
    """What is to be written: a checked cut of every tensor of a checkpoint, and the files that it goes to.

    ``origins`` has the tensor that each of the result comes from, by name. Those in ``replace``, by the name in the
    source, are taken from there instead: already of final shape and stored dtype (BF16 as uint16 bits).
    """

    source: Checkpoint
    origins: Mapping[str, str]
    cuts: Mapping[str, TensorCut]
    replace: Mapping[str, np.ndarray]
    layout: Layout
    merged: Adapter | None = None  # added to the weights that it adapts

    @classmethod
    def of(
        cls,
        source: Checkpoint,
        cuts: Mapping[str, TensorCut],
        replace: Mapping[str, np.ndarray] | None = None,
        shard_bytes: int = SHARD_BYTES,
        names: Mapping[str, str | None] | None = None,
        merged: Adapter | None = None,
    ) -> Self:
        """``names`` has the new names of tensors that change theirs, None for those that are left out.

        Raises LorashearError for names, shapes or dtypes that do not fit. Nothing is read but headers.
        """
        replace, names = replace or {}, names or {}
        if unknown := [name for name in (*cuts, *replace, *names) if name not in source.tensors]:
            raise LorashearError(f"'{source.folder}' holds no tensor '{unknown[0]}'; the plan belongs to another model")
        kept = {name: new for name in source.tensors if (new := names.get(name, name)) is not None}
        origins = {new: name for name, new in kept.items()}
        if len(origins) < len(kept):
            twice, _ = Counter(kept.values()).most_common(1)[0]
            raise LorashearError(f"two tensors would be called '{twice}'; the plan belongs to another model")
        shapes = {name: _final_shape(name, info.shape, cuts.get(name, _WHOLE)) for name, info in source.tensors.items()}
        for name, array in replace.items():
            dtype = NUMPY_DTYPES[source.tensors[name].dtype]
            if array.shape != shapes[name] or array.dtype != dtype:
                raise LorashearError(
                    f"the replacement of tensor '{name}' is {array.dtype} of shape {list(array.shape)}, "
                    f"but {dtype} of shape {list(shapes[name])} is wanted"
                )
        placed = layout({new: (source.tensors[name].dtype, shapes[name]) for new, name in origins.items()}, shard_bytes)
        return cls(source, origins, cuts, replace, placed, merged)

    def blocks(self, name: str, buffers: _Buffers) -> Iterator[np.ndarray]:
        """A tensor of the result as a run of small arrays, each valid until the next is asked for."""
        name = self.origins[name]
        cut, dtype = self.cuts.get(name, _WHOLE), self.source.tensors[name].dtype
        replaced = self.replace.get(name)
        if self.merged is not None and name in self.merged.adapted:
            array = self.source.read(name) if replaced is None else replaced
            kept = [
                np.asarray(cut.keep.get(d, range(n)), np.intp) for d, n in enumerate(self.source.tensors[name].shape)
            ]
            places = kept if replaced is None else [np.arange(n) for n in replaced.shape]
            yield from _with_adapter(name, array, places, kept, dtype, self.merged)
            return
        if replaced is not None:
            yield replaced
            return
        array = self.source.read(name)
        for block in _gather(*_raw_axes(array, cut), buffers):
            yield block if cut.scale == 1.0 else _scaled(name, block.reshape(-1).view(array.dtype), cut, dtype)


def write_slice(
    wanted: Slice, folder: Path, journal: Journal | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Writes a slice into ``folder`` as safetensors, tensor by tensor and shard by shard, flushed to disk.

    With a ``journal`` it goes on where that says that an earlier run stopped, and notes how far it is. ``progress`` is
    called with the bytes written and the bytes to write.

    Raises:
        LorashearError: a file that is there already, a scale that leaves the dtype's range, a disk that is full, or a
            source that cannot be read any more.
    """
    if journal is None and (present := [name for name in wanted.layout.names if (folder / name).exists()]):
        raise LorashearError(f"'{folder / present[0]}' exists already; write into an empty folder")
    total, done = wanted.layout.bytes, 0
    buffers = (np.empty(_BLOCK, np.uint8), np.empty(_BLOCK, np.uint8))
    for shard in wanted.layout.shards:
        at = journal.position(shard.name) if journal else 0
        with NewFile(folder / shard.name, at) as file, ThreadPoolExecutor(1) as flusher:
            if file.position == 0:
                file.write(shard.header)
            kept: deque[Future[None]] = deque()
            begun = file.position
            for tensor in shard.tensors:
                if tensor.end > file.position:
                    for block in wanted.blocks(tensor.name, buffers):
                        file.write(block)
                if file.position - begun >= SYNC_BYTES:
                    begun = file.position
                    kept.append(flusher.submit(_keep, file, begun, journal))
                while kept and kept[0].done():
                    kept.popleft().result()
                if progress:
                    progress(done + file.position, total)
            kept.append(flusher.submit(_keep, file, file.position, journal))
            for flush in kept:
                flush.result()
        done += shard.bytes
    if wanted.layout.index:
        with NewFile(folder / INDEX) as file:
            file.write(wanted.layout.index)
            file.flush()


def _keep(file: NewFile, position: int, journal: Journal | None) -> None:
    """All before a position to disk, and then that noted: both wait for the disk, so neither is for the writing thread."""
    file.flush()
    if journal:
        journal.note(file.path.name, position)


def buffer_bytes(wanted: Slice) -> int:
    """The memory that `write_slice` takes at most: its buffers, a scaled block in float64, headers, kept indices."""
    scaled = any(cut.scale != 1.0 for cut in wanted.cuts.values())
    headers = sum(len(shard.header) for shard in wanted.layout.shards) + len(wanted.layout.index)
    indices = max((len(kept) for cut in wanted.cuts.values() for kept in cut.keep.values()), default=0)
    return (2 + 12 * scaled) * _BLOCK + 4 * headers + 16 * indices


def _final_shape(name: str, shape: tuple[int, ...], cut: TensorCut) -> tuple[int, ...]:
    """The shape after the cut. The one range check: the gather itself clips silently."""
    if not (math.isfinite(cut.scale) and math.isfinite(cut.offset)):
        raise LorashearError(f"tensor '{name}': scale and offset must be finite, not {cut.scale} and {cut.offset}")
    final = list(shape)
    for dim, kept in cut.keep.items():
        if not 0 <= dim < len(shape):
            raise LorashearError(f"tensor '{name}' of shape {list(shape)} has no dimension {dim} to cut")
        if (np.diff(np.asarray(kept, np.int64)) <= 0).any():
            raise LorashearError(f"tensor '{name}': the indices to keep of dimension {dim} must ascend without repeats")
        if kept and not 0 <= kept[0] <= kept[-1] < shape[dim]:
            raise LorashearError(
                f"tensor '{name}' has {shape[dim]} entries in dimension {dim}, but indices {kept[0]} to {kept[-1]} are "
                "to be kept; the plan belongs to another model"
            )
        final[dim] = len(kept)
    return tuple(final)


def _with_adapter(
    name: str, array: np.ndarray, places: list[np.ndarray], kept: list[np.ndarray], dtype: str, adapter: Adapter
) -> Iterator[np.ndarray]:
    """What is kept of a matrix, at these rows and columns of ``array``, with what an adapter adds to it at those that it had
    in the whole one; some rows at a time, reckoned in float32."""
    step = max(1, _BLOCK // (4 * max(1, len(kept[1]))))
    for at in range(0, len(kept[0]), step):
        some = slice(at, at + step)
        small = as_float(np.take(array[places[0][some]], places[1], axis=1), dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            block = rounded(small + adapter.added(name, kept[0][some], kept[1]), dtype)
        if not_finite(block, dtype).any():
            raise LorashearError(
                f"tensor '{name}' with its adapter leaves the range of {dtype}, or was not finite before"
            )
        yield block


def _raw_axes(array: np.ndarray, cut: TensorCut) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """The array as raw words on as few axes as the cut allows, and what to keep of each (None: all).

    A cut axis is split where its kept indices come in whole runs (heads), so that a run moves as one piece; what is
    not cut merges with its neighbours, down to the bytes of an element.
    """
    axes: list[tuple[int, np.ndarray | None]] = []
    for dim, size in enumerate((*array.shape, array.itemsize)):
        pieces: list[tuple[int, np.ndarray | None]] = [(size, None)]
        if dim in cut.keep and len(cut.keep[dim]) < size:
            kept = np.asarray(cut.keep[dim], np.intp)
            breaks = np.flatnonzero(np.diff(kept) != 1)
            run = math.gcd(
                size, kept.size, *kept[:1].tolist(), *kept[breaks + 1].tolist(), *(kept[breaks] + 1).tolist()
            )
            pieces = [(size // run, kept[::run] // run), (run, None)]
        for length, chosen in pieces:
            if chosen is None and axes and axes[-1][1] is None:
                axes[-1] = (axes[-1][0] * length, None)
            else:
                axes.append((length, chosen))
    # Whole words move faster than bytes, where the file holds them aligned.
    word = math.gcd(8, axes[-1][0], array.ctypes.data)
    lengths = [length for length, _ in axes[:-1]] + [axes[-1][0] // word]
    return array.reshape(-1).view(np.uint8).view(f"u{word}").reshape(lengths), [chosen for _, chosen in axes]


def _gather(array: np.ndarray, keep: list[np.ndarray | None], buffers: _Buffers) -> Iterator[np.ndarray]:
    """What is kept of a raw array, in order, in contiguous blocks: views where nothing is cut, else in the buffers."""
    rows = keep[0]
    count = len(array) if rows is None else len(rows)
    if array.size == 0 or count == 0:
        return
    row_bytes = array.nbytes // len(array)
    if row_bytes > _BLOCK:
        for row in range(count) if rows is None else rows:
            yield from _gather(array[row], keep[1:], buffers)
        return
    step = _BLOCK // row_bytes
    for start in range(0, count, step):
        block = array[start : start + step] if rows is None else _take(array, rows[start : start + step], 0, buffers[0])
        spare = 0 if rows is None else 1
        for axis, chosen in enumerate(keep[1:], 1):
            if chosen is not None:
                block, spare = _take(block, chosen, axis, buffers[spare]), 1 - spare
        yield block


def _take(array: np.ndarray, chosen: np.ndarray, axis: int, buffer: np.ndarray) -> np.ndarray:
    shape = (*array.shape[:axis], len(chosen), *array.shape[axis + 1 :])
    out = buffer.view(array.dtype)[: math.prod(shape)].reshape(shape)
    return np.take(array, chosen, axis=axis, out=out, mode="clip")  # other modes write through a copy of out


def _scaled(name: str, values: np.ndarray, cut: TensorCut, dtype: str) -> np.ndarray:
    """Flat values: (values + offset) * scale - offset in float64, rounded to nearest even into the stored dtype.

    The same bits as a cut in memory, whatever the scale.
    """
    if cut.scale == 1.0:
        return values
    if dtype not in FLOATS:
        raise LorashearError(f"tensor '{name}' is {dtype}, which cannot be scaled; only floats can")
    with np.errstate(over="ignore", invalid="ignore"):
        result = rounded((as_float(values, dtype).astype(np.float64) + cut.offset) * cut.scale - cut.offset, dtype)
    if not_finite(result, dtype).any():
        raise LorashearError(f"tensor '{name}' times {cut.scale} leaves the range of {dtype}, or was not finite before")
    return result
