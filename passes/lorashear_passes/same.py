"""Whether two graphs are the same program: the check that a rebuilt class computes what was planned.

Compared are operators, numbers (also those that constants hold), shapes and dataflow, in order. Not compared: names, modules, devices, element types and
casts (a twin may be built in another dtype), and operators that only add or take away dims of size 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from lorashear_ir.graph import Argument, Graph, Node, Ref, Source
from lorashear_ir.ops import TABLE, where
from lorashear_ir.ops.base import argument, position

CASTS = frozenset("to _to_copy float type_as clone contiguous detach alias".split())
RESHAPES = frozenset("view reshape _unsafe_view unsqueeze squeeze expand flatten expand_as".split())
DTYPES = frozenset("f32 f16 bf16 f64 i64 i32 i16 i8 u8 bool c64".split())
HUGE = 1e30  # the smallest number of a dtype, as a mask: another dtype has another


@dataclass(frozen=True)
class Line:
    """A node without its names."""

    op: str
    arguments: tuple[object, ...]
    shapes: tuple[tuple[int, ...], ...]
    place: str  # for the message


def difference(found: Graph, wanted: Graph) -> str:
    """The first difference in words; empty where the two are the same program."""
    return agreement(found, wanted)[1]


def agreement(found: Graph, wanted: Graph) -> tuple[int, str]:
    """How many operators agree from the start, and the first difference in words."""
    for number, (mine, theirs) in enumerate(itertools.zip_longest(_lines(found), _lines(wanted))):
        if mine is None or theirs is None:
            return number, f"one program ends where the other has {(mine or theirs).place}"  # type: ignore[union-attr]
        if (mine.op, mine.arguments, mine.shapes) != (theirs.op, theirs.arguments, theirs.shapes):
            return number, f"{theirs.place} has {_say(mine)} instead of {_say(theirs)}"
    return len(wanted.nodes), ""


def _say(line: Line) -> str:
    return f"{line.op}{line.arguments} → {list(line.shapes)}"


def _lines(graph: Graph) -> list[Line]:
    numbers: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {value.name: value.shape for value in graph.values()}
    lines: list[Line] = []
    count = itertools.count()

    def given(source: Source) -> None:
        numbers[source.value.name] = next(count)
        arguments = (source.holds,) if source.role == "constant" else (source.path,)
        lines.append(Line(source.role, arguments, (source.value.shape,), source.path))

    # What is no parameter comes where it is first read: a program that stops on its way has not read the rest.
    later = {source.value.name: source for source in graph.sources if source.role != "parameter"}
    for source in graph.sources:
        if source.role == "parameter":
            given(source)
    for node in graph.nodes:
        for name in node.references():
            if name in later:
                given(later.pop(name))
        first = next(node.references(), None)
        if first is not None and _same_elements(node, shapes[first]):
            numbers[node.outputs[0].name] = numbers[first]
            continue
        arguments = tuple(_argument(a, numbers) for a in spelled_out(node, shapes))
        for value in node.outputs:
            numbers[value.name] = next(count)
        lines.append(Line(_op(node.op), arguments, tuple(v.shape for v in node.outputs), where(node)))
    for name in graph.outputs:
        if name in later:
            given(later.pop(name))
    lines.append(Line("return", tuple(numbers[name] for name in graph.outputs), (), "the result"))
    return lines


def _op(name: str) -> str:
    return (
        "view"
        if name in ("reshape", "_unsafe_view", "flatten")
        else "split_with_sizes"
        if name in ("split", "chunk")
        else name
    )


def _same_elements(node: Node, source: tuple[int, ...]) -> bool:
    """A cast, or a reshape that moves only dims of size 1."""
    if node.op in CASTS:
        return True
    return node.op in RESHAPES and [s for s in source if s != 1] == [s for s in node.outputs[0].shape if s != 1]


def spelled_out(node: Node, shapes: dict[str, tuple[int, ...]]) -> tuple[Argument, ...]:
    """The arguments with sizes spelled out: −1 and open ends replaced by what they stand for."""
    row = TABLE.get(node.op)
    if row is None or row.sizes is None or not node.outputs:
        return node.arguments
    source = argument(node, 0)
    if not isinstance(source, Ref):
        return node.arguments
    shape = shapes[source.name]
    if node.op in ("view", "reshape", "_unsafe_view", "expand", "broadcast_to"):
        return (source, node.outputs[0].shape)
    if node.op in ("split", "split_with_sizes", "chunk"):
        along = position(argument(node, 2, 0), len(shape))
        return (source, tuple(value.shape[along] for value in node.outputs), along)
    if node.op == "slice":
        return _slice(node, shapes)
    if node.op == "select":
        along, index = position(argument(node, 1, 0), len(shape)), argument(node, 2, 0)
        return (source, along, index % shape[along] if isinstance(index, int) else index)
    return node.arguments


def numbers(before: Graph, after: Graph) -> Iterator[tuple[str, int, int]]:
    """Every whole number of a program beside what it is in another of the same operators: the module, and both.

    Those in the shapes of parameters are among them: some stand in no operator, only in another way through a module.
    """
    olds, news = ({value.name: value.shape for value in graph.values()} for graph in (before, after))
    for mine, theirs in zip(before.nodes, after.nodes, strict=True):
        pairs = zip(_flat(spelled_out(mine, olds)), _flat(spelled_out(theirs, news)), strict=True)
        yield from ((mine.module, old, new) for old, new in pairs)
    for mine, theirs in zip(before.sources, after.sources, strict=True):
        if mine.role == "parameter":
            module = mine.path.rpartition(".")[0]
            yield from ((module, *pair) for pair in zip(mine.value.shape, theirs.value.shape, strict=True))


def _flat(argument: Argument) -> list[int]:
    if isinstance(argument, tuple):
        return [number for part in argument for number in _flat(part)]
    return [argument] if isinstance(argument, int) and not isinstance(argument, bool) else []


def _slice(node: Node, shapes: dict[str, tuple[int, ...]]) -> tuple[Argument, ...]:
    source, along, start, _, step = (*node.arguments, *(None, 0, None, None, 1)[len(node.arguments) :])
    assert isinstance(source, Ref) and isinstance(along, int)
    shape = shapes[source.name]
    along %= len(shape)
    begin = start if isinstance(start, int) else 0
    begin = max(0, begin + shape[along]) if begin < 0 else min(begin, shape[along])
    return (source, along, begin, node.outputs[0].shape[along], step)


def _argument(value: Argument, numbers: dict[str, int]) -> object:
    if isinstance(value, Ref):
        return f"%{numbers[value.name]}"
    if isinstance(value, tuple):
        return tuple(_argument(v, numbers) for v in value)
    if isinstance(value, float) and abs(value) > HUGE:
        return HUGE if value > 0 else -HUGE
    return None if isinstance(value, str) and value in DTYPES else value
