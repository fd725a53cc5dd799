"""Operators that treat each element alone: operands broadcast against each other, results have the joined dims."""

from __future__ import annotations

import operator
from collections.abc import Callable

from lorashear_ir.graph import Argument, Node, Ref
from lorashear_ir.ops.base import (
    Dims,
    Resizing,
    Row,
    Typing,
    Zero,
    Zeros,
    argument,
    at,
    broadcast,
    intersection,
    resized,
    tensors,
    union,
    where,
)

KEEPS = (  # f(0) = 0
    "neg abs sign sqrt sin tan tanh erf relu silu gelu relu6 leaky_relu elu selu celu hardswish mish expm1 "
    "log1p square to _to_copy clone contiguous alias detach dropout feature_dropout alpha_dropout "
    "feature_alpha_dropout float trunc floor ceil round nan_to_num tanhshrink hardshrink softshrink softsign asinh atan"
)
NOT = (  # f(0) ≠ 0, or not only for zero
    "cos exp softplus hardsigmoid log_sigmoid logical_not bitwise_not isnan isinf isfinite "
    "rsub remainder floor_divide fmod atan2 polar cosh"
)
SINGULAR = "rsqrt reciprocal log log2 log10"  # infinite at zero: nothing can vanish on the way in
LIMITS = {"hardtanh": (-1, 1)}  # where none are given
COMPARISONS = {name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")}
PRODUCTS = "mul __and__ logical_and bitwise_and"
SUMS = "add sub maximum minimum logical_or bitwise_or __or__ logical_xor bitwise_xor"


def type_(node: Node, t: Typing) -> list[Dims]:
    return [broadcast([t.of(a) for a in tensors(node)], t.solver, lambda: where(node))]


def _first(node: Node, t: Typing) -> list[Dims]:
    return [t.of(node.arguments[0])]


def _rank(node: Node) -> int:
    return len(node.outputs[0].shape)


def _keeps(node: Node, z: Zeros) -> list[Zero]:
    first = z.of(tensors(node)[0])
    return [tuple(at(first, place) for place in range(-_rank(node), 0))]


def _same(node: Node, z: Zeros) -> list[Zero]:
    first = tensors(node)[0]
    if first.name in z.identities:
        z.identities.add(node.outputs[0].name)
    return _keeps(node, z)


def _not(node: Node, z: Zeros) -> list[Zero]:
    return z.nowhere(node)


def _product(node: Node, z: Zeros) -> list[Zero]:
    return [union([z.of(a) for a in tensors(node)], _rank(node))]


def _sum(node: Node, z: Zeros) -> list[Zero]:
    # The third argument of add is a factor; a number added anywhere leaves nothing zero, unless it is zero.
    operands = node.arguments[:2]
    if any(not isinstance(a, Ref) and a != 0 for a in operands):
        return z.nowhere(node)
    return [intersection([z.of(a) for a in operands if isinstance(a, Ref)], _rank(node))]


def _singular(node: Node, z: Zeros) -> list[Zero]:
    """Zero in gives infinity out, which no zero weight behind it silences."""
    source = tensors(node)[-1]
    for dim, vanishing in zip(z.dims_of(source), z.of(source), strict=True):
        z.need(dim, z.axes(dim) - vanishing, lambda: f"{where(node)} is infinite where the weights are zero")
    return z.nowhere(node)


def _divide(node: Node, z: Zeros) -> list[Zero]:
    """0/0 counts as 0, as where something is divided by its own length; a divisor is 1 where it was removed."""
    above, below = node.arguments[:2]
    if not isinstance(above, Ref):
        return _singular(node, z) if isinstance(below, Ref) else z.nowhere(node)
    if isinstance(below, Ref):
        state = z.of(above)
        for place, (dim, vanishing) in enumerate(zip(z.dims_of(below), z.of(below), strict=True)):
            infinite = vanishing - at(state, place - len(z.dims_of(below)))
            z.need(dim, z.axes(dim) - infinite, lambda: f"{where(node)} is infinite where the weights are zero")
    return _keeps(node, z)


def _power(node: Node, z: Zeros) -> list[Zero]:
    base, exponent = node.arguments[:2]
    if isinstance(base, Ref) and isinstance(exponent, int | float):
        if exponent > 0:
            return _keeps(node, z)
        return _singular(node, z) if exponent < 0 else z.nowhere(node)
    return z.nowhere(node)


def _clamp(node: Node, z: Zeros) -> list[Zero]:
    low, high = LIMITS.get(node.op.rstrip("_"), (None, None))
    low, high = argument(node, 1, low), argument(node, 2, high)
    if node.op.startswith("clamp_max"):
        low, high = None, low
    numbers = all(a is None or isinstance(a, int | float) for a in (low, high))
    holds_zero = (
        numbers and not (isinstance(low, int | float) and low > 0) and not (isinstance(high, int | float) and high < 0)
    )
    return _keeps(node, z) if holds_zero else z.nowhere(node)


def _type_clamp(node: Node, t: Typing) -> list[Dims]:
    """Indices that are held within all of what they point into (for those that point nowhere) still point there."""
    target = t.target(node.arguments[0])
    if target is not None and _within(node, target.size):
        t.carry(node)
    else:
        t.counts(node, node.arguments[0])
    return type_(node, t)


def _within(node: Node, size: int) -> bool:
    return argument(node, 1) in (None, 0) and argument(node, 2) == size - 1


def _size_clamp(node: Node, r: Resizing) -> Node:
    target = node.outputs[0].points
    return node if target is None else resized(node, 2, r.size(target) - 1)


def _threshold(node: Node, z: Zeros) -> list[Zero]:
    """``x if x > threshold else value``."""
    threshold, value = node.arguments[1:3]
    stays = isinstance(threshold, int | float) and (threshold < 0 or value == 0)
    return _keeps(node, z) if stays else z.nowhere(node)


def _multiplied_and_added(node: Node, z: Zeros) -> list[Zero]:
    """addcmul: ``a + b · c``."""
    start, first, second = (z.of(a) for a in tensors(node)[:3])
    rank = _rank(node)
    return [intersection([start, union([first, second], rank)], rank)]


def _between(node: Node, z: Zeros) -> list[Zero]:
    """lerp: a point between two."""
    return [intersection([z.of(a) for a in node.arguments[:2]], _rank(node))]


def _where(node: Node, z: Zeros) -> list[Zero]:
    """Zero where both choices are, or where the condition does not hold and the second is."""
    if len(node.arguments) < 3:
        return z.nowhere(node)
    condition, first, second = node.arguments[:3]
    return [_chosen(condition, first, second, node, z)]


def _masked_fill(node: Node, z: Zeros) -> list[Zero]:
    kept, mask, filled = (argument(node, place) for place in range(3))
    return [_chosen(mask, filled, kept, node, z)]


def _chosen(condition: Argument, first: Argument, second: Argument, node: Node, z: Zeros) -> Zero:
    rank = _rank(node)
    if not isinstance(second, Ref) and second != 0:
        return z.nowhere(node)[0]
    vanishing = [z.of(second)] if isinstance(second, Ref) else []
    unmet = intersection([z.of(condition), *vanishing], rank)
    if isinstance(first, Ref):
        return union([unmet, intersection([z.of(first), *vanishing], rank)], rank)
    return union([unmet, *vanishing], rank) if first == 0 else unmet


def _compared(node: Node, z: Zeros) -> list[Zero]:
    """What does not hold counts as zero: nothing is less than itself, and 0 > c does not hold for c ≥ 0."""
    refs = [z.of(a) for a in node.arguments[:2] if isinstance(a, Ref)]
    left, right = (0 if isinstance(a, Ref) else a for a in node.arguments[:2])
    if not isinstance(left, int | float) or not isinstance(right, int | float) or COMPARISONS[node.op](left, right):
        return z.nowhere(node)
    return [intersection(refs, _rank(node))]


def _copy(node: Node, z: Zeros) -> list[Zero]:
    """``copy_``: the second operand in the shape of the first."""
    return [tuple(at(z.of(node.arguments[1]), place) for place in range(-_rank(node), 0))]


def _routing_score(node: Node, z: Zeros) -> list[Zero]:
    """sigmoid: a routing score of −∞ becomes 0."""
    (source,) = tensors(node)
    return [tuple(z.axes(d) & z.routed for d in z.dims_of(source))]


def _prelu_type(node: Node, t: Typing) -> list[Dims]:
    x, (slope,) = t.of(node.arguments[0]), t.of(node.arguments[1])
    if slope.size > 1:
        t.solver.unify(x[1], slope, lambda: where(node))
    return [x]


def _gate_type(node: Node, t: Typing) -> list[Dims]:
    """glu: the first half of a dim times the sigmoid of the second."""
    dims = t.of(node.arguments[0])
    along = argument(node, 1, -1)
    assert isinstance(along, int)
    first, second = t.solver.split(dims[along], [dims[along].size // 2] * 2, lambda: where(node))
    t.solver.unify(first, second, lambda: where(node))
    return [(*dims[: along % len(dims)], first, *dims[along % len(dims) + 1 :])]


def row(*, keeps_zero: bool) -> Row:
    """The row of a function of single elements of its first operand: ``keeps_zero`` says whether f(0) = 0."""
    return Row(type_, _keeps if keeps_zero else _not)


Rule = Callable[[Node, Zeros], list[Zero]]


def _rows(names: str, zero: Rule) -> dict[str, Row]:
    return {name + tail: Row(type_, zero) for name in names.split() for tail in ("", "_")}


def _comparison(node: Node, t: Typing) -> list[Dims]:
    """eq, ne: two tensors of indices are compared without counting with them."""
    left, right = (t.target(a) for a in node.arguments[:2])
    if left is not None and right is not None and left.size == right.size:
        t.solver.unify(left, right, lambda: where(node))
    else:
        for target in (left, right):
            if target is not None:
                t.solver.freeze(target, f"{where(node)} compares its indices with numbers")
    return type_(node, t)


ROWS: dict[str, Row] = {
    **_rows(KEEPS, _keeps),
    **_rows(NOT, _not),
    **_rows(SINGULAR, _singular),
    **_rows(PRODUCTS, _product),
    **_rows(SUMS, _sum),
    **_rows("div true_divide", _divide),
    **_rows("pow", _power),
    **_rows("clamp clamp_min clamp_max clip hardtanh", _clamp),
    **dict.fromkeys("clamp clamp_ clip clip_".split(), Row(_type_clamp, _clamp, points="use", sizes=_size_clamp)),
    **_rows("threshold", _threshold),
    **_rows("addcmul", _multiplied_and_added),
    **_rows("lerp", _between),
    **_rows("sigmoid", _routing_score),
    **_rows("masked_fill", _masked_fill),
    "where": Row(type_, _where),
    "copy_": Row(type_, _copy),
    "prelu": Row(_prelu_type, _keeps),
    "_prelu_kernel": Row(type_, _keeps),
    "glu": Row(_gate_type, lambda node, z: z.moved(node, node.arguments[0])),
    **{name: Row(type_, _compared) for name in ("lt", "le", "gt", "ge")},
    **{name: Row(_comparison, _compared, points="use") for name in ("eq", "ne")},
    **{name: Row(_first, _same, points="keep") for name in "to _to_copy clone contiguous alias detach type_as".split()},
}
