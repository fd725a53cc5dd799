"""Operators that multiply and add up: linear maps, matrix products, convolutions, attention.

A product is written in letters, one a dim, ``*`` for leading dims: equal letters are equal dims, and a letter missing
on the right is summed over. The sum is the same without an index only if one of the factors vanishes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorashear_ir.axes import ONE, Dim, product
from lorashear_ir.graph import Argument, Node, Ref
from lorashear_ir.ops.base import (
    NONE,
    Axes,
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
    union,
    where,
)


@dataclass(frozen=True)
class Product:
    """``terms`` in letters for the operands at ``operands``; ``added`` is the position of a tensor that is added."""

    terms: tuple[str, ...]
    result: str
    operands: tuple[int, ...]
    added: int | None = None


def _product(text: str, operands: Sequence[int], added: int | None = None) -> Product:
    left, right = text.split("->")
    return Product(tuple(term.strip() for term in left.split(",")), right.strip(), tuple(operands), added)


PRODUCTS = {
    "linear": _product("*b i, o i -> *b o", (0, 1), 2),
    "addmm": _product("b i, i o -> b o", (1, 2), 0),
    "mm": _product("b i, i o -> b o", (0, 1)),
    "bmm": _product("b i k, b k j -> b i j", (0, 1)),
    "baddbmm": _product("b i k, b k j -> b i j", (1, 2), 0),
    "mv": _product("i k, k -> i", (0, 1)),
    "dot": _product("i, i -> ", (0, 1)),
    "outer": _product("i, j -> i j", (0, 1)),
}


def sums_over(node: Node) -> str:
    return f"{where(node)} sums over it, and what it sums is not zero where the weights are"


def _letters(term: str, items: Sequence[Dim]) -> tuple[list[str], Dims, Dims]:
    """The letters of a term, the dims in its ``*``, and the dims of the letters."""
    letters = term.split()
    if letters and letters[0].startswith("*"):
        cut = len(items) - len(letters) + 1
        return letters[1:], tuple(items[:cut]), tuple(items[cut:])
    return letters, (), tuple(items)


def type_product(node: Node, rule: Product, operands: Sequence[Argument], t: Typing) -> Dims:
    bound: dict[str, Dim] = {}
    leading: Dims = ()
    for term, operand in zip(rule.terms, operands, strict=True):
        letters, first, dims = _letters(term, t.of(operand))
        leading = first or leading
        for letter, dim in zip(letters, dims, strict=True):
            known = bound.setdefault(letter, dim)
            if known.size == 1 and dim.size != 1:  # einsum broadcasts
                bound[letter] = dim
            elif dim.size == known.size:
                t.solver.unify(known, dim, lambda: where(node))
    made = (*leading, *(bound[letter] for letter in rule.result.split() if not letter.startswith("*")))
    added = argument(node, rule.added) if rule.added is not None else None
    return broadcast([made, t.of(added)], t.solver, lambda: where(node)) if isinstance(added, Ref) else made


def zero_product(node: Node, rule: Product, operands: Sequence[Argument], z: Zeros) -> Zero:
    vanishing: dict[str, Axes] = {}
    dims: dict[str, Dim] = {}
    leading: Zero = ()
    for term, operand in zip(rule.terms, operands, strict=True):
        state = z.of(operand)
        letters, first, own = _letters(term, z.dims_of(operand))
        leading = state[: len(first)] or leading
        for letter, dim, axes in zip(letters, own, state[len(first) :], strict=True):
            vanishing[letter] = vanishing.get(letter, NONE) | axes
            if dims.setdefault(letter, dim).size == 1:
                dims[letter] = dim
    first = operands[0]
    if leading and isinstance(first, Ref) and first.name in z.identities:
        leading = (vanishing[_letters(rule.terms[0], z.dims_of(first))[0][0]],)  # the identity's rows are its columns
    result = [letter for letter in rule.result.split() if not letter.startswith("*")]
    for letter, dim in dims.items():
        if letter not in result:
            z.need(dim, vanishing[letter], lambda: sums_over(node))
    made = (*leading, *(vanishing[letter] for letter in result))
    added = argument(node, rule.added) if rule.added is not None else None
    return intersection([made, z.of(added)], len(made)) if isinstance(added, Ref) else made


def _row(rule: Product) -> Row:
    return Row(
        lambda node, t: [type_product(node, rule, [node.arguments[i] for i in rule.operands], t)],
        lambda node, z: [zero_product(node, rule, [node.arguments[i] for i in rule.operands], z)],
    )


def _einsum(node: Node) -> tuple[Product, tuple[Argument, ...]]:
    text, operands = node.arguments[:2]
    assert isinstance(text, str) and isinstance(operands, tuple)
    left, _, right = text.replace(" ", "").partition("->")
    if "." in text or not right or any(len(set(term)) != len(term) for term in left.split(",")):
        raise NotImplementedError  # an ellipsis, an implicit result or a diagonal: not in the table
    terms = tuple(" ".join(term) for term in left.split(","))
    return Product(terms, " ".join(right), tuple(range(len(terms)))), operands


def _type_einsum(node: Node, t: Typing) -> list[Dims]:
    rule, operands = _einsum(node)
    return [type_product(node, rule, operands, t)]


def _zero_einsum(node: Node, z: Zeros) -> list[Zero]:
    rule, operands = _einsum(node)
    return [zero_product(node, rule, operands, z)]


def _type_matmul(node: Node, t: Typing) -> list[Dims]:
    a, b = t.of(node.arguments[0]), t.of(node.arguments[1])
    t.solver.unify(a[-1], b[-2 if len(b) > 1 else -1], lambda: where(node))
    batch = broadcast([a[:-2], b[:-2]], t.solver, lambda: where(node))
    return [(*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))]


def _zero_matmul(node: Node, z: Zeros) -> list[Zero]:
    a, b = z.of(node.arguments[0]), z.of(node.arguments[1])
    inner = -2 if len(b) > 1 else -1
    z.need(z.dims_of(node.arguments[0])[-1], a[-1] | b[inner], lambda: sums_over(node))
    batch = union([a[:-2], b[:-2]], max(len(a), len(b)) - 2)
    return [(*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))]


def _type_attention(node: Node, t: Typing) -> list[Dims]:
    """scaled_dot_product_attention: q [*b s e], k [*b t e], v [*b t v], mask [*b s t]; the *b, heads last, broadcast."""
    q, k, v = (t.of(a) for a in node.arguments[:3])
    name = lambda: where(node)  # noqa: E731
    several = argument(node, 7) is True and q[-3].size != k[-3].size  # consecutive queries share a key
    if several:
        shared = product([t.solver.resolve(k[-3]), t.solver.fresh(q[-3].size // k[-3].size)])
        t.solver.unify(q[-3], shared, name)
        t.solver.unify(k[-3], v[-3], name)
        batch = (*broadcast([q[:-3], k[:-3], v[:-3]], t.solver, name), q[-3])
    else:
        batch = broadcast([q[:-2], k[:-2], v[:-2]], t.solver, name)
    t.solver.unify(q[-1], k[-1], name)
    t.solver.unify(k[-2], v[-2], name)
    t.solver.freeze(k[-2], f"{where(node)} normalises over it")
    mask = argument(node, 3)
    if isinstance(mask, Ref):
        broadcast([(*batch, q[-2], k[-2]), t.of(mask)], t.solver, name)
    if argument(node, 6) is None:  # the scale is 1/√e, which changes with e
        t.solver.freeze(q[-1], f"{where(node)} divides by its square root")
    return [(*batch, q[-2], v[-1])]


def _zero_attention(node: Node, z: Zeros) -> list[Zero]:
    q, k, v = (z.of(a) for a in node.arguments[:3])
    z.need(z.dims_of(node.arguments[0])[-1], q[-1] | k[-1], lambda: sums_over(node))
    rank = len(node.outputs[0].shape)
    return [(*(at(v, place) for place in range(-rank, -2)), NONE, v[-1])]


def _groups(node: Node) -> int:
    groups = argument(node, 8 if node.op == "convolution" else 6, 1)
    return groups if isinstance(groups, int) else 1


def _transposed(node: Node) -> bool:
    return node.op.startswith("conv_transpose") or (node.op == "convolution" and argument(node, 6) is True)


def _weight_channels(node: Node, t: Typing) -> tuple[Dim, Dim, Dim]:
    """(group, out in group, in in group) of a convolution's weight; the group is 1 where there is one."""
    first, second = t.of(node.arguments[1])[:2]
    groups = _groups(node)
    if groups == 1:
        return (ONE, second, first) if _transposed(node) else (ONE, first, second)
    group = t.solver.fresh(groups)
    inside = t.solver.fresh(first.size // groups)
    t.solver.unify(first, product([group, inside]), lambda: where(node))
    return (group, second, inside) if _transposed(node) else (group, inside, second)


def _type_convolution(node: Node, t: Typing) -> list[Dims]:
    """x [b, g × i, …], weight [g × o, i, …] (transposed: [g × i, o, …]), bias [g × o] → [b, g × o, …]."""
    x, name = t.of(node.arguments[0]), lambda: where(node)
    spatial = len(t.of(node.arguments[1])) - 2
    if len(x) != spatial + 2:
        raise NotImplementedError  # no batch dim
    group, out, into = _weight_channels(node, t)
    t.solver.unify(x[1], product([t.solver.resolve(group), t.solver.resolve(into)]), name)
    made = product([t.solver.resolve(group), t.solver.resolve(out)])
    bias = argument(node, 2)
    if isinstance(bias, Ref):
        t.solver.unify(t.of(bias)[0], made, name)
    for dim in (*x[2:], *t.of(node.arguments[1])[2:]):
        t.solver.freeze(dim, f"{where(node)} slides over it")
    reason = f"{where(node)} slides over it"
    return [(x[0], made, *t.fresh(node.outputs[0].shape[2:], reason))]


def _zero_convolution(node: Node, z: Zeros) -> list[Zero]:
    x, weight, bias = z.of(node.arguments[0]), z.of(node.arguments[1]), argument(node, 2)
    dims = z.dims_of(node.arguments[1])
    rows, columns = (1, 0) if _transposed(node) else (0, 1)
    group = NONE  # axes that number the groups: one of them reads and makes only its own channels
    if _groups(node) > 1:
        group = (z.axes(dims[0]) & z.axes(z.dims_of(node.arguments[0])[1])) - z.axes(dims[1])
    z.need(dims[columns], x[1] | weight[columns] | group, lambda: sums_over(node))
    channel = (weight[rows] | (group & (x[1] | weight[0]))) & z.axes(z.dims[node.outputs[0].name][1])
    if isinstance(bias, Ref):
        return [(NONE, channel & z.of(bias)[0], *(NONE for _ in x[2:]))]
    return [(x[0], channel, *(NONE for _ in x[2:]))]


def _size_convolution(node: Node, r: Resizing) -> Node:
    """The number of groups: that of the channels that one group's weight does not have."""
    assert isinstance(node.arguments[0], Ref) and isinstance(node.arguments[1], Ref)
    groups = _groups(node)
    if groups == 1:
        return node
    weight = r.dims[node.arguments[1].name]
    into = r.size(r.dims[node.arguments[0].name][1]) // (1 if _transposed(node) else r.size(weight[1]))
    if _transposed(node):
        into = r.size(r.dims[node.outputs[0].name][1]) // r.size(weight[1])
    return resized(node, 8 if node.op == "convolution" else 6, into)


def _type_group_norm(node: Node, t: Typing) -> list[Dims]:
    """group_norm: x [b, g × c, …]; whole groups may go, channels inside one may not."""
    x, groups = t.of(node.arguments[0]), node.arguments[1]
    assert isinstance(groups, int)
    group, inside = t.solver.fresh(groups), t.solver.fresh(x[1].size // groups)
    t.solver.unify(x[1], product([group, inside]), lambda: where(node))
    for parameter in node.arguments[2:4]:
        if isinstance(parameter, Ref):
            t.solver.unify(x[1], t.of(parameter)[0], lambda: where(node))
    for dim in (inside, *x[2:]):
        t.solver.freeze(dim, f"the mean in {where(node)} changes when one is removed")
    return [x]


def _zero_group_norm(node: Node, z: Zeros) -> list[Zero]:
    x, bias = z.of(node.arguments[0]), argument(node, 3)
    weight = argument(node, 2)
    channel = x[1] | (z.of(weight)[0] if isinstance(weight, Ref) else NONE)
    if isinstance(bias, Ref):
        return [(NONE, channel & z.of(bias)[0], *(NONE for _ in x[2:]))]
    return [(x[0], channel, *(NONE for _ in x[2:]))]


def _size_group_norm(node: Node, r: Resizing) -> Node:
    assert isinstance(node.arguments[0], Ref) and isinstance(node.arguments[1], int)
    before = r.dims[node.arguments[0].name][1]
    return resized(node, 1, r.size(before) // (before.size // node.arguments[1]))


def _type_batch_norm(node: Node, t: Typing) -> list[Dims]:
    """batch_norm in eval mode: x [b, c, …], all statistics and parameters [c]."""
    x = t.of(node.arguments[0])
    channel = x[:2][-1]  # without spatial dims x may be [b, c]
    for parameter in node.arguments[1:5]:
        if isinstance(parameter, Ref):
            t.solver.unify(channel, t.of(parameter)[0], lambda: where(node))
    return [x]


def _zero_batch_norm(node: Node, z: Zeros) -> list[Zero]:
    x = z.of(node.arguments[0])
    scale, shift, mean = node.arguments[1:4]
    centred = x[1] & (z.of(mean)[0] if isinstance(mean, Ref) else z.axes(z.dims_of(node.arguments[0])[1]))
    channel = centred | (z.of(scale)[0] if isinstance(scale, Ref) else NONE)
    if isinstance(shift, Ref):
        channel &= z.of(shift)[0]
    return [(NONE, channel, *(NONE for _ in x[2:]))]


def _type_pool(node: Node, t: Typing) -> list[Dims]:
    """Pooling over the last dims: as many as the window has; the others stay."""
    x, shape = t.of(node.arguments[0]), node.outputs[0].shape
    count = int(next(c for c in node.op if c.isdigit()))
    reason = f"{where(node)} slides over it"
    for dim in x[-count:]:
        t.solver.freeze(dim, reason)
    made = (*x[:-count], *t.fresh(shape[-count:], reason))
    return [made for _ in node.outputs]


def _zero_pool(node: Node, z: Zeros) -> list[Zero]:
    x = z.of(node.arguments[0])
    rank = len(node.outputs[0].shape)
    count = int(next(c for c in node.op if c.isdigit()))
    pooled = (*x[: rank - count], *(NONE for _ in range(count)))
    return [pooled, *z.nowhere(node)[1:]]  # what comes second are places, and the first place of nothing need not be 0


CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution".split()
POOLS = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d"
).split()

ROWS: dict[str, Row] = {
    **{name: _row(rule) for name, rule in PRODUCTS.items()},
    **dict.fromkeys(CONVOLUTIONS, Row(_type_convolution, _zero_convolution, sizes=_size_convolution)),
    **dict.fromkeys(POOLS, Row(_type_pool, _zero_pool)),
    "matmul": Row(_type_matmul, _zero_matmul),
    "einsum": Row(_type_einsum, _zero_einsum),
    "scaled_dot_product_attention": Row(_type_attention, _zero_attention),
    "group_norm": Row(_type_group_norm, _zero_group_norm, sizes=_size_group_norm),
    "batch_norm": Row(_type_batch_norm, _zero_batch_norm),
}
