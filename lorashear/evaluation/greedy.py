"""One run of a model: a prompt is read at once, then tokens are decoded one by one, greedily, with the model's cache."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorashear.emission import declared
from lorashear.errors import LorashearError
from lorashear.likelihood import evaluating

SEED = 0
"""Of the prompt's tokens."""
CACHES = ("past_key_values", "cache_params", "state")
"""What a model gives beside its logits and takes back with the next token: of attention, of Mamba, of RWKV."""


@dataclass(frozen=True)
class Run:
    """What one run took: ``first``, seconds until the first token's id was on the host, ``rest``, seconds of all that came after
    it; and the cache as it is at the end, None where the model has none."""

    first: float
    rest: float
    cache: Any


def run(model: nn.Module, ids: torch.Tensor, tokens: int) -> Run:
    """Read a prompt and decode ``tokens`` more after the first one, never stopping at an end of text.

    The cache then holds the prompt, the first token and all but the very last: prompt + ``tokens`` entries. A model without a
    cache reads everything again for every token. Logits are those of the last position alone where the forward can leave out the
    others.

    Args:
        model: a causal language model; it stays on its device and in its dtype.
        ids: the prompt, int64 [rows, positions], on any device.
    """
    options: dict[str, Any] = {name: value for name, value in _OPTIONS.items() if name in _taken(model)}
    with evaluating(model) as device:
        ids = ids.to(device)
        started = now(device)
        output: Any = model(input_ids=ids, **options)
        new = _likeliest(output)
        new.tolist()  # waits for the device, as one who wants to show the token does
        first = now(device)
        for _ in range(tokens):
            cache = _cache(output)
            if not cache:
                ids = torch.cat([ids, new], dim=1)
            output = model(input_ids=new if cache else ids, **cache, **options)
            new = _likeliest(output)
        ended = now(device)
    return Run(first - started, ended - first, next(iter(_cache(output).values()), None))


def prompt_ids(vocabulary: int, batch: int, length: int) -> torch.Tensor:
    """Random token ids, int64 [batch, length], the same on every call."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(SEED))


def vocabulary(models: Iterable[nn.Module]) -> int:
    """How many token ids all of the models know.

    Raises:
        LorashearError: one of them has no config that says it.
    """
    sizes: list[int] = []
    for model in models:
        config: Any = getattr(model, "config", None)
        if config is None:
            raise LorashearError(
                f"{type(model).__name__} has no config that says how many token ids there are; give a language model"
            )
        sizes.append(declared.vocabulary(config))
    return min(sizes)


def check_counts(**counts: int) -> None:
    """Refuse to measure nothing: LorashearError where a count is under 1."""
    for word, count in counts.items():
        if count < 1:
            raise LorashearError(f"{word} is {count}, which leaves nothing to measure: ask for 1 or more")


def check_positions(name: str, config: Any, prompt: int, tokens: int) -> None:
    """Refuse a run that is longer than the positions of a model with this config: LorashearError."""
    positions = None if config is None else declared.positions(config)
    if positions is not None and prompt + tokens > positions:
        raise LorashearError(
            f"{name} has {positions} positions, and a prompt of {prompt} and {tokens} more tokens need {prompt + tokens}: "
            "ask for fewer"
        )


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


_OPTIONS = {"use_cache": True, "logits_to_keep": 1}


def _taken(model: Any) -> frozenset[str]:
    """The arguments of the forward; an adapter's wrapper hands on what it is given."""
    within = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(within.forward).parameters)


def _likeliest(output: Any) -> torch.Tensor:
    """The next token of every row, [rows, 1]."""
    return output.logits[:, -1:].argmax(-1)


def _cache(output: Any) -> dict[str, Any]:
    """The cache under the name by which the model takes it back."""
    found = ((name, getattr(output, name, None)) for name in CACHES)
    return next(({name: cache} for name, cache in found if cache is not None), {})
