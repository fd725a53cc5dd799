"""The intermediate representation: one ordered list of frozen nodes, and nothing hung on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lorashear_ir.axes import Dim

Role = Literal["parameter", "buffer", "constant", "input"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A use of a value, by its name."""

    name: str


Scalar = int | float | bool | str | None
Argument = Scalar | Ref | tuple["Argument", ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: its name in the graph, its element type and shape, and the type of each dim once inferred.

    ``points`` is set for a tensor of indices: the dim that its numbers count along (the experts that top-k chose).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[Dim, ...] | None = None
    points: Dim | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor the program is given: a parameter (or stored buffer), a recomputed buffer, a constant, an input.

    ``holds`` has the numbers of a constant, or a hash of many; empty for all else, and where nothing is stored.
    """

    value: Value
    role: Role
    path: str  # name in named_parameters(), named_buffers() or the signature
    holds: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator: its arguments in the order of its schema, and the values it makes.

    Where ``op`` names a function of the graph, the node is a call: one argument for each of the function's parameters.
    """

    op: str
    arguments: tuple[Argument, ...]
    outputs: tuple[Value, ...]
    module: str  # path of the module that called it

    def references(self) -> Iterator[str]:
        """Names of the values it reads, in order."""
        return references(self.arguments)


@dataclass(frozen=True, slots=True)
class Function:
    """A composed operator: the nodes that it stands for, shared by all its calls.

    Bodies have no dims, since those differ from call to call, and module paths in them are relative to the call's.
    """

    name: str  # the kind and a number: "rms_norm.0"; no operator's name has a dot
    parameters: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What it computes: ``rms_norm``, ``attention``."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class AxisInfo:
    """A free axis of a typed graph. ``reason`` says why no index of it may be removed; empty where one may.

    ``least`` is how many must stay: top-k needs k experts to choose among. Each of ``blocks`` indices of what stands left
    of the axis may lose other indices of it: each KV head its own queries.
    """

    name: str
    size: int
    kind: str
    reason: str
    least: int = 1
    blocks: int = 1


@dataclass(frozen=True, slots=True)
class Norm:
    """A root-mean-square normalisation over one dim: removal divides the mean by fewer, so weight and eps are mended.

    The effective weight is ``offset + stored weight``; Gemma's offset is 1.
    """

    dim: Dim
    weight: str  # parameter path
    offset: float
    eps: float


@dataclass(frozen=True, slots=True)
class Graph:
    """A traced program. After inference every value has dims, and axes and norms are filled."""

    name: str
    sources: tuple[Source, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    axes: tuple[AxisInfo, ...] = ()
    norms: tuple[Norm, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()  # (another name, first name) of one parameter
    functions: tuple[Function, ...] = ()  # bodies of composed operators, each before the first that calls it

    def __str__(self) -> str:
        from lorashear_ir.text import show

        return show(self)

    def values(self) -> Iterator[Value]:
        """Every value, in the order of definition."""
        for source in self.sources:
            yield source.value
        for node in self.nodes:
            yield from node.outputs


def references(argument: Argument) -> Iterator[str]:
    """Names of the values inside an argument."""
    if isinstance(argument, Ref):
        yield argument.name
    elif isinstance(argument, tuple):
        for part in argument:
            yield from references(part)
