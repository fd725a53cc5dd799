"""Grouping: the free axes of a typed graph, each with every parameter dim that mentions it."""

from __future__ import annotations

import math
import os.path
from collections import defaultdict

from lorashear_ir.axes import Axis, Dim, axes_of, size_with
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Group, Groups

TOGETHER = frozenset(
    "flip roll tril triu cumsum cumprod logcumsumexp softmax _softmax log_softmax _log_softmax layer_norm rms_norm "
    "group_norm sort argsort scatter scatter_ scatter_add scatter_add_ gather index_add index_add_ index_select".split()
)
"""Operators whose results hold an axis of which they read several indices at once."""


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
        blocks = _blocks(axis, dims, graph) if info.kind in ("query", "expert") else 1
        affected = dict.fromkeys(name for name, _ in slots[axis])
        before = sum(math.prod(d.size for d in tensors[name]) for name in affected)
        after = sum(math.prod(size_with(d, {axis.name: axis.size - 1}) for d in tensors[name]) for name in affected)
        name = _name(info.kind, list(affected), names)
        groups.append(
            Group(
                name=name,
                kind=info.kind,
                size=axis.size * blocks,
                prunable=not info.reason,
                reason=info.reason,
                blocks=blocks,
                slots=tuple(slots[axis]),
                parameters=(before - after) // blocks,
                axis=axis,
                dims=dims,
                least=info.least,
            )
        )
    return Groups(groups, tensors, graph.norms, dict(graph.tied), graph)


def _blocks(axis: Axis, dims: tuple[Dim, ...], graph: Graph) -> int:
    """How many blocks a query axis has: the size of what stands left of it, if that is the same everywhere."""
    prefixes: set[tuple[Dim, ...]] = set()
    for dim in dims:
        factors = getattr(dim, "factors", (dim,))
        if axis not in factors:
            return 1
        prefixes.add(tuple(factors[: factors.index(axis)]))
    if len(prefixes) != 1:
        return 1
    prefix = prefixes.pop()
    owners = [owner for dim in prefix for owner in axes_of(dim)]
    return math.prod(d.size for d in prefix) if _apart(axis, owners, graph) else 1


def _apart(axis: Axis, owners: list[Axis], graph: Graph) -> bool:
    """Whether no operator brings an index of one block together with that of another, so that blocks may lose others.

    Where the axis stands, its owners stand once; and no operator treats indices of an owner by their order, or together,
    in a dim that the axis is not in.
    """
    known = {value.name: [list(axes_of(dim)) for dim in value.dims or ()] for value in graph.values()}
    for dims in known.values():
        found = [each for dim in dims for each in dim]
        if axis in found and any(found.count(owner) != 1 for owner in owners):
            return False
    for node in graph.nodes:
        if node.op in TOGETHER:
            for dims in (known[name] for name in node.references()):
                if any(axis in dim for dim in dims) and any(
                    owner in dim and axis not in dim for dim in dims for owner in owners
                ):
                    return False
    return True


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
