"""Composed operators taken apart again: ``expand`` inlines every call, ``canonical`` makes two graphs comparable.

An expansion computes the same as the graph that was composed, under other names and in another order:
``canonical(expand(compose(graph))) == canonical(graph)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from lorashear_ir.graph import Argument, Function, Graph, Node, Ref, Value


def expand(graph: Graph) -> Graph:
    """The graph with every call replaced by its function's body; untyped, since bodies have no dims.

    A call's own values keep their names, so types inferred here can be put back with `with_types`. A value inside is
    named after the call's first output.
    """
    if not graph.functions:
        return graph
    functions = {function.name: function for function in graph.functions}
    return replace(
        graph,
        sources=tuple(replace(source, value=untyped(source.value)) for source in graph.sources),
        nodes=tuple(inner for node in graph.nodes for inner in _inlined(node, functions, node.outputs[0].name)),
        axes=(),
        norms=(),
        functions=(),
    )


def _inlined(node: Node, functions: Mapping[str, Function], prefix: str) -> Iterator[Node]:
    """The nodes of a call, and of the calls in it; ``prefix`` begins the names of what is inside."""
    if node.op not in functions:
        yield replace(node, outputs=tuple(map(untyped, node.outputs)))
        return
    function = functions[node.op]
    names = {value.name: f"{prefix}.{value.name}" for inner in function.nodes for value in inner.outputs}
    names.update(zip((p.name for p in function.parameters), node.references(), strict=True))
    names.update(zip(function.outputs, (value.name for value in node.outputs), strict=True))
    for inner in function.nodes:
        module = ".".join(filter(None, (node.module, inner.module)))
        nested = f"{prefix}.{inner.outputs[0].name}"
        yield from _inlined(replace(renamed(inner, names), module=module), functions, nested)


def with_types(composed: Graph, typed: Graph) -> Graph:
    """The composed graph with the dims, axes and norms that were inferred for its expansion."""
    values = {value.name: value for value in typed.values()}
    return replace(
        composed,
        sources=tuple(replace(source, value=values[source.value.name]) for source in composed.sources),
        nodes=tuple(replace(n, outputs=tuple(values[v.name] for v in n.outputs)) for n in composed.nodes),
        axes=typed.axes,
        norms=typed.norms,
    )


def untyped(value: Value) -> Value:
    return Value(value.name, value.dtype, value.shape)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The node with every value under its new name."""
    return replace(
        node,
        arguments=tuple(_renamed(argument, names) for argument in node.arguments),
        outputs=tuple(replace(value, name=names[value.name]) for value in node.outputs),
    )


def _renamed(argument: Argument, names: Mapping[str, str]) -> Argument:
    if isinstance(argument, Ref):
        return Ref(names[argument.name])
    if isinstance(argument, tuple):
        return tuple(_renamed(part, names) for part in argument)
    return argument


def numbered(nodes: Iterable[Node], names: Mapping[str, str]) -> tuple[tuple[Node, ...], dict[str, str]]:
    """The nodes, their values named by operator and number in the order given, and all the names.

    Args:
        nodes: in an order that defines every value before its use.
        names: new names of the values that come from elsewhere.
    """
    names, taken = dict(names), set(names.values())
    count: Counter[str] = Counter()
    result: list[Node] = []
    for node in nodes:
        base = node.op.replace(".", "_")
        while True:
            name = f"{base}_{count[base]}" if count[base] else base
            count[base] += 1
            if name not in taken:
                break
        for position, value in enumerate(node.outputs):
            names[value.name] = f"{name}.{position}" if len(node.outputs) > 1 else name
        result.append(renamed(node, names))
    return tuple(result), names


def canonical(graph: Graph) -> Graph:
    """The same program with nodes in one order and values under one set of names, whatever they were before.

    What the outputs need comes first, arguments before their users; what nobody needs comes last, in its old order.
    """
    made_by = {value.name: position for position, node in enumerate(graph.nodes) for value in node.outputs}
    order: dict[int, None] = {}
    entered: set[int] = set()
    roots = [made_by[name] for name in graph.outputs if name in made_by]
    for root in [*roots, *range(len(graph.nodes))]:
        stack = [(root, False)]
        while stack:
            position, ready = stack.pop()
            if ready:
                order[position] = None
            if position in entered:
                continue
            entered.add(position)
            stack.append((position, True))
            makers = [made_by[name] for name in graph.nodes[position].references() if name in made_by]
            stack.extend((maker, False) for maker in reversed(makers))
    sources = {source.value.name: source.value.name for source in graph.sources}
    nodes, names = numbered((graph.nodes[position] for position in order), sources)
    return replace(graph, nodes=nodes, outputs=tuple(names[name] for name in graph.outputs))
