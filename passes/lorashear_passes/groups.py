"""Grouping: the free axes of a typed graph, each with every parameter dim that mentions it."""

from __future__ import annotations

import math
import os.path
from collections import defaultdict

from lorashear_ir.axes import Axis, Dim, axes_of, size_with
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Group, Groups


def group(graph: Graph) -> Groups:
    """Node groups of a typed graph, in the order of its parameters; frozen ones too, with the reason."""
    tensors: dict[str, tuple[Dim, ...]] = {}
    slots: dict[Axis, list[tuple[str, int]]] = defaultdict(list)
    for source in graph.sources:
        if source.role != "parameter":
            continue
        assert source.value.dims is not None, "infer comes before group"
        tensors[source.path] = source.value.dims
        for position, dim in enumerate(source.value.dims):
            for axis in dict.fromkeys(axes_of(dim)):
                slots[axis].append((source.path, position))
    names: set[str] = set()
    groups: list[Group] = []
    for info in graph.axes:
        axis = Axis(info.name, info.size)
        if axis not in slots:
            continue
        dims = tuple(tensors[name][position] for name, position in slots[axis])
        affected = dict.fromkeys(name for name, _ in slots[axis])
        before = sum(math.prod(d.size for d in tensors[name]) for name in affected)
        after = sum(math.prod(size_with(d, {axis.name: axis.size - 1}) for d in tensors[name]) for name in affected)
        name = _name(info.kind, list(affected), names)
        groups.append(
            Group(
                name=name,
                kind=info.kind,
                size=axis.size * info.blocks,
                prunable=not info.reason,
                reason=info.reason,
                blocks=info.blocks,
                slots=tuple(slots[axis]),
                parameters=(before - after) // info.blocks,
                axis=axis,
                dims=dims,
                least=info.least,
            )
        )
    return Groups(groups, tensors, graph.norms, dict(graph.tied), graph)


def _name(kind: str, parameters: list[str], taken: set[str]) -> str:
    """The modules that the parameters share, then the kind; numbered where that is not unique."""
    modules = [name.split(".")[:-1] for name in parameters]
    shared = os.path.commonprefix(modules)
    base = ".".join([*shared, kind])
    name, number = base, 2
    while name in taken:
        name, number = f"{base}.{number}", number + 1
    taken.add(name)
    return name
