"""Cutting tensors on disk: reads a checkpoint, writes a smaller one, never holds more than two small buffers.

Nothing here imports torch. The gather moves bytes and knows no dtypes; only a scale looks at the numbers.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from lorashear.checkpoint import FLOATS, INDEX, NUMPY_DTYPES, SINGLE, Checkpoint, not_finite
from lorashear.errors import LorashearError
from lorashear_ir.groups import TensorCut

_BLOCK = 1 << 20  # bytes; measured best for gather and pwrite (a block stays in the cache between the two)

_WHOLE = TensorCut({})
_Buffers = tuple[np.ndarray, np.ndarray]


def sliced(array: np.ndarray, cut: TensorCut, dtype: str) -> np.ndarray:
    """One array cut in memory, for checks: equals byte for byte what write_checkpoint writes.

    `dtype` is the stored one ("BF16", then `array` holds uint16 bits). Raises LorashearError for indices out of range
    and for a scale that does not fit the dtype.
    """
    _final_shape("in memory", array.shape, cut)
    for dim, kept in cut.keep.items():
        array = np.take(array, np.asarray(kept, np.intp), axis=dim)
    return _scaled("in memory", array.reshape(-1), cut, dtype).reshape(array.shape)


def write_checkpoint(
    source: Checkpoint,
    cuts: Mapping[str, TensorCut],
    replace: Mapping[str, np.ndarray],
    folder: Path,
    max_shard_bytes: int = 5_000_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Writes the source's tensors, cut, into `folder` as safetensors, flushed to disk; returns their final shapes.

    Tensors in `replace` are taken from there instead: already of final shape and stored dtype (BF16 as uint16 bits).
    `progress` is called with the bytes written and the bytes to write. Shards exceed `max_shard_bytes` only for a
    tensor that does so alone. Raises LorashearError before writing for names, shapes or dtypes that do not fit, and
    while writing for a scale that leaves the dtype's range; files that are there already are never written over.
    """
    if unknown := [name for name in (*cuts, *replace) if name not in source.tensors]:
        raise LorashearError(f"'{source.folder}' holds no tensor '{unknown[0]}'; the plan belongs to another model")
    shapes = {name: _final_shape(name, info.shape, cuts.get(name, _WHOLE)) for name, info in source.tensors.items()}
    for name, array in replace.items():
        dtype = NUMPY_DTYPES[source.tensors[name].dtype]
        if array.shape != shapes[name] or array.dtype != dtype:
            raise LorashearError(
                f"the replacement of tensor '{name}' is {array.dtype} of shape {list(array.shape)}, "
                f"but {dtype} of shape {list(shapes[name])} is wanted"
            )
    sizes = {name: math.prod(shapes[name]) * _itemsize(source, name) for name in shapes}
    shards = _shards(sizes, max_shard_bytes)
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = files if len(files) > 1 else [SINGLE]
    if present := [name for name in (*files, INDEX) if (folder / name).exists()]:
        raise LorashearError(f"'{folder / present[0]}' exists already; write into an empty folder")

    total, done = sum(sizes.values()), 0
    buffers = (np.empty(_BLOCK, np.uint8), np.empty(_BLOCK, np.uint8))

    def content(names: list[str]) -> Iterator[np.ndarray]:
        nonlocal done
        yield _header({name: (source.tensors[name].dtype, shapes[name], sizes[name]) for name in names})
        for name in names:
            if name in replace:
                yield replace[name]
            else:
                yield from _cut_blocks(source, name, cuts.get(name, _WHOLE), buffers)
            done += sizes[name]
            if progress:
                progress(done, total)

    for file, names in zip(files, shards, strict=True):
        # Wide dtypes first keeps every tensor aligned; safetensors orders so itself, then this changes nothing.
        _write(folder / file, content(sorted(names, key=lambda name: -_itemsize(source, name))))
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        _write(folder / INDEX, [np.frombuffer(text.encode(), np.uint8)])
    return shapes


def _itemsize(source: Checkpoint, name: str) -> int:
    return NUMPY_DTYPES[source.tensors[name].dtype].itemsize


def _final_shape(name: str, shape: tuple[int, ...], cut: TensorCut) -> tuple[int, ...]:
    """The shape after the cut. The one range check: the gather itself clips silently."""
    if not (math.isfinite(cut.scale) and math.isfinite(cut.offset)):
        raise LorashearError(f"tensor '{name}': scale and offset must be finite, not {cut.scale} and {cut.offset}")
    final = list(shape)
    for dim, kept in cut.keep.items():
        if not 0 <= dim < len(shape):
            raise LorashearError(f"tensor '{name}' of shape {list(shape)} has no dimension {dim} to cut")
        if any(a >= b for a, b in pairwise(kept)):
            raise LorashearError(f"tensor '{name}': the indices to keep of dimension {dim} must ascend without repeats")
        if kept and not 0 <= kept[0] <= kept[-1] < shape[dim]:
            raise LorashearError(
                f"tensor '{name}' has {shape[dim]} entries in dimension {dim}, but indices {kept[0]} to {kept[-1]} are "
                "to be kept; the plan belongs to another model"
            )
        final[dim] = len(kept)
    return tuple(final)


def _shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in order, filled into as few shards as that order allows."""
    shards, used = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and used + size > most:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _header(entries: Mapping[str, tuple[str, tuple[int, ...], int]]) -> np.ndarray:
    """The start of a safetensors file: u64 length, then JSON padded with spaces so that the data is 8-aligned."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    begin = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)


def _write(file: Path, blocks: Iterable[np.ndarray]) -> None:
    """Writes a new file with the permissions that the umask leaves, and flushes it to disk."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        position = 0
        for block in blocks:
            left = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
            while left:  # one system call may write less than asked
                written = os.pwrite(descriptor, left, position)
                left, position = left[written:], position + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_blocks(source: Checkpoint, name: str, cut: TensorCut, buffers: _Buffers) -> Iterator[np.ndarray]:
    """The cut tensor as a run of small arrays, each valid until the next is asked for."""
    array, dtype = source.read(name), source.tensors[name].dtype
    for block in _gather(*_raw_axes(array, cut), buffers):
        yield block if cut.scale == 1.0 else _scaled(name, block.reshape(-1).view(array.dtype), cut, dtype)


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

    16-bit dtypes are rounded by way of float32, as torch does: the same bits as a cut in memory, whatever the scale.
    """
    if cut.scale == 1.0:
        return values
    if dtype not in FLOATS:
        raise LorashearError(f"tensor '{name}' is {dtype}, which cannot be scaled; only floats can")
    wide = (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values
    with np.errstate(over="ignore", invalid="ignore"):
        result = (wide.astype(np.float64) + cut.offset) * cut.scale - cut.offset
        if values.itemsize < 8:
            result = result.astype(np.float32)
        if dtype == "BF16":
            bits = result.view(np.uint32)
            # Add just under half of what is cut off, and one more if the last kept bit is odd.
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            rounded[np.isnan(result)] = 0x7FC0  # or the sum may have carried its bits away
        else:
            rounded = result.astype(values.dtype)
    if not_finite(rounded, dtype).any():
        raise LorashearError(f"tensor '{name}' times {cut.scale} leaves the range of {dtype}, or was not finite before")
    return rounded
