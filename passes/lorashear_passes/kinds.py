"""What each axis is for, told from the operators that it meets, never from names.

expert   what top-k chooses among
hidden   columns of an embedding table, or what most sums of activations run over: the residual stream
query    leading dim of an attention along which keys and values are repeated
head     leading dim of an attention, with keys and values of its own
rank     made by one linear map and read by the next with nothing between: the rank of a LoRA adapter
latent   made by a linear map, normalised, and read by a linear map
state    summed over without weights: the state of a recurrence
ffn      read by a linear map, with pointwise operators before it
channel  any other axis of a parameter
data     an axis of no parameter: batch, positions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from lorashear_ir.axes import Axis, axes_of
from lorashear_ir.graph import Graph, Node, Ref
from lorashear_ir.ops import Dims
from lorashear_ir.ops.contract import CONVOLUTIONS, PRODUCTS
from lorashear_passes.neutral import routed
from lorashear_passes.norms import FoundNorm

ORDER = ("expert", "query", "head", "channel", "hidden", "rank", "latent", "ffn", "state")
COPIES = frozenset(
    "to _to_copy clone contiguous view reshape transpose t permute unsqueeze squeeze slice select split "
    "split_with_sizes chunk index type_as numpy_T".split()
)
REPEATS = frozenset("expand repeat repeat_interleave".split())
MOVES = COPIES | REPEATS
SOFTMAX = frozenset("softmax _softmax".split())


class Kinds:
    """The kind of every axis, and its name: the kind, numbered in the order of the parameters."""

    def __init__(self, graph: Graph, dims: dict[str, Dims], norms: Iterable[FoundNorm]) -> None:
        self._kinds: dict[Axis, str] = {}
        names = [s.value.name for s in graph.sources if s.role == "parameter"]
        owned = dict.fromkeys(axis for name in names for dim in dims[name] for axis in axes_of(dim))
        marks = _Marks(graph, dims, set(owned), norms).found
        for axis in owned:
            self._kinds[axis] = next((kind for kind in ORDER if axis in marks[kind]), "channel")
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


class _Marks:
    """Axes by kind; an axis may have several marks, of which the first in `ORDER` is its kind."""

    def __init__(self, graph: Graph, dims: dict[str, Dims], owned: set[Axis], norms: Iterable[FoundNorm]) -> None:
        self.graph, self.dims, self.owned = graph, dims, owned
        self.found: dict[str, set[Axis]] = {kind: set() for kind in ORDER}
        self.repeated: set[Axis] = set()
        self.sums: Counter[Axis] = Counter()
        self.weights = {s.value.name for s in graph.sources if s.role == "parameter"}
        self.origin: dict[str, str] = {}  # what a value is a copy of
        self.linear: set[str] = set()  # results of linear maps
        self.made_by = {value.name: node for node in graph.nodes for value in node.outputs}
        self.scores: dict[str, set[Axis]] = {}  # products of two activations, and what they sum over
        self.attended: set[str] = set()  # results of softmax
        # Where the router first chooses groups of experts, only the last factor numbers single experts.
        chosen = [axes for dim in routed(graph, dims) if (axes := list(axes_of(dim)))]
        self.found["expert"] = {axes[-1] for axes in chosen} - {axis for axes in chosen for axis in axes[:-1]}
        for node in graph.nodes:
            self._see(node)
        for each in norms:
            if self.origin.get(each.operand, each.operand) in self.linear:
                self.found["latent"] |= set(axes_of(each.norm.dim)) & self.found["ffn"]
        self.found["query"] = self.found["head"] & self.repeated
        if not self.found["hidden"]:
            most = max(self.sums.values(), default=0)
            self.found["hidden"] = {axis for axis, count in self.sums.items() if count == most and count > 1}

    def _see(self, node: Node) -> None:
        inputs = list(dict.fromkeys(node.references()))
        outputs = [value.name for value in node.outputs]
        if not inputs or not outputs:
            return
        if node.op in MOVES:
            for name in outputs:
                self.origin[name] = self.origin.get(inputs[0], inputs[0])
            if inputs[0] in self.weights:
                self.weights.update(outputs)
        if node.op == "embedding":
            self._mark("hidden", self.dims[inputs[0]][1:])
        elif node.op == "scaled_dot_product_attention":
            q, k, v = (self.dims[part.name] for part in node.arguments[:3] if isinstance(part, Ref))
            self._mark("head", q[-3:-2])
            for queries, keys in zip(q[-3:-2], k[-3:-2], strict=True):
                self.repeated |= set(axes_of(queries)) - set(axes_of(keys))
            assert isinstance(node.arguments[2], Ref)
            self._values(node.arguments[2].name)
            self._mark("channel", (q[-1], v[-1]))
        elif node.op in SOFTMAX:
            self._softmax(inputs[0], outputs[0])
        elif node.op in ("add", "add_") and len(inputs) == 2 and not self.weights & set(inputs):
            self.sums.update(axis for axis in axes_of(self.dims[outputs[0]][-1]) if axis in self.owned)
        elif node.op == "sum":
            after = {axis for d in self.dims[outputs[0]] for axis in axes_of(d)}
            self.found["state"] |= {axis for d in self.dims[inputs[0]] for axis in axes_of(d)} - after
        elif node.op in PRODUCTS or node.op in ("matmul", "einsum") or node.op in CONVOLUTIONS:
            self._product(node, inputs, outputs[0])

    def _softmax(self, scores: str, result: str) -> None:
        """An attention that is written out: scores of queries and keys, softmax, product with the values."""
        self._mark("head", self.dims[scores][:-1])
        self.attended.add(result)
        name: str | None = scores
        while name is not None and name not in self.scores:
            made = self.made_by.get(name)
            name = next(made.references(), None) if made is not None else None
        if name is not None:
            self.found["channel"] |= self.scores[name]

    def _values(self, name: str) -> None:
        """Axes along which the values of an attention are copies of each other."""
        while (node := self.made_by.get(name)) is not None and node.op in MOVES:
            source = next(node.references())
            if node.op in REPEATS:
                before = {axis for d in self.dims[source] for axis in axes_of(d)}
                self.repeated |= {axis for d in self.dims[name] for axis in axes_of(d)} - before
            name = source

    def _product(self, node: Node, inputs: list[str], output: str) -> None:
        summed = {a for name in inputs for d in self.dims[name] for a in axes_of(d)}
        summed -= {a for d in self.dims[output] for a in axes_of(d)}
        mapped = bool(self.weights & set(inputs))
        if not mapped:
            self.scores[output] = summed
            if self.attended & {self.origin.get(name, name) for name in inputs}:
                self._mark("channel", self.dims[output][-1:])
                for name in inputs:
                    self._values(name)
            self.found["state"] |= summed
            return
        self.linear.add(output)
        if node.op in CONVOLUTIONS:
            return
        given = next((name for name in inputs if name not in self.weights), inputs[0])
        direct = self.origin.get(given, given) in self.linear
        self.found["rank" if direct else "ffn"] |= summed

    def _mark(self, kind: str, dims: Dims) -> None:
        for dim in dims:
            self.found[kind].update(axes_of(dim))
