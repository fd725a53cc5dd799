"""What a model costs to run: tokens a second, of several models by turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from lorashear.errors import LorashearError
from lorashear.likelihood import evaluating


@dataclass(frozen=True)
class Speed:
    """Tokens a second of two models measured by turns, and how many times faster the pruned one is."""

    dense: float
    pruned: float
    ratio: float


def decode_speed(model: nn.Module, *, prompt: int = 32, tokens: int = 32, batch: int = 1, repeats: int = 5) -> float:
    """New tokens a second, greedy, with a KV cache: ``tokens`` after a random prompt of ``prompt`` tokens in ``batch``
    rows. The prompt's own pass is not timed. Median of ``repeats`` after one run to warm up."""
    return _rates([model], partial(_decode, prompt=prompt, tokens=tokens, batch=batch), repeats)[0]


def forward_speed(model: nn.Module, *, length: int = 128, batch: int = 1, repeats: int = 5) -> float:
    """Prompt tokens a second: one pass over ``batch`` rows of ``length`` random tokens, logits of all of them.
    Median of ``repeats`` after one run to warm up."""
    return _rates([model], partial(_forward, length=length, batch=batch), repeats)[0]


def compare_speed(
    dense: nn.Module,
    pruned: nn.Module,
    kind: Literal["decode", "forward"] = "decode",
    *,
    length: int = 128,
    prompt: int = 32,
    tokens: int = 32,
    batch: int = 1,
    repeats: int = 7,
) -> Speed:
    """:func:`decode_speed` or :func:`forward_speed` of both models, measured by turns in one run, so that whatever
    else the machine does slows both alike. ``ratio`` is pruned over dense."""
    run = {
        "decode": partial(_decode, prompt=prompt, tokens=tokens, batch=batch),
        "forward": partial(_forward, length=length, batch=batch),
    }[kind]
    one, other = _rates([dense, pruned], run, repeats)
    return Speed(one, other, other / one)


# One run on one model: (tokens, seconds).
Run = Callable[[Any], tuple[int, float]]


def _rates(models: Sequence[nn.Module], run: Run, repeats: int) -> list[float]:
    """Median tokens a second of each model over ``repeats`` rounds in which every model runs once."""
    if repeats < 1:
        raise LorashearError(f"{repeats} repeats measure nothing; ask for 1 or more")
    for model in models:
        run(model)
    rounds = [[run(model) for model in models] for _ in range(repeats)]
    return [statistics.median(tokens / seconds for tokens, seconds in column) for column in zip(*rounds, strict=True)]


def _decode(model: Any, prompt: int, tokens: int, batch: int) -> tuple[int, float]:
    with evaluating(model) as device:
        output = model(input_ids=_random_ids(model, batch, prompt, device), use_cache=True)
        cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        started = _now(device)
        for _ in range(tokens):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        return batch * tokens, _now(device) - started


def _forward(model: Any, length: int, batch: int) -> tuple[int, float]:
    with evaluating(model) as device:
        ids = _random_ids(model, batch, length, device)
        started = _now(device)
        model(input_ids=ids, use_cache=False)
        return batch * length, _now(device) - started


def _random_ids(model: Any, batch: int, length: int, device: torch.device) -> torch.Tensor:
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
