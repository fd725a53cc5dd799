"""A language model as an ONNX graph that takes its key-value cache and gives it back."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from lorashear.errors import LorashearError

INSTALL = "pip install 'lorashear[onnx]'"
OPSET = 18
KEY, VALUE = "past_key_values.{}.key", "past_key_values.{}.value"
NEW_KEY, NEW_VALUE = "present.{}.key", "present.{}.value"
INPUTS = ("input_ids", "attention_mask", "position_ids")
LOGITS = "logits"

Entries = list[tuple[torch.Tensor, torch.Tensor]]


class _WithCache(nn.Module):
    """Keys and values of each layer come as tensors and go as tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, past: Entries
    ) -> tuple[torch.Tensor, Entries]:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        found: Any = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return found.logits, [(layer.keys, layer.values) for layer in found.past_key_values.layers]


def write_graph(model: nn.Module, path: Path) -> None:
    """Write a causal language model to ``path``, its weights beside it in ``path``.data.

    Inputs are ``input_ids`` and ``position_ids``, int64 [batch, sequence], ``attention_mask``, int64 [batch, past + sequence], and for
    each layer ``past_key_values.N.key`` and ``.value``, [batch, KV heads of the layer, past, head dim]; outputs are ``logits``
    [batch, sequence, vocabulary] and ``present.N.key`` and ``.value``, [batch, KV heads, past + sequence, head dim]. Every length may be
    another one on each call, and the past nothing. The weights are not copied in memory.

    Raises:
        LorashearError: the exporter's packages are missing, or it cannot export this model.
    """
    check_installed()
    with _quiet(), torch.no_grad():
        try:
            past = _entries(model)
            program = torch.onnx.export(
                _WithCache(model).eval(),
                _example(past),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=_dynamic(len(past)),
                input_names=[*INPUTS, *_names(KEY, VALUE, len(past))],
                output_names=[LOGITS, *_names(NEW_KEY, NEW_VALUE, len(past))],
                verbose=False,
            )
        except Exception as error:  # of whatever a model does that ONNX cannot say
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise LorashearError(f"{type(model).__name__} cannot be exported as an ONNX graph: {said[:300]}") from error
        assert program is not None
        program.save(path, external_data=True)


def check_installed() -> None:
    """Raises LorashearError, with how to install them, where the exporter's packages are not there."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise LorashearError(f"export to ONNX needs packages that are not there ({error}); {INSTALL}") from error


def _entries(model: Any) -> Entries:
    """A cache of three tokens in two rows, whose shapes are those of the layers."""
    device = next(model.parameters()).device
    found = model(input_ids=torch.tensor([[0, 1, 2], [2, 1, 0]], device=device), use_cache=True).past_key_values
    return [(layer.keys, layer.values) for layer in found.layers]


def _example(past: Entries) -> tuple[Any, ...]:
    device = past[0][0].device
    ids = torch.tensor([[1, 2], [2, 1]], device=device)
    return ids, torch.ones(2, 5, dtype=torch.int64, device=device), torch.tensor([[3, 4]] * 2, device=device), past


def _dynamic(layers: int) -> tuple[Any, ...]:
    """Which dims may have other sizes, by name."""
    new, past = {0: "batch", 1: "sequence"}, {0: "batch", 2: "past"}
    return new, {0: "batch", 1: "total"}, new, [(past, past)] * layers


def _names(key: str, value: str, layers: int) -> list[str]:
    return [name.format(layer) for layer in range(layers) for name in (key, value)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter has to say to its developers."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
