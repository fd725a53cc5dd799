"""Whether removing an index equals setting its weights to zero: an abstract interpretation over the op table.

For every value we keep, dim by dim, the axes at whose removed indices it is zero. An operator that adds up over an axis
is exact only if what it adds vanishes there; if not, the axis is frozen and the operator named. An axis that top-k
chooses along has another neutral value: its scores are −∞ wherever they are compared (`selects`), and are not chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lorashear_ir.axes import Axis, Dim
from lorashear_ir.choices import choices
from lorashear_ir.graph import Graph, Node
from lorashear_ir.ops import TABLE, Dims
from lorashear_ir.ops.base import NONE, Zeros
from lorashear_passes.aliases import Aliases

SELECTS = {"softmax", "_softmax", "log_softmax", "_log_softmax", "sigmoid", "sigmoid_", "topk", "argmax"}
"""Operators before which a removed routing score is −∞."""


def judge(graph: Graph, dims: dict[str, Dims], means: Collection[str]) -> list[tuple[Axis, str]]:
    """Axes that must be frozen, each with its reason. ``means`` are the values whose mean a norm mends by itself."""
    zeros = Zeros(dims, {}, NONE, frozenset(means))
    zeros.routed = NONE.union(*(zeros.axes(dim) for dim in routed(graph, dims)))
    for source in graph.sources:
        stored = source.role == "parameter"
        zeros.state[source.value.name] = tuple(zeros.axes(d) if stored else NONE for d in dims[source.value.name])
    aliases = Aliases()
    for node in graph.nodes:
        row = TABLE.get(node.op)
        made = zeros.nowhere(node)
        if row is not None:
            try:
                made = row.zero(node, zeros)
            except NotImplementedError:
                pass
        for value, state in zip(node.outputs, made, strict=False):
            zeros.state[value.name] = state
        for name in aliases.written(node):
            _weaken(zeros, name, node)
    return zeros.found


def routed(graph: Graph, dims: Mapping[str, Dims]) -> list[Dim]:
    """Every dim that top-k chooses along."""
    return [choice.dim for choice in choices(graph.nodes, dims)]


def _weaken(zeros: Zeros, name: str, node: Node) -> None:
    """What was written into the memory of a value may not vanish where the value did.

    An axis that the written part does not have was cut away from it, so nothing was written there.
    """
    lost: set[Axis] = set()
    for dim, state in zip(zeros.dims[node.outputs[0].name], zeros.state[node.outputs[0].name], strict=True):
        lost |= zeros.axes(dim) - state
    zeros.state[name] = tuple(state - lost for state in zeros.state[name])
