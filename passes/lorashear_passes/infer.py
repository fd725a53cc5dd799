"""Type inference: every dim of every tensor becomes an expression over axes.

1. Every dim of every source is a fresh axis. Recomputed buffers, constants, program inputs and what nothing reads are
   frozen.
2. Every node states the equations of its row in the op table; unification solves them as they come.
3. A node without a row freezes all that it touches, and the reason names it.
4. Indices that are counted with as numbers freeze what they point into.
5. The dims of the program's outputs, and what outputs point into, are frozen.
6. What is still free is judged once more: removal must equal the neutral value (`neutral.py`).

Composed operators are inferred by what they stand for.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from lorashear_ir.axes import Axis, Dim, Solver, axes_of, in_words
from lorashear_ir.choices import choices, least
from lorashear_ir.functions import expand, with_types
from lorashear_ir.graph import AxisInfo, Graph, Node, Ref, Source, Value, references
from lorashear_ir.ops import TABLE, Dims, Typing, where
from lorashear_passes.blocks import blocks
from lorashear_passes.kinds import Kinds
from lorashear_passes.neutral import judge
from lorashear_passes.norms import find_norms

FROZEN_SOURCES = {
    "buffer": "is a dim of {path}, which is not stored but recomputed from the config and read by {reader}",
    "constant": "is a dim of the constant {path}, which {reader} reads",
    "input": "is a dim of the program's input {path}",
}


class RuleError(AssertionError):
    """A row of the op table contradicts itself: it fails, or the shapes that it gives are not those of the results."""


def infer(graph: Graph) -> Graph:
    """The same graph with ``dims`` on every value, and its axes and norms.

    Raises:
        RuleError: a rule is wrong; names the operator, its module and the dims, by what has them.
    """
    if graph.functions:
        return with_types(graph, infer(expand(graph)))
    with _no_collection():
        return _inferred(graph)


@contextmanager
def _no_collection() -> Iterator[None]:
    """All that is made here stays, so the garbage collector would only look at it again and again: as long as inference
    itself takes, on a hundred layers."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _inferred(graph: Graph) -> Graph:
    constants = {source.value.name: source.holds for source in graph.sources if source.role == "constant"}
    typing = Typing(Solver(), {value.name: value for value in graph.values()}, constants)
    readers: dict[str, str] = {}  # the same one in whatever order the nodes stand
    for node in graph.nodes:
        for name in node.references():
            readers[name] = min(readers.get(name, where(node)), where(node))
    for source in graph.sources:
        read = readers.get(source.value.name)
        if read is None and source.value.name not in graph.outputs:
            reason = f"is a dim of {source.path}, which the traced forward does not read"
        else:
            reason = _frozen(source, read or "the output")
        typing.dims[source.value.name] = typing.fresh(source.value.shape, reason)
    for node in graph.nodes:
        made = _dims(node, typing)
        _check(node, made, typing, graph)
        for value, result in zip(node.outputs, made, strict=True):
            typing.dims[value.name] = result
    for name in graph.outputs:
        for dim in typing.dims[name]:
            typing.solver.freeze(dim, "is a dim of the program's output")
        if name in typing.points:
            typing.solver.freeze(typing.points[name], "the program's output holds indices into it")
    return _typed(graph, typing)


def _frozen(source: Source, reader: str) -> str:
    if source.role == "parameter" and source.value.dtype.startswith(("i", "u")):
        return f"is a dim of {source.path}, which holds whole numbers"
    return FROZEN_SOURCES.get(source.role, "").format(path=source.path, reader=reader)


def _check(node: Node, made: list[Dims], typing: Typing, graph: Graph) -> None:
    for value, result in zip(node.outputs, made, strict=True):
        if tuple(d.size for d in result) != value.shape:
            found = ", ".join(map(str, map(typing.solver.resolve, result)))
            found = in_words(found, lambda name: _by_source(name, typing, graph))
            raise RuleError(f"the rule of {where(node)} gives ({found}) for a result of shape {list(value.shape)}")


def _by_source(axis: str, typing: Typing, graph: Graph) -> str:
    """An axis before it has a name of its own: the first dim of a parameter, or whatever is given, that has it."""
    for source in graph.sources:
        for place, dim in enumerate(typing.dims.get(source.value.name, ())):
            if axis in {each.name for each in axes_of(typing.solver.resolve(dim))}:
                return f"dim {place} of {source.path}"
    return "a new axis"


