"""Outlining: regions of a graph become calls of functions, one function for all regions with the same body.

1. A region with fewer than two nodes, or that overlaps an earlier one, or that a path leaves and re-enters, is left.
2. A call reads what its region read, makes what others used of it, and stands where its last node stood or later.
   Its arguments come as its results need them, weights and what else the program was given last.
3. Bodies are equal if they are so up to the names of values and the path of the module around them.
"""

from __future__ import annotations

import heapq
import os.path
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lorashear_ir.functions import numbered, untyped
from lorashear_ir.graph import Function, Graph, Node, Ref
from lorashear_passes.flow import Flow, Region


def outline(flow: Flow, kind: str, regions: Iterable[Region]) -> Graph:
    """The graph of ``flow`` with each region as one call of a function of this kind."""
    graph = flow.graph
    taken: set[int] = set()
    chosen: list[Region] = []
    for region in regions:
        if len(region) > 1 and not region & taken and flow.is_convex(region):
            chosen.append(region)
            taken |= region
    order, stuck = _ordered(flow, chosen)
    while stuck:  # two regions, each convex, may need each other: then one of them is left as it was
        chosen.remove(stuck[0])
        order, stuck = _ordered(flow, chosen)
    functions = list(graph.functions)
    known = {(f.kind, f.parameters, f.nodes, f.outputs): f.name for f in functions}
    count = Counter(function.kind for function in functions)
    nodes: list[Node] = []
    for region in order:
        if isinstance(region, int):
            nodes.append(flow.nodes[region])
            continue
        module = _shared([flow.nodes[position].module for position in region])
        inputs, outputs = _inputs(flow, region), flow.outputs(region)
        body = _function(flow, region, module, inputs, outputs)
        key = (kind, body.parameters, body.nodes, body.outputs)
        if key not in known:
            known[key] = f"{kind}.{count[kind]}"
            count[kind] += 1
            functions.append(replace(body, name=known[key]))
        nodes.append(Node(known[key], tuple(map(Ref, inputs)), tuple(flow.values[name] for name in outputs), module))
    return replace(graph, nodes=tuple(nodes), functions=tuple(functions))


def _inputs(flow: Flow, region: Region) -> list[str]:
    """What the region reads: what was computed in the order in which its results need it, then sources as used."""
    found: dict[str, None] = {}
    entered: set[int] = set()
    queue = flow.outputs(region)[::-1]
    while queue:
        name = queue.pop()
        position = flow.maker.get(name)
        if position is None or position not in region:
            found[name] = None
        elif position not in entered:
            entered.add(position)
            queue.extend(reversed(list(flow.nodes[position].references())))
    computed = [name for name in found if name not in flow.sources]
    return computed + [name for name in flow.inputs(region) if name in flow.sources]


def _function(flow: Flow, region: Region, module: str, inputs: Sequence[str], outputs: Sequence[str]) -> Function:
    """The region as a function that has no name yet."""
    names = {name: _letter(number) for number, name in enumerate(inputs)}
    prefix = f"{module}." if module else ""
    inner = [
        replace(node, outputs=tuple(map(untyped, node.outputs)), module=node.module[len(prefix) :])
        for node in (flow.nodes[position] for position in sorted(region))
    ]
    parameters = tuple(replace(untyped(flow.values[name]), name=names[name]) for name in inputs)
    nodes, names = numbered(inner, names)
    return Function("", parameters, nodes, tuple(names[name] for name in outputs))


def _letter(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number] if number < 26 else f"a{number}"


def _shared(modules: Sequence[str]) -> str:
    """The path of the innermost module around all of them."""
    return ".".join(os.path.commonprefix([module.split(".") for module in modules]))


def _ordered(flow: Flow, regions: Sequence[Region]) -> tuple[list[Region | int], list[Region]]:
    """Regions and the nodes outside them, what is needed first, else as they stood; and regions that wait in a ring."""
    unit_of: dict[int, Region | int] = {position: region for region in regions for position in region}
    units = dict.fromkeys(unit_of.get(position, position) for position in range(len(flow.nodes)))
    users: dict[Region | int, set[Region | int]] = defaultdict(set)
    waits: Counter[Region | int] = Counter()
    for position, node in enumerate(flow.nodes):
        unit = unit_of.get(position, position)
        for name in node.references():
            maker = flow.maker.get(name)
            before = unit if maker is None else unit_of.get(maker, maker)
            if before != unit and unit not in users[before]:
                users[before].add(unit)
                waits[unit] += 1
    ready = [(_last(unit), unit) for unit in units if not waits[unit]]
    heapq.heapify(ready)
    order: list[Region | int] = []
    while ready:
        _, unit = heapq.heappop(ready)
        order.append(unit)
        for user in users[unit]:
            waits[user] -= 1
            if not waits[user]:
                heapq.heappush(ready, (_last(user), user))
    return order, [region for region in regions if waits[region]]


def _last(unit: Region | int) -> int:
    return unit if isinstance(unit, int) else max(unit)
