"""What the tests of exported graphs share: small results, what torch says of them, and a graph that is run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lorashear

HEAD, QUERY, FFN = (f"model.layers.{{}}.{kind}" for kind in ("self_attn.head", "self_attn.query", "mlp.ffn"))
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
REMOVED = {
    "uniform": {HEAD: ([0], [2]), FFN: ([1, 7], [3, 4])},
    "layers": {HEAD: ([0], [2, 3]), QUERY: ([], [0, 3]), FFN: ([1, 7], [3, 4, 8, 30])},
}
"""What is taken from each of the two layers."""
PROMPTS = ([5], [3, 40, 41, 2], [9, 8, 7, 6, 5, 4, 3, 2])
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "models" / "stories260k"


def names() -> list[Any]:
    """Of all results, as parameters."""
    absent = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
    return [*REMOVED, pytest.param("shared", marks=(absent, pytest.mark.slow))]


def result(name: str, folder: Path) -> Path:
    """A random model, pruned, in a folder; or a trained one from ``../shared/data``."""
    small = folder / "small"
    if name == "shared":
        lorashear.compile(SHARED, 0.3, small, one_shot=True, per_layer=True)
        return small
    dense = LlamaForCausalLM(LlamaConfig(**SIZES))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_(0.05, 0.6, generator=generator)
    dense.bfloat16().save_pretrained(folder / "dense")
    return cut(name, folder / "dense", small)


def cut(name: str, dense: Path, small: Path) -> Path:
    """What `REMOVED` says, taken from such a model."""
    by_kind = REMOVED[name].items()
    removed = {kind.format(at): some for kind, layers in by_kind for at, some in enumerate(layers)}
    lorashear.apply(lorashear.plan(dense, removed), dense, small)
    return small


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(model: Any, prompt: Sequence[int], count: int = 64, end: int | None = None) -> list[int]:
    """The tokens that torch tells after a prompt, never ``end``."""
    told = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), do_sample=False,
        max_new_tokens=count, min_new_tokens=count, eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    return told[0, len(prompt) :].tolist()


class Running:
    """A graph in ONNX Runtime, with the cache of what it has read."""

    def __init__(self, folder: Path, rows: int = 1) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = [each.name for each in self.session.get_outputs()]
        self.clear(rows)

    def clear(self, rows: int = 1) -> None:
        """Forget all tokens."""
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.past = {
            name: np.zeros((rows, each.shape[1], 0, each.shape[3]), kinds[each.type])
            for name, each in self.inputs.items()
            if name.startswith("past")
        }
        self.mask = np.zeros((rows, 0), np.int64)

    def read(self, ids: Any, mask: Any = None) -> np.ndarray:
        """The logits of rows of tokens after all that was read."""
        ids = np.asarray(ids, np.int64)
        self.mask = np.concatenate([self.mask, np.ones_like(ids) if mask is None else np.asarray(mask, np.int64)], 1)
        where = np.maximum(self.mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        given = {"input_ids": ids, "attention_mask": self.mask, "position_ids": where, **self.past}
        logits, *present = self.session.run(self.outputs, {name: given[name] for name in self.inputs})
        self.past = dict(zip(self.past, present, strict=True))
        return np.asarray(logits)

    def greedy(self, prompt: Sequence[int], count: int = 64) -> list[int]:
        """The tokens that it tells after a prompt."""
        self.clear()
        told = [int(self.read([prompt])[0, -1].argmax())]
        while len(told) < count:
            told.append(int(self.read([told[-1:]])[0, -1].argmax()))
        return told
