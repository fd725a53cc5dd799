"""What models cost to run, by turns in one run: time to the first token, tokens a second, bytes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lorashear.errors import LorashearError
from lorashear.evaluation.bandwidth import cache_bytes, read_bytes, weight_bytes
from lorashear.evaluation.greedy import check_counts, check_positions, prompt_ids, run, vocabulary
from lorashear.evaluation.memory import peak_bytes
from lorashear.loading import DTYPES
from lorashear.terminal.stages import Progress


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one model costs at one batch size: medians over the rounds, and ratios to the first model, each the median of the
    ratios within a round, so that what else the machine did slowed both alike.

    Of every row ``prompt`` tokens are read, then ``tokens`` are decoded after the first one.
    """

    name: str
    batch: int  # rows
    prompt: int  # tokens a row
    tokens: int  # a row, beyond the first one
    rounds: int
    time_to_first_token: float  # seconds, until its id is on the host
    prefill: float  # prompt tokens a second, of all rows
    decode: float  # new tokens a second, of all rows
    spread: float | None  # of decode, from the first quartile to the third, as a share of its median; None of one round
    prefill_ratio: float  # to the first model; over 1 is faster
    decode_ratio: float
    prefill_noise: (
        bool | None
    )  # whether half of the rounds' ratios lie around 1; None of fewer than two rounds, or of the first model
    decode_noise: bool | None
    decode_bound: (
        float  # the most that decode_ratio can be where memory bounds it: bytes read by the first model over this one's
    )
    weight_bytes: int  # parameters and buffers, tied ones once
    read_bytes: int  # in one step of decoding: see `lorashear.evaluation.bandwidth`
    cache_bytes: int | None  # at the end, of prompt + tokens entries a row; None of a model without a cache
    peak_bytes: int | None  # see `lorashear.evaluation.memory`
    no_peak: str | None  # why there is none


