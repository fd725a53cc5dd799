"""What a budget is counted in: the price of one entry of each parameter, in parameters, bytes, FLOPs or seconds."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from lorashear.config import Settings
from lorashear.disk.checkpoint import NUMPY_DTYPES
from lorashear.disk.storage import Storage
from lorashear.errors import LorashearError
from lorashear.loading import DTYPES
from lorashear_ir.groups import Groups
from lorashear_ir.products import products

WHOLE = 10**9
"""What the whole model costs, where that is no number of parameters: shares of a billionth are told apart."""
ROUNDS = 9
SECONDS = 2e-3  # at least, for a round: longer than a clock's tick and a thread's waking


def priced(groups: Groups, settings: Settings, storage: Storage) -> Groups:
    """The groups, such that their `Groups.count` is in what ``settings.cost`` says.

    Raises:
        LorashearError: the model multiplies no weight, so that FLOPs and latency are none.
    """
    if settings.cost == "parameters":
        return groups
    if settings.cost == "bytes":
        prices = _bytes(groups, storage)
    else:
        prices = _products(groups)
        if settings.cost == "latency":
            prices = _seconds(groups, prices, settings)
    total = sum(prices[name] * math.prod(d.size for d in dims) for name, dims in groups.tensors.items())
    if not total:
        raise LorashearError(f"cost is {settings.cost}, and the model multiplies no weight by its input")
    return groups.priced({name: price * WHOLE / total for name, price in prices.items()})


def _bytes(groups: Groups, storage: Storage) -> dict[str, float]:
    """As they are stored."""
    prices = dict.fromkeys(groups.tensors, 0.0)
    for name, part in storage.parts.items():
        parameter = groups.tied.get(part.parameter, part.parameter)
        if parameter in prices and name in storage.source.tensors:
            prices[parameter] = float(NUMPY_DTYPES[storage.source.tensors[name].dtype].itemsize)
    return prices


def _products(groups: Groups) -> dict[str, float]:
    """Two FLOPs for each multiplication by a weight, a token; what attention does with its context is not a weight's."""
    typed = groups.typed
    assert typed is not None
    tokens = next(math.prod(s.value.shape) for s in typed.sources if s.role == "input" and s.path == "input_ids")
    found: defaultdict[str, float] = defaultdict(float)
    for name, count in products(typed, tokens).items():
        found[groups.tied.get(name, name)] += 2 * count
    return {name: found[name] for name in groups.tensors}


def _seconds(groups: Groups, flops: Mapping[str, float], settings: Settings) -> dict[str, float]:
    """Of the products with one token, as the device takes for a matrix of each shape; the same for all of a shape."""
    timed: dict[tuple[int, ...], float] = {}
    prices: dict[str, float] = {}
    dtype = DTYPES.get(settings.dtype or "", torch.float32 if settings.device == "cpu" else torch.bfloat16)
    for name, dims in groups.tensors.items():
        shape = tuple(d.size for d in dims)[-2:]
        if flops[name] and shape not in timed:
            matrix = torch.randn(shape, device=settings.device, dtype=dtype)
            token = torch.randn(1, shape[-1], device=settings.device, dtype=dtype)
            timed[shape] = _median(lambda m=matrix, t=token: functional.linear(t, m), settings.device)
        prices[name] = flops[name] / 2 * timed[shape] / math.prod(shape) if flops[name] else 0.0
    return prices


def _median(work: Callable[[], object], device: str) -> float:
    """Seconds, of some rounds, each long enough to be measured."""

    def spent(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - started

    times = 1
    while (once := spent(times)) < SECONDS:
        times *= max(2, min(100, round(SECONDS / max(once, 1e-9))))
    return statistics.median(spent(times) for _ in range(ROUNDS)) / times
