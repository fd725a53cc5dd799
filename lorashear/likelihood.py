"""How likely a model takes text to be: perplexity, and the loss, on windows of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lorashear.emission.declared import vocabulary
from lorashear.errors import LorashearError
from lorashear.learning.processes import Processes
from lorashear.text.data import inputs, told, wanted

# A batch's logits are the largest tensor of an evaluation: at 128k pieces one token's are half a megabyte in fp32.
LOGIT_BYTES = 512 * 2**20
# Beyond some thousands of tokens a larger batch is no faster, only larger.
TOKENS_PER_BATCH = 16 * 1024
# The loss makes fp32 copies of the logits it sees, so it sees few at a time.
LOSS_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Perplexity:
    """``nll``: mean negative log-likelihood, nats a token; ``tokens``: how many were scored; ``perplexity``: e^nll."""

    nll: float
    tokens: int
    perplexity: float


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients for a while; every module gets its own mode back. Gives the model's device."""
    with _evaluation(model), torch.inference_mode():
        yield _device(model)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def perplexity(model: nn.Module, windows: torch.Tensor, batch: int | None = None) -> Perplexity:
    """Score every token of each window but the first, and those that are only read, given those before it in the window.

    Args:
        model: a causal language model; it stays on its device and in its dtype, the loss is computed in fp32.
        windows: token ids, int64 [windows, length], from :func:`lorashear.text.data.windows`.
        batch: windows a forward pass; by default as many as keep the logits under half a gigabyte, at least one.

    Raises:
        LorashearError: there is no window, or nothing to predict in it.
    """
    sums, counts = window_losses(model, windows, batch)
    tokens = int(counts.sum())
    nll = sums.sum().item() / tokens
    return Perplexity(nll, tokens, exponential(nll))


def exponential(nll: float) -> float:
    """e^nll, infinite where no float holds it."""
    return math.exp(nll) if nll < 700 else math.inf


def window_losses(
    model: nn.Module,
    windows: torch.Tensor,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `perplexity`, window by window.

    Args:
        progress: called with windows done, and all.

    Returns:
        float64 [windows], the summed negative log-likelihood of what was scored in each, in nats, and int64 [windows], how
        many tokens that were; both on the CPU.

    Raises:
        LorashearError: there is no window, or nothing to predict in it.
    """
    count, length = windows.shape
    if count < 1 or length < 2:
        raise LorashearError(f"{count} windows of {length} tokens leave nothing to predict; give more text")
    batch = batch or batch_size(length, _vocabulary(model, windows))
    sums, counts = [], []
    with evaluating(model) as device:
        for number, rows in enumerate(windows.split(batch)):
            logits: torch.Tensor = model(**inputs(rows.to(device))).logits
            targets = wanted(rows.to(device))
            sums.append(_nll(logits[:, :-1], targets).cpu())
            counts.append((targets >= 0).sum(1).cpu())
            del logits  # or the next batch's would be made beside it
            if progress:
                progress(min((number + 1) * batch, count), count)
    return torch.cat(sums), torch.cat(counts)


def mean_loss(model: nn.Module, windows: torch.Tensor, processes: Processes) -> float:
    """The mean negative log-likelihood of tokens that are told, in nats, by all processes together, each for its share."""
    size = batch_size(windows.shape[1], _vocabulary(model, windows))
    found = torch.zeros(2, dtype=torch.float64)
    # no_grad: weights that sharding gathers in inference mode would be no use to training afterwards
    with _evaluation(model), torch.no_grad(), processes.accelerator.autocast():
        for rows, counts in processes.dealt(windows, size):
            rows = rows.to(_device(model))
            loss = _nll(model(**inputs(rows)).logits[:, :-1], wanted(rows)).sum().item()
            found += counts * torch.tensor([loss, told(rows)], dtype=torch.float64)
    total, tokens = processes.summed(found).tolist()
    return total / tokens


def batch_size(length: int, vocabulary: int) -> int:
    """How many windows of ``length`` tokens go through a model of so many pieces at once, at least one."""
    return max(1, min(LOGIT_BYTES // (4 * length * vocabulary), TOKENS_PER_BATCH // length))


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sums over the positions of each row of -log p(target) in nats, but where the target is -100; logits [rows, positions,
    vocabulary] of any dtype."""
    positions = max(1, LOSS_BYTES // (4 * logits.shape[-1]))
    losses = [
        [
            functional.cross_entropy(some.float(), wanted, reduction="sum").double()
            for some, wanted in zip(row.split(positions), target.split(positions), strict=True)
        ]
        for row, target in zip(logits, targets, strict=True)
    ]
    return torch.stack([torch.stack(row).sum() for row in losses])


def _vocabulary(model: nn.Module, windows: torch.Tensor) -> int:
    config: Any = getattr(model, "config", None)
    if config is None:
        return int(windows.max()) + 1
    return vocabulary(config)
