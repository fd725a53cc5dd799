"""Resizing: the program that is left when structures are gone, written out as a graph.

1. Every value gets the shape that its dims have without them.
2. The numbers in operators that follow from shapes (views, splits, starts, group counts) follow.
3. A mended norm's eps is multiplied by n/n'.

This is what a rebuilt class must compute (`rebuild.py` compares), and what a captured module is rewritten to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from lorashear_ir.axes import Dim
from lorashear_ir.graph import Graph, Node, Value
from lorashear_ir.groups import Groups
from lorashear_ir.ops import TABLE
from lorashear_ir.ops.base import Dims, Resizing
from lorashear_passes.norms import find_norms


def resize(graph: Graph, groups: Groups, removed: Mapping[str, Collection[int]]) -> Graph:
    """The typed graph without the structures, untyped. Raises SelectionError."""
    selection, eps = groups.selection(removed), groups.eps(removed)
    widths = {groups[name].axis.name: width for name, width in groups.widths(removed).items()}
    kept: dict[int, list[int]] = {}

    def stays(dim: Dim) -> list[int]:
        if id(dim) not in kept:
            kept[id(dim)] = selection.kept(dim)
        return kept[id(dim)]

    dims: dict[str, Dims] = {value.name: value.dims or () for value in graph.values()}
    shapes = {value.name: value.shape for value in graph.values()}
    sizes = Resizing(dims, stays, widths)
    norms = [(found, eps.get(found.norm.weight, found.norm.eps)) for found in find_norms(graph, dims)]
    mended = {found.eps_node: after for found, after in norms if after != found.norm.eps}

    def smaller(value: Value) -> Value:
        return replace(value, shape=sizes.shape(value.name), dims=None, points=None)

    def touched(node: Node) -> bool:
        """Whether a value that the node makes or reads is smaller now, or what it makes points into less."""
        names = (*(value.name for value in node.outputs), *node.references())
        targets = (value.points for value in node.outputs if value.points is not None)
        return any(sizes.shape(name) != shapes[name] for name in names) or any(sizes.size(t) != t.size for t in targets)

    def rewritten(node: Node) -> Node:
        row = TABLE.get(node.op)
        if row is not None and row.sizes is not None and touched(node):
            node = row.sizes(node, sizes)
        if node.outputs and node.outputs[0].name in mended:
            value, given = mended[node.outputs[0].name], node.arguments
            place = next((i for i, a in enumerate(given) if isinstance(a, float)), 3)  # rms_norm without one
            node = replace(node, arguments=(*given[:place], value, *given[place + 1 :]))
        return replace(node, outputs=tuple(map(smaller, node.outputs)))

    return replace(
        graph,
        sources=tuple(replace(s, value=smaller(s.value)) for s in graph.sources),
        nodes=tuple(map(rewritten, graph.nodes)),
        axes=(),
        norms=(),
    )
