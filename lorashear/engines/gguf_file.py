"""A GGUF file for llama.cpp: architecture ``llama``, or ``deci``, which is a LLaMA whose layers have widths of their own.

llama.cpp turns neighbouring entries of a head in rotary embeddings, and transformers those half a head apart: rows of q and k
change places within their heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.folder import BESIDE
from lorashear.engines import gguf_rope, gguf_tokenizer
from lorashear.engines.gguf_tensors import (
    DTYPES,
    FILE_TYPES,
    Tensor,
    check_installed,
    given,
    size,
    stored,
    write,
)
from lorashear.engines.gguf_tokenizer import Vocabulary
from lorashear.engines.llama import HEAD, NORM, NORMS, PROJECTIONS, Llama
from lorashear.engines.target import Told, Wish
from lorashear.errors import LorashearError

NAMES = dict(
    zip(
        (*NORMS, *PROJECTIONS),
        ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
        strict=True,
    )
)
"""What llama.cpp calls the parts of a layer."""
TURNED = ("self_attn.q_proj", "self_attn.k_proj")
K_QUANTS = 256
"""Values of a block of K-quants."""


class Gguf:
    """One file, which has the tokenizer as well."""

    name = "gguf"
    engines = "llama.cpp, Ollama, LM Studio and others that build on it"
    is_file = True
    dtypes = DTYPES

    def refusal(self, source: Checkpoint) -> str | None:
        """Why llama.cpp would not compute the same, or not split text in the same way."""
        try:
            read(source)
        except LorashearError as error:
            return str(error)
        return None

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """Of the tensors, and about the tokenizer."""
        llama, vocabulary = read(source)
        return size(_tensors(source, llama, wish)) + (64 * len(vocabulary.tokens) if vocabulary else 0) + 65536

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """Some rows at a time; says which tensors are not as asked, and what llama.cpp will do otherwise."""
        check_installed()
        llama, vocabulary = read(source)
        tensors = _tensors(source, llama, wish)
        values = _values(llama, vocabulary) | {"general.file_type": FILE_TYPES[wish.dtype or _commonest(tensors)]}
        if wish.dtype == "q8_0":
            values["general.quantization_version"] = 2
        write(out, architecture(llama), values, tensors, told)
        return "; ".join(_notes(source, tensors, wish, vocabulary))


def read(source: Checkpoint) -> tuple[Llama, Vocabulary | None]:
    """Everything but the weights. Raises LorashearError, half a sentence, where llama.cpp could not hold it."""
    llama = Llama.of(source)
    gguf_rope.check(llama)
    if empty := next((at for at, layer in enumerate(llama.layers) if not layer.ffn), None):
        raise LorashearError(f"layer {empty} has an MLP of no columns, and llama.cpp would leave its attention out too")
    return llama, gguf_tokenizer.read(source.folder, source.config, llama.vocabulary)


def architecture(llama: Llama) -> str:
    """What llama.cpp calls it."""
    return "llama" if llama.is_uniform else "deci"


def order(part: str, rows: int, head_dim: int) -> np.ndarray | None:
    """Which row comes where: those of q and k, as pairs; None for others, which stay."""
    return np.arange(rows).reshape(-1, 2, head_dim // 2).swapaxes(1, 2).reshape(-1) if part in TURNED else None


def _values(llama: Llama, vocabulary: Vocabulary | None) -> dict[str, Any]:
    layers = llama.layers
    own: dict[str, Any] = {
        "vocab_size": llama.vocabulary,
        "context_length": llama.positions,
        "embedding_length": llama.hidden,
        "block_count": len(layers),
        "feed_forward_length": [each.ffn for each in layers],
        "attention.head_count": [each.heads for each in layers],
        "attention.head_count_kv": [each.kv_heads for each in layers],
        "attention.key_length": llama.head_dim,
        "attention.value_length": llama.head_dim,
        "attention.layer_norm_rms_epsilon": float(llama.eps),
        **gguf_rope.values(llama),
    }
    if llama.is_uniform:
        own = {key: value[0] if isinstance(value, list) else value for key, value in own.items()}
    found = {"general.type": "model", **{f"{architecture(llama)}.{key}": value for key, value in own.items()}}
    return found | (vocabulary.values(llama.vocabulary) if vocabulary else {"tokenizer.ggml.model": "none"})


def _tensors(source: Checkpoint, llama: Llama, wish: Wish) -> list[Tensor]:
    found = [stored(source, llama.embedding, "token_embd.weight", wish.dtype)]
    found.append(stored(source, NORM, "output_norm.weight", wish.dtype))
    if not llama.tied:
        found.append(stored(source, HEAD, "output.weight", wish.dtype))
    if (factors := gguf_rope.factors(llama)) is not None:
        found.append(given(factors, gguf_rope.FACTORS))
    for at in range(len(llama.layers)):
        for part, called in NAMES.items():
            name = f"model.layers.{at}.{part}.weight"
            rows = order(part, source.tensors[name].shape[0], llama.head_dim)
            found.append(stored(source, name, f"blk.{at}.{called}.weight", wish.dtype, rows))
    return found


def _commonest(tensors: list[Tensor]) -> str:
    kinds = [each.type for each in tensors if len(each.shape) > 1]
    return max(sorted(set(kinds)), key=kinds.count)


def _notes(source: Checkpoint, tensors: list[Tensor], wish: Wish, vocabulary: Vocabulary | None) -> list[str]:
    matrices = [each for each in tensors if len(each.shape) > 1]
    found = []
    if wish.dtype == "q8_0" and (left := sum(each.type != "q8_0" for each in matrices)):
        found.append(f"{left} of {len(matrices)} matrices are f16, since their rows are no multiples of 32")
    elif wish.dtype != "q8_0" and (left := sum(each.shape[1] % K_QUANTS != 0 for each in matrices)):
        found.append(
            f"rows of {left} of {len(matrices)} matrices are no multiples of {K_QUANTS}, so that K-quants of llama.cpp take "
            "other types for them"
        )
    if vocabulary is None:
        found.append("the folder has no tokenizer, so that the file has none")
    else:
        found += vocabulary.notes
    if (source.folder / BESIDE).is_dir():
        found.append(f"the adapter beside it is for a file of its own: export '{source.folder / BESIDE}'")
    return found
