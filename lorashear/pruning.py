"""`prune`: chosen structures go, in memory, and a new module comes back; the given one is not touched.

Ways, the plainest that is exact: the model's own class from a changed config; the class generated for it, or, where it is
no language model, a copy whose modules are set to other widths (`rebuild.py`); for a module without a config, its captured
program with the sizes rewritten, and such a copy where no program can be kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from lorashear import adapters, models
from lorashear.emission import emit
from lorashear.emission.rebuild import Original, failure, rebuilt
from lorashear.errors import LorashearError
from lorashear.modeling_lorashear import loop_over_odd_experts
from lorashear_ir.groups import Groups, SelectionError
from lorashear_passes.capture import CaptureError
from lorashear_passes.infer import RuleError
from lorashear_passes.neutralise import zeroed
from lorashear_passes.program import cut_tensor, record, sliced, tensors

Removed = Mapping[str, Collection[int]]


def prune(
    model: models.Model,
    removed: Removed,
    inputs: models.Inputs | None = None,
    *,
    merge: bool = False,
    revision: str | None = None,
) -> torch.nn.Module:
    """A smaller model with the same forward signature.

    Args:
        model: a folder, hub id, transformers or PEFT model, or any module.
        removed: structures to remove by group name (`lorashear.groups` lists them).
        inputs: what its forward is called with; needed for a module that is no language model of transformers. A module
            without a config comes back as a `torch.fx.GraphModule`, for inputs of the same shapes and as the module is in
            eval mode: without dropout, and batch norms keep their statistics.
        merge: of a PeftModel, give the plain model with its active adapters merged into the weights. Without it the
            result is a PeftModel with all adapters, active or not, whose ranks by module are in their configs; the
            base model's config says the new widths where its own class can have them.
        revision: of a hub id.

    Raises:
        LorashearError: an unknown or frozen group, a choice that no model can be made of, or a module that cannot be
            traced.
    """
    models.check_kind(model)
    if not isinstance(model, torch.nn.Module):
        from lorashear.disk.checkpoint import Checkpoint, resolve

        folder = resolve(model, revision)
        Checkpoint.open(folder)  # or transformers would read weights that are pickled, too
        model = models.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
    assert isinstance(model, torch.nn.Module)
    config = getattr(model, "config", None)
    if not isinstance(removed, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LorashearError(f"prune takes structures by group name, as {{name: [0, 1]}}, and {removed!r} is none")
    removed = {name: _plain(indices) for name, indices in removed.items()}
    if merge:
        adapters.check_mergeable(model)
    if adapters.holds(model):
        return _adapted(model, models.analysed(model, inputs), removed, inputs, merge=merge)
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
    _check(groups, removed)
    made, reason = emit.by_fields(config, groups, removed)
    if made is None:
        made, _ = emit.by_modules(config, groups, removed)
    if made is None:  # its class may be another one than that of its config's language model
        return _rebuilt(model, groups, removed, inputs, reason)
    return _own_class(model, made, groups, removed)


def _rebuilt(
    model: torch.nn.Module, groups: Groups, removed: Removed, inputs: models.Inputs | None, reason: str
) -> torch.nn.Module:
    assert groups.typed is not None
    small, wrong = rebuilt(Original(model, groups.typed, groups, models.keywords(model, inputs)), removed)
    if small is None:
        raise LorashearError(f"{type(model).__name__} cannot take these widths ({reason}): {wrong}")
    return small


def _adapted(
    model: torch.nn.Module, groups: Groups, removed: Removed, inputs: models.Inputs | None, *, merge: bool
) -> torch.nn.Module:
    """A model with adapters is cut as it is, then merged if asked; its config comes from the plain model's groups."""
    _check(groups, removed)
    small = _rebuilt(model, groups, removed, inputs, "no config says the widths of adapters")
    adapters.settle(small)
    config = getattr(model, "config", None)
    solved = _plain_config(model, config, groups, removed, inputs) if isinstance(config, PreTrainedConfig) else None
    if merge:
        plain = adapters.merged(small)
        configs: list[Any] = [getattr(plain, "config", None), solved[0].config if solved is not None else None]
        for each in configs:
            if getattr(each, "tie_word_embeddings", False) and not _ties(plain):
                each.tie_word_embeddings = False  # an adapter of only one of the two has parted them
        return plain if solved is None else _own_class(plain, solved[0], solved[1], {})
    if solved is not None and solved[0].route == "own":
        widths = {name: value for name, value in vars(solved[0].config).items() if isinstance(value, int | float)}
        vars(small.config).update({name: value for name, value in widths.items() if name in vars(small.config)})
    return small


