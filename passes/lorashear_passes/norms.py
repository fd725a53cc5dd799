"""RMSNorm, recognised by its structure: x · rsqrt(mean(x²) + eps) · w, in whatever casts it is dressed."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from lorashear_ir.graph import Argument, Graph, Node, Norm, Ref
from lorashear_ir.ops import Dims
from lorashear_ir.ops.base import argument

Match = tuple[str, float, float, str]  # weight, offset, eps, result of the operator that adds eps
CASTS = {"to", "_to_copy", "type_as", "float", "view", "reshape"}  # leave the elements as they are

DEFAULT_EPS = {"f32": 2.0**-23, "f64": 2.0**-52}
"""What torch's rms_norm takes where no eps is given, by what it computes in: float32 for narrower ones."""


@dataclass(frozen=True)
class FoundNorm:
    """A norm, the name of the value that holds its mean, and of the result of the operator that has eps."""

    norm: Norm
    mean: str
    eps_node: str
    operand: str  # what is normalised


def find_norms(graph: Graph, dims: dict[str, Dims]) -> list[FoundNorm]:
    """Every RMSNorm over a last dim that has a weight of its own along that dim."""
    finder = _Finder(graph)
    found: list[FoundNorm] = []
    for node in graph.nodes:
        if node.op == "mean":
            match = finder.from_mean(node)
        elif node.op == "rms_norm":
            match = finder.from_operator(node)
        else:
            continue
        if match is not None:
            weight, offset, eps, eps_node = match
            squared = node.arguments[0]
            assert isinstance(squared, Ref)
            operand = finder.squared(node) or squared.name
            norm = Norm(dims[squared.name][-1], weight, offset, eps)
            if dims[finder.values[weight]][-1:] == (norm.dim,):
                found.append(FoundNorm(norm, node.outputs[0].name, eps_node, operand))
    norms = Counter(each.norm.weight for each in found)
    alike = {weight: len({each.norm for each in found if each.norm.weight == weight}) == 1 for weight in norms}
    return [
        each
        for each in found
        if alike[each.norm.weight] and finder.only_scales(each.norm.weight, norms[each.norm.weight])
    ]


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.made_by = {value.name: node for node in graph.nodes for value in node.outputs}
        self.parameters = {s.value.name: s.path for s in graph.sources if s.role == "parameter"}
        self.values = {path: name for name, path in self.parameters.items()}
        self.users: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for name in dict.fromkeys(node.references()):
                self.users[name].append(node)

    def only_scales(self, weight: str, norms: int) -> bool:
        """Whether nothing but so many norms reads a weight, so that it may be scaled."""
        readers = 0
        names = [self.values[weight]]
        while names:
            name = names.pop()
            for user in self.users[name]:
                passed = user.op in CASTS or (user.op == "add" and len(list(user.references())) == 1)
                readers += not passed
                names.extend(value.name for value in user.outputs if passed)
        return readers == norms

    def from_operator(self, node: Node) -> Match | None:
        weight, eps = argument(node, 2), argument(node, 3)
        over = argument(node, 1)
        if eps is None:
            eps = DEFAULT_EPS.get(node.outputs[0].dtype, DEFAULT_EPS["f32"])
        single = isinstance(over, tuple) and len(over) == 1
        if single and isinstance(weight, Ref) and weight.name in self.parameters and isinstance(eps, float):
            return self.parameters[weight.name], 0.0, eps, node.outputs[0].name
        return None

    def from_mean(self, mean: Node) -> Match | None:
        """Walk mean → + eps → rsqrt → · x → · w; None where a step is missing or a value has other uses."""
        x = self.squared(mean)
        last = len(mean.outputs[0].shape) - 1
        if x is None or mean.arguments[1:3] not in (((-1,), True), ((last,), True)):
            return None
        plus = self._only_user(mean, {"add"})
        eps = plus and next((a for a in plus.arguments if isinstance(a, float)), None)
        root = plus and self._only_user(plus, {"rsqrt", "sqrt", "pow"})
        if eps is None or root is None or (root.op == "pow" and root.arguments[1] != -0.5):
            return None
        scaled = self._only_user(root, {"div" if root.op == "sqrt" else "mul"})
        if scaled is None or self._bare(self._other(scaled, root)) != x:
            return None
        if root.op == "sqrt" and self._bare_of(scaled.arguments[0]) != x:  # upside down
            return None
        weighted = self._only_user(scaled, {"mul"})
        weight = weighted and self._weight(self._other_of(weighted, scaled))
        return weight and plus and (*weight, eps, plus.outputs[0].name)

    def squared(self, mean: Node) -> str | None:
        """The name of x where the mean is over x²."""
        argument = mean.arguments[0]
        node = self.made_by.get(argument.name) if isinstance(argument, Ref) else None
        if node is None or not isinstance(node.arguments[0], Ref):
            return None
        twice = node.op == "mul" and len(set(node.arguments)) == 1
        if twice or node.op == "square" or (node.op == "pow" and node.arguments[1] == 2):
            return self._bare(node.arguments[0].name)
        return None

    def _bare(self, name: str | None) -> str | None:
        """The value before its casts."""
        while name in self.made_by and self.made_by[name].op in CASTS:
            first = self.made_by[name].arguments[0]
            name = first.name if isinstance(first, Ref) else None
        return name

    def _bare_of(self, argument: Argument) -> str | None:
        return self._bare(argument.name) if isinstance(argument, Ref) else None

    def _only_user(self, node: Node, ops: set[str]) -> Node | None:
        """The one user of a node, looking through casts, if it is one of the ops."""
        users = self.users[node.outputs[0].name]
        if len(users) != 1:
            return None
        if users[0].op in CASTS:
            return self._only_user(users[0], ops)
        return users[0] if users[0].op in ops else None

    def _other(self, node: Node, known: Node | None) -> str | None:
        """The operand of a product that is not ``known``."""
        assert known is not None
        names = [a.name for a in node.arguments if isinstance(a, Ref) and a.name != known.outputs[0].name]
        return names[0] if len(names) == 1 else None

    def _other_of(self, node: Node, known: Node) -> str | None:
        names = [a.name for a in node.arguments if isinstance(a, Ref)]
        others = [n for n in names if self._bare(n) != known.outputs[0].name]
        return others[0] if len(others) == 1 else None

    def _weight(self, name: str | None) -> tuple[str, float] | None:
        """A parameter, or a parameter plus a number: its path and the number."""
        bare = self._bare(name)
        if bare in self.parameters:
            return self.parameters[bare], 0.0
        node = self.made_by.get(bare or "")
        if node is not None and node.op == "add":
            inner = next((self._bare(a.name) for a in node.arguments if isinstance(a, Ref)), None)
            number = next((a for a in node.arguments if isinstance(a, int | float)), None)
            if inner in self.parameters and number is not None:
                return self.parameters[inner], float(number)
        return None
