"""A causal language model as an ONNX graph, with the keys and values of earlier tokens as its inputs and outputs."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from lorashear.engines.onnx_model import INPUTS, OUTPUT, PAST, PRESENT
from lorashear.errors import LorashearError

OPSET = 18
BATCH, NEW, EARLIER, ALL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
EXAMPLE = (2, 3, 5)
"""Rows, new tokens and earlier tokens that are traced: numbers that nothing takes for a constant."""


@dataclass(frozen=True)
class Cached:
    """What a layer keeps of a token: so many heads, and the sizes of a key and of a value."""

    heads: int
    key: int
    value: int


def cached(model: PreTrainedModel) -> list[Cached]:
    """What each layer keeps of tokens; by running the model, which may be on the meta device.

    Raises:
        LorashearError: it keeps something else than keys and values of all tokens, has experts, or cannot be run on tokens alone;
            the message is half a sentence that says what.
    """
    if model.config.is_encoder_decoder:
        raise LorashearError("it has an encoder, and a decoder alone is meant")
    if _has_experts(model):
        raise LorashearError("it has experts, of which a graph would copy weights for each token")
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    try:
        with torch.no_grad():
            found = model(input_ids=ids, use_cache=True).get("past_key_values")
    except Exception as error:
        raise LorashearError(f"it cannot be traced without weights: {_first(error)}") from error
    if type(found) is not DynamicCache:
        raise LorashearError("it keeps no keys and values of the tokens that it has read")
    kept: list[Cached] = []
    for at, layer in enumerate(found.layers):
        if window := getattr(layer, "sliding_window", None):
            raise LorashearError(f"its layer {at} sees {window} tokens, and all are meant")
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if type(layer) is not DynamicLayer or keys is None or values is None or not keys.dim() == values.dim() == 4:
            raise LorashearError(f"its layer {at} keeps no keys and values, but a {type(layer).__name__}")
        if keys.shape[:3] != (1, values.shape[1], 2):
            raise LorashearError(f"its layer {at} keeps keys of shape {list(keys.shape)} for two tokens")
        kept.append(Cached(keys.shape[1], keys.shape[3], values.shape[3]))
    return kept


def _has_experts(model: PreTrainedModel) -> bool:
    """Whether weights of several experts are stacked, as transformers has them."""
    modules = (module for module in model.modules() if not isinstance(module, torch.nn.Conv1d))
    return any(each.dim() == 3 for module in modules for each in module.parameters(recurse=False))


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether it is told where tokens are; others, as those with ALiBi, see that in the attention mask."""
    return INPUTS[2] in inspect.signature(model.forward).parameters


def write_graph(model: PreTrainedModel, kept: list[Cached], file: Path, told: Callable[[int, int], None]) -> None:
    """Write the graph of a model to a file, its weights to ``.data`` beside it.

    The exporter takes the weights as they lie in memory, and they are written tensor by tensor: no second copy is made.

    Raises:
        LorashearError: torch cannot export it; half a sentence that says why.
    """
    import onnx_ir

    rows, new, earlier = EXAMPLE
    ids = torch.zeros(rows, new, dtype=torch.int64)
    mask = torch.ones(rows, earlier + new, dtype=torch.int64)
    positions = torch.arange(earlier, earlier + new).repeat(rows, 1)
    past = [
        tuple(torch.zeros(rows, each.heads, earlier, size, dtype=model.dtype) for size in (each.key, each.value))
        for each in kept
    ]
    positioned = takes_positions(model)
    token, before = {0: BATCH, 1: NEW}, {0: BATCH, 2: EARLIER}
    pairs = [(at, part) for at in range(len(kept)) for part in ("key", "value")]
    with quiet():
        try:
            program = torch.onnx.export(
                _WithCache(model).eval(),
                (ids, mask, positions if positioned else None, past),
                input_names=[*INPUTS[: 3 if positioned else 2], *(PAST.format(*pair) for pair in pairs)],
                output_names=[OUTPUT, *(PRESENT.format(*pair) for pair in pairs)],
                dynamic_shapes=(
                    token,
                    {0: BATCH, 1: ALL},
                    token if positioned else None,
                    [(before, before)] * len(kept),
                ),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise LorashearError(f"torch.onnx cannot export it: {_first(error)}") from error
    assert program is not None, "with dynamo there is a program"
    graph = program.model
    strip(graph)
    every = sum(each.const_value.nbytes for each in graph.graph.initializers.values() if each.const_value is not None)
    done = 0

    def wrote(tensor: Any, _: Any) -> None:
        nonlocal done
        done += tensor.nbytes
        told(min(done, every), every)

    onnx_ir.save(graph, file, external_data=f"{file.name}.data", callback=wrote)
    told(every, every)  # the smallest lie in the graph itself


class _WithCache(torch.nn.Module):
    """Keys and values go in and come out, in place of the cache that holds them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None,
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        cache = DynamicCache(past)
        where = {} if position_ids is None else {"position_ids": position_ids}
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **where
        )
        return found.logits, [each for layer in cache.layers for each in (layer.keys, layer.values)]  # type: ignore[misc]


def strip(model: Any) -> None:
    """Leave out where in which file each node was made, which says nothing about the model."""
    for part in (model, model.graph, *model.functions.values()):
        part.metadata_props.clear()
        part.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _first(error: Exception) -> str:
    """What was at the bottom of somebody else's error, in its first line."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that torch says of its own exporter, in warnings, its log or on the terminal."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        stack.callback(logging.disable, before)
        yield
