"""Which numbers in the modules of a class follow a width: seen by building it at another one.

A number may equal a width by chance, as Mistral's window of 4096 beside 4096 hidden channels, and be read only on another
way through the module than the traced one.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig

from lorashear.emission.fields import Removed, build, driven, one_layer
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Group, Groups, SelectionError
from lorashear_passes.resize import resize
from lorashear_passes.same import numbers

Numbers = dict[tuple[type, str], list[Any]]


def still(model: torch.nn.Module, graph: Graph, groups: Groups, removed: Removed) -> frozenset[tuple[type, str]]:
    """Attributes, by the class of their owner, that follow none of the widths that change.

    Where the class does not read a width from its config, whatever has a number that this width changes in the program
    may follow it. What is not in the one layer that shows a width is not among those that are returned.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return frozenset()
    families: dict[tuple[str, int], list[str]] = defaultdict(list)  # whole: a field sets the width of all their layers
    for name, each in groups.items():
        if each.prunable:
            families[each.kind, each.size].append(name)
    followers: set[tuple[type, str]] = set()
    seen: list[set[tuple[type, str]]] = []
    for names in families.values():
        some = {name: removed[name] for name in names if len(removed.get(name, ()))}
        if not some:
            continue
        # What only ever multiplies another width, as groups of experts, shows in no shape: any field may be its own.
        alone = all(_stands_alone(groups[name]) for name in names)
        found = driven(config, groups, names, chance=not alone)
        base = one_layer(config, groups, some) or config
        before = _numbers(build(base, "meta") if found else model)
        seen.append(set(before))
        if not found:
            moved = _moved(graph, groups, some, removed)
            followers |= {at for at, values in before.items() if moved & set(_flat(values))}
        for changes in found:
            changed = copy.copy(base)
            vars(changed).update(changes)
            after = _numbers(build(changed, "meta"))
            followers |= {at for at, values in before.items() if after.get(at) != values}
    return frozenset(set.intersection(*seen) - followers) if seen else frozenset()


def _moved(graph: Graph, groups: Groups, some: Removed, every: Removed) -> set[int]:
    """The numbers in the program that some of the removals change; all of them, where these cannot be made alone."""
    try:
        after = resize(graph, groups, some)
    except SelectionError:
        after = resize(graph, groups, every)
    return {old for _, old, new in numbers(graph, after) if old != new}


def _flat(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        yield from _flat(value) if isinstance(value, list | tuple) else [value] if isinstance(value, int) else []


def _stands_alone(group: Group) -> bool:
    """Whether some dim of a tensor is the axis itself."""
    return any(dim == group.axis for dim in group.dims)


def _numbers(model: torch.nn.Module) -> Numbers:
    """The whole numbers in all modules and in the configs that they hold."""
    found: Numbers = defaultdict(list)
    for owner in _owners(model):
        for name, value in vars(owner).items():
            if isinstance(value, int | list | tuple) and not isinstance(value, bool):
                found[type(owner), name].append(value)
    return found


def _owners(model: torch.nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield module
        if isinstance(getattr(module, "config", None), PreTrainedConfig):
            yield module.config
