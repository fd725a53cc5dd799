"""`prune`: chosen structures go, in memory, and a new module comes back; the given one is not touched.

Three ways, the plainest that is exact: the model's own class from a changed config; a copy of the model whose modules are
set to other widths (`rebuild.py`); for a module without a config, its captured program with the sizes rewritten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from lorashear import emit, models
from lorashear.errors import LorashearError
from lorashear.rebuild import rebuilt
from lorashear_ir.groups import Groups, SelectionError
from lorashear_passes.capture import CaptureError
from lorashear_passes.neutralise import zeroed
from lorashear_passes.program import cut_tensor, record, sliced

Removed = Mapping[str, Collection[int]]


def prune(model: models.Model, removed: Removed, inputs: models.Inputs | None = None) -> torch.nn.Module:
    """A smaller model with the same forward signature.

    Args:
        model: a folder, hub id, transformers or PEFT model, or any module.
        removed: structures to remove by group name (`lorashear.groups` lists them).
        inputs: what its forward is called with; needed for a module that is no language model of transformers. A module
            without a config comes back as a `torch.fx.GraphModule`, for inputs of the same shapes.

    Raises:
        LorashearError: an unknown or frozen group, a choice that no model can be made of, or a module that cannot be
            traced.
    """
    if not isinstance(model, torch.nn.Module):
        from lorashear.checkpoint import resolve

        model = models.AutoModelForCausalLM.from_pretrained(resolve(model), dtype="auto")
    assert isinstance(model, torch.nn.Module)
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return _captured(model, removed, models.keywords(model, inputs))
    return pruned(model, config, models.analysed(model, inputs), removed, inputs)


def pruned(
    model: torch.nn.Module,
    config: PreTrainedConfig,
    groups: Groups,
    removed: Removed,
    inputs: models.Inputs | None = None,
) -> torch.nn.Module:
    """As `prune`, for a model with a config, whose groups are known already."""
    try:
        groups.check(removed)
    except SelectionError as error:
        raise LorashearError(str(error)) from error
    made, reason = emit.solve(config, groups, removed)
    if made is not None:
        return _runs(_own_class(model, config, made, groups, removed))
    assert groups.typed is not None
    small, wrong = rebuilt(model, groups.typed, groups, removed, models.keywords(model, inputs))
    if small is None:
        raise LorashearError(f"{type(model).__name__} cannot take these widths ({reason}): {wrong}")
    return _runs(small)


def _runs(small: torch.nn.Module) -> torch.nn.Module:
    """torch's grouped matrix product of experts wants rows of whole 16 bytes; other widths take the loop over experts."""
    odd = any(p.dim() == 3 and any(s * p.element_size() % 16 for s in p.shape[1:]) for p in small.parameters())
    for module in small.modules() if odd else ():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and getattr(config, "_experts_implementation", "") == "grouped_mm":
            config._experts_implementation = "eager"
    return small


def _own_class(
    model: torch.nn.Module, config: PreTrainedConfig, made: emit.Emission, groups: Groups, removed: Removed
) -> torch.nn.Module:
    """The model of the changed config, with what stays of the weights."""
    made.config._attn_implementation = config._attn_implementation
    cuts = groups.cuts(removed)
    first = next(model.parameters())
    small = emit.build(made.config, "cpu").to(device=first.device, dtype=first.dtype)
    given = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            source = given[name].detach()
            parameter.data = cut_tensor(source, cuts[name]) if name in cuts else source.clone()
            parameter.requires_grad_(given[name].requires_grad)
        for name, buffer in small.named_buffers():
            if name in cuts:
                buffer.data = cut_tensor(given[name].detach(), cuts[name])
            elif name in given and given[name].shape == buffer.shape:
                buffer.data = given[name].detach().clone()
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        small.generation_config = generation  # type: ignore[assignment]
    return small.train(model.training)


def _captured(model: torch.nn.Module, removed: Removed, inputs: Mapping[str, Any]) -> torch.nn.Module:
    try:
        program = record(model, inputs)
        return sliced(program, models.group(program.graph), removed)
    except (CaptureError, SelectionError) as error:
        raise LorashearError(str(error)) from error


def masked(model: torch.nn.Module, groups: Groups, removed: Mapping[str, Collection[int]]) -> None:
    """Set structures to their neutral value, zero, in place: the other side of the theorem."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, cut in groups.cuts(removed).items():
            parameters[name].copy_(zeroed(parameters[name], cut))
