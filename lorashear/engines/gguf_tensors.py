"""A GGUF file: keys, then what the tensors are, then their values, which are written some rows at a time. No torch here.

The library `gguf` writes all that comes before the values, and packs blocks of q8_0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorashear.disk.checkpoint import Checkpoint, as_float, rounded
from lorashear.disk.output import NewFile
from lorashear.engines.target import Told
from lorashear.errors import LorashearError

DTYPES = ("f32", "f16", "bf16", "q8_0")
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""Of general.file_type: what most of the weights are."""
STORED = {"F32": "f32", "F64": "f32", "F16": "f16", "BF16": "bf16"}
"""What becomes of a dtype of safetensors that nobody asks to change."""
ALIGNMENT = 32
WIDE = {"f32": 4, "f16": 2, "bf16": 2}
Q8_ROW, Q8_BYTES = 32, 34
"""Values of a block of q8_0, and its bytes."""
_BLOCK = 1 << 20  # values looked at together


@dataclass(frozen=True)
class Tensor:
    """One of the file: ``shape`` as torch has it; ``blocks`` gives its rows in order, in the bytes of ``type``."""

    name: str
    shape: tuple[int, ...]
    type: str
    blocks: Callable[[], Iterator[np.ndarray]]

    @property
    def bytes(self) -> int:
        """Without what aligns the next one."""
        size = int(np.prod(self.shape))
        return size // Q8_ROW * Q8_BYTES if self.type == "q8_0" else size * WIDE[self.type]


def type_of(shape: Sequence[int], stored: str, dtype: str | None) -> str:
    """What a tensor is written as: vectors in f32, rows that no blocks of q8_0 fill in f16."""
    if len(shape) < 2:
        return "f32"
    wanted = dtype or STORED[stored]
    return "f16" if wanted == "q8_0" and shape[-1] % Q8_ROW else wanted


def stored(source: Checkpoint, name: str, called: str, dtype: str | None, order: np.ndarray | None = None) -> Tensor:
    """A tensor of a checkpoint as one of the file; its rows in another ``order``, where that is given."""
    info = source.tensors[name]
    type = type_of(info.shape, info.dtype, dtype)

    def blocks() -> Iterator[np.ndarray]:
        values = source.read(name)
        step = max(1, _BLOCK // max(1, int(np.prod(info.shape[1:]))))
        for at in range(0, len(values), step):
            some = values[at : at + step] if order is None else values[order[at : at + step]]
            yield packed(some, info.dtype, type, name)

    return Tensor(called, info.shape, type, blocks)


def given(values: np.ndarray, called: str, type: str = "f32") -> Tensor:
    """Values in float32 as a tensor of the file."""
    return Tensor(called, values.shape, type, lambda: iter([packed(values, "F32", type, called)]))


def packed(values: np.ndarray, stored: str, type: str, name: str) -> np.ndarray:
    """Some rows in the bytes of a type. Raises LorashearError where f16 does not reach so far."""
    if STORED[stored] == type and stored != "F64":
        return values
    numbers = as_float(values, stored)
    if type == "q8_0":
        from gguf import GGMLQuantizationType, quants

        return quants.quantize(numbers.astype(np.float32, copy=False), GGMLQuantizationType.Q8_0)
    with np.errstate(over="ignore"):
        found = rounded(numbers, {"f32": "F32", "f16": "F16", "bf16": "BF16"}[type])
    if type == "f16" and np.isinf(found).any():
        raise LorashearError(f"tensor '{name}' has values beyond 65504, which f16 cannot hold: pass dtype bf16 or f32")
    return found


def check_installed() -> None:
    """Raises LorashearError with the line that installs the library."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise LorashearError(
            "the library gguf is not installed, which writes the file: pip install 'lorashear[gguf]'"
        ) from error


def size(tensors: Sequence[Tensor]) -> int:
    """Bytes of a file with those tensors, but for its head."""
    return sum(each.bytes + -each.bytes % ALIGNMENT for each in tensors)


def write(path: Path, architecture: str, values: Mapping[str, Any], tensors: Sequence[Tensor], told: Told) -> None:
    """Write the file. Raises LorashearError where the library is missing or the disk takes no more."""
    check_installed()
    _write_head(path, architecture, values, tensors)
    total = size(tensors)
    with NewFile(path, path.stat().st_size) as file:
        file.write(bytes(-file.position % ALIGNMENT))
        begin = file.position
        for tensor in tensors:
            for block in tensor.blocks():
                file.write(block)
                told(file.position - begin, total)
            file.write(bytes(-file.position % ALIGNMENT))
        told(total, total)
        file.flush()


def _write_head(path: Path, architecture: str, values: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        add.get(type(value), writer.add_array)(key, value)
    for each in tensors:
        kind = GGMLQuantizationType[each.type.upper()]
        writer.add_tensor_info(each.name, each.shape, np.dtype(np.float32), each.bytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    except OSError as error:
        raise LorashearError(
            f"'{path}' cannot be written: {error.strerror}; make room, or choose another disk"
        ) from error
    finally:
        writer.close()
