"""The folder of a LoRA adapter as an adapter file of llama.cpp, for the file of its base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorashear.disk.checkpoint import Checkpoint, TensorInfo, as_float
from lorashear.disk.lora import Adapted, Adapter
from lorashear.engines.gguf_file import NAMES, architecture, order, read
from lorashear.engines.gguf_tensors import FILE_TYPES, Tensor, check_installed, given, size, write
from lorashear.engines.llama import HEAD, Llama
from lorashear.engines.target import Told, Wish
from lorashear.errors import LorashearError


@dataclass(frozen=True)
class Pair:
    """What the adapter has for a weight: its name in the file, the part of a layer, A and B, and α of its rank."""

    called: str
    part: str
    a: TensorInfo
    b: TensorInfo
    alpha: float


class GgufLora:
    """One file, which llama.cpp adds to the model by `--lora`."""

    name = "gguf"
    engines = "llama.cpp and others that build on it, with --lora beside the file of the base model"
    is_file = True
    dtypes = ("f32", "f16")

    def refusal(self, source: Checkpoint) -> str | None:
        """Why llama.cpp has no such adapter, or there is no base model to fit it to."""
        try:
            _pairs(source)
        except LorashearError as error:
            return str(error)
        return None

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """Of the tensors, at most."""
        return 2 * source.bytes + 65536

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """A and B of each weight; where their scales differ, one that fits all is taken and the rest goes into B."""
        check_installed()
        llama, pairs = _pairs(source)
        alpha = pairs[0].alpha
        tensors: list[Tensor] = []
        for pair in pairs:
            a, b = (as_float(source.view(info), info.dtype).astype(np.float32) for info in (pair.a, pair.b))
            if pair.alpha != alpha:
                b *= np.float32(pair.alpha / alpha)
            if (rows := order(pair.part, len(b), llama.head_dim)) is not None:
                b = b[rows]
            tensors += [
                given(values, f"{pair.called}.lora_{which}", wish.dtype or "f32")
                for which, values in (("a", a), ("b", b))
            ]
        values = {
            "general.type": "adapter",
            "general.file_type": FILE_TYPES[wish.dtype or "f32"],
            "adapter.type": "lora",
            "adapter.lora.alpha": float(alpha),
        }
        write(out, architecture(llama), values, tensors, told)
        return f"it fits the export of '{base_of(source)}'; {size(tensors):,} bytes"


def base_of(source: Checkpoint) -> Path:
    """The folder of the model that an adapter is for: the one that it lies in, or that its config names.

    Raises LorashearError, half a sentence, where there is none.
    """
    named = source.config.get("base_model_name_or_path")
    for folder in (source.folder.resolve().parent, *([Path(named)] if named else [])):
        if (folder / "config.json").is_file():
            return folder
    raise LorashearError(
        "its base model is neither the folder that it lies in nor one that its config names: put it there"
    )


def _pairs(source: Checkpoint) -> tuple[Llama, list[Pair]]:
    base = Checkpoint.open(base_of(source))
    llama, _ = read(base)
    adapter = Adapter.open(source.folder, base)
    adapter.check_mergeable()
    return llama, [_pair(found) for found in adapter.adapted.values()]


def _pair(found: Adapted) -> Pair:
    names: Mapping[str, TensorInfo] = found.parts
    if set(names) != {"lora_A.weight", "lora_B.weight"} or found.turned:
        raise LorashearError(f"it adapts {found.weight} by more than A and B, or an embedding, which llama.cpp cannot")
    a, b = names["lora_A.weight"], names["lora_B.weight"]
    alpha = found.scale * a.shape[0]
    if found.weight == HEAD:
        return Pair("output.weight", "", a, b, alpha)
    number, _, part = found.weight.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    if part not in NAMES:
        raise LorashearError(f"it adapts {found.weight}, which llama.cpp takes no adapter for")
    return Pair(f"blk.{number}.{NAMES[part]}.weight", part, a, b, alpha)
