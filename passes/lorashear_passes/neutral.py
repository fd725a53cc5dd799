"""Whether removing an index equals setting its weights to zero: a small abstract interpretation.

For every value we keep the axes along which it *vanishes* at an index whose weights are all zero. An operator that
adds up over an axis is exact only if what it adds vanishes there; if not, the axis is frozen and the operator named.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from lorashear_ir.axes import Dim, axes_of
from lorashear_ir.graph import Graph, Node, Ref
from lorashear_ir.ops import EINSUM, POINTWISE, Dims, reduced, where

Vanishing = frozenset[str]
NOWHERE: Vanishing = frozenset()


def judge(graph: Graph, dims: dict[str, Dims], means: Set[str]) -> Iterator[tuple[Dim, str]]:
    """Dims that must be frozen, each with its reason. ``means`` are the values whose mean a norm mends by itself."""
    names: dict[int, Vanishing] = {}

    def axes(value: str) -> Vanishing:
        return frozenset().union(*(of_dim(d) for d in dims[value]))

    def of_dim(dim: Dim) -> Vanishing:
        if id(dim) not in names:
            names[id(dim)] = frozenset(axis.name for axis in axes_of(dim))
        return names[id(dim)]

    zero = {s.value.name: axes(s.value.name) if s.role == "parameter" else NOWHERE for s in graph.sources}
    for node in graph.nodes:
        inputs = [a.name for a in node.arguments if isinstance(a, Ref)]
        vanishing = [zero[name] for name in inputs]
        union: Vanishing = frozenset().union(*vanishing)
        result = NOWHERE
        if node.op in POINTWISE:
            result = _pointwise(node, vanishing)
        elif node.op in EINSUM or node.op == "matmul":
            contracted = dims[inputs[0]][-1]
            if not of_dim(contracted) <= union:
                yield contracted, f"{where(node)} sums over it, and what it sums is not zero where the weights are"
            bias_adds = node.op == "linear" and len(inputs) == 3
            result = (zero[inputs[1]] & zero[inputs[2]]) if bias_adds else union
            if node.op == "addmm":
                result = zero[inputs[0]] & zero[inputs[2]]
        elif node.op == "scaled_dot_product_attention":
            contracted = dims[inputs[0]][-1]
            if not of_dim(contracted) <= union:
                yield contracted, f"{where(node)} sums over it, and what it sums is not zero where the weights are"
            result = zero[inputs[2]]
        elif node.op in ("mean", "sum", "norm", "amax", "amin"):
            over = [d for i, d in enumerate(dims[inputs[0]]) if i in reduced(node, len(dims[inputs[0]]))]
            for dim in over:
                mended = node.op == "sum" or node.outputs[0].name in means
                if not (mended and of_dim(dim) <= union):
                    yield dim, f"{where(node)} reduces over it"
            result = union
        elif node.op == "rms_norm":
            if node.outputs[0].name not in means or not of_dim(dims[inputs[0]][-1]) <= zero[inputs[0]]:
                yield dims[inputs[0]][-1], f"{where(node)} takes a mean over it"
            result = union
        elif node.op == "cat":
            parts = [a.name for a in node.arguments[0] if isinstance(a, Ref)]  # type: ignore[union-attr]
            result = axes(node.outputs[0].name)
            for part in parts:
                result &= zero[part] | (result - axes(part))
        elif inputs:
            result = zero[inputs[0]]
        for value in node.outputs:
            zero[value.name] = result & axes(value.name) if result else NOWHERE


def _pointwise(node: Node, vanishing: list[Vanishing]) -> Vanishing:
    numbers = [a for a in node.arguments if isinstance(a, int | float) and not isinstance(a, bool)]
    rule = POINTWISE[node.op]
    if node.op == "pow":
        return vanishing[0] if len(vanishing) == 1 and numbers and numbers[-1] > 0 else NOWHERE
    if node.op in ("div", "div_"):
        return vanishing[0] if isinstance(node.arguments[0], Ref) else NOWHERE
    if rule == "any":
        return frozenset().union(*vanishing)
    if rule == "all":
        # The third argument of add is a factor; a number added anywhere leaves nothing zero.
        return frozenset.intersection(*vanishing) if isinstance(node.arguments[1], Ref) else NOWHERE
    return vanishing[0] if rule == "keeps" else NOWHERE
