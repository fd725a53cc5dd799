"""Node groups: what can only be removed together, and what its removal takes from every tensor."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from lorashear_ir.axes import Axis, Dim, Product, axes_of, size_with
from lorashear_ir.choices import Choice, choices
from lorashear_ir.graph import Graph, Norm
from lorashear_ir.operators import Operator, operators

if TYPE_CHECKING:
    import networkx


class SelectionError(ValueError):
    """A choice of structures that no model can be made of; says which group and index, and why."""


@dataclass(frozen=True)
class Group:
    """One axis of the model and every parameter dim that has it. One of its indices is a structure.

    A "query" group has ``blocks`` (KV heads) times as many structures as its axis has indices: structure
    ``k * rep + j`` is query head j of KV head k, and every block must lose equally many. So has an "expert" group whose
    router first chooses groups of experts. ``least`` indices of the axis must stay.
    """

    name: str
    kind: str
    size: int
    prunable: bool
    reason: str
    blocks: int
    slots: tuple[tuple[str, int], ...]
    parameters: int
    axis: Axis = field(repr=False)
    dims: tuple[Dim, ...] = field(repr=False)  # the type of each slot
    least: int = 1

    def slices(self, structure: int) -> list[tuple[str, int, list[int]]]:
        """What structure ``structure`` owns: (parameter name, dim, indices).

        Raises:
            SelectionError: there is no such structure.
        """
        if not 0 <= structure < self.size:
            raise SelectionError(f"{self.name} has structures 0 to {self.size - 1}; {structure} is none of them")
        block, index = divmod(structure, self.axis.size)
        row = block if self.blocks > 1 else None
        return [
            (name, dim, _owned(type_, self.axis, index, row))
            for (name, dim), type_ in zip(self.slots, self.dims, strict=True)
        ]


def _owned(dim: Dim, axis: Axis, index: int, block: int | None) -> list[int]:
    """The indices of a dim at which ``axis`` stands at ``index``, in the given block only if one is given."""
    if isinstance(dim, Axis):
        return [index] if dim == axis else []
    found: set[int] = set()
    if isinstance(dim, Product):
        for position, factor in enumerate(dim.factors):
            inner = _owned(factor, axis, index, block)
            if not inner:
                continue
            rows = math.prod(f.size for f in dim.factors[:position])
            tail = math.prod(f.size for f in dim.factors[position + 1 :])
            for row in range(rows) if block is None else (block,):
                found.update((row * factor.size + i) * tail + j for i in inner for j in range(tail))
    else:
        begin = 0
        for term in dim.terms:
            found.update(begin + i for i in _owned(term, axis, index, block))
            begin += term.size
    return sorted(found)


@dataclass(frozen=True)
class TensorCut:
    """What a plan does to one tensor: the indices it keeps of some dims, and one factor.

    The result is ``(stored + offset) * scale - offset``; offset is 1 where the class adds 1 to a stored norm weight.
    """

    keep: Mapping[int, tuple[int, ...]]
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Selection:
    """Removed indices by axis name: (blocks, removed). With several blocks the prefix of the axis names the block."""

    removed: Mapping[str, tuple[int, frozenset[int]]]

    def kept(self, dim: Dim) -> list[int]:
        """The indices of a dim that stay, ascending."""
        if isinstance(dim, Axis):
            return self._kept_axis(dim, 0)
        if isinstance(dim, Product):
            rows = [0]
            for factor in dim.factors:
                if isinstance(factor, Axis) and factor.name in self.removed and self.removed[factor.name][0] > 1:
                    rows = [row * factor.size + i for row in rows for i in self._kept_axis(factor, row)]
                else:
                    inner = self.kept(factor)
                    rows = [row * factor.size + i for row in rows for i in inner]
            return rows
        result: list[int] = []
        begin = 0
        for term in dim.terms:
            result.extend(begin + i for i in self.kept(term))
            begin += term.size
        return result

    def _kept_axis(self, axis: Axis, row: int) -> list[int]:
        blocks, removed = self.removed.get(axis.name, (1, frozenset[int]()))
        first = row % blocks * axis.size
        return [i for i in range(axis.size) if first + i not in removed]


class Groups(Mapping[str, Group]):
    """All node groups of a model, by name, in the order of the model's parameters."""

    def __init__(
        self,
        groups: Collection[Group],
        tensors: Mapping[str, tuple[Dim, ...]],
        norms: Collection[Norm],
        tied: Mapping[str, str],
        typed: Graph | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        self._groups = {group.name: group for group in groups}
        self.tensors, self.norms, self.tied, self.typed = tensors, tuple(norms), tied, typed
        self._prices = prices
        self._choices: tuple[Choice, ...] | None = None

    def __getitem__(self, name: str) -> Group:
        if name not in self._groups:
            raise KeyError(self._unknown(name))
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def only(self, kinds: Collection[str]) -> Groups:
        """The prunable groups of some kinds; `count` still counts the whole model."""
        chosen = [group for group in self.values() if group.prunable and group.kind in kinds]
        return Groups(chosen, self.tensors, self.norms, self.tied, self.typed, self._prices)

    def priced(self, prices: Mapping[str, float]) -> Groups:
        """The same, but `count` is what the parameters cost, rounded, and so is each group's ``parameters``.

        ``prices`` has what one entry of each parameter costs, by name.
        """
        every = Groups(self._groups.values(), self.tensors, self.norms, self.tied, self.typed, prices)
        whole = every.count()
        for name, group in self.items():
            step = whole - every.count({name: group.axis.size - 1})
            every._groups[name] = replace(group, parameters=step // group.blocks)
        return every

    def operators(self) -> tuple[Operator, ...]:
        """Every operator that meets weights, with all groups that it stands in, in the order of the program."""
        return tuple(operators(self._program(), {group.axis: group.name for group in self.values()}))

    def graph(self) -> networkx.MultiDiGraph[str]:
        """The dependency graph, as networkx; every attribute is a number, a truth value or text.

        Nodes: weights under their parameter names (``role`` "weight"; ``path``, ``dtype``, ``shape``, ``type``),
        operators under the names of their first results as in the text of the graph, ``%linear_3`` (``role``
        "operator"; ``op``, ``module``, ``type``), and what else the program is given ("buffer", "constant", "input").
        Each has a ``label`` and ``groups``, all that it stands in, joined by ", ".

        Edges: one for each axis along which a value flows into an operator (``axis``, ``kind``, ``size``, ``group``,
        ``prunable``, ``reason``), of the axes that weights have; a value that has none flows along one edge whose
        ``axis`` is empty. The edges of a group and the nodes they touch are the part of the program that ties its
        weights together.
        """
        from lorashear_ir.network import network

        return network(self._program(), self)

    @cached_property
    def digest(self) -> str:
        """The same for groups of the same program, of which the same can be removed."""
        removable = [(group.name, group.prunable) for group in self.values()]
        return hashlib.sha256(f"{self._program()}{removable}".encode()).hexdigest()

    def _program(self) -> Graph:
        if self.typed is None:
            raise ValueError("these groups were made without their typed graph")
        return self.typed

    def count(self, widths: Mapping[str, int] | None = None) -> int:
        """The number of parameters, tied ones once, with group ``name`` left at ``widths[name]`` indices of its axis.

        For a query group that is the number of queries left for each KV head. Of groups that are `priced`: what they cost.
        """
        counts = self._counts(widths or {})
        if self._prices is None:
            return sum(counts.values())
        return round(sum(self._prices[name] * count for name, count in counts.items()))

    def parameters(self, widths: Mapping[str, int] | None = None) -> int:
        """As `count`, but the number of parameters, whatever they cost."""
        return sum(self._counts(widths or {}).values())

    def _counts(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Parameters of each tensor at these widths."""
        sizes = {self[name].axis.name: width for name, width in widths.items()}
        return {name: math.prod(size_with(d, sizes) for d in dims) for name, dims in self.tensors.items()}

    def check(self, removed: Mapping[str, Collection[int]]) -> None:
        """Refuse a selection that no model can be made of.

        Raises:
            SelectionError: unknown or frozen group, unknown or repeated index, unequal blocks, or nothing left.
        """
        by_axis = {group.axis.name: group for group in self.values()}
        for name, indices in removed.items():
            if name not in self:
                raise SelectionError(self._unknown(name))
            group = self[name]
            _check_numbers(name, indices)
            if indices and not group.prunable:
                it = "it " if group.reason.startswith("is ") else ""
                raise SelectionError(f"{name} cannot be pruned: {it}{group.reason}")
            if len(set(indices)) != len(indices):
                raise SelectionError(f"{name} names a structure twice: {sorted(indices)}")
            for index in indices:
                if not 0 <= index < group.size:
                    raise SelectionError(f"{name} has structures 0 to {group.size - 1}; {index} is none of them")
            if len(indices) == group.size:
                raise SelectionError(f"{name} would lose all its {group.size} structures; one must stay")
            if group.blocks == 1 and group.size - len(indices) < group.least:
                raise SelectionError(
                    f"{name} would be left with {group.size - len(indices)} of its {group.size} structures; the router chooses {group.least} at a time"
                )
            if group.blocks > 1 and indices:
                self._check_blocks(group, removed, by_axis)
        self._check_choices(removed)

    def _unknown(self, name: str) -> str:
        """No group has this name; which one may be meant."""
        close = difflib.get_close_matches(str(name), self._groups, n=1)
        hint = f"the nearest name is {close[0]}" if close else f"the first of {len(self)} is {next(iter(self), 'none')}"
        return f"no group is called {name}; {hint}, and `lorashear groups` lists them all"

    def _check_choices(self, removed: Mapping[str, Collection[int]]) -> None:
        """Axes that are chosen among together leave enough together."""
        if self._choices is None:
            dims = {value.name: value.dims or () for value in self.typed.values()} if self.typed else {}
            self._choices = tuple(choices(self.typed.nodes, dims)) if self.typed else ()
        if not self._choices:
            return
        widths = {self[name].axis.name: width for name, width in self.widths(removed).items()}
        for choice in self._choices:
            left = choice.available(widths)
            if left < choice.count:
                names = [n for n in removed if removed[n] and self[n].axis in axes_of(choice.dim)]
                raise SelectionError(
                    f"{' and '.join(names)} would leave {left} to choose {choice.count} from; remove fewer of them"
                )

    def _check_blocks(self, group: Group, removed: Mapping[str, Collection[int]], by_axis: Mapping[str, Group]) -> None:
        """Every surviving block loses equally many, and keeps at least one."""
        gone: set[int] = set()
        for owner in block_axes(group):
            gone |= set(removed.get(by_axis[owner.name].name, ()) if owner.name in by_axis else ())
        per_block = [0] * group.blocks
        for index in removed[group.name]:
            per_block[index // group.axis.size] += 1
        counts = {n for block, n in enumerate(per_block) if block not in gone}
        if len(counts) > 1:
            raise SelectionError(
                f"{group.name} loses {per_block} structures from its {group.blocks} blocks; every block that stays must lose equally many"
            )
        if counts == {group.axis.size}:
            raise SelectionError(f"{group.name} would lose all {group.axis.size} structures of a block; one must stay")
        if counts and group.axis.size - max(counts) < group.least:
            raise SelectionError(
                f"{group.name} would be left with {group.axis.size - max(counts)} of {group.axis.size} structures in a block; the router needs {group.least}"
            )

    def widths(self, removed: Mapping[str, Collection[int]]) -> dict[str, int]:
        """What is left of each group's axis (for a query group: queries for each KV head)."""
        by_axis = {group.axis.name: group for group in self.values()}
        result: dict[str, int] = {}
        for name, indices in removed.items():
            group = self[name]
            left = group.axis.size - len(indices)
            if group.blocks > 1:
                owners = block_axes(group)
                gone = {i for o in owners if o.name in by_axis for i in removed.get(by_axis[o.name].name, ())}
                stay = next(block for block in range(group.blocks) if block not in gone)
                left = group.axis.size - sum(index // group.axis.size == stay for index in indices)
            result[name] = left
        return result

    def selection(self, removed: Mapping[str, Collection[int]]) -> Selection:
        """The removed indices by axis.

        Raises:
            SelectionError: as `check`.
        """
        self.check(removed)
        return Selection(
            {self[n].axis.name: (self[n].blocks, frozenset(indices)) for n, indices in removed.items() if indices}
        )

    def cuts(self, removed: Mapping[str, Collection[int]]) -> dict[str, TensorCut]:
        """What the removal does to each tensor that it changes, under the tensor's first name.

        An RMSNorm over n channels of which n' stay gets ``w ← w·√(n/n')``; its eps is in `eps`.
        """
        selection = self.selection(removed)
        norms = {norm.weight: norm for norm in self.norms}
        cache: dict[Dim, tuple[int, ...]] = {}
        result: dict[str, TensorCut] = {}
        for name, dims in self.tensors.items():
            keep: dict[int, tuple[int, ...]] = {}
            for position, dim in enumerate(dims):
                if any(axis.name in selection.removed for axis in axes_of(dim)):
                    if dim not in cache:
                        cache[dim] = tuple(selection.kept(dim))
                    keep[position] = cache[dim]
            if keep and name in norms:
                norm = norms[name]
                left = len(cache[norm.dim] if norm.dim in cache else selection.kept(norm.dim))
                result[name] = TensorCut(keep, math.sqrt(norm.dim.size / left), norm.offset)
            elif keep:
                result[name] = TensorCut(keep)
        return result

    def eps(self, removed: Mapping[str, Collection[int]]) -> dict[str, float]:
        """The eps of every norm after the removal, by the name of its weight: ``eps ← eps·n/n'``."""
        sizes = {self[name].axis.name: width for name, width in self.widths(removed).items()}
        return {norm.weight: norm.eps * norm.dim.size / size_with(norm.dim, sizes) for norm in self.norms}


def _check_numbers(name: str, indices: Collection[int]) -> None:
    """Structures are whole numbers, in a collection."""
    if not isinstance(indices, Collection) or isinstance(indices, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SelectionError(f"{name} names structures by {indices!r}; give a list of their numbers")
    for index in indices:
        # Whatever counts as a number must also be found in a set of numbers, as a tensor would not be.
        number = None if isinstance(index, bool) else getattr(index, "__index__", lambda: None)()
        if number is None or hash(index) != hash(number):
            raise SelectionError(f"{name} names a structure {index!r}, which is no whole number")


def block_axes(group: Group) -> tuple[Axis, ...]:
    """The axes directly to the left of a group's axis in its slots: their indices name its blocks."""
    for dim in group.dims:
        if isinstance(dim, Product) and group.axis in dim.factors:
            return tuple(f for f in dim.factors[: dim.factors.index(group.axis)] if isinstance(f, Axis))
    return ()
