"""Files of the dependency graph: GraphML for programs, DOT for pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorashear.disk.output import check_file, output_file
from lorashear.errors import LorashearError

if TYPE_CHECKING:
    import networkx

COLOURS = {
    "head": "#1f77b4",
    "query": "#17a2b8",
    "ffn": "#2ca02c",
    "hidden": "#d62728",
    "rank": "#9467bd",
    "expert": "#ff7f0e",
    "channel": "#8c564b",
    "latent": "#e377c2",
    "state": "#808000",
}
FROZEN = "#999999"


def check_target(path: Path, *, overwrite: bool = False) -> None:
    """Whether a graph can be written to a path, asked before the analysis.

    Raises:
        LorashearError: no format has this ending, or the file exists or cannot be made.
    """
    _writer(path)
    check_file(path, overwrite=overwrite)


def write(graph: networkx.MultiDiGraph[str], path: Path, *, overwrite: bool = False) -> None:
    """Write what `Groups.graph` gave, in the format that the path's ending names.

    Raises:
        LorashearError: as `check_target`.
    """
    writer = _writer(path)
    with output_file(path, overwrite=overwrite) as work:
        writer(graph, work)


def dot(graph: networkx.MultiDiGraph[str]) -> str:
    """The graph in Graphviz's language: weights are boxes, operators ellipses, what else is given dashed boxes.

    An edge has the colour of its axis's kind, grey where the axis is frozen, and is dotted where it has no axis.
    """
    lines = [f"digraph {_quoted(graph.name)} {{", "  node [fontsize=10];", "  edge [fontsize=8];"]
    for name, node in graph.nodes(data=True):
        lines.append(f"  {_quoted(name)} [{_list(_node(node))}];")
    for producer, consumer, edge in graph.edges(data=True):
        lines.append(f"  {_quoted(producer)} -> {_quoted(consumer)} [{_list(_edge(edge))}];")
    return "\n".join([*lines, "}"]) + "\n"


def _writer(path: Path) -> Callable[[networkx.MultiDiGraph[str], Path], object]:
    if path.suffix not in WRITERS:
        raise LorashearError(f"a graph is written to {' or '.join(f'*{s}' for s in WRITERS)}, and '{path}' is neither")
    return WRITERS[path.suffix]


def _write_graphml(graph: networkx.MultiDiGraph[str], path: Path) -> None:
    import networkx

    networkx.write_graphml_xml(graph, str(path))  # not lxml's writer, which comes where that is installed


def _write_dot(graph: networkx.MultiDiGraph[str], path: Path) -> None:
    path.write_text(dot(graph), encoding="utf-8")


WRITERS = {".graphml": _write_graphml, ".dot": _write_dot}


def _node(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if node["role"] == "operator":
        yield "shape", "ellipse"
        yield "label", node["label"]
    else:
        yield "shape", "box"
        yield "label", f"{node['label']}\n{node['type']}"
        if node["role"] != "weight":
            yield "style", "dashed"


def _edge(edge: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not edge["axis"]:
        yield "color", FROZEN
        yield "style", "dotted"
        return
    colour = COLOURS.get(edge["kind"], "black") if edge["prunable"] else FROZEN
    yield "label", f"{edge['axis']} {edge['size']}"
    yield "color", colour
    yield "fontcolor", colour
    if edge["reason"]:
        yield "tooltip", edge["reason"]


def _list(attributes: Iterator[tuple[str, str]]) -> str:
    return ", ".join(f"{name}={_quoted(value)}" for name, value in attributes)


def _quoted(text: str) -> str:
    """In Graphviz a backslash would escape what follows, also the closing quote, so it is doubled."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
