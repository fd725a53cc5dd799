"""Operators that take many indices together: sums, means, maxima, cumulative sums, softmax, norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorashear_ir.axes import ONE
from lorashear_ir.graph import Argument, Node, Ref
from lorashear_ir.ops import pointwise
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
    intersection,
    ints,
    position,
    resized,
    where,
)

NORMS = "norm linalg_vector_norm linalg_norm".split()
SUMS = "sum norm linalg_vector_norm linalg_norm any nansum count_nonzero".split()
MEANS = "mean var std var_mean std_mean prod all amax amin nanmean logsumexp aminmax median".split()


def _place(node: Node) -> int:
    """Where a reduction has its dims: after the order of the norm, for the norms."""
    return 2 if node.op in NORMS else 1


def reduced(node: Node, rank: int) -> set[int]:
    """The positions that a reduction reduces."""
    over: Argument = argument(node, _place(node))
    if isinstance(over, tuple):
        return {i % rank for i in ints(over)} or set(range(rank))
    if isinstance(over, int) and not isinstance(over, bool):
        return {over % rank} if rank else set()
    return set(range(rank))


def _type_reduce(node: Node, t: Typing) -> list[Dims]:
    """The dims go, or become 1."""
    dims = t.of(node.arguments[0])
    over = reduced(node, len(dims))
    keep = len(node.outputs[0].shape) == len(dims)
    made = tuple(ONE if i in over else d for i, d in enumerate(dims) if keep or i not in over)
    return [made for _ in node.outputs]


def _left(node: Node, z: Zeros) -> list[Zero]:
    dims, state = z.dims_of(node.arguments[0]), z.of(node.arguments[0])
    over = reduced(node, len(dims))
    keep = len(node.outputs[0].shape) == len(dims)
    made = tuple(NONE if i in over else s for i, s in enumerate(state) if keep or i not in over)
    return [made for _ in node.outputs]


def _zero_sum(node: Node, z: Zeros) -> list[Zero]:
    dims, state = z.dims_of(node.arguments[0]), z.of(node.arguments[0])
    if node.op in NORMS and not _adds_up(argument(node, 1, 2)):
        return _zero_mean(node, z)
    for i in reduced(node, len(dims)):
        z.need(
            dims[i],
            state[i],
            lambda: f"{where(node)} adds up over it, and what it adds is not zero where the weights are",
        )
    return _left(node, z)


def _adds_up(order: Argument) -> bool:
    return order is None or (isinstance(order, int | float) and order > 0)


def _zero_mean(node: Node, z: Zeros) -> list[Zero]:
    """A mean changes when fewer share it, unless a norm mends it."""
    if node.outputs[0].name in z.means:
        return _zero_sum(node, z)
    dims = z.dims_of(node.arguments[0])
    for i in reduced(node, len(dims)):
        z.need(dims[i], NONE, lambda: f"{where(node)} reduces over it, and another number of them changes the result")
    # The maximum, product or spread of zeros is zero; a mean too.
    return z.nowhere(node) if node.op in ("logsumexp", "all") else _left(node, z)


def _type_extreme(node: Node, t: Typing) -> list[Dims]:
    """max, min: of two tensors, of all elements, or along one dim with the indices where they are."""
    if isinstance(argument(node, 1), Ref):
        return pointwise.type_(node, t)
    made = _type_reduce(node, t)
    if len(node.outputs) == 2:
        over = argument(node, 1)
        assert isinstance(over, int)
        t.points[node.outputs[1].name] = t.of(node.arguments[0])[over]
    return made


def _zero_extreme(node: Node, z: Zeros) -> list[Zero]:
    if isinstance(argument(node, 1), Ref):
        return [intersection([z.of(a) for a in node.arguments[:2]], len(node.outputs[0].shape))]
    return _zero_mean(node, z)


def _cumulative(node: Node, t: Typing) -> list[Dims]:
    return [t.of(node.arguments[0]) for _ in node.outputs]


def _zero_cumulative(node: Node, z: Zeros) -> list[Zero]:
    dims, state = z.dims_of(node.arguments[0]), z.of(node.arguments[0])
    along = position(node.arguments[1], len(dims))
    adds = node.op == "cumsum"
    z.need(dims[along], state[along] if adds else NONE, lambda: f"{where(node)} accumulates over it")
    return [tuple(NONE if i == along or not adds else s for i, s in enumerate(state))]


def _type_softmax(node: Node, t: Typing) -> list[Dims]:
    return [t.of(node.arguments[0])]


def _zero_softmax(node: Node, z: Zeros) -> list[Zero]:
    """Frozen, but for routing scores: those are −∞ for what is removed, and become 0."""
    dims = z.dims_of(node.arguments[0])
    along = position(node.arguments[1], len(dims))
    z.need(dims[along], z.routed, lambda: f"{where(node)} normalises over it")
    routed = z.axes(dims[along]) & z.routed if "log" not in node.op else NONE
    return [tuple(routed if i == along else NONE for i in range(len(dims)))]


def _type_norm(node: Node, t: Typing) -> list[Dims]:
    """layer_norm, rms_norm: the last dims meet those of the weight (and bias)."""
    dims = t.of(node.arguments[0])
    width = len(ints(node.arguments[1]))
    for parameter in node.arguments[2:4]:
        if isinstance(parameter, Ref):
            for a, b in zip(dims[-width:], t.of(parameter), strict=True):
                t.solver.unify(a, b, lambda: where(node))
    if node.op == "layer_norm":
        for d in dims[-width:]:
            t.solver.freeze(d, f"the mean in {where(node)} changes when one is removed")
    return [dims]


def _zero_layer_norm(node: Node, z: Zeros) -> list[Zero]:
    state, bias = z.of(node.arguments[0]), argument(node, 3)
    return [intersection([state, z.of(bias)], len(state))] if isinstance(bias, Ref) else [state]


def _zero_rms_norm(node: Node, z: Zeros) -> list[Zero]:
    state, weight = z.of(node.arguments[0]), argument(node, 2)
    width = len(ints(node.arguments[1]))
    for i in range(-width, 0):
        mended = node.outputs[0].name in z.means
        z.need(
            z.dims_of(node.arguments[0])[i],
            state[i] if mended else NONE,
            lambda: f"{where(node)} takes a mean over it",
        )
    scale = z.of(weight) if isinstance(weight, Ref) else ()
    return [tuple(s | at(scale, i - len(state)) for i, s in enumerate(state))]


def _size_norm(node: Node, r: Resizing) -> Node:
    width = len(ints(node.arguments[1]))
    return resized(node, 1, r.shape(node.outputs[0].name)[-width:])


def _rows(names: Sequence[str], zero: Callable[[Node, Zeros], list[Zero]]) -> dict[str, Row]:
    return dict.fromkeys(names, Row(_type_reduce, zero))


ROWS: dict[str, Row] = {
    **_rows(SUMS, _zero_sum),
    **_rows(MEANS, _zero_mean),
    **dict.fromkeys(["max", "min"], Row(_type_extreme, _zero_extreme)),
    **dict.fromkeys("cumsum cumprod logcumsumexp".split(), Row(_cumulative, _zero_cumulative)),
    **dict.fromkeys("softmax _softmax log_softmax _log_softmax".split(), Row(_type_softmax, _zero_softmax)),
    "layer_norm": Row(_type_norm, _zero_layer_norm, sizes=_size_norm),
    "rms_norm": Row(_type_norm, _zero_rms_norm, sizes=_size_norm),
}
