"""Dead operators: what no output needs says nothing about the program, and is left out."""

from __future__ import annotations

from dataclasses import replace

from lorashear_ir.graph import Graph, Node


def without_dead(graph: Graph) -> Graph:
    """The graph without operators whose results nothing uses; those that write in place stay."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        in_place = node.op.endswith("_") and not node.op.endswith("__")
        if in_place or any(value.name in needed for value in node.outputs):
            kept.append(node)
            needed.update(node.references())
    sources = tuple(s for s in graph.sources if s.value.name in needed or s.role == "parameter")
    return replace(graph, sources=sources, nodes=tuple(reversed(kept)))
