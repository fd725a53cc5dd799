"""The dependency graph: operators and weights as nodes, the axes along which values flow as edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lorashear_ir.axes import Axis, axes_of
from lorashear_ir.graph import Graph, Node, Source, Value
from lorashear_ir.groups import Groups
from lorashear_ir.operators import axes_on, standing, type_text

if TYPE_CHECKING:
    import networkx

Attributes = dict[str, Any]
NO_AXIS: Attributes = {
    "axis": "",
    "kind": "data",
    "size": 1,
    "group": "",
    "prunable": False,
    "reason": "no weight has an axis of it",
}


def network(graph: Graph, groups: Groups) -> networkx.MultiDiGraph[str]:
    """The dependency graph of a typed graph, as `Groups.graph` describes it."""
    import networkx

    names = {group.axis: group.name for group in groups.values()}
    values = {value.name: value for value in graph.values()}
    made_by = {source.value.name: _source_name(source) for source in graph.sources}
    made_by |= {output.name: _node_name(node) for node in graph.nodes for output in node.outputs}
    edges = _edges(graph, groups)
    result: networkx.MultiDiGraph[str] = networkx.MultiDiGraph(name=graph.name)
    for source in graph.sources:
        result.add_node(_source_name(source), **_source(source, names))
    for node in graph.nodes:
        operands = [values[name] for name in dict.fromkeys(node.references())]
        result.add_node(_node_name(node), **_operator(node, standing([*operands, *node.outputs], names)))
        for value in operands:
            for attributes in _flow(value, edges):
                result.add_edge(made_by[value.name], _node_name(node), _key(value, node, attributes), **attributes)
    return result


def _source_name(source: Source) -> str:
    return source.path if source.role == "parameter" else f"%{source.value.name}"


def _node_name(node: Node) -> str:
    return f"%{node.outputs[0].name}"


def _key(value: Value, node: Node, attributes: Attributes) -> str:
    """Unique in the whole graph: GraphML writes it as the edge's id."""
    along = f" along {attributes['axis']}" if attributes["axis"] else ""
    return f"%{value.name} -> {_node_name(node)}{along}"


def _source(source: Source, names: Mapping[Axis, str]) -> Attributes:
    value = source.value
    return {
        "role": "weight" if source.role == "parameter" else source.role,
        "label": source.path,
        "path": source.path,
        "dtype": value.dtype,
        "shape": ", ".join(map(str, value.shape)),
        "type": type_text(value),
        "groups": ", ".join(standing([value], names)),
    }


def _operator(node: Node, groups: tuple[str, ...]) -> Attributes:
    return {
        "role": "operator",
        "label": f"{node.op}\n{node.module}".strip(),
        "op": node.op,
        "module": node.module,
        "type": " ".join(map(type_text, node.outputs)),
        "groups": ", ".join(groups),
    }


def _edges(graph: Graph, groups: Groups) -> dict[Axis, Attributes]:
    """What an edge says, for every axis that a weight has."""
    owned = {axis for dims in groups.tensors.values() for dim in dims for axis in axes_of(dim)}
    by_axis = {group.axis: group for group in groups.values()}
    result: dict[Axis, Attributes] = {}
    for info in graph.axes:
        axis = Axis(info.name, info.size)
        if axis in owned:
            group = by_axis.get(axis)
            reason = group.reason if group else info.reason or "its group is not among the chosen ones"
            result[axis] = {
                "axis": info.name,
                "kind": info.kind,
                "size": info.size,
                "group": group.name if group else "",
                "prunable": not reason,
                "reason": reason,
            }
    return result


def _flow(value: Value, edges: Mapping[Axis, Attributes]) -> Iterator[Attributes]:
    """The edges of one use of a value: one for each axis that a weight has too, else one without an axis.

    Batch and positions are left out: they tie no weight to another, and every value has them.
    """
    found = [edges[axis] for axis in axes_on(value) if axis in edges]
    yield from found or [NO_AXIS]
