"""Type inference: every dim of every tensor becomes an expression over axes.

1. Every dim of every source is a fresh axis. Recomputed buffers, constants and program inputs are frozen.
2. Every node states the equations of its row in the op table; unification solves them as they come.
3. A node that no parameter reaches (positions, masks) has frozen dims: it is computed from data.
4. A node without a row freezes all that it touches, and the reason names it.
5. The dims of the program's outputs are frozen.
6. What is still free is judged once more: removal must equal the neutral value (`neutral.py`).

Composed operators are inferred by what they stand for.
"""

from __future__ import annotations

from dataclasses import replace

from lorashear_ir.axes import Axis, Dim, Solver, axes_of
from lorashear_ir.functions import expand, with_types
from lorashear_ir.graph import AxisInfo, Graph, Node, Ref, Value
from lorashear_ir.ops import CONSTANT_FILL, EINSUM, MOVEMENT, POINTWISE, Dims, Operands, broadcast, where
from lorashear_passes.kinds import Kinds
from lorashear_passes.neutral import judge
from lorashear_passes.norms import find_norms

FROZEN_SOURCES = {
    "buffer": "is a dim of {path}, which is not stored but recomputed from the config",
    "constant": "is a dim of the constant {path}",
    "input": "is a dim of the program's input {path}",
}


def infer(graph: Graph) -> Graph:
    """The same graph with ``dims`` on every value, and its axes and norms."""
    if graph.functions:
        return with_types(graph, infer(expand(graph)))
    solver = Solver()
    dims: dict[str, Dims] = {}
    reached: set[str] = set()  # values that some parameter flows into
    for source in graph.sources:
        reason = FROZEN_SOURCES.get(source.role, "").format(path=source.path)
        dims[source.value.name] = tuple(solver.fresh(size, reason) for size in source.value.shape)
        if source.role != "input":
            reached.add(source.value.name)
    values = {value.name: value for value in graph.values()}
    operands = Operands(solver, values, dims)
    for node in graph.nodes:
        if any(name in reached for name in node.references()):
            reached.update(value.name for value in node.outputs)
            made = _dims(node, operands)
        elif node.op in CONSTANT_FILL:
            made = [tuple(map(solver.fresh, value.shape)) for value in node.outputs]
        else:
            made = [
                tuple(solver.fresh(s, f"{where(node)} computes it from data") for s in v.shape) for v in node.outputs
            ]
        for value, result in zip(node.outputs, made, strict=True):
            dims[value.name] = result
    for name in graph.outputs:
        for dim in dims[name]:
            solver.freeze(dim, "is a dim of the program's output")
    return _typed(graph, solver, dims)


def _dims(node: Node, operands: Operands) -> list[Dims]:
    """The dims of a node's results by the op table."""
    solver = operands.solver
    if node.op in MOVEMENT:
        made = MOVEMENT[node.op](node, operands)
    elif node.op in POINTWISE:
        tensors = [operands.dims[a.name] for a in node.arguments if isinstance(a, Ref)]
        made = [broadcast(tensors, solver, lambda: where(node))]
    elif node.op in EINSUM:
        made = [_einsum(EINSUM[node.op], node, operands)]
    else:
        reason = f"{where(node)} has no rule"
        for name in node.references():
            for dim in operands.dims[name]:
                solver.freeze(dim, reason)
        made = [tuple(solver.fresh(size, reason) for size in value.shape) for value in node.outputs]
    for value, result in zip(node.outputs, made, strict=True):
        if tuple(d.size for d in result) != value.shape:
            raise AssertionError(f"the rule of {where(node)} gives {result} for the shape {value.shape}")
    return made


def _einsum(spec: str, node: Node, operands: Operands) -> Dims:
    """A row like ``*b i, o i, ?o -> *b o``: equal letters are equal dims."""
    left, right = spec.split("->")
    bound: dict[str, Dim] = {}
    leading: Dims = ()
    for term, argument in zip(left.split(","), node.arguments, strict=False):
        if not isinstance(argument, Ref):
            continue
        dims = operands.dims[argument.name]
        letters = term.replace("?", "").split()
        if letters[0].startswith("*"):
            letters = letters[1:]
            leading, dims = dims[: len(dims) - len(letters)], dims[len(dims) - len(letters) :]
        for letter, dim in zip(letters, dims, strict=True):
            if letter in bound:
                operands.solver.unify(bound[letter], dim, lambda: where(node))
            else:
                bound[letter] = dim
    return (*leading, *(bound[letter] for letter in right.split() if not letter.startswith("*")))


def _typed(graph: Graph, solver: Solver, dims: dict[str, Dims]) -> Graph:
    """Write the solution into the graph, under names that say what each axis is for."""
    cache: dict[int, Dim] = {}

    def solved(dim: Dim) -> Dim:
        if id(dim) not in cache:
            cache[id(dim)] = solver.resolve(dim)
        return cache[id(dim)]

    resolved = {name: tuple(solved(d) for d in value) for name, value in dims.items()}
    norms = find_norms(graph, resolved)
    for dim, reason in judge(graph, resolved, {norm.mean for norm in norms}):
        solver.freeze(dim, reason)
    kinds = Kinds(graph, resolved)
    names: dict[str, Axis] = {}
    infos: list[AxisInfo] = []
    for axis, kind in kinds.ordered():
        name = kinds.name(axis)
        names[axis.name] = Axis(name, axis.size)
        infos.append(AxisInfo(name, axis.size, kind, solver.frozen(axis)))
    renamed: dict[int, Dim] = {}

    def rename(dim: Dim) -> Dim:
        if id(dim) not in renamed:
            renamed[id(dim)] = _renamed(dim, names)
        return renamed[id(dim)]

    def typed(value: Value) -> Value:
        return Value(value.name, value.dtype, value.shape, tuple(rename(d) for d in resolved[value.name]))

    return replace(
        graph,
        sources=tuple(replace(s, value=typed(s.value)) for s in graph.sources),
        nodes=tuple(Node(n.op, n.arguments, tuple(map(typed, n.outputs)), n.module) for n in graph.nodes),
        axes=tuple(infos),
        norms=tuple(replace(found.norm, dim=rename(found.norm.dim)) for found in norms),
    )


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