def _dims(node: Node, typing: Typing) -> list[Dims]:
    """The dims of a node's results by the op table."""
    row = TABLE.get(node.op)
    pointers = [name for name in node.references() if name in typing.points]
    made: list[Dims] | None = None
    if row is not None:
        try:
            made = row.type(node, typing)
        except NotImplementedError:  # the row does not cover these arguments
            row = None
        except Exception as error:
            raise RuleError(f"the rule of {where(node)} fails with {type(error).__name__}: {error}") from error
    if made is None or len(made) != len(node.outputs):
        row, made = None, _without_rule(node, typing)
    if row is not None and row.points == "keep" and pointers:
        _handed_on(node, pointers, typing)
    elif row is None or not row.points:
        typing.counts(node, *(Ref(name) for name in pointers))
    return made


def _without_rule(node: Node, typing: Typing) -> list[Dims]:
    reason = f"{where(node)} has no rule"
    for name in node.references():
        for dim in typing.dims[name]:
            typing.solver.freeze(dim, reason)
    return [typing.fresh(value.shape, reason) for value in node.outputs]


def _handed_on(node: Node, pointers: list[str], typing: Typing) -> None:
    """Moved indices still point where they did; joined ones must all point into one dim."""
    integers = [value for value in node.outputs if value.dtype.startswith("i")]
    joined = list(references(node.arguments[0]))
    target = typing.points.get(joined[0])
    same = target is not None and all(
        name in typing.points and typing.points[name].size == target.size for name in joined
    )
    if not same or len(integers) < len(node.outputs):
        typing.counts(node, *(Ref(name) for name in pointers))
        return
    assert target is not None
    for name in joined[1:]:
        typing.solver.unify(target, typing.points[name], lambda: where(node))
    for value in integers:
        typing.points[value.name] = target


def _typed(graph: Graph, typing: Typing) -> Graph:
    """Write the solution into the graph, under names that say what each axis is for."""
    solver = typing.solver
    cache: dict[int, Dim] = {}

    def solved(dim: Dim) -> Dim:
        if id(dim) not in cache:
            cache[id(dim)] = solver.resolve(dim)
        return cache[id(dim)]

    resolved = {name: tuple(solved(d) for d in value) for name, value in typing.dims.items()}
    norms = find_norms(graph, resolved)
    for axis, reason in judge(graph, resolved, {norm.mean for norm in norms}):
        solver.freeze(axis, reason)
    needed = least(choices(graph.nodes, resolved))
    kinds = Kinds(graph, resolved, norms)
    names: dict[str, Axis] = {}
    for axis, _ in kinds.ordered():
        names[axis.name] = Axis(kinds.name(axis), axis.size)
    renamed: dict[int, Dim] = {}

    def rename(dim: Dim) -> Dim:
        if id(dim) not in renamed:
            renamed[id(dim)] = _renamed(dim, names)
        return renamed[id(dim)]

    infos = [
        AxisInfo(
            names[axis.name].name,
            axis.size,
            kind,
            in_words(solver.frozen(axis), lambda name: _spelled(solver.named(name), names)),
            needed.get(axis, 1),
        )
        for axis, kind in kinds.ordered()
    ]

    def typed(value: Value) -> Value:
        points = typing.points.get(value.name)
        dims = tuple(rename(d) for d in resolved[value.name])
        return replace(value, dims=dims, points=None if points is None else rename(solved(points)))

    graph = replace(
        graph,
        sources=tuple(replace(s, value=typed(s.value)) for s in graph.sources),
        nodes=tuple(replace(n, outputs=tuple(map(typed, n.outputs))) for n in graph.nodes),
        axes=tuple(infos),
        norms=tuple(replace(found.norm, dim=rename(found.norm.dim)) for found in norms),
    )
    several = blocks(graph)
    return replace(graph, axes=tuple(replace(info, blocks=several.get(info.name, 1)) for info in infos))


def _spelled(dim: Dim, names: dict[str, Axis]) -> str:
    """A dim in a sentence. An axis that was only tried, and that no value has, has no name."""
    tried = {axis.name: Axis(f"an axis of {axis.size}", axis.size) for axis in axes_of(dim) if axis.name not in names}
    text = str(_renamed(dim, {**tried, **names}))
    return text if isinstance(dim, Axis) else f"({text})"


def _renamed(dim: Dim, names: dict[str, Axis]) -> Dim:
    if isinstance(dim, Axis):
        return names[dim.name]
    if hasattr(dim, "factors"):
        return replace(dim, factors=tuple(_renamed(f, names) for f in dim.factors))  # type: ignore[union-attr]
    return replace(dim, terms=tuple(_renamed(t, names) for t in dim.terms))  # type: ignore[union-attr]


def parameter_axes(graph: Graph) -> set[str]:
    """Names of the axes that some parameter has."""
    return {
        axis.name
        for source in graph.sources
        if source.role == "parameter"
        for dim in source.value.dims or ()
        for axis in axes_of(dim)
    }
