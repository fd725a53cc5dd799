"""The text form of a graph: what is printed can be read back, ``parse(show(graph)) == graph``.

graph LlamaForCausalLM
axis ffn.0 48 ffn
axis rot.0 4 channel frozen "why it may not shrink"
norm hidden "model.norm.weight" 0.0 1e-06
tied "model.embed_tokens.weight" "lm_head.weight"
parameter %p0 f32[48, 32] (ffn.0, hidden) "model.layers.0.mlp.gate_proj.weight"
constant %c0 f32[] () "model.lifted_tensor_0" = "5.5"
def mlp.0(%a f32[2, 5, 32], %b f32[48, 32], %c f32[32, 48]) {
  %linear f32[2, 5, 48] = linear(%a, %b) @ "gate_proj"
  ...
  return %linear_1
}
%linear f32[2, 5, 48] (b, s, ffn.0) = linear(%mul, .weight, none) @ "model.layers.0.mlp.gate_proj"
%mlp f32[2, 5, 32] (b, s, hidden) = mlp.0(%add, .up_proj.weight, .down_proj.weight) @ "model.layers.0.mlp"
return %linear_9

``.weight`` is the parameter or buffer of that name below the operator's own module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from lorashear_ir.axes import Axis, Dim, add, product
from lorashear_ir.graph import Argument, AxisInfo, Function, Graph, Node, Norm, Ref, Role, Source, Value

TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|->|%[\w.]+|[-+]?(?:(?:inf|nan)(?![\w.])|\d[\w.+-]*)|[\w.]+|[\[\](){},×+=@])')
ROLES = ("parameter", "buffer", "constant", "input")
OWNED = ("parameter", "buffer")  # what is printed by its path below a module


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def show(graph: Graph) -> str:
    """The graph as text, one line for each axis, source and node."""
    lines = [f"graph {graph.name}"]
    for axis in graph.axes:
        frozen = f" frozen {quote(axis.reason)}" if axis.reason else ""
        least = f" least {axis.least}" if axis.least > 1 else ""
        blocks = f" blocks {axis.blocks}" if axis.blocks > 1 else ""
        lines.append(f"axis {axis.name} {axis.size} {axis.kind}{least}{blocks}{frozen}")
    for norm in graph.norms:
        lines.append(f"norm {norm.dim} {quote(norm.weight)} {norm.offset!r} {norm.eps!r}")
    for name, first in graph.tied:
        lines.append(f"tied {quote(name)} {quote(first)}")
    for source in graph.sources:
        holds = f" = {quote(source.holds)}" if source.holds else ""
        lines.append(f"{source.role} {_value(source.value)} {quote(source.path)}{holds}")
    for function in graph.functions:
        lines.append(f"def {function.name}({', '.join(map(_value, function.parameters))}) {{")
        lines += [f"  {_shown(node, {})}" for node in function.nodes]
        lines += ["  " + _returned(function.outputs), "}"]
    owned = {s.value.name: s.path for s in graph.sources if s.role in OWNED}
    lines += [_shown(node, owned) for node in graph.nodes]
    lines.append(_returned(graph.outputs))
    return "\n".join(lines) + "\n"


def _returned(outputs: tuple[str, ...]) -> str:
    return "return " + ", ".join(f"%{name}" for name in outputs)


def _shown(node: Node, owned: Mapping[str, str]) -> str:
    outputs = " ".join(map(_value, node.outputs))
    below = {name: short for name in node.references() if (short := _below(node.module, owned.get(name, "")))}
    arguments = ", ".join(_argument(argument, below) for argument in node.arguments)
    module = f" @ {quote(node.module)}" if node.module else ""
    return f"{outputs} = {node.op}({arguments}){module}"


def _below(module: str, path: str) -> str:
    """``.weight`` for ``model.norm.weight`` in the module ``model.norm``; empty where it is not below."""
    prefix = f"{module}." if module else ""
    short = "." + path.removeprefix(prefix)
    return short if path and path.startswith(prefix) and re.fullmatch(r"[\w.]+", short, re.ASCII) else ""


def _value(value: Value) -> str:
    dims = "" if value.dims is None else f" ({', '.join(map(str, value.dims))})"
    points = "" if value.points is None else f" -> {value.points}"
    return f"%{value.name} {value.dtype}[{', '.join(map(str, value.shape))}]{dims}{points}"


def _argument(argument: Argument, below: Mapping[str, str]) -> str:
    if isinstance(argument, Ref):
        return below.get(argument.name, f"%{argument.name}")
    if isinstance(argument, tuple):
        return "[" + ", ".join(_argument(part, below) for part in argument) + "]"
    if isinstance(argument, str):
        return quote(argument)
    return str(argument).lower() if argument is None or isinstance(argument, bool) else repr(argument)


class TextError(ValueError):
    """The text is no graph: the line and what was expected there."""


class _Reader:
    """One line's tokens, the axes known so far, and the names of values by their paths."""

    def __init__(self, line: str, number: int, axes: Mapping[str, Axis], owned: Mapping[str, str]) -> None:
        self.number, self.axes, self.line, self.owned = number, axes, line, owned
        self.tokens: list[str] = []
        position = 0
        while line[position:].strip():
            match = TOKEN.match(line, position)
            if not match:
                raise TextError(f"line {number}: cannot read {line[position:].strip()!r}")
            self.tokens.append(match.group(1))
            position = match.end()
        self.position = 0
        self.module = cast(str, ast.literal_eval(self.tokens[-1])) if self.tokens[-2:-1] == ["@"] else ""

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
        if token.startswith("."):
            return Ref(self.below(token))
        if token == "[":
            return cast(Argument, tuple(self.list_of(self.argument, "]")))
        if token.startswith('"'):
            return cast(str, ast.literal_eval(token))
        if token in ("none", "true", "false"):
            return {"none": None, "true": True, "false": False}[token]
        return float(token) if re.search(r"[.einf]|nan", token) else int(token)

    def below(self, token: str) -> str:
        path = token[1:] if not self.module else self.module + token
        if path not in self.owned:
            raise TextError(f"line {self.number}: there is no parameter or buffer {path}: {self.line.strip()}")
        return self.owned[path]

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

    def parameters(self) -> tuple[Value, ...]:
        self.take("(")
        values = cast(tuple[Value, ...], tuple(self.list_of(self.value, ")")))
        self.take("{")
        return values


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
    owned: dict[str, str] = {}
    functions: list[Function] = []
    head: tuple[str, tuple[Value, ...]] | None = None  # of the function whose body is being read
    top: list[Node] = []
    nodes = top
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        reader = _Reader(line, number, axes, owned)
        word = reader.peek()
        if word == "graph":
            reader.take()
            name = reader.take()
        elif word == "axis":
            reader.take()
            axis = Axis(reader.take(), int(reader.take()))
            kind = reader.take()
            least, blocks = (
                int((reader.take(word), reader.take())[1]) if reader.peek() == word else 1
                for word in ("least", "blocks")
            )
            reason = (reader.take("frozen"), reader.text())[1] if reader.peek() else ""
            axes[axis.name] = axis
            infos.append(AxisInfo(axis.name, axis.size, kind, reason, least, blocks))
        elif word == "norm":
            reader.take()
            norms.append(Norm(reader.dim(), reader.text(), float(reader.take()), float(reader.take())))
        elif word == "tied":
            reader.take()
            tied.append((reader.text(), reader.text()))
        elif word in ROLES:
            role, value, path = cast(Role, reader.take()), reader.value(), reader.text()
            source = Source(value, role, path, (reader.take("="), reader.text())[1] if reader.peek() else "")
            sources.append(source)
            if source.role in OWNED:
                owned[source.path] = source.value.name
        elif word == "def":
            reader.take()
            head, nodes = (reader.take(), reader.parameters()), []
        elif word == "return":
            returned = tuple(re.findall(r"%([\w.]+)", line))
            if head is None:
                outputs = returned
            else:
                functions.append(Function(*head, tuple(nodes), returned))
        elif word == "}":
            head, nodes = None, top
        else:
            nodes.append(_node(reader))
    return Graph(name, tuple(sources), tuple(top), outputs, tuple(infos), tuple(norms), tuple(tied), tuple(functions))


def _node(reader: _Reader) -> Node:
    values = [reader.value()]
    while reader.peek() != "=":
        values.append(reader.value())
    reader.take("=")
    op = reader.take()
    reader.take("(")
    arguments = cast(tuple[Argument, ...], tuple(reader.list_of(reader.argument, ")")))
    module = (reader.take("@"), reader.text())[1] if reader.peek() else ""
    return Node(op, arguments, tuple(values), module)
