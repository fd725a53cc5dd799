"""Top-k and its relatives: what is chosen among, and how many must be left to choose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lorashear_ir.axes import Axis, Dim, Product, size_with
from lorashear_ir.graph import Node
from lorashear_ir.ops.base import Dims
from lorashear_ir.ops.index import chosen_axes, chosen_count


@dataclass(frozen=True)
class Choice:
    """``count`` are chosen along ``dim``. ``among`` are axes of it of which only some indices are looked at: a router that
    first chooses groups of experts chooses the experts in those groups only.
    """

    dim: Dim
    count: int
    among: Mapping[Axis, int]

    def available(self, widths: Mapping[str, int]) -> int:
        """How many there are to choose among, with axes of the given names at these widths."""
        factors = self.dim.factors if isinstance(self.dim, Product) else (self.dim,)
        if self.dim in self.among:
            return size_with(self.dim, widths)
        return math.prod(
            self.among[f] if isinstance(f, Axis) and f in self.among else size_with(f, widths) for f in factors
        )


def choices(nodes: Iterable[Node], dims: Mapping[str, Dims]) -> list[Choice]:
    """Every choice that a program makes, in order."""
    found: list[tuple[Dim, int]] = []
    for node in nodes:
        try:
            dim = chosen_axes(node, dims)
        except NotImplementedError:
            continue
        if dim is not None:
            found.append((dim, chosen_count(node) if node.op == "topk" else 1))
    among = {dim: count for dim, count in found if isinstance(dim, Axis)}
    return [Choice(dim, count, among) for dim, count in found]


def least(made: Iterable[Choice]) -> dict[Axis, int]:
    """How many indices of an axis must stay, all others as they are, so that each choice still has enough."""
    result: dict[Axis, int] = {}
    for choice in made:
        factors = choice.dim.factors if isinstance(choice.dim, Product) else (choice.dim,)
        for axis in factors:
            if isinstance(axis, Axis):
                each = (
                    choice.available({axis.name: 1}) if axis not in choice.among or axis == choice.dim else choice.count
                )
                result[axis] = max(result.get(axis, 1), -(-choice.count // each))
    return result
