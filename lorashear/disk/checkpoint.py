"""Reading model folders: config.json and safetensors, checked before a byte of weights is used.

Nothing here imports torch, so that a plan can be applied where only numpy is installed.
"""

import hashlib
import json
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from lorashear.errors import LorashearError
from lorashear_ir.groups import TensorCut

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# numpy has no bfloat16: its bits travel as uint16.
NUMPY_DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(code)
    for name, code in {
        "BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?",
        "I16": "<i2", "I32": "<i4", "I64": "<i8", "U16": "<u2", "U32": "<u4", "U64": "<u8",
    }.items()
}  # fmt: skip
FLOATS = frozenset({"BF16", "F16", "F32", "F64"})

LEFT_OVER = r"rotary_emb\.inv_freq$"
"""Names of tensors that old checkpoints hold and no class reads."""

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
_HUB_SECOND_COPIES = ["consolidated*", "*/*.safetensors"]  # the same weights again, in a layout that nothing here reads
_PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
_QUANTISED = re.compile(r"[IU]8|F[468](_.*)?")
_SCALES = re.compile(r"(weight_(scale(_inv)?|packed)|\.(scales|qweight|qzeros|absmax|quant_map|quant_state\..*))$")
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_LARGEST = 1 << 59  # entries; the bytes of more are not counted in 63 bits
_BLOCK = 8 << 20  # bytes looked at together


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a model given as a folder or as a hub id, which is downloaded without any pickle files.

    Raises LorashearError if there is no such folder and the hub does not have the model or cannot be reached.
    """
    text, path = str(model), Path(model).expanduser()
    if text and path.is_dir():
        return path
    if path.is_file():
        raise LorashearError(f"no model folder '{text}': it is a file; give the folder that holds config.json")
    if path.is_absolute() or text.startswith((".", "~")) or not _HUB_ID.fullmatch(text):
        raise LorashearError(f"no model folder '{text}'; give an existing folder or a hub id such as owner/name")
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(text, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SECOND_COPIES)
        )
    except Exception as error:  # offline, not found, gated, bad revision: each has its own class, all mean "no model"
        said = " ".join(str(error).split())[:300] or type(error).__name__
        at = f" at revision '{revision}'" if revision else ""
        raise LorashearError(
            f"no model '{text}': there is no such folder, and the hub has no such model{at} to give (it said: {said})"
        ) from error


def commit(folder: Path) -> str | None:
    """The commit of a model that a hub gave, by where its cache keeps it; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: bytes `begin` to `end` of `file`, counted from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Place:
    """Where one dim of a parameter is in a stored tensor: along a dim of that, or nowhere, at a single index."""

    dim: int | None
    indices: Sequence[int]  # ascending


@dataclass(frozen=True)
class Part:
    """A stored tensor as a part of a parameter, with a place for each dim of the parameter."""

    parameter: str
    shape: tuple[int, ...]
    places: tuple[Place, ...]

    def cut(self, cut: TensorCut) -> TensorCut | None:
        """What a cut of the parameter keeps of this tensor; None: nothing."""
        keep: dict[int, tuple[int, ...]] = {}
        for dim, kept in cut.keep.items():
            place = self.places[dim]
            left = _among(place.indices, kept)
            if place.dim is not None:
                keep[place.dim] = left
            elif not left:
                return None
        return TensorCut(keep, cut.scale, cut.offset)

    @property
    def fixed(self) -> tuple[int, ...]:
        """The dims of the parameter that this tensor has a single index of: the number of an expert."""
        return tuple(dim for dim, place in enumerate(self.places) if place.dim is None)

    def holds(self, entry: Sequence[int]) -> bool:
        """Whether an entry of the parameter is in this tensor."""
        return all(index in place.indices for index, place in zip(entry, self.places, strict=True))


