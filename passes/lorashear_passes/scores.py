"""Ranks that need text and that one look at the dense model settles: from gradients, and from how inputs fluctuate.

Each function gives a score for every structure of every group, ``[structures]`` in float64 on the CPU, the lowest to go
first. Optimal brain surgeon and Wanda are no such ranks: they depend on what was pruned before (`surgery.py`). A criterion
from elsewhere is one (`Criterion`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from . import saliency
from .allocate import GroupLike
from .walk import Batch, consumers, token_loss

__all__ = [
    "FROM_TEXT",
    "Criterion",
    "ScoreError",
    "by_function",
    "fluctuation",
    "lora_gradient",
    "magnitude",
    "named",
    "owned",
    "taylor",
]

RANK = 16
"""Of the random adapter that `lora_gradient` looks through."""

Groups = Mapping[str, GroupLike]
Scores = dict[str, Tensor]

Criterion = Callable[[nn.Module, Groups, Sequence[Batch], int], Mapping[str, Any]]
"""What gives a score for every structure of each of the groups, the lowest to go first: of the dense model, which it leaves as it
was, on some batches (none without text), drawing what it draws by the seed."""


class ScoreError(ValueError):
    """What a function gave are no scores of the groups; says of which group, and why."""


def magnitude(model: nn.Module, groups: Groups) -> Scores:
    """Sum of squares of all weights that a structure owns (Han et al. 2015, per structure). Needs no text."""
    return {name: _summed(model, group, lambda _, value: value.square()) for name, group in groups.items()}


def taylor(model: nn.Module, groups: Groups, batches: Sequence[Batch], seed: int = 0) -> Scores:
    """Sum of ``|w · ∂L/∂w|`` over all weights that a structure owns: first-order Taylor (LLM-Pruner, Ma et al. 2023, eq. 5).

    Holds a gradient for every weight that the groups own.
    """
    names = sorted({name for group in groups.values() for name, _ in group.slots})
    parameters = [model.get_parameter(name) for name in names]
    flags = [parameter.requires_grad for parameter in parameters]
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for batch in batches:
            found = torch.autograd.grad(token_loss(model, batch), parameters, allow_unused=True)
            for total, gradient in zip(gradients, found, strict=True):
                if gradient is not None:
                    total.add_(gradient)
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
    held = dict(zip(names, gradients, strict=True))
    return {n: _summed(model, g, lambda name, value: (value * held[name]).abs()) for n, g in groups.items()}


def lora_gradient(model: nn.Module, groups: Groups, batches: Sequence[Batch], seed: int = 0) -> Scores:
    """Sum of ``(w · ĝ)²`` over the linear maps that a structure owns, with the gradient as a LoRA adapter sees it.

    LoRAPrune (Zhang et al. 2023, eq. 8) estimates ``∂L/∂W`` by ``∂L/∂B A + B ∂L/∂A − ∂L/∂B ∂L/∂A``. Here each map gets an
    adapter that does nothing yet: B = 0 and a random A of rank 16 with ``E[AᵀA] = I``, which leaves ``∂L/∂B A``. No
    gradient of the size of a weight is held but for the map that is being scored.
    """
    names = sorted({name for group in groups.values() for name, _ in group.slots})
    maps = [name for name in names if isinstance(_owner(model, name), nn.Linear) and name.endswith(".weight")]
    down: dict[str, Tensor] = {}
    for name in maps:
        weight = model.get_parameter(name)
        drawn = torch.randn(RANK, weight.shape[1], generator=saliency.drawing(seed, name)) / RANK**0.5
        down[name] = drawn.to(weight.device, weight.dtype)
    up = {name: torch.zeros(model.get_parameter(name).shape[0], RANK, device=down[name].device) for name in maps}
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def watched(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            inside = (args[0].detach() @ down[name].T).flatten(0, -2).float()
            result = output if output.requires_grad else output.detach().requires_grad_()

            def add(error: Tensor) -> None:
                up[name].add_(error.flatten(0, -2).float().T @ inside)

            result.register_hook(add)
            return result

        return hook

    with ExitStack() as stack:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            stack.callback(parameter.requires_grad_, flag)
            parameter.requires_grad_(False)
        for name in maps:
            handle = _owner(model, name).register_forward_hook(watched(name))
            stack.callback(handle.remove)
        for batch in batches:
            token_loss(model, batch).backward()

    def importance(name: str, value: Tensor) -> Tensor:
        estimate = up[name] @ down[name].float() if name in up else torch.zeros(())
        return (value.float() * estimate).square()

    return {name: _summed(model, group, importance) for name, group in groups.items()}


def fluctuation(model: nn.Module, groups: Groups, batches: Sequence[Batch], seed: int = 0) -> Scores:
    """``Σ_{j in S} ‖W_:j‖² Var(h_j)`` over the linear maps that read a structure: FLAP's metric (An et al. 2024, eq. 5).

    What hardly varies can go, since its mean is a bias; here the refit makes up for it. A group that no linear map reads
    is ranked by magnitude.
    """
    readers = {name: consumers(model, group.slots) for name, group in groups.items()}
    names = sorted({reader for found in readers.values() for reader in found})
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def watched(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].detach().flatten(0, -2).double()
            found = torch.stack([rows.sum(0), rows.square().sum(0)])
            sums[name] = sums[name] + found if name in sums else found
            counts[name] += len(rows)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(watched(name))
            stack.callback(handle.remove)
        for batch in batches:
            model(**batch)
    result: Scores = {}
    for name, group in groups.items():
        total = torch.zeros(group.size, dtype=torch.float64)
        for reader in readers[name]:
            mean, square = sums[reader] / counts[reader]
            weight = model.get_parameter(f"{reader}.weight").data
            columns = owned(group, f"{reader}.weight", 1)
            total += saliency.fluctuation(weight, square - mean.square(), columns).cpu()
        result[name] = total if readers[name] else magnitude(model, {name: group})[name]
    return result


FROM_TEXT: dict[str, Criterion] = {"taylor": taylor, "lora": lora_gradient, "flap": fluctuation}


def named(criterion: Criterion) -> str:
    """What a function is called."""
    return getattr(criterion, "__name__", type(criterion).__name__)


def by_function(criterion: Criterion, model: nn.Module, groups: Groups, batches: Sequence[Batch], seed: int) -> Scores:
    """The scores that a function from elsewhere gives.

    Raises:
        ScoreError: it gives none for a group, too few or too many, or one that is no finite number.
    """
    who, found = f"criterion {named(criterion)}", criterion(model, groups, batches, seed)
    if not isinstance(found, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ScoreError(f"{who} gives a {type(found).__name__}; it is a mapping of scores by the name of each group")
    result: Scores = {}
    for name, group in groups.items():
        if name not in found:
            raise ScoreError(f"{who} gives no scores for {name}; each group that it is asked about needs them")
        try:
            scores = torch.as_tensor(found[name]).detach().to("cpu", torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ScoreError(f"{who} gives no numbers for {name}: {error}") from error
        if scores.shape != (group.size,):
            raise ScoreError(
                f"{who} gives scores of shape {list(scores.shape)} for {name}; it has {group.size} structures, a score each"
            )
        if not bool(scores.isfinite().all()):
            raise ScoreError(f"{who} gives a score for {name} that is no finite number")
        result[name] = scores
    return result


def owned(group: GroupLike, parameter: str, dim: int) -> Tensor:
    """What each structure owns of one slot, ``[structures, width]``; read off three structures where they lie regularly."""

    def of(structure: int) -> Tensor:
        slices = group.slices(structure)
        return torch.tensor([i for name, at, indices in slices if (name, at) == (parameter, dim) for i in indices])

    ends = of(0), of(min(1, group.size - 1)), of(group.size - 1)
    steps = torch.arange(group.size)[:, None]
    table = ends[0] + steps * (ends[1] - ends[0]) if ends[0].shape == ends[1].shape else ends[0][None]
    if len(table) == group.size and torch.equal(table[-1], ends[2]):
        return table
    return torch.stack([of(structure) for structure in range(group.size)])


def _summed(model: nn.Module, group: GroupLike, importance: Callable[[str, Tensor], Tensor]) -> Tensor:
    """The importance of all weights that each structure owns, given a parameter's name and value; a sum over slots."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, dim in group.slots:
        value = importance(name, model.get_parameter(name).data).double()
        others = [d for d in range(value.dim()) if d != dim]
        pairs.append(((value.sum(others) if others else value).cpu(), owned(group, name, dim)))
    return saliency.summed(pairs)


def _owner(model: nn.Module, parameter: str) -> nn.Module:
    return model.get_submodule(parameter.rpartition(".")[0])
