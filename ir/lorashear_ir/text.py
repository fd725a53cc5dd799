"""The text form of a graph: what is printed can be read back, ``parse(show(graph)) == graph``.

graph LlamaForCausalLM
axis ffn.0 48 ffn
axis rot.0 4 channel frozen "why it may not shrink"
norm hidden "model.norm.weight" 0.0 1e-06
tied "model.embed_tokens.weight" "lm_head.weight"
parameter %p0 f32[48, 32] (ffn.0, hidden) "model.layers.0.mlp.gate_proj.weight"
%linear f32[2, 5, 48] (b, s, ffn.0) = linear(%mul, %p0, none) @ "model.layers.0.mlp.gate_proj"
return %linear_9
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from lorashear_ir.axes import Axis, Dim, add, product
from lorashear_ir.graph import Argument, AxisInfo, Graph, Node, Norm, Ref, Role, Source, Value

TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|->|%[\w.]+|[-+]?(?:inf|nan|\d[\w.+-]*)|[\w.]+|[\[\](){},×+=@])')
ROLES = ("parameter", "buffer", "constant", "input")


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def show(graph: Graph) -> str:
    """The graph as text, one line for each axis, source and node."""
    lines = [f"graph {graph.name}"]
    for axis in graph.axes:
        frozen = f" frozen {quote(axis.reason)}" if axis.reason else ""
        least = f" least {axis.least}" if axis.least > 1 else ""
        lines.append(f"axis {axis.name} {axis.size} {axis.kind}{least}{frozen}")
    for norm in graph.norms:
        lines.append(f"norm {norm.dim} {quote(norm.weight)} {norm.offset!r} {norm.eps!r}")
    for name, first in graph.tied:
        lines.append(f"tied {quote(name)} {quote(first)}")
    for source in graph.sources:
        lines.append(f"{source.role} {_value(source.value)} {quote(source.path)}")
    for node in graph.nodes:
        outputs = " ".join(map(_value, node.outputs))
        arguments = ", ".join(map(_argument, node.arguments))
        lines.append(f"{outputs} = {node.op}({arguments}) @ {quote(node.module)}")
    lines.append("return " + ", ".join(f"%{name}" for name in graph.outputs))
    return "\n".join(lines) + "\n"


def _value(value: Value) -> str:
    dims = "" if value.dims is None else f" ({', '.join(map(str, value.dims))})"
    points = "" if value.points is None else f" -> {value.points}"
    return f"%{value.name} {value.dtype}[{', '.join(map(str, value.shape))}]{dims}{points}"


def _argument(argument: Argument) -> str:
    if isinstance(argument, Ref):
        return f"%{argument.name}"
    if isinstance(argument, tuple):
        return "[" + ", ".join(map(_argument, argument)) + "]"
    if isinstance(argument, str):
        return quote(argument)
    return str(argument).lower() if argument is None or isinstance(argument, bool) else repr(argument)


class TextError(ValueError):
    """The text is no graph: the line and what was expected there."""


class _Reader:
    """One line's tokens, and the axes known so far."""

    def __init__(self, line: str, number: int, axes: Mapping[str, Axis]) -> None:
        self.number, self.axes, self.line = number, axes, line
        self.tokens: list[str] = []
        position = 0
        while line[position:].strip():
            match = TOKEN.match(line, position)
            if not match:
                raise TextError(f"line {number}: cannot read {line[position:].strip()!r}")
            self.tokens.append(match.group(1))
            position = match.end()
        self.position = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        token = self.peek()
        if not token or (wanted is not None and token != wanted):
            raise TextError(f"line {self.number}: found {token!r}, wanted {wanted or 'more'}: {self.line.strip()}")
        self.position += 1
        return token

    def text(self) -> str:
        return cast(str, ast.literal_eval(self.take()))

    def list_of(self, item: Callable[[], object], close: str) -> Iterator[object]:
        while self.peek() != close:
            yield item()
            if self.peek() != close:
                self.take(",")
        self.take(close)

    def dim(self) -> Dim:
        terms = [self.term()]
        while self.peek() == "+":
            self.take()
            terms.append(self.term())
        return add(terms)

    def term(self) -> Dim:
        factors = [self.factor()]
        while self.peek() == "×":
            self.take()
            factors.append(self.factor())
        return product(factors)

    def factor(self) -> Dim:
        token = self.take()
        if token == "(":
            inner = self.dim()
            self.take(")")
            return inner
        if token == "1":
            return product([])
        if token not in self.axes:
            raise TextError(f"line {self.number}: no axis is called {token}")
        return self.axes[token]

    def argument(self) -> Argument:
        token = self.take()
        if token.startswith("%"):
            return Ref(token[1:])
        if token == "[":
            return cast(Argument, tuple(self.list_of(self.argument, "]")))
        if token.startswith('"'):
            return cast(str, ast.literal_eval(token))
        if token in ("none", "true", "false"):
            return {"none": None, "true": True, "false": False}[token]
        return float(token) if re.search(r"[.einf]|nan", token) else int(token)

    def value(self) -> Value:
        name, dtype = self.take()[1:], self.take()
        self.take("[")
        shape = cast(tuple[int, ...], tuple(self.list_of(self.argument, "]")))
        dims: tuple[Dim, ...] | None = None
        if self.peek() == "(":
            self.take()
            dims = cast(tuple[Dim, ...], tuple(self.list_of(self.dim, ")")))
        points: Dim | None = None
        if self.peek() == "->":
            self.take()
            points = self.dim()
        return Value(name, dtype, shape, dims, points)


def parse(text: str) -> Graph:
    """The graph that `show` printed.

    Raises:
        TextError: with the number of the line that cannot be read.
    """
    name, outputs = "", tuple[str, ...]()
    axes: dict[str, Axis] = {}
    infos: list[AxisInfo] = []
    norms: list[Norm] = []
    tied: list[tuple[str, str]] = []
    sources: list[Source] = []
    nodes: list[Node] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        reader = _Reader(line, number, axes)
        word = reader.peek()
        if word == "graph":
            reader.take()
            name = reader.take()
        elif word == "axis":
            reader.take()
            axis = Axis(reader.take(), int(reader.take()))
            kind = reader.take()
            least = int((reader.take("least"), reader.take())[1]) if reader.peek() == "least" else 1
            reason = (reader.take("frozen"), reader.text())[1] if reader.peek() else ""
            axes[axis.name] = axis
            infos.append(AxisInfo(axis.name, axis.size, kind, reason, least))
        elif word == "norm":
            reader.take()
            norms.append(Norm(reader.dim(), reader.text(), float(reader.take()), float(reader.take())))
        elif word == "tied":
            reader.take()
            tied.append((reader.text(), reader.text()))
        elif word in ROLES:
            sources.append(Source(role=cast(Role, reader.take()), value=reader.value(), path=reader.text()))
        elif word == "return":
            outputs = tuple(re.findall(r"%([\w.]+)", line))
        else:
            nodes.append(_node(reader))
    return Graph(name, tuple(sources), tuple(nodes), outputs, tuple(infos), tuple(norms), tuple(tied))


def _node(reader: _Reader) -> Node:
    values = [reader.value()]
    while reader.peek() != "=":
        values.append(reader.value())
    reader.take("=")
    op = reader.take()
    reader.take("(")
    arguments = cast(tuple[Argument, ...], tuple(reader.list_of(reader.argument, ")")))
    reader.take("@")
    return Node(op, arguments, tuple(values), reader.text())
