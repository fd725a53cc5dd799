"""Operators that look elements up, choose among them, or write them at given places.

The numbers of an index tensor count along some dim. Where that dim is known (`Typing.points`: the experts that top-k
chose), looking up with them equates two dims, and removal renumbers both. Where it is not, what is looked up is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping

from lorashear_ir.axes import Dim
from lorashear_ir.graph import Argument, Node, Ref
from lorashear_ir.ops.base import (
    NONE,
    Dims,
    Resizing,
    Row,
    Typing,
    Zero,
    Zeros,
    argument,
    at,
    broadcast,
    full_shape,
    position,
    resized,
    where,
)


def _type_embedding(node: Node, t: Typing) -> list[Dims]:
    rows, columns = t.of(node.arguments[0])
    t.look_up(node, rows, node.arguments[1])
    return [(*t.of(node.arguments[1]), columns)]


def _zero_embedding(node: Node, z: Zeros) -> list[Zero]:
    columns = z.of(node.arguments[0])[1]
    index = node.arguments[1]
    assert isinstance(index, Ref)
    return [(*(NONE for _ in z.dims[index.name]), columns)]


def _indices(node: Node) -> tuple[Argument, ...]:
    indices = node.arguments[1]
    assert isinstance(indices, tuple)
    return indices


def _index_places(node: Node, rank: int) -> tuple[list[int], int]:
    """Which dims are indexed, and where the dims of the indices come out."""
    given = _indices(node)
    places = [i for i, index in enumerate(given) if index is not None]
    together = places == list(range(places[0], places[-1] + 1))
    return places, places[0] if together else 0


def _type_index(node: Node, t: Typing) -> list[Dims]:
    """``x[i, :, j]``; a mask picks unknown many and has no rule."""
    dims, given = t.of(node.arguments[0]), _indices(node)
    places, first = _index_places(node, len(dims))
    chosen = [t.of(given[i]) for i in places]
    if any(t.is_mask(given[i]) for i in places):
        raise NotImplementedError
    for i in places:
        t.look_up(node, dims[i], given[i])
    t.carry(node)
    joined = broadcast(chosen, t.solver, lambda: where(node))
    rest = [d for i, d in enumerate(dims) if i not in places]
    return [(*rest[:first], *joined, *rest[first:])]


def _zero_index(node: Node, z: Zeros) -> list[Zero]:
    state = z.of(node.arguments[0])
    places, first = _index_places(node, len(state))
    rest = [s for i, s in enumerate(state) if i not in places]
    joined = len(node.outputs[0].shape) - len(rest)
    made = (*rest[:first], *(NONE for _ in range(joined)), *rest[first:])
    return [made]


def _type_index_select(node: Node, t: Typing) -> list[Dims]:
    dims = t.of(node.arguments[0])
    along = position(node.arguments[1], len(dims))
    t.look_up(node, dims[along], node.arguments[2])
    t.carry(node)
    return [(*dims[:along], *t.of(node.arguments[2]), *dims[along + 1 :])]


def _zero_without(node: Node, z: Zeros) -> list[Zero]:
    """All but the dim that is looked up."""
    state = z.of(node.arguments[0])
    along = position(node.arguments[1], len(state))
    return [tuple(NONE if i == along else s for i, s in enumerate(state))]


def _type_gather(node: Node, t: Typing) -> list[Dims]:
    """gather: the dims of the index; where those of the source are as long, they are the same."""
    source, index = t.of(node.arguments[0]), t.of(node.arguments[2])
    along = position(node.arguments[1], len(source))
    _aligned(node, source, index, along, t)
    t.look_up(node, source[along], node.arguments[2])
    t.carry(node)
    return [index]


def _aligned(node: Node, source: Dims, index: Dims, along: int, t: Typing) -> None:
    for i, (a, b) in enumerate(zip(source, index, strict=True)):
        if i != along and a.size == b.size:
            t.solver.unify(a, b, lambda: where(node))
        elif i != along:
            t.solver.freeze(a, f"{where(node)} reads only the first {b.size} of it")
            t.solver.freeze(b, f"{where(node)} reads only the first {b.size} of it")


def _zero_gather(node: Node, z: Zeros) -> list[Zero]:
    state, index = z.of(node.arguments[0]), node.arguments[2]
    assert isinstance(index, Ref)
    along = position(node.arguments[1], len(state))
    return [tuple(NONE if i == along else s for i, s in enumerate(state))]


def _type_scatter(node: Node, t: Typing) -> list[Dims]:
    """scatter, scatter_add: ``base`` with values written at the indices of one dim."""
    base, index, source = t.of(node.arguments[0]), t.of(node.arguments[2]), argument(node, 3)
    along = position(node.arguments[1], len(base))
    _aligned(node, base, index, along, t)
    t.look_up(node, base[along], node.arguments[2])
    t.counts(node, node.arguments[0], source)
    if isinstance(source, Ref) and len(t.of(source)) == len(index):
        for a, b in zip(index, t.of(source), strict=True):
            if a.size == b.size:
                t.solver.unify(a, b, lambda: where(node))
    return [base]


def _zero_scatter(node: Node, z: Zeros) -> list[Zero]:
    """What was not chosen keeps what the base has there."""
    base, source = z.of(node.arguments[0]), argument(node, 3)
    along = position(node.arguments[1], len(base))
    written: Zero = z.of(source) if isinstance(source, Ref) else ()
    return [
        tuple(s if i == along else s & at(written, i - len(base)) for i, s in enumerate(base)) for _ in node.outputs
    ]


def _type_index_add(node: Node, t: Typing) -> list[Dims]:
    """index_add, index_copy: rows of a source go to the given rows of the base."""
    base, source = t.of(node.arguments[0]), t.of(node.arguments[3])
    along = position(node.arguments[1], len(base))
    t.look_up(node, base[along], node.arguments[2])
    for i, (a, b) in enumerate(zip(base, source, strict=True)):
        if i != along:
            t.solver.unify(a, b, lambda: where(node))
    t.solver.unify(source[along], t.of(node.arguments[2])[0], lambda: where(node))
    return [base]


def _zero_index_add(node: Node, z: Zeros) -> list[Zero]:
    base, source = z.of(node.arguments[0]), z.of(node.arguments[3])
    along = position(node.arguments[1], len(base))
    return [tuple(NONE if i == along else a & b for i, (a, b) in enumerate(zip(base, source, strict=True)))]


def _chosen(node: Node) -> tuple[int, int]:
    """(position of the dim that top-k chooses along, number chosen)."""
    rank = len(node.outputs[0].shape)
    count = node.arguments[1]
    if not isinstance(count, int) or argument(node, 3, True) is not True:
        raise NotImplementedError  # the k smallest: −∞ would be chosen first
    return position(argument(node, 2, -1), rank), count


def _type_topk(node: Node, t: Typing) -> list[Dims]:
    """Values and indices of the k largest; the indices count along the dim."""
    dims = t.of(node.arguments[0])
    along, count = _chosen(node)
    t.counts(node, node.arguments[0])
    made = (*dims[:along], *t.fresh((count,), f"{where(node)} orders it"), *dims[along + 1 :])
    t.points[node.outputs[1].name] = dims[along]
    return [made, made]


def _zero_topk(node: Node, z: Zeros) -> list[Zero]:
    """−∞ is not chosen, so the axes that are chosen among need nothing."""
    along, _ = _chosen(node)
    dims = z.dims_of(node.arguments[0])
    z.need(dims[along], z.routed, lambda: f"{where(node)} chooses along it")
    state = tuple(NONE if i == along else s for i, s in enumerate(z.of(node.arguments[0])))
    return [state, (NONE,) * len(state)]


def _type_sort(node: Node, t: Typing) -> list[Dims]:
    dims = t.of(node.arguments[0])
    place = argument(node, 1, -1)
    along = position(place if not isinstance(place, bool) else argument(node, 2, -1), len(dims))
    t.solver.freeze(dims[along], f"{where(node)} orders it")
    made = (*dims[:along], *t.fresh((dims[along].size,), f"{where(node)} orders it"), *dims[along + 1 :])
    t.points[node.outputs[-1].name] = dims[along]
    target = t.target(node.arguments[0])
    if target is not None and node.op == "sort":
        t.points[node.outputs[0].name] = target
    return [made for _ in node.outputs]


def _type_argmax(node: Node, t: Typing) -> list[Dims]:
    dims = t.of(node.arguments[0])
    along = argument(node, 1)
    if not isinstance(along, int):
        raise NotImplementedError
    place = along % len(dims)
    t.points[node.outputs[-1].name] = dims[place]
    keep = len(node.outputs[0].shape) == len(dims)
    rest = (*dims[:place], *((t.solver.fresh(1),) if keep else ()), *dims[place + 1 :])
    return [rest for _ in node.outputs]


def _zero_argmax(node: Node, z: Zeros) -> list[Zero]:
    dims = z.dims_of(node.arguments[0])
    along = argument(node, 1)
    assert isinstance(along, int)
    z.need(dims[along], z.routed, lambda: f"{where(node)} chooses along it")
    return z.nowhere(node)


def _type_one_hot(node: Node, t: Typing) -> list[Dims]:
    index = t.of(node.arguments[0])
    classes = node.outputs[0].shape[-1]
    target = t.target(node.arguments[0])
    if target is None or target.size != classes:
        reason = f"{where(node)} numbers classes that are computed from data"
        if target is not None:
            t.solver.freeze(target, reason)
        return [(*index, *t.fresh((classes,), reason))]
    return [(*index, target)]


def _zero_one_hot(node: Node, z: Zeros) -> list[Zero]:
    """No index is one that was removed."""
    dims = z.dims[node.outputs[0].name]
    return [(*(NONE for _ in dims[:-1]), z.axes(dims[-1]) & z.routed)]


def _last_size(node: Node, r: Resizing) -> Node:
    return resized(node, 1, r.shape(node.outputs[0].name)[-1])


def _type_histogram(node: Node, t: Typing) -> list[Dims]:
    """histc, bincount of indices: how often each was chosen."""
    target = t.target(node.arguments[0])
    bins = node.outputs[0].shape[0]
    low, high = argument(node, 2, 0), argument(node, 3, 0)
    if target is not None and target.size == bins and node.op == "histc" and (low, high) == (0, bins - 1):
        return [(target,)]
    reason = f"{where(node)} counts numbers that are computed from data"
    if target is not None:
        t.solver.freeze(target, reason)
    return [t.fresh((bins,), reason)]


def _size_histogram(node: Node, r: Resizing) -> Node:
    bins = r.shape(node.outputs[0].name)[0]
    return resized(resized(node, 1, bins), 3, bins - 1)


def _type_arange(node: Node, t: Typing) -> list[Dims]:
    """``0, 1, 2, …``: indices into itself; any other range is plain numbers."""
    (dim,) = t.fresh(node.outputs[0].shape)
    numbers = [a for a in node.arguments if isinstance(a, int | float) and not isinstance(a, bool)]
    if numbers in ([dim.size], [0, dim.size], [0, dim.size, 1]):
        t.points[node.outputs[0].name] = dim
    else:
        t.solver.freeze(dim, f"{where(node)} numbers it")
    return [(dim,)]


def _size_arange(node: Node, r: Resizing) -> Node:
    (size,) = r.shape(node.outputs[0].name)
    if size == node.outputs[0].shape[0]:
        return node
    single = not isinstance(argument(node, 1), int) or isinstance(argument(node, 1), bool)
    return resized(node, 0 if single else 1, size)


def _type_fill(node: Node, t: Typing) -> list[Dims]:
    """One value repeated: its axes are free."""
    if node.op.endswith("_like"):
        return [t.of(node.arguments[0])]
    return [t.fresh(node.outputs[0].shape)]


def _zero_fill(node: Node, z: Zeros) -> list[Zero]:
    name = node.outputs[0].name
    filled = argument(node, {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}.get(node.op, 99), 0)
    if "ones" in node.op or "empty" in node.op or filled != 0:
        return z.nowhere(node)
    return [tuple(map(z.axes, z.dims[name]))]


def _type_eye(node: Node, t: Typing) -> list[Dims]:
    shape = node.outputs[0].shape
    dims = t.fresh(shape)
    return [(dims[0], dims[0])] if shape[0] == shape[1] else [dims]


def _zero_eye(node: Node, z: Zeros) -> list[Zero]:
    z.identities.add(node.outputs[0].name)
    return z.nowhere(node)


def _size_eye(node: Node, r: Resizing) -> Node:
    return resized(node, 0, r.shape(node.outputs[0].name)[0])


def chosen_axes(node: Node, dims: Mapping[str, Dims]) -> Dim | None:
    """The dim that top-k (or argmax) chooses along; None for every other operator."""
    if node.op == "topk":
        assert isinstance(node.arguments[0], Ref)
        return dims[node.arguments[0].name][_chosen(node)[0]]
    place = argument(node, 1)
    if node.op == "argmax" and isinstance(place, int):
        assert isinstance(node.arguments[0], Ref)
        return dims[node.arguments[0].name][place]
    return None


def chosen_count(node: Node) -> int:
    """The k of top-k."""
    return _chosen(node)[1]


def _type_search(node: Node, t: Typing) -> list[Dims]:
    """nonzero: places that depend on data."""
    reason = f"{where(node)} finds places in it by data"
    for dim in t.of(node.arguments[0]):
        t.solver.freeze(dim, reason)
    return [t.fresh(value.shape, reason) for value in node.outputs]


FILLS = "zeros ones empty full".split()

ROWS: dict[str, Row] = {
    "embedding": Row(_type_embedding, _zero_embedding, points="use"),
    "index": Row(_type_index, _zero_index, points="use"),
    "index_select": Row(_type_index_select, _zero_without, points="use"),
    "gather": Row(_type_gather, _zero_gather, points="use"),
    **dict.fromkeys(
        "scatter scatter_ scatter_add scatter_add_".split(), Row(_type_scatter, _zero_scatter, points="use")
    ),
    **dict.fromkeys("index_add index_add_".split(), Row(_type_index_add, _zero_index_add, points="use")),
    "topk": Row(_type_topk, _zero_topk, points="use"),
    **dict.fromkeys("sort argsort".split(), Row(_type_sort, lambda n, z: z.nowhere(n), points="use")),
    "argmax": Row(_type_argmax, _zero_argmax, points="use"),
    "one_hot": Row(_type_one_hot, _zero_one_hot, points="use", sizes=_last_size),
    **dict.fromkeys(
        ["histc", "bincount"], Row(_type_histogram, lambda n, z: z.nowhere(n), points="use", sizes=_size_histogram)
    ),
    **dict.fromkeys("nonzero nonzero_numpy argwhere".split(), Row(_type_search, lambda n, z: z.nowhere(n))),
    "arange": Row(_type_arange, lambda n, z: z.nowhere(n), sizes=_size_arange),
    "eye": Row(_type_eye, _zero_eye, sizes=_size_eye),
    **dict.fromkeys(FILLS, Row(_type_fill, _zero_fill, sizes=full_shape(0))),
    **dict.fromkeys([f"new_{name}" for name in FILLS], Row(_type_fill, _zero_fill, sizes=full_shape(1), points="use")),
    **dict.fromkeys([f"{name}_like" for name in FILLS], Row(_type_fill, _zero_fill, points="use")),
    "scalar_tensor": Row(_type_fill, _zero_fill),
}
