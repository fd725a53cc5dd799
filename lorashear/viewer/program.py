"""The typed graph for a reader: weights, operators in the order of the program, what composed ones are made of, layers that are alike."""

from __future__ import annotations

import re
from typing import Any

from lorashear_ir.axes import Axis, Dim, Product
from lorashear_ir.graph import Graph, Node, Source
from lorashear_ir.groups import Groups
from lorashear_ir.operators import standing, type_text

Content = dict[str, Any]
NUMBERED = re.compile(r"\.(\d+)(?=\.|$)")


def program(composed: Graph, typed: Graph, groups: Groups) -> Content:
    """The part ``program`` of a view.

    Args:
        composed: with its types.
        typed: the expansion of that, whose operators within composed ones have types too.
        groups: of the same model.
    """
    shown = _Shown(composed, typed, groups)
    return {
        "axes": [
            {"name": a.name, "size": a.size, "kind": a.kind, "reason": a.reason, "blocks": a.blocks} for a in composed.axes
        ],
        "weights": {s.path: shown.weight(s) for s in composed.sources if s.role == "parameter"},
        "given": {f"%{s.value.name}": shown.given(s) for s in composed.sources if s.role != "parameter"},
        "operators": [shown.operator(node) for node in composed.nodes],
        "outputs": [shown.maker[name] for name in composed.outputs],
        "alike": alike(composed),
        "tied": dict(composed.tied),
    }  # fmt: skip


class _Shown:
    """What the parts of a program look like, and by what names they are found.

    A weight is named by its path, what else is given and operators as in the text of the graph, ``%linear_3``.
    """

    def __init__(self, composed: Graph, typed: Graph, groups: Groups) -> None:
        self.graph, self.typed = composed, typed
        self.values = {value.name: value for value in (*typed.values(), *composed.values())}
        self.groups = {group.axis: name for name, group in groups.items()}
        self.axes = {Axis(info.name, info.size): at for at, info in enumerate(composed.axes)}
        self.maker = {s.value.name: s.path if s.role == "parameter" else f"%{s.value.name}" for s in composed.sources}
        self.maker |= {out.name: _name(node) for node in (*typed.nodes, *composed.nodes) for out in node.outputs}
        self.weights = {s.value.name: s.path for s in composed.sources if s.role == "parameter"}
        self.inside = _inside(composed, typed)

    def weight(self, source: Source) -> Content:
        value = source.value
        return {
            "dtype": value.dtype,
            "shape": list(value.shape),
            "type": [str(dim) for dim in value.dims or ()],
            "dims": [self.expression(dim) for dim in value.dims or ()],
            "groups": list(standing([value], self.groups)),
        }

    def given(self, source: Source) -> Content:
        return {"role": source.role, "path": source.path, "type": type_text(source.value)}

    def operator(self, node: Node, parts: bool = True) -> Content:
        names = list(dict.fromkeys(node.references()))
        met = [self.values[name] for name in names]
        content = {
            "name": _name(node),
            "op": node.op.partition(".")[0],
            "module": node.module,
            "reads": list(dict.fromkeys(self.maker[name] for name in names if name not in self.weights)),
            "weights": [self.weights[name] for name in names if name in self.weights],
            "type": [type_text(self.values[out.name]) for out in node.outputs],
            "groups": list(standing([*met, *(self.values[out.name] for out in node.outputs)], self.groups)),
        }
        if parts and (inside := self.inside.get(content["name"])):
            content["parts"] = [self.operator(each, parts=False) for each in inside]
        return content

    def expression(self, dim: Dim) -> int | Content:
        """A dim: the place of its axis; ``{"x": [...]}`` is a product, the left factor major, ``{"+": [...]}`` a sum."""
        if isinstance(dim, Axis):
            return self.axes[dim]
        if isinstance(dim, Product):
            return {"x": [self.expression(factor) for factor in dim.factors]}
        return {"+": [self.expression(term) for term in dim.terms]}


def _name(node: Node) -> str:
    return f"%{node.outputs[0].name}"


def _inside(composed: Graph, typed: Graph) -> dict[str, tuple[Node, ...]]:
    """What each composed operator is made of: an expansion has these nodes in its place, in order."""
    sizes: dict[str, int] = {}
    for function in composed.functions:  # each before the first that calls it
        sizes[function.name] = sum(sizes.get(node.op, 1) for node in function.nodes)
    result: dict[str, tuple[Node, ...]] = {}
    at = 0
    for node in composed.nodes:
        size = sizes.get(node.op, 1)
        if node.op in sizes:
            result[_name(node)] = typed.nodes[at : at + size]
        at += size
    return result


def alike(graph: Graph) -> list[Content]:
    """Runs of numbered modules side by side that have the same operators on the same shapes: ``module``, ``first``, ``last``."""
    forms: dict[str, dict[int, list[object]]] = {}
    shapes = {value.name: (value.dtype, value.shape) for value in graph.values()}
    for node in graph.nodes:
        for found in NUMBERED.finditer(node.module):
            within = node.module[found.end() :]
            form = (
                within,
                node.op,
                *(shapes[name] for name in (*node.references(), *(out.name for out in node.outputs))),
            )
            forms.setdefault(node.module[: found.start()], {}).setdefault(int(found[1]), []).append(form)
    result: list[Content] = []
    for module, numbers in sorted(forms.items()):
        runs: list[list[int]] = []
        for number in sorted(numbers):
            if runs and runs[-1][-1] == number - 1 and numbers[number] == numbers[number - 1]:
                runs[-1].append(number)
            else:
                runs.append([number])
        result += [{"module": module, "first": run[0], "last": run[-1]} for run in runs if len(run) > 1]
    return result
