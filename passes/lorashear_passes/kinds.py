"""What each axis is for, told from the operators that it meets, never from names.

head     leading dim of an attention, with keys and values of its own
query    leading dim of an attention along which keys and values are repeated
hidden   columns of an embedding table: the residual stream
rank     made by one linear map and read by the next with nothing between: the rank of a LoRA adapter
ffn      made by linear maps and read by a linear map, with pointwise operators between
channel  any other axis of a parameter
data     an axis of no parameter: batch, positions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lorashear_ir.axes import Axis, Dim, axes_of
from lorashear_ir.graph import Graph, Ref
from lorashear_ir.ops import Dims


class Kinds:
    """The kind of every axis, and its name: the kind, numbered in the order of the parameters."""

    def __init__(self, graph: Graph, dims: dict[str, Dims]) -> None:
        self._kinds: dict[Axis, str] = {}
        names = [s.value.name for s in graph.sources if s.role == "parameter"]
        owned = dict.fromkeys(axis for name in names for dim in dims[name] for axis in axes_of(dim))
        marks = _marks(graph, dims)
        for axis in owned:
            self._kinds[axis] = next((kind for kind in marks if axis in marks[kind]), "channel")
        seen: set[int] = set()
        for value in dims.values():
            for dim in value:
                if id(dim) not in seen:
                    seen.add(id(dim))
                    for axis in axes_of(dim):
                        self._kinds.setdefault(axis, "data")
        many = Counter(self._kinds.values())
        count: Counter[str] = Counter()
        self._names: dict[Axis, str] = {}
        for axis, kind in self._kinds.items():
            self._names[axis] = kind if many[kind] == 1 else f"{kind}.{count[kind]}"
            count[kind] += 1

    def ordered(self) -> Iterator[tuple[Axis, str]]:
        yield from self._kinds.items()

    def name(self, axis: Axis) -> str:
        return self._names[axis]


def _marks(graph: Graph, dims: dict[str, Dims]) -> dict[str, set[Axis]]:
    """Axes by kind; where an axis has several marks the first kind in this order is its kind."""
    repeated: set[Axis] = set()
    marks: dict[str, set[Axis]] = {k: set() for k in ("hidden", "query", "head", "channel", "rank", "ffn")}
    produced = {n.outputs[0].name for n in graph.nodes if n.op == "linear"}

    def mark(kind: str, dim: Dim) -> None:
        marks[kind].update(axes_of(dim))

    for node in graph.nodes:
        inputs = [a.name for a in node.arguments if isinstance(a, Ref)]
        if node.op == "embedding":
            mark("hidden", dims[inputs[0]][1])
        elif node.op == "expand":
            for before, after in zip(reversed(dims[inputs[0]]), reversed(dims[node.outputs[0].name]), strict=False):
                if before.size == 1:
                    repeated.update(axes_of(after))
        elif node.op == "scaled_dot_product_attention":
            q, k, v = (dims[name] for name in inputs[:3])
            mark("head", q[-3])
            if k[-3].size != q[-3].size:
                repeated |= set(axes_of(q[-3])) - set(axes_of(k[-3]))
            mark("channel", q[-1])
            mark("channel", v[-1])
        elif node.op == "linear":
            mark("rank" if inputs[0] in produced else "ffn", dims[inputs[0]][-1])
    marks["query"] = marks["head"] & repeated
    return marks