def measure(
    models: Mapping[str, nn.Module],
    *,
    batches: Sequence[int] = (1,),
    prompt: int = 128,
    tokens: int = 32,
    rounds: int = 5,
    warm_up: int = 1,
    folders: Mapping[str, str | Path] | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[Cost]:
    """Run every model once a round, in an order that is rotated from round to round; for each batch size, in this order of models.

    All read the same random token ids, which all of them know, and decode greedily with their caches, whatever tokens come.

    Args:
        models: causal language models by name; the first is the one that the others are compared with. They stay on their
            devices and in their dtypes.
        batches: rows at once; each size is measured by itself.
        prompt, tokens: to read, and to decode after the first token, of each row.
        rounds, warm_up: that count, and those before them that do not.
        folders: where models lie on disk: on a CPU their peak memory is measured from there, each in a process of its own.
        trust_remote_code: run modelling code that comes with a folder.
        progress: called with ("speed", done, total) after every run.

    Raises:
        LorashearError: nothing to measure, or more tokens than a model has positions.
    """
    _check(models, batches, prompt, tokens, rounds, warm_up)
    known = vocabulary(models.values())
    done, total = 0, len(batches) * (warm_up + rounds) * len(models)
    costs: list[Cost] = []
    for batch in batches:
        ids = prompt_ids(known, batch, prompt)
        timed: dict[str, list[_Timed]] = {name: [] for name in models}
        for turn in range(warm_up + rounds):
            for name in rotated(list(models), turn):
                timed[name].append(_timed(models[name], ids, tokens))
                done += 1
                if progress:
                    progress("speed", done, total)
        first: Cost | None = None
        for name, model in models.items():
            counted = {each: runs[warm_up:] for each, runs in timed.items()}
            cost = _cost(name, model, counted[name], next(iter(counted.values())), ids, tokens)
            first = first or cost
            peak, reason = _peak(model, (folders or {}).get(name), ids, tokens, trust_remote_code)
            costs.append(
                replace(cost, decode_bound=first.read_bytes / cost.read_bytes, peak_bytes=peak, no_peak=reason)
            )
    return costs


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: each begins one further on, so that no model always runs after the same one."""
    begin = turn % len(names)
    return [*names[begin:], *names[:begin]]


def spread(rates: Sequence[float]) -> float | None:
    """From the first quartile to the third, as a share of the median; None of fewer than two."""
    if len(rates) < 2:
        return None
    lower, middle, upper = statistics.quantiles(rates, method="inclusive")
    return (upper - lower) / middle


def around_one(ratios: Sequence[float]) -> bool | None:
    """Whether 1 lies between the first quartile of ratios and the third; None of fewer than two."""
    if len(ratios) < 2:
        return None
    lower, _, upper = statistics.quantiles(ratios, method="inclusive")
    return lower <= 1 <= upper


@dataclass(frozen=True)
class _Timed:
    """A run whose cache is gone, since the next model needs the memory."""

    first: float
    rest: float
    cache: int | None


def _timed(model: nn.Module, ids: torch.Tensor, tokens: int) -> _Timed:
    found = run(model, ids, tokens)
    return _Timed(found.first, found.rest, cache_bytes(found.cache))


def _cost(
    name: str, model: nn.Module, runs: Sequence[_Timed], first: Sequence[_Timed], ids: torch.Tensor, tokens: int
) -> Cost:
    """All but the memory, beside the runs of the first model in the same rounds."""
    batch, prompt = ids.shape
    pairs = list(zip(first, runs, strict=True))
    rates = [batch * tokens / each.rest for each in runs]
    firsts = [other.first / own.first for other, own in pairs]
    rests = [other.rest / own.rest for other, own in pairs]
    return Cost(
        name=name,
        batch=batch,
        prompt=prompt,
        tokens=tokens,
        rounds=len(runs),
        time_to_first_token=statistics.median(each.first for each in runs),
        prefill=statistics.median(batch * prompt / each.first for each in runs),
        decode=statistics.median(rates),
        spread=spread(rates),
        prefill_ratio=statistics.median(firsts),
        decode_ratio=statistics.median(rests),
        prefill_noise=None if runs is first else around_one(firsts),
        decode_noise=None if runs is first else around_one(rests),
        decode_bound=1.0,
        weight_bytes=weight_bytes(model),
        read_bytes=read_bytes(model, batch=batch, cache=runs[-1].cache or 0),
        cache_bytes=runs[-1].cache,
        peak_bytes=None,
        no_peak=None,
    )


def _peak(
    model: nn.Module, folder: str | Path | None, ids: torch.Tensor, tokens: int, trust_remote_code: bool
) -> tuple[int | None, str | None]:
    """Peak memory, and why there is none."""
    batch, prompt = ids.shape
    reasons: list[str] = []
    device, dtype = next(
        ((p.device.type, str(p.dtype).removeprefix("torch.")) for p in model.parameters()), ("cpu", "")
    )
    if device == "cpu" and folder is not None and dtype in DTYPES:
        peak = peak_bytes(
            folder,
            batch=batch,
            prompt=prompt,
            tokens=tokens,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            say=reasons.append,
        )
    else:
        peak = peak_bytes(model, batch=batch, prompt=prompt, tokens=tokens, say=reasons.append)
    return peak, next(iter(reasons), None)


def _check(
    models: Mapping[str, nn.Module], batches: Sequence[int], prompt: int, tokens: int, rounds: int, warm_up: int
) -> None:
    if not models:
        raise LorashearError("there is no model to measure: give one or more by name")
    if not batches:
        raise LorashearError("there is no batch size to measure at: give one or more in batches")
    check_counts(batches=min(batches), prompt=prompt, tokens=tokens, rounds=rounds)
    if warm_up < 0:
        raise LorashearError(f"warm_up is {warm_up}; it is a number of rounds, 0 or more")
    for name, model in models.items():
        check_positions(name, getattr(model, "config", None), prompt, tokens)
