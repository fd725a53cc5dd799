"""Dead operators: what no output needs says nothing about the program, and is left out."""

from __future__ import annotations

from dataclasses import replace

from lorashear_ir.graph import Graph, Node
from lorashear_passes.aliases import Aliases, in_place


def without_dead(graph: Graph) -> Graph:
    """The graph without operators whose results nothing uses.

    One that writes in place is used by whatever reads that memory afterwards; a source's is read by who gave it.
    """
    memory = Aliases()
    for node in graph.nodes:
        memory.written(node)
    needed = set(graph.outputs)
    read = {memory.root(name) for name in graph.outputs} | {source.value.name for source in graph.sources}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        writes = in_place(node) and any(memory.root(value.name) in read for value in node.outputs)
        if writes or any(value.name in needed for value in node.outputs):
            kept.append(node)
            needed.update(node.references())
            read.update(map(memory.root, node.references()))
    sources = tuple(s for s in graph.sources if s.value.name in needed or s.role == "parameter")
    return replace(graph, sources=sources, nodes=tuple(reversed(kept)))
