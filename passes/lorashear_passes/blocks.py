"""Blocks: the axes of which every index of the axes to their left may lose other structures, as each KV head its queries."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from lorashear_ir.axes import Axis, Dim, Product, axes_of
from lorashear_ir.graph import Graph
from lorashear_ir.ops.base import Dims

KINDS = ("query", "expert")

TOGETHER = frozenset(
    "flip roll tril triu cumsum cumprod logcumsumexp softmax _softmax log_softmax _log_softmax layer_norm rms_norm "
    "group_norm sort argsort scatter scatter_ scatter_add scatter_add_ gather index_add index_add_ index_select "
    "einsum mm outer cdist conv1d conv2d conv3d".split()
)
"""Operators that read several indices of a dim at once, and whose results may hold another dim all the same."""

TOGETHER_LAST = frozenset("matmul bmm baddbmm scaled_dot_product_attention".split())
"""Operators that do so with their last two dims alone."""

Places = list[list[Axis]]  # the axes in each dim of a value


def blocks(graph: Graph) -> dict[str, int]:
    """How many blocks the axes of a typed, expanded graph have, by name; those with one are left out."""
    places = {value.name: [list(axes_of(dim)) for dim in value.dims or ()] for value in graph.values()}
    values: dict[Axis, list[Places]] = defaultdict(list)
    for each in places.values():
        for axis in {axis for dim in each for axis in dim}:
            values[axis].append(each)
    together: dict[Axis, list[Places]] = defaultdict(list)
    for node in graph.nodes:
        if node.op in TOGETHER or node.op in TOGETHER_LAST:
            for each in (places[name] for name in node.references()):
                each = each[-2:] if node.op in TOGETHER_LAST else each
                for axis in {axis for dim in each for axis in dim}:
                    together[axis].append(each)
    weights: dict[Axis, list[Dim]] = defaultdict(list)
    for source in graph.sources:
        if source.role == "parameter":
            for dim in source.value.dims or ():
                for axis in dict.fromkeys(axes_of(dim)):
                    weights[axis].append(dim)
    result: dict[str, int] = {}
    for info in graph.axes:
        axis = Axis(info.name, info.size)
        prefix = _prefix(axis, weights[axis]) if info.kind in KINDS else ()
        owners = {owner for dim in prefix for owner in axes_of(dim)}
        if prefix and _apart(axis, owners, values[axis], together[axis]):
            result[info.name] = math.prod(dim.size for dim in prefix)
    return result


def _prefix(axis: Axis, dims: Sequence[Dim]) -> Dims:
    """What stands left of an axis, where it stands once in each dim and that is the same in all weights."""
    found: set[Dims] = set()
    for dim in dims:
        factors = dim.factors if isinstance(dim, Product) else (dim,)
        if factors.count(axis) != 1:
            return ()
        found.add(tuple(factors[: factors.index(axis)]))
    return found.pop() if len(found) == 1 else ()


def _apart(axis: Axis, owners: set[Axis], values: list[Places], together: list[Places]) -> bool:
    """Whether no operator brings an index of one block together with that of another, so that blocks may lose others.

    A value that has the axis has its owners once; or it has all of them in every dim in which it has one of them. And no
    operator treats indices of an owner by their order, or together, in a dim that the axis is not in.
    """
    every = {axis, *owners}
    for value in values:
        once = all(sum(dim.count(owner) for dim in value) == 1 for owner in owners)
        whole = all(not every.intersection(dim) or all(dim.count(each) == 1 for each in every) for dim in value)
        if not once and not whole:
            return False
    return not any(owners.intersection(dim) and axis not in dim for value in together for dim in value)