def _ties(model: torch.nn.Module) -> bool:
    """Whether some parameter has two names."""
    return len(dict(model.named_parameters())) < len(dict(model.named_parameters(remove_duplicate=False)))


def _plain_config(
    model: torch.nn.Module, config: PreTrainedConfig, groups: Groups, removed: Removed, inputs: models.Inputs | None
) -> tuple[emit.Emission, Groups] | None:
    """The config of the model without its adapters at the new widths, if there is one, and that model's groups."""
    without = adapters.without(models.emptied(model))
    if without is None:
        return None
    plain, names = without
    found = models.analysed(plain, inputs)
    by_slots = {frozenset(group.slots): name for name, group in found.items()}
    chosen: dict[str, Collection[int]] = {}
    for name, indices in removed.items():
        slots = frozenset((names[path], dim) for path, dim in groups[name].slots if path in names)
        if slots and slots not in by_slots:
            return None
        if slots:  # a rank is in no weight of the plain model
            chosen[by_slots[slots]] = indices
    made, _ = emit.solve(config, found, chosen)
    return (made, found) if made is not None else None


def _plain(indices: Any) -> Collection[int]:
    """Structures as a list: they may be an array or a tensor."""
    return indices.tolist() if hasattr(indices, "tolist") else indices


def _check(groups: Groups, removed: Removed) -> None:
    try:
        groups.check(removed)
    except SelectionError as error:
        raise LorashearError(str(error)) from error


def _own_class(model: torch.nn.Module, made: emit.Emission, groups: Groups, removed: Removed) -> torch.nn.Module:
    """The model of the changed config, with what stays of the weights."""
    made.config._attn_implementation = model.config._attn_implementation  # type: ignore[union-attr]
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
    loop_over_odd_experts(small)
    return small.train(model.training)


def _captured(model: torch.nn.Module, removed: Removed, inputs: Mapping[str, Any]) -> torch.nn.Module:
    """Its captured program; a copy with other widths where no program can be kept, as of a loop that goes by the data."""
    groups = models.analysed(model, inputs)  # its errors name the module, which torch.export's do not
    _check(groups, removed)
    small, reason = _program(model, groups, removed, inputs)
    return small if small is not None else _rebuilt(model, groups, removed, inputs, reason)


def _program(
    model: torch.nn.Module, groups: Groups, removed: Removed, inputs: Mapping[str, Any]
) -> tuple[torch.nn.Module | None, str]:
    """The program without the structures, or None and why there is none."""
    try:
        program = record(model, inputs)
        found = models.group(program.graph)
    except CaptureError as error:
        return None, str(error)
    except RuleError as error:
        raise models.fault(error) from error
    other = [name for name in removed if name not in found or found[name] != groups[name]]
    if other:
        return None, f"torch.export shows {other[0]} otherwise than the forward does"
    try:
        small = sliced(program, found, removed)
    except CaptureError as error:
        return None, str(error)
    for module in small.modules():
        module.training = False  # it was captured so, and cannot be trained with dropout again
    failed = failure(small, inputs)
    if failed and not failure(model, inputs):
        return None, f"its exported program does not run: {failed}"
    return small, ""


def masked(model: torch.nn.Module, groups: Groups, removed: Mapping[str, Collection[int]]) -> None:
    """Set structures to their neutral value, zero, in place: the other side of the theorem."""
    held = dict(tensors(model))
    with torch.no_grad():
        for name, cut in groups.cuts(removed).items():
            held[name].copy_(zeroed(held[name], cut))
