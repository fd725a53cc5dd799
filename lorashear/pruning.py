"""`prune`: chosen structures go, in memory, and a new module comes back; the given one is not touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from transformers import PreTrainedConfig

from lorashear import emit, models
from lorashear.errors import LorashearError
from lorashear_ir.groups import Groups, SelectionError, TensorCut


def cut_tensor(tensor: torch.Tensor, cut: TensorCut) -> torch.Tensor:
    """What is left of a tensor: a copy."""
    for dim, kept in cut.keep.items():
        tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
    if cut.scale == 1.0:
        return tensor.clone()
    return ((tensor.double() + cut.offset) * cut.scale - cut.offset).to(tensor.dtype)


def prune(model: models.Model, removed: Mapping[str, Collection[int]]) -> torch.nn.Module:
    """A smaller model with the same forward signature.

    Args:
        model: a folder, hub id or transformers model.
        removed: structures to remove by group name (`lorashear.groups` lists them).

    Raises:
        LorashearError: an unknown or frozen group, a choice that no model can be made of, or a module without a
            config.
    """
    if not isinstance(model, torch.nn.Module):
        from lorashear.checkpoint import resolve

        model = models.AutoModelForCausalLM.from_pretrained(resolve(model), dtype="auto")
    assert isinstance(model, torch.nn.Module)
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise LorashearError(f"{type(model).__name__} has no config; prune takes transformers models")
    return pruned(model, config, models.groups(model), removed)


def pruned(
    model: torch.nn.Module, config: PreTrainedConfig, groups: Groups, removed: Mapping[str, Collection[int]]
) -> torch.nn.Module:
    """As `prune`, for groups that are known already."""
    try:
        cuts = groups.cuts(removed)
    except SelectionError as error:
        raise LorashearError(str(error)) from error
    made = emit.emission(config, groups, removed)
    made.config._attn_implementation = config._attn_implementation
    first = next(model.parameters())
    small = emit.build(made.config, "cpu").to(device=first.device, dtype=first.dtype)
    given = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            source = given[name].detach()
            parameter.data = cut_tensor(source, cuts[name]) if name in cuts else source.clone()
            parameter.requires_grad_(given[name].requires_grad)
        for name, buffer in small.named_buffers():
            if name in given and given[name].shape == buffer.shape:
                buffer.data = given[name].detach().clone()
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        small.generation_config = generation  # type: ignore[assignment]
    return small.train(model.training)


def masked(model: torch.nn.Module, groups: Groups, removed: Mapping[str, Collection[int]]) -> None:
    """Set structures to their neutral value, zero, in place: the other side of the theorem."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, cut in groups.cuts(removed).items():
            tensor = parameters[name]
            for dim, kept in cut.keep.items():
                gone = sorted(set(range(tensor.shape[dim])) - set(kept))
                tensor.index_fill_(dim, torch.tensor(gone, device=tensor.device), 0)
