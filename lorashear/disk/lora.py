"""A trained LoRA adapter beside its base model on disk: merged into the slice, or sliced to fit it. No torch here.

An adapter adds ``s · B A`` to a weight (arXiv 2106.09685), s = α/r or α/√r. Rows of the weight are rows of B, columns are
columns of A, so cutting the sum is adding what was cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from lorashear.disk.checkpoint import FLOATS, Checkpoint, TensorInfo, as_float, json_object, tensors_of
from lorashear.errors import LorashearError
from lorashear_ir.groups import TensorCut

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of names in a PeftModel
_NAMES = re.compile(
    r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|base_layer\.weight)"
)
_LEFT = {"lora_A.weight", "lora_embedding_A"}
_COPY = "base_layer.weight"  # peft saves embeddings that it adapts whole as well
_WHOLE = TensorCut({})
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")  # others leave a base model that is not the one on disk


@dataclass(frozen=True)
class Adapted:
    """One weight of the base model and what the adapter has for it, by the part's name."""

    weight: str
    scale: float
    turned: bool  # the weight is stored as (in, out): embeddings and GPT-2's layers
    parts: Mapping[str, TensorInfo]


def held_in(folder: Path) -> Checkpoint:
    """What is stored in an adapter's folder; LorashearError where it is none."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise LorashearError(f"'{folder}' is no adapter of peft: it lacks {CONFIG} or {WEIGHTS}")
    config = json_object((folder / CONFIG).read_bytes(), f"'{folder / CONFIG}'")
    return Checkpoint(folder, config, tensors_of(folder / WEIGHTS))


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, held against its base model."""

    folder: Path
    config: Mapping[str, Any]
    held: Checkpoint
    adapted: Mapping[str, Adapted]  # by weight

    @classmethod
    def open(cls, folder: str | Path, base: Checkpoint, names: Mapping[str, str] | None = None) -> Self:
        """``names`` has what the base model's parameters are called on disk, where that is something else.

        Raises LorashearError where it is no LoRA adapter, or not one of this model.
        """
        folder = Path(folder)
        held = held_in(folder)
        config = held.config
        if config.get("peft_type") != "LORA":
            raise LorashearError(
                f"'{folder}' is a {config.get('peft_type')} adapter; only LORA can be sliced or merged"
            )
        begun = config.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower() not in _PLAIN_STARTS:
            raise LorashearError(
                f"'{folder}' began with {begun}, which changes the base weights as well: save it with peft's "
                "path_initial_model_for_weight_conversion, which makes it plain LoRA"
            )
        return cls(folder, config, held, _adapted(folder, config, held, base, names or {}))

    def check_mergeable(self) -> None:
        """Raises LorashearError where the adapter is more than a product of two matrices."""
        if self.config.get("use_dora"):
            raise LorashearError(
                f"'{self.folder}' is a DoRA adapter, which needs the whole weight's norms: keep it (--adapter keep), or "
                "merge it with peft first"
            )
        for option in ("alora_invocation_tokens", "use_qalora", "layer_replication"):
            if self.config.get(option):
                raise LorashearError(f"'{self.folder}' has {option}, which no merged weight can have: keep it instead")

    def added(self, weight: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """What the adapter adds to some rows and columns of a weight, in float32."""
        found = self.adapted[weight]
        left, right = (self._part(found, name) for name in ("B", "A"))
        if found.turned:
            left, right = right.T, left.T
        return (left[rows] @ right[:, columns]) * np.float32(found.scale)

    def _part(self, found: Adapted, which: str) -> np.ndarray:
        info = next(info for name, info in found.parts.items() if name.split(".")[0].endswith(f"_{which}"))
        return as_float(self.held.view(info), info.dtype).astype(np.float32, copy=False)

    def cuts(self, cuts: Mapping[str, TensorCut]) -> dict[str, TensorCut]:
        """The cuts of the adapter's own tensors that go with those of the base model's, by name on disk."""
        names = {(info.begin, info.end): name for name, info in self.held.tensors.items()}
        result: dict[str, TensorCut] = {}
        for weight, found in self.adapted.items():
            cut = cuts.get(weight, _WHOLE)
            rows, columns = (cut.keep.get(dim) for dim in ((1, 0) if found.turned else (0, 1)))
            for part, info in found.parts.items():
                kept, dim = (columns, 1) if part in _LEFT else (rows, 0)
                if part == _COPY:
                    result[names[info.begin, info.end]] = cut
                elif kept is not None:
                    result[names[info.begin, info.end]] = TensorCut({dim: kept})
        return result


def _adapted(
    folder: Path, config: Mapping[str, Any], held: Checkpoint, base: Checkpoint, names: Mapping[str, str]
) -> dict[str, Adapted]:
    parts: dict[str, dict[str, TensorInfo]] = {}
    for name, info in held.tensors.items():
        match = _NAMES.fullmatch(name.removeprefix(PREFIX))
        if match is None or info.dtype not in FLOATS:
            raise LorashearError(
                f"tensor '{name}' in '{folder}' is no part of a LoRA adapter of a weight: merge it with peft's "
                "merge_and_unload first"
            )
        parts.setdefault(match[1], {})[match[2]] = info
    result: dict[str, Adapted] = {}
    for module, own in parts.items():
        weight = names.get(f"{module}.weight", f"{module}.weight")
        if weight not in base.tensors:
            raise LorashearError(
                f"'{folder}' adapts {module}, and '{base.folder}' stores no tensor '{weight}': the adapter belongs to "
                "another model, or adapts a weight that is tied or stored in parts; merge it with peft first"
            )
        turned = "lora_embedding_A" in own or bool(config.get("fan_in_fan_out"))
        found = Adapted(weight, _scale(config, module, own), turned, own)
        _check(folder, found, base.tensors[weight].shape)
        if _COPY in own and not _equal(held, own[_COPY], base, weight):
            raise LorashearError(
                f"'{folder}' holds another '{weight}' than '{base.folder}': the adapter belongs to another model, or "
                "trained that weight itself; merge it with peft first"
            )
        result[weight] = found
    return result


def _equal(held: Checkpoint, copy: TensorInfo, base: Checkpoint, weight: str) -> bool:
    """Whether an adapter's copy of a weight is the base model's."""
    info = base.tensors[weight]
    one, other = as_float(held.view(copy), copy.dtype), as_float(base.read(weight), info.dtype)
    return np.array_equal(one, other.astype(one.dtype))


def _check(folder: Path, found: Adapted, shape: tuple[int, ...]) -> None:
    """The two matrices must be there, and make one of the weight's shape."""
    shapes = {name.split(".")[0][-1]: info.shape for name, info in found.parts.items()}
    a, b = shapes.get("A", ()), shapes.get("B", ())
    wanted = shape[::-1] if found.turned else shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != wanted:
        raise LorashearError(
            f"'{folder}' has A {list(a)} and B {list(b)} for '{found.weight}', which do not make {list(wanted)}; the "
            "adapter belongs to another model"
        )


def _scale(config: Mapping[str, Any], module: str, parts: Mapping[str, TensorInfo]) -> float:
    rank = next((info.shape[0] for name, info in parts.items() if name in _LEFT), 1)
    alpha = _patterned(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _patterned(patterns: Any, module: str, default: float) -> float:
    """The value of the first pattern that a module's path ends with, as peft reads them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
