"""The config of a generated class (`modeling_lorashear.py`): what differs from the model that was pruned, module by module.

Every number in it is taken from a pruned copy of the model that is known to compute the right thing (`rebuild.py`).
Fields of the config that set widths follow them where they can, for engines that look there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Any

import torch
from transformers import PreTrainedConfig

from lorashear.emission import registering
from lorashear.emission.fields import Removed, build, driven
from lorashear.modeling_lorashear import OWN_FIELDS
from lorashear_ir.groups import Groups

Overrides = dict[str, dict[str, Any]]
Layers = dict[int, dict[str, int]]
Values = Mapping[tuple[int | None, str], int]


def unpruned(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config that a generated class's is based on; any other is its own."""
    return config.unpruned() if hasattr(config, "unpruned") else config  # pyright: ignore


def generated(
    config: PreTrainedConfig,
    groups: Groups,
    removed: Removed,
    small: torch.nn.Module,
    dense: Groups,
    eps: Mapping[str, float],
    kept: Collection[str] = (),
) -> PreTrainedConfig:
    """The config that builds ``small``.

    Args:
        config: of the model that is pruned; of a generated class itself if it was pruned before.
        groups, removed: of that model, and what goes.
        small: the pruned model, whose weights do not matter.
        dense: the groups of the model before it was first pruned.
        eps: the field of the norms' eps and what it is now, where all norms share one.
        kept: fields that stay as they were before it was pruned.
    """
    whole = unpruned(config)
    fields = whole.to_dict()
    widths, by_layer = _shared(_fields(whole, dense, groups, removed), kept)
    everywhere = {**widths, **{name: value for name, value in eps.items() if name not in kept}}
    own = registering.classes(whole.model_type)["AutoConfig"]
    values: dict[str, Any] = {name: value for name, value in fields.items() if name not in OWN_FIELDS}
    values |= everywhere
    values["pruned_from"] = {name: fields[name] for name, value in everywhere.items() if fields[name] != value}
    values["module_overrides"] = overrides(build(whole, "meta"), small)
    if by_layer:
        values["per_layer_config"] = {str(layer): own_fields for layer, own_fields in by_layer.items()}
    try:
        return own.from_dict(values)
    except RuntimeError:  # a class that reads such a field when it is made, where transformers lets nobody read it
        return own.from_dict({name: value for name, value in values.items() if name != "per_layer_config"})


def overrides(dense: torch.nn.Module, small: torch.nn.Module) -> Overrides:
    """For each module of ``small`` what is otherwise than in ``dense``: shapes (None: as they were) and plain numbers."""
    found: Overrides = {}
    for path, module in small.named_modules():
        other = dense.get_submodule(path)
        changes: dict[str, Any] = {}
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            before = getattr(other, name)
            if tensor is not None and tensor.shape != before.shape:
                changes[name] = [a if a != b else None for a, b in zip(tensor.shape, before.shape, strict=True)]
        changes |= _numbers(module, other)
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and config is unpruned(config):
            changes |= {f"config.{name}": value for name, value in _numbers(config, other.config).items()}
        if changes:
            found[path] = changes
    return found


def _numbers(owner: Any, other: Any) -> dict[str, Any]:
    before = vars(other)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(owner).items()
        if not (name.startswith("_") or isinstance(value, bool))
        and isinstance(value, int | float | list | tuple)
        and value != before.get(name)
    }


def _fields(whole: PreTrainedConfig, dense: Groups, groups: Groups, removed: Removed) -> Values:
    """The fields that set widths, by layer; None where a field is all layers'.

    A family of groups drives a field where the class, at one structure less in all of them, wants another value of it.
    Fields are products of widths, so each family changes them in its own proportion.
    """
    widths = groups.widths(removed)
    values: dict[tuple[int | None, str], Fraction] = {}
    before = whole.to_dict()
    families: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, group in dense.items():
        if group.prunable:
            families[group.kind, group.size].append(name)
    for names in families.values():
        # A group that was pruned to a single structure before is none any more.
        now = {name: widths.get(name, groups[name].axis.size if name in groups else 1) for name in names}
        left = {name: Fraction(now[name], dense[name].axis.size) for name in names}
        if all(share == 1 for share in left.values()):
            continue
        size = dense[names[0]].axis.size
        for field, value in next(iter(driven(whole, dense, names)), {}).items():
            unpruned_value = Fraction(before[field] or value * Fraction(size, size - 1))
            for name, share in left.items():
                at = _layer(name), field
                values[at] = values.get(at, unpruned_value) * share
    return {at: int(value) for at, value in values.items() if value.denominator == 1}


def _shared(values: Values, kept: Collection[str]) -> tuple[dict[str, int], Layers]:
    """What all layers share, and what single layers have instead; nothing of fields that are ``kept``."""
    everywhere: dict[str, int] = {}
    layers: Layers = defaultdict(dict)
    for field in dict.fromkeys(field for _, field in values if field not in kept):
        held = {layer: value for (layer, other), value in values.items() if other == field}
        everywhere[field] = max(held.values())
        for layer, value in held.items():
            if value != everywhere[field] and layer is not None:
                layers[layer][field] = value
    return everywhere, dict(layers)


def _layer(name: str) -> int | None:
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None
