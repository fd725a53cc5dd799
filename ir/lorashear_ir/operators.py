"""Overlap: the operators that meet weights, and all groups that each of them stands in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lorashear_ir.axes import Axis, axes_of
from lorashear_ir.graph import Graph, Value


@dataclass(frozen=True)
class Operator:
    """An operator that meets weights. It stands in a group if an operand or a result of it has the group's axis."""

    name: str  # of its first result, as in the text of the graph: %linear_3
    op: str
    module: str
    weights: Mapping[str, str]  # the type of each, by parameter name
    groups: tuple[str, ...]


def axes_on(value: Value) -> Iterator[Axis]:
    """Every axis that a value has or, for a tensor of indices, counts along; each once."""
    dims = (value.dims or ()) if value.points is None else (*(value.dims or ()), value.points)
    return iter(dict.fromkeys(axis for dim in dims for axis in axes_of(dim)))


def type_text(value: Value) -> str:
    """The dims of a value as in the text of the graph: ``(ffn.0, hidden)``."""
    return f"({', '.join(map(str, value.dims or ()))})"


def standing(values: Iterable[Value], names: Mapping[Axis, str]) -> tuple[str, ...]:
    """The groups whose axes the values have, in the order of the groups; ``names`` are theirs by axis."""
    axes = {axis for value in values for axis in axes_on(value)}
    return tuple(name for axis, name in names.items() if axis in axes)


def operators(graph: Graph, names: Mapping[Axis, str]) -> Iterator[Operator]:
    """Every operator that meets weights, in the order of the program.

    What is computed from weights alone (a transpose, Gemma's ``1 + w``) counts as those weights: the operator that
    brings them together with data is the one.
    """
    values = {value.name: value for value in graph.values()}
    weights = {source.value.name: source for source in graph.sources if source.role == "parameter"}
    made_of: dict[str, tuple[str, ...]] = {name: (name,) for name in weights}
    for node in graph.nodes:
        operands = tuple(dict.fromkeys(node.references()))
        met = tuple(dict.fromkeys(weight for name in operands for weight in made_of.get(name, ())))
        if not met:
            continue
        if all(name in made_of for name in operands):
            made_of.update((output.name, met) for output in node.outputs)
            continue
        yield Operator(
            name=f"%{node.outputs[0].name}",
            op=node.op,
            module=node.module,
            weights={weights[name].path: type_text(weights[name].value) for name in met},
            groups=standing([*(values[name] for name in operands), *node.outputs], names),
        )
