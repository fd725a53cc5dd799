"""The op table: what each operator says about the dims of its operands, and where zero stays zero.

A row is an op's name and its rule. Three kinds of rule are written as data:

* pointwise: operands broadcast against each other from the right; the result has the joined dims. ``zero`` says when
  the result vanishes at an index where operands do: ``keeps`` (f(0) = 0), ``any`` (a product), ``all`` (a sum), ``no``.
* einsum: one letter a dim, ``*`` for leading dims; a letter missing on the right is contracted, and that is exact
  only where one of the factors vanishes at a removed index. ``?`` marks an operand that may be missing.
* movement: a small function below, since the dims depend on the numbers in the arguments.

An op that has no row freezes all that it touches, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lorashear_ir.axes import ONE, Dim, Solver, add, product
from lorashear_ir.graph import Argument, Node, Ref, Value

Zero = Literal["keeps", "any", "all", "no"]

POINTWISE: dict[str, Zero] = {
    **dict.fromkeys(
        "neg abs sign sqrt sin tan tanh erf relu silu gelu relu6 leaky_relu elu hardswish mish expm1 log1p square "
        "to _to_copy clone contiguous alias detach detach_ dropout float type_as trunc floor round".split(),
        "keeps",
    ),
    **dict.fromkeys("mul mul_ div div_ __and__ logical_and bitwise_and".split(), "any"),
    **dict.fromkeys("add add_ sub sub_ maximum minimum".split(), "all"),
    **dict.fromkeys(
        "pow cos exp sigmoid rsqrt reciprocal log softplus hardsigmoid clamp where masked_fill eq ne lt le gt ge "
        "logical_not bitwise_not logical_or bitwise_or __or__ isnan isinf rsub remainder floor_divide".split(),
        "no",
    ),
}

EINSUM: dict[str, str] = {
    "linear": "*b i, o i, ?o -> *b o",
    "addmm": "o, b i, i o -> b o",
    "mm": "b i, i o -> b o",
    "bmm": "b i k, b k j -> b i j",
    "mv": "i k, k -> i",
    "outer": "i, j -> i j",
}

# The whole tensor is one value repeated, so an axis of it is free; that it is not zero is known from the table.
CONSTANT_FILL = frozenset("full zeros ones new_ones new_zeros new_full full_like zeros_like ones_like empty".split())


@dataclass(frozen=True)
class Operands:
    """What a movement rule sees of the program: dims and shapes of values, and the solver."""

    solver: Solver
    values: dict[str, Value]
    dims: dict[str, tuple[Dim, ...]]

    def of(self, argument: Argument) -> tuple[Dim, ...]:
        assert isinstance(argument, Ref)
        return self.dims[argument.name]


Dims = tuple[Dim, ...]
Movement = Callable[[Node, Operands], list[Dims]]


def where(node: Node) -> str:
    """How an error names an operator."""
    return f"{node.op} in {node.module or 'the model'}"


def _index(argument: Argument, rank: int) -> int:
    assert isinstance(argument, int)
    return argument % rank


def _ints(argument: Argument) -> list[int]:
    assert isinstance(argument, tuple)
    return [part for part in argument if isinstance(part, int)]


def _argument(node: Node, position: int, default: Argument) -> Argument:
    return node.arguments[position] if len(node.arguments) > position else default


def regroup(dims: Dims, shape: Sequence[int], solver: Solver, name: Callable[[], str]) -> Dims:
    """``view``: cut both shapes into the shortest runs of equal size; each run of new dims is the product of the old."""
    result: list[Dim] = []
    old = [d for d in dims if d.size != 1]
    position = 0
    new = 0
    while new < len(shape):
        if shape[new] == 1:
            result.append(ONE)
            new += 1
            continue
        begin, first = position, new
        left, right = old[position].size, shape[new]
        position, new = position + 1, new + 1
        while left != right:
            if left < right:
                left *= old[position].size
                position += 1
            else:
                right *= shape[new]
                new += 1
        source = product(solver.resolve(d) for d in old[begin:position])
        if new - first == 1:
            result.append(source)
        else:
            made = [solver.fresh(size) for size in shape[first:new]]
            solver.unify(source, product(made), name)
            result.extend(made)
    return tuple(result)


def _view(node: Node, o: Operands) -> list[Dims]:
    return [regroup(o.of(node.arguments[0]), node.outputs[0].shape, o.solver, lambda: where(node))]


def _transpose(node: Node, o: Operands) -> list[Dims]:
    dims = list(o.of(node.arguments[0]))
    first = _index(_argument(node, 1, 0), len(dims))
    second = _index(_argument(node, 2, 1), len(dims))
    dims[first], dims[second] = dims[second], dims[first]
    return [tuple(dims)]


def _permute(node: Node, o: Operands) -> list[Dims]:
    dims = o.of(node.arguments[0])
    return [tuple(dims[i % len(dims)] for i in _ints(node.arguments[1]))]


def _unsqueeze(node: Node, o: Operands) -> list[Dims]:
    dims = list(o.of(node.arguments[0]))
    dims.insert(_index(node.arguments[1], len(dims) + 1), ONE)
    return [tuple(dims)]


def _squeeze(node: Node, o: Operands) -> list[Dims]:
    dims = o.of(node.arguments[0])
    chosen = _argument(node, 1, tuple(range(len(dims))))
    picked = {_index(i, len(dims)) for i in (chosen if isinstance(chosen, tuple) else (chosen,))}
    return [tuple(d for i, d in enumerate(dims) if not (i in picked and d.size == 1))]


def _expand(node: Node, o: Operands) -> list[Dims]:
    dims, shape = o.of(node.arguments[0]), node.outputs[0].shape
    padded = (ONE,) * (len(shape) - len(dims)) + dims
    return [tuple(d if d.size == size else o.solver.fresh(size) for d, size in zip(padded, shape, strict=True))]


def _cat(node: Node, o: Operands) -> list[Dims]:
    parts = [o.of(part) for part in node.arguments[0]]  # type: ignore[union-attr]
    parts = [p for p in parts if math.prod(d.size for d in p)]
    along = _index(_argument(node, 1, 0), len(parts[0]))
    for part in parts[1:]:
        for position, (a, b) in enumerate(zip(parts[0], part, strict=True)):
            if position != along:
                o.solver.unify(a, b, lambda: where(node))
    joined = add(o.solver.resolve(part[along]) for part in parts)
    return [(*parts[0][:along], joined, *parts[0][along + 1 :])]


def _pieces(node: Node, o: Operands) -> list[Dims]:
    """split, split_with_sizes, chunk: the sizes are those of the results."""
    dims = o.of(node.arguments[0])
    along = _index(_argument(node, 2, 0), len(dims))
    sizes = [value.shape[along] for value in node.outputs]
    cut = o.solver.split(dims[along], sizes, lambda: where(node))
    return [(*dims[:along], piece, *dims[along + 1 :]) for piece in cut]


def _slice(node: Node, o: Operands) -> list[Dims]:
    dims = o.of(node.arguments[0])
    along = _index(_argument(node, 1, 0), len(dims))
    total, length = dims[along].size, node.outputs[0].shape[along]
    if length == total:
        return [dims]
    start, step = _argument(node, 2, 0), _argument(node, 4, 1)
    begin = start if isinstance(start, int) else 0
    begin = min(begin + total if begin < 0 else begin, total)
    if step != 1:
        o.solver.freeze(dims[along], f"{where(node)} takes every {step}th index of it")
        piece = o.solver.fresh(length, f"{where(node)} takes every {step}th index")
    else:
        sizes = [size for size in (begin, length, total - begin - length) if size]
        piece = o.solver.split(dims[along], sizes, lambda: where(node))[1 if begin else 0]
    return [(*dims[:along], piece, *dims[along + 1 :])]


def _select(node: Node, o: Operands) -> list[Dims]:
    dims = o.of(node.arguments[0])
    along = _index(_argument(node, 1, 0), len(dims))
    o.solver.freeze(dims[along], f"{where(node)} picks one index of it")
    return [dims[:along] + dims[along + 1 :]]


def _embedding(node: Node, o: Operands) -> list[Dims]:
    rows, columns = o.of(node.arguments[0])
    o.solver.freeze(rows, f"{where(node)} looks its rows up by an index computed from data")
    return [(*o.of(node.arguments[1]), columns)]


def _reduce(node: Node, o: Operands) -> list[Dims]:
    """mean, sum, amax, …: the dims go, or become 1. What removal does to the result is judged in neutral.py."""
    dims = o.of(node.arguments[0])
    over = reduced(node, len(dims))
    keep = len(node.outputs[0].shape) == len(dims)
    return [tuple(ONE if i in over else d for i, d in enumerate(dims) if keep or i not in over)]


def reduced(node: Node, rank: int) -> set[int]:
    """The positions that a reduction reduces."""
    over = _argument(node, 1, None)
    if isinstance(over, tuple):
        return {i % rank for i in _ints(over)} or set(range(rank))
    return {over % rank} if isinstance(over, int) and not isinstance(over, bool) else set(range(rank))


def _softmax(node: Node, o: Operands) -> list[Dims]:
    dims = o.of(node.arguments[0])
    along = _index(node.arguments[1], len(dims))
    o.solver.freeze(dims[along], f"{where(node)} normalises over it")
    return [dims]


def _normalised_dims(node: Node, o: Operands) -> list[Dims]:
    """layer_norm, rms_norm: the last dims meet those of the weight (and bias)."""
    dims = o.of(node.arguments[0])
    width = len(_ints(node.arguments[1]))
    for parameter in node.arguments[2:4]:
        if isinstance(parameter, Ref):
            for a, b in zip(dims[-width:], o.of(parameter), strict=True):
                o.solver.unify(a, b, lambda: where(node))
    if node.op == "layer_norm":
        for d in dims[-width:]:
            o.solver.freeze(d, f"the mean in {where(node)} changes when one is removed")
    return [dims]


def _matmul(node: Node, o: Operands) -> list[Dims]:
    a, b = o.of(node.arguments[0]), o.of(node.arguments[1])
    o.solver.unify(a[-1], b[-2 if len(b) > 1 else -1], lambda: where(node))
    batch = broadcast([a[:-2], b[:-2]], o.solver, lambda: where(node))
    return [(*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))]


def _attention(node: Node, o: Operands) -> list[Dims]:
    """scaled_dot_product_attention: q [*b h s e], k [*b h t e], v [*b h t v], mask broadcast to [*b h s t]."""
    q, k, v = (o.of(argument) for argument in node.arguments[:3])
    name = lambda: where(node)  # noqa: E731
    if q[-3].size != k[-3].size:  # enable_gqa: consecutive queries share a key
        heads = product([o.solver.resolve(k[-3]), o.solver.fresh(q[-3].size // k[-3].size)])
        o.solver.unify(q[-3], heads, name)
    else:
        o.solver.unify(q[-3], k[-3], name)
    o.solver.unify(k[-3], v[-3], name)
    o.solver.unify(q[-1], k[-1], name)
    o.solver.unify(k[-2], v[-2], name)
    for a, b, c in zip(q[:-3], k[:-3], v[:-3], strict=True):
        o.solver.unify(a, b, name)
        o.solver.unify(b, c, name)
    o.solver.freeze(k[-2], f"{where(node)} normalises over it")
    mask = _argument(node, 3, None)
    if isinstance(mask, Ref):
        broadcast([(*q[:-1], k[-2]), o.of(mask)], o.solver, name)
    return [(*q[:-1], v[-1])]


def broadcast(operands: Sequence[Dims], solver: Solver, name: Callable[[], str]) -> Dims:
    """Join dims from the right, as torch broadcasts: a dim of size 1 meets anything and says nothing."""
    if len(operands) == 1:
        return operands[0]
    rank = max(map(len, operands))
    result: list[Dim] = []
    for position in range(-rank, 0):
        joined: Dim = ONE
        for dims in operands:
            if len(dims) >= -position and (d := dims[position]).size != 1:
                if joined.size == 1:
                    joined = d
                elif joined is not d:
                    solver.unify(joined, d, name)
        result.append(joined)
    return tuple(result)


MOVEMENT: dict[str, Movement] = {
    **dict.fromkeys("view reshape _unsafe_view flatten unflatten".split(), _view),
    **dict.fromkeys("transpose t swapaxes".split(), _transpose),
    **dict.fromkeys("split split_with_sizes chunk".split(), _pieces),
    **dict.fromkeys("mean sum amax amin norm".split(), _reduce),
    **dict.fromkeys("softmax _softmax log_softmax".split(), _softmax),
    **dict.fromkeys("layer_norm rms_norm".split(), _normalised_dims),
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "cat": _cat,
    "slice": _slice,
    "select": _select,
    "embedding": _embedding,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}
