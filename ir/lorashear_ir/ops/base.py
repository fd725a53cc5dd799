"""What a row of the op table sees of a program, and the three things that it says.

A row says for its operator

* ``type``: the dims of its results, and equations between the dims of its operands;
* ``zero``: along which axes its results vanish where the operands do, and which axes it needs them to;
* ``sizes``: how its number arguments (shapes, splits, starts) change once axes are shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lorashear_ir.axes import ONE, Axis, Dim, Solver, axes_of, size_with
from lorashear_ir.graph import Argument, Node, Ref, Value

Dims = tuple[Dim, ...]
Axes = frozenset[Axis]
Zero = tuple[Axes, ...]
"""For each dim of a value the axes at whose removed indices the value is zero."""

NONE: Axes = frozenset()


def where(node: Node) -> str:
    """How an error names an operator."""
    return f"{node.op} in {node.module or 'the model'}"


def argument(node: Node, position: int, default: Argument = None) -> Argument:
    return node.arguments[position] if len(node.arguments) > position else default


def position(number: Argument, rank: int) -> int:
    """A dim argument, counted from the left."""
    assert isinstance(number, int)
    return number % rank if rank else 0


def ints(value: Argument) -> list[int]:
    assert isinstance(value, tuple)
    return [part for part in value if isinstance(part, int)]


def tensors(node: Node) -> list[Ref]:
    """The direct tensor arguments."""
    return [a for a in node.arguments if isinstance(a, Ref)]


@dataclass
class Typing:
    """The program while it is typed: dims of values, what indices point into, and the solver."""

    solver: Solver
    values: dict[str, Value]
    constants: Mapping[str, str] = field(default_factory=dict[str, str])  # what each holds (`Source.holds`)
    dims: dict[str, Dims] = field(default_factory=dict[str, Dims])
    points: dict[str, Dim] = field(default_factory=dict[str, Dim])

    def of(self, value: Argument) -> Dims:
        assert isinstance(value, Ref)
        return self.dims[value.name]

    def resolved(self, value: Argument) -> Dims:
        return tuple(map(self.solver.resolve, self.of(value)))

    def target(self, value: Argument) -> Dim | None:
        """What an index tensor points into; None where its numbers are plain data."""
        return self.points.get(value.name) if isinstance(value, Ref) else None

    def carry(self, node: Node) -> None:
        """Indices that are looked up still point where they did."""
        target = self.target(node.arguments[0])
        if target is not None:
            self.points[node.outputs[0].name] = target

    def counts(self, node: Node, *values: Argument) -> None:
        """The operator takes indices for plain numbers, so what they point into cannot be renumbered."""
        for value in values:
            target = self.target(value)
            if target is not None:
                self.solver.freeze(target, f"{where(node)} counts with indices into it")

    def is_mask(self, value: Argument) -> bool:
        return isinstance(value, Ref) and self.values[value.name].dtype == "bool"

    def fresh(self, shape: Iterable[int], reason: str = "") -> Dims:
        return tuple(self.solver.fresh(size, reason) for size in shape)

    def look_up(self, node: Node, dim: Dim, index: Argument) -> None:
        """``dim`` is read or written at the numbers of ``index``: they count along it, or it is frozen."""
        target = self.target(index)
        if target is not None and target.size == dim.size:
            self.solver.unify(dim, target, lambda: where(node))
            return
        held = self.constants.get(index.name) if isinstance(index, Ref) else None
        how = "constant indices" if held is not None else "an index computed from data"
        end = _end(held or "")
        if 0 < end < dim.size:  # what lies behind the last one can go
            dim = self.solver.split(dim, [end, dim.size - end], lambda: where(node))[0]
        self.solver.freeze(dim, f"{where(node)} looks it up by {how}")
        if target is not None:
            self.solver.freeze(target, f"{where(node)} looks up a dim of another size by its indices")


def _end(held: str) -> int:
    """One more than the largest of the indices that a constant holds; 0 where they are not known, or count from the end."""
    parts = held.split(", ")
    return max(map(int, parts)) + 1 if all(part.isdecimal() for part in parts) else 0


@dataclass
class Zeros:
    """The typed program while removal is judged: where values vanish, and what must be frozen after all."""

    dims: dict[str, Dims]
    state: dict[str, Zero]
    routed: Axes  # axes that top-k chooses among: their neutral value is −∞ where scores are compared
    means: frozenset[str]  # values whose mean a norm mends by its weight and eps
    identities: set[str] = field(default_factory=set[str])
    """Values that are identity matrices."""
    found: list[tuple[Axis, str]] = field(default_factory=list[tuple[Axis, str]])
    _axes: dict[int, Axes] = field(default_factory=dict[int, Axes])

    def axes(self, dim: Dim) -> Axes:
        known = self._axes.get(id(dim))
        if known is None:
            known = self._axes[id(dim)] = frozenset(axes_of(dim))
        return known

    def of(self, value: Argument) -> Zero:
        assert isinstance(value, Ref)
        return self.state[value.name]

    def dims_of(self, value: Argument) -> Dims:
        assert isinstance(value, Ref)
        return self.dims[value.name]

    def need(self, dim: Dim, vanishing: Axes, reason: Callable[[], str]) -> None:
        """Freeze the axes of a dim along which what the operator adds up does not vanish."""
        missing = self.axes(dim) - vanishing
        if missing:
            text = reason()
            self.found.extend((axis, text) for axis in sorted(missing, key=lambda a: a.name))

    def moved(self, node: Node, *sources: Argument) -> list[Zero]:
        """For an operator that only copies elements: an axis vanishes where it did in every dim that has it."""
        lost: set[Axis] = set()
        kept: set[Axis] = set()
        for source in sources:
            for dim, vanishing in zip(self.dims_of(source), self.of(source), strict=True):
                kept |= vanishing
                lost |= self.axes(dim) - vanishing
        kept -= lost
        return [tuple(self.axes(d) & kept for d in self.dims[value.name]) for value in node.outputs]

    def nowhere(self, node: Node) -> list[Zero]:
        return [(NONE,) * len(value.shape) for value in node.outputs]


@dataclass(frozen=True)
class Resizing:
    """A typed program while its sizes are rewritten: the dims of values, and the indices that stay of a dim."""

    dims: dict[str, Dims]
    kept: Callable[[Dim], Sequence[int]]
    widths: Mapping[str, int]

    def size(self, dim: Dim) -> int:
        return size_with(dim, self.widths)

    def shape(self, value: str) -> tuple[int, ...]:
        return tuple(map(self.size, self.dims[value]))

    def before(self, dim: Dim, index: int) -> int:
        """How many of the first ``index`` indices stay."""
        return sum(i < index for i in self.kept(dim))


@dataclass(frozen=True)
class Row:
    """One operator. ``points`` says what becomes of operands that are indices: they are handed on ("keep"), looked up
    by the rule itself ("use"), or counted with as numbers, which freezes what they point into ("")."""

    type: Callable[[Node, Typing], list[Dims]]
    zero: Callable[[Node, Zeros], list[Zero]]
    points: Literal["", "keep", "use"] = ""
    sizes: Callable[[Node, Resizing], Node] | None = None


def broadcast(operands: Sequence[Dims], solver: Solver, name: Callable[[], str]) -> Dims:
    """Join dims from the right, as torch broadcasts: a dim of size 1 meets anything and says nothing."""
    if len(operands) == 1:
        return operands[0]
    rank = max(map(len, operands))
    result: list[Dim] = []
    for place in range(-rank, 0):
        joined: Dim = ONE
        for dims in operands:
            if len(dims) >= -place and (d := dims[place]).size != 1:
                if joined.size == 1:
                    joined = d
                elif joined is not d:
                    solver.unify(joined, d, name)
        result.append(joined)
    return tuple(result)


def at(zero: Zero, place: int) -> Axes:
    """The state of a dim counted from the right, of a value that may have fewer dims."""
    return zero[place] if len(zero) >= -place else NONE


def union(operands: Sequence[Zero], rank: int) -> Zero:
    """A broadcast product vanishes where any factor does."""
    return tuple(NONE.union(*(at(zero, place) for zero in operands)) for place in range(-rank, 0))


def intersection(operands: Sequence[Zero], rank: int) -> Zero:
    """A broadcast sum vanishes where all terms do; a term without the dim is the same number along it."""
    return tuple(meet([at(zero, place) for zero in operands]) for place in range(-rank, 0))


def meet(states: Sequence[Axes]) -> Axes:
    """The axes that all of them have."""
    result = states[0]
    for state in states[1:]:
        result &= state
    return result


def resized(node: Node, place: int, value: Argument) -> Node:
    """The node with one argument replaced."""
    arguments = (*node.arguments[:place], value, *node.arguments[place + 1 :])
    return replace(node, arguments=arguments)


def full_shape(place: int) -> Callable[[Node, Resizing], Node]:
    """``sizes`` of an operator whose argument at ``place`` is the shape of its result."""
    return lambda node, r: resized(node, place, r.shape(node.outputs[0].name))