def _among(indices: Sequence[int], kept: tuple[int, ...]) -> tuple[int, ...]:
    """The positions in ascending ``indices`` of those that are kept."""
    if isinstance(indices, range):
        first, last = bisect_left(kept, indices.start), bisect_left(kept, indices.stop)
        return tuple(index - indices.start for index in kept[first:last]) if indices.start else kept[first:last]
    chosen = set(kept)
    return tuple(at for at, index in enumerate(indices) if index in chosen)


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose config and safetensors headers were read and found sound; weights are mapped when read."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Reads config.json and all headers. Raises LorashearError for whatever is broken, quantised or pickled."""
        folder = Path(folder)
        if not folder.is_dir():
            raise LorashearError(f"no model folder '{folder}'; give a folder that holds config.json and {SINGLE}")
        try:
            return cls(folder, _config(folder), _tensors(folder))
        except OSError as error:
            raise LorashearError(f"'{error.filename}' cannot be read: {error.strerror}") from error

    def apart(self, stacks: Mapping[str, Mapping[str, int]]) -> Self:
        """The same checkpoint where some tensors are read as several, that lie one after the other in them.

        ``stacks`` has the rows of each by its name. Raises LorashearError where they are not the rows of the tensor.
        """
        tensors: dict[str, TensorInfo] = {}
        for name, info in self.tensors.items():
            if name not in stacks:
                tensors[name] = info
                continue
            rows = stacks[name]
            if sum(rows.values()) != (info.shape or (0,))[0]:
                raise LorashearError(
                    f"tensor '{name}' in '{self.folder}' has shape {list(info.shape)}, but {sum(rows.values())} rows are "
                    "asked for; config.json or the plan belongs to another model"
                )
            begin = info.begin
            for piece, count in rows.items():
                end = begin + info.bytes // info.shape[0] * count
                tensors[piece] = replace(info, shape=(count, *info.shape[1:]), begin=begin, end=end)
                begin = end
        return replace(self, tensors=tensors)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.bytes for info in self.tensors.values())

    def read(self, name: str) -> np.ndarray:
        """The tensor as a read-only memory-mapped array of its stored shape; BF16 comes as uint16 bits.

        Raises LorashearError if the checkpoint has no tensor of that name, or its file is gone.
        """
        if (info := self.tensors.get(name)) is None:
            raise LorashearError(f"'{self.folder}' holds no tensor '{name}'")
        return self.view(info)

    def view(self, info: TensorInfo) -> np.ndarray:
        """As `read`, for a tensor that lies where ``info`` says."""
        dtype = NUMPY_DTYPES[info.dtype]
        if info.begin == info.end:  # an empty range cannot be mapped
            array = np.empty(info.shape, dtype)
            array.flags.writeable = False
            return array
        try:
            return np.asarray(np.memmap(info.file, dtype, mode="r", offset=info.begin, shape=info.shape))
        except (OSError, ValueError) as error:  # gone, or shorter than its header said
            raise LorashearError(f"'{info.file}' was there and sound, and cannot be read any more: {error}") from error

    def check_finite(self, names: Iterable[str] | None = None) -> None:
        """Reads the named float tensors (all by default) once; raises LorashearError at the first NaN or infinity."""
        for name in self.tensors if names is None else names:
            values = self.read(name).reshape(-1)
            if (dtype := self.tensors[name].dtype) not in FLOATS:
                continue
            step = _BLOCK // values.itemsize
            blocks = (values[i : i + step] for i in range(0, values.size, step))
            if bad := sum(np.count_nonzero(not_finite(block, dtype)) for block in blocks):
                raise LorashearError(
                    f"tensor '{name}' in '{self.tensors[name].file}' holds {bad} values that are NaN or infinite "
                    f"(of {values.size}); a model with such weights cannot be pruned: fetch or train it again"
                )

    def check_shapes(
        self, expected: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str], left_over: str = LEFT_OVER
    ) -> None:
        """Holds the tensors on disk against what the model class that the config names stores.

        `expected` gives the wanted shape of each tensor. `aliases` maps a tied name to the name under which it may
        be stored instead; either one on disk suffices. What the pattern `left_over` finds in may lie there unread.
        Raises LorashearError for the first missing, misshapen or unexpected tensor.
        """
        tied: dict[str, list[str]] = {}
        for name in dict.fromkeys([*expected, *aliases, *aliases.values()]):
            tied.setdefault(aliases.get(name, name), []).append(name)
        for names in tied.values():
            shape = next((tuple(expected[name]) for name in names if name in expected), None)
            stored = [name for name in names if name in self.tensors]
            if shape is not None and not stored:
                either = " or ".join(f"'{name}'" for name in names)
                raise LorashearError(
                    f"'{self.folder}' holds no tensor {either}, which its config asks for with shape {list(shape)}; "
                    "the download is incomplete or config.json belongs to another model"
                )
            for name in stored:
                if shape is not None and (found := self.tensors[name].shape) != shape:
                    raise LorashearError(
                        f"tensor '{name}' in '{self.folder}' has shape {list(found)}, but its config asks for "
                        f"{list(shape)}; config.json belongs to another model"
                    )
        known = {name for names in tied.values() for name in names}
        for name, info in self.tensors.items():
            if name not in known and not re.search(left_over, name):
                raise LorashearError(
                    f"'{self.folder}' holds an unexpected tensor '{name}' of shape {list(info.shape)}, which the model "
                    "that its config names does not have; config.json belongs to another model"
                )

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same bytes."""
        one, two = self.tensors[name], self.tensors[other]
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            return False
        return all(np.array_equal(a, b) for a, b in zip(self._blocks(name), self._blocks(other), strict=True))

    def contents(self) -> str:
        """sha256, in hex, of all tensors' names, dtypes, shapes and bytes, however they lie in files. Reads them once."""
        found = hashlib.sha256()
        for name, info in sorted(self.tensors.items()):
            found.update(json.dumps([name, info.dtype, info.shape]).encode())
            for block in self._blocks(name):
                found.update(block.data)
        return found.hexdigest()

    def identity(self) -> str:
        """What tells it from every other one: `digest` and `contents`."""
        return self.digest() + self.contents()

    def _blocks(self, name: str) -> Iterator[np.ndarray]:
        """The bytes of a tensor, some at a time."""
        values = self.read(name).reshape(-1).view(np.uint8)
        return (values[at : at + _BLOCK] for at in range(0, values.size, _BLOCK))

    def digest(self) -> str:
        """A cheap identity: sha256, in hex, of the config and of all names, dtypes and shapes; not of the weights."""
        layout = sorted((name, info.dtype, info.shape) for name, info in self.tensors.items())
        text = json.dumps([self.config, layout], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def not_finite(values: np.ndarray, dtype: str) -> np.ndarray:
    """Where float values of the stored `dtype` (BF16 as uint16 bits) are NaN or infinite."""
    return (values & 0x7F80) == 0x7F80 if dtype == "BF16" else ~np.isfinite(values)


def as_float(values: np.ndarray, dtype: str) -> np.ndarray:
    """Stored float values as numbers that numpy can reckon with; BF16 bits become float32."""
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers rounded to nearest even into a stored float dtype; to 16 bits by way of float32, as torch does."""
    if dtype != "F64":
        values = values.astype(np.float32, copy=False)
    if dtype != "BF16":
        return values.astype(NUMPY_DTYPES[dtype], copy=False)
    bits = values.view(np.uint32)
    # Add just under half of what is cut off, and one more if the last kept bit is odd.
    result = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    result[np.isnan(values)] = 0x7FC0  # or the sum may have carried its bits away
    return result


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise LorashearError(f"'{folder}' holds no config.json; give the folder of a whole model")
    config = json_object(file.read_bytes(), f"'{file}'")
    if not isinstance(config.get("model_type"), str):
        raise LorashearError(f"'{file}' has no model_type, so the model class is unknown; add it")
    if config.get("quantization_config"):
        raise LorashearError(f"'{file}' has a quantization_config: dequantise the model first, then prune it")
    return config


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors, in the order in which they lie in the files; a single file goes first, as in transformers."""
    if (folder / SINGLE).exists():
        return tensors_of(_weights_file(folder, SINGLE))
    if (folder / INDEX).exists():
        return _sharded(folder)
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise LorashearError(
            f"'{folder}' holds its weights as pickle only, which can run code and is never loaded; "
            "convert them to safetensors first"
        )
    raise LorashearError(f"'{folder}' holds neither {SINGLE} nor {INDEX}; give the folder of a whole model")


def _sharded(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX
    weight_map = json_object(index.read_bytes(), f"'{index}'", unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise LorashearError(f"'{index}' has no weight_map of tensor names to file names; fetch it again")
    files = {shard: _weights_file(folder, shard) for shard in sorted(set(weight_map.values()))}
    tensors: dict[str, TensorInfo] = {}
    for shard, file in files.items():
        for name, info in tensors_of(file).items():
            if weight_map.get(name) != shard:
                raise LorashearError(f"'{file}' holds tensor '{name}', which '{index}' does not list for that file")
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors:
            raise LorashearError(f"'{index}' lists tensor '{name}' for '{shard}', which does not hold it")
    return tensors


def _weights_file(folder: Path, name: str) -> Path:
    """The file of that name, which must lie in the model's own folder; in the hub's cache, in the model's own cache."""
    own = folder.resolve()
    if own.parent.name == "snapshots" and own.parent.parent.name.startswith("models--"):
        own = own.parent.parent  # snapshots hold links into ../../blobs
    file, relative = folder / name, Path(name)
    odd = not name.isprintable() or relative.is_absolute() or ".." in relative.parts
    if odd or not file.resolve().is_relative_to(own):
        raise LorashearError(f"weights file {name!r} lies outside of '{folder}'; move it into the folder")
    if not file.is_file():
        raise LorashearError(f"'{folder}' lacks the shard '{name}' that its index lists; fetch it")
    return file


def tensors_of(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file by position. Layout: u64 header length, JSON header, tensors gap-free."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8:
            raise LorashearError(f"'{file}' is too short for safetensors ({size} bytes); fetch it again")
        if length > min(size - 8, _MAX_HEADER):
            raise LorashearError(
                f"'{file}' claims a header of {length} bytes but has {size} in all; the download is incomplete or a "
                "git-lfs pointer: fetch it again"
            )
        entries = json_object(stream.read(length), f"the header of '{file}'", unique=True)
    entries.pop("__metadata__", None)
    tensors = {name: _entry(file, name, entry, 8 + length) for name, entry in entries.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    position = 8 + length
    for name, info in tensors.items():
        if info.begin != position:
            fault = "overlaps the one before it" if info.begin < position else "leaves a gap before it"
            raise LorashearError(f"tensor '{name}' in '{file}' {fault}; fetch the file again")
        position = info.end
    if position != size:
        raise LorashearError(
            f"'{file}' has {size} bytes but its tensors end at {position}; it is cut short or damaged: fetch it again"
        )
    return tensors


def _entry(file: Path, name: str, entry: Any, start: int) -> TensorInfo:
    where = f"tensor '{name}' in '{file}'"
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
                raise LorashearError(f"{where} has a shape or offsets that are no whole numbers; fetch the file again")
        case _:
            raise LorashearError(f"{where} lacks a dtype, a shape or two data_offsets; fetch the file again")
    if _QUANTISED.fullmatch(dtype):
        raise LorashearError(f"{where} is quantised ({dtype}): dequantise the model first, then prune it")
    if _SCALES.search(name):
        raise LorashearError(f"{where} belongs to quantised weights: dequantise the model first, then prune it")
    if dtype not in NUMPY_DTYPES:
        raise LorashearError(f"{where} has the unknown dtype '{dtype}'; convert it to BF16, F16 or F32")
    if math.prod(filter(None, shape)) >= _LARGEST:  # where one size is 0 the bytes do not tell
        raise LorashearError(f"{where} has the shape {shape}, which no tensor can have; fetch the file again")
    wanted = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
    if end - begin != wanted:
        raise LorashearError(
            f"{where} has {end - begin} bytes, but {dtype} of shape {shape} takes {wanted}; fetch the file again"
        )
    return TensorInfo(file, dtype, tuple(shape), start + begin, start + end)


def json_object(raw: bytes, what: str, unique: bool = False) -> dict[str, Any]:
    """Parses an object; with `unique`, at every depth a repeated name is an error instead of the last one winning."""
    try:
        value = json.loads(raw, object_pairs_hook=_refuse_repeats if unique else None)
    except (ValueError, RecursionError) as error:
        raise LorashearError(f"{what} is not sound JSON: {error}") from error
    if not isinstance(value, dict):
        raise LorashearError(f"{what} is not a JSON object but a {type(value).__name__}")
    return value


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name '{twice}' appears twice")
    return names
