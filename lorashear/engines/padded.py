"""Widths that differ per layer, padded with zeros to the widest layer: an ordinary model that computes the same, for any engine.

* A column of the MLP is zero in gate, up and down: silu(0) · 0 times nothing.
* A query of a key-value head is zero, and so are its columns of the output: whatever it attends to is multiplied by nothing.
* A key-value head is zero with all of its queries: its values are zero.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorashear.disk.checkpoint import INDEX, NUMPY_DTYPES, Checkpoint
from lorashear.disk.folder import TAKEN_ALONG, write_json
from lorashear.disk.layout import Layout, Shape, layout
from lorashear.disk.output import NewFile
from lorashear.engines.llama import Layer, Llama, own_widths_refusal
from lorashear.engines.target import Told, Wish

OWN = ("module_overrides", "per_layer_config", "pruned_from", "auto_map", "architectures", "model_type")
NOT_MISTRAL = ("attention_bias", "mlp_bias", "pretraining_tp")


@dataclass(frozen=True)
class Widest:
    """What every layer gets: so many key-value heads, queries for each of them, and columns of the MLP."""

    kv_heads: int
    queries: int
    ffn: int

    @classmethod
    def of(cls, llama: Llama) -> Widest:
        """Of all layers."""
        layers = llama.layers
        return cls(
            max(each.kv_heads for each in layers),
            max(each.heads // each.kv_heads for each in layers),
            max(each.ffn for each in layers),
        )

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.kv_heads * self.queries


class Padded:
    """A uniform model folder of the class that LLaMA has in transformers, or Mistral's where that refuses the heads."""

    name = "padded"
    engines = "every engine that loads a LLaMA"
    is_file = False
    dtypes = ()

    def refusal(self, source: Checkpoint) -> str | None:
        """Why there is nothing to pad, or not with zeros."""
        return own_widths_refusal(source)

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """Of the tensors, padded."""
        return _layout(source).bytes

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """Tensor by tensor; says what the padding costs."""
        llama = Llama.of(source)
        widest, placed = Widest.of(llama), _layout(source)
        write_json(out / "config.json", _config(source, llama, widest))
        done = 0
        for shard in placed.shards:
            with NewFile(out / shard.name) as file:
                file.write(shard.header)
                for tensor in shard.tensors:
                    file.write(_padded(source, tensor.name, llama, widest))
                    told(done + file.position, placed.bytes)
                file.flush()
            done += shard.bytes
        if placed.index:
            (out / INDEX).write_bytes(placed.index)
        for pattern in TAKEN_ALONG:
            for file in source.folder.glob(pattern):
                shutil.copyfile(file, out / file.name)
        every = sum(tensor.bytes for shard in placed.shards for tensor in shard.tensors)
        more = every - source.bytes
        return (
            f"padded to {widest.heads} query and {widest.kv_heads} key-value heads and {widest.ffn} columns in every layer, "
            f"which costs {more:,} bytes of {every:,} ({more / every:.1%})"
        )


def _layout(source: Checkpoint) -> Layout:
    llama = Llama.of(source)
    widest = Widest.of(llama)
    shapes = {name: (info.dtype, _shape(name, info.shape, llama, widest)) for name, info in source.tensors.items()}
    return layout(shapes)


def _grid(name: str, llama: Llama) -> tuple[int, Layer, str] | None:
    """The dim of a tensor that is padded, its layer, and the kind: queries, keys or ffn."""
    part = name.removeprefix("model.layers.").removesuffix(".weight")
    number, _, module = part.partition(".")
    if not number.isdigit():
        return None
    kinds = {"q": (0, "queries"), "k": (0, "keys"), "v": (0, "keys"), "o": (1, "queries")}
    kinds |= {"gate": (0, "ffn"), "up": (0, "ffn"), "down": (1, "ffn")}
    found = kinds.get(module.rpartition(".")[2].removesuffix("_proj"))
    return None if found is None else (found[0], llama.layers[int(number)], found[1])


def _sizes(kind: str, layer: Layer, llama: Llama, widest: Widest) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a padded dim is a product of, before and after."""
    before = {
        "queries": (layer.kv_heads, layer.heads // layer.kv_heads, llama.head_dim),
        "keys": (layer.kv_heads, llama.head_dim),
        "ffn": (layer.ffn,),
    }
    after = {
        "queries": (widest.kv_heads, widest.queries, llama.head_dim),
        "keys": (widest.kv_heads, llama.head_dim),
        "ffn": (widest.ffn,),
    }
    return before[kind], after[kind]


def _shape(name: str, shape: Shape, llama: Llama, widest: Widest) -> Shape:
    found = _grid(name, llama)
    if found is None:
        return shape
    dim, layer, kind = found
    _, after = _sizes(kind, layer, llama, widest)
    return tuple(int(np.prod(after)) if at == dim else size for at, size in enumerate(shape))


def _padded(source: Checkpoint, name: str, llama: Llama, widest: Widest) -> np.ndarray:
    """A tensor with zeros where the layer is narrower; bits of bfloat16 are zero too."""
    array, found = source.read(name), _grid(name, llama)
    if found is None:
        return array
    dim, layer, kind = found
    before, after = _sizes(kind, layer, llama, widest)
    if before == after:
        return array
    ahead, behind = array.shape[:dim], array.shape[dim + 1 :]
    made = np.zeros((*ahead, *after, *behind), NUMPY_DTYPES[source.tensors[name].dtype])
    places = (*(slice(None) for _ in ahead), *(slice(size) for size in before))
    made[places] = array.reshape(*ahead, *before, *behind)
    return made.reshape(_shape(name, array.shape, llama, widest))


def _config(source: Checkpoint, llama: Llama, widest: Widest) -> dict[str, Any]:
    """As LLaMA, or as Mistral where `LlamaConfig` refuses heads that do not divide the hidden size; no biases are in either."""
    kind = "llama" if llama.hidden % widest.heads == 0 else "mistral"
    values = {name: value for name, value in source.config.items() if name not in OWN}
    if kind == "mistral":
        values = {name: value for name, value in values.items() if name not in NOT_MISTRAL} | {"sliding_window": None}
    return {
        **values,
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "hidden_size": llama.hidden,
        "head_dim": llama.head_dim,
        "num_attention_heads": widest.heads,
        "num_key_value_heads": widest.kv_heads,
        "intermediate_size": widest.ffn,
        "rms_norm_eps": llama.eps,
    }
