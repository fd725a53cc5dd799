"""Dims as types over axes: the algebra, and its unification.

    dim  :=  axis  |  dim × dim  |  dim + dim

``×`` comes from ``view`` (index order: left factor major), ``+`` from ``cat`` and ``slice``. A dim in normal form is a
product whose factors are axes, of which the last may be a sum; a sum to the left distributes, ``(a + b) × c`` is
``a × c + b × c``, which is exact for row-major indices. The size-1 dim is the empty product ``1``.

`Solver` solves equations between dims by union-find with refinement: an axis that meets a product becomes that product
everywhere, an axis that is sliced becomes a sum everywhere, and ``n × y`` against ``y + … + y`` makes ``n`` a segment
index ``1 + … + 1``, which holds no axis and so is frozen by construction. An equation without a solution freezes every
axis in it, with the reason kept. Sizes are known and positive, so no axis can come to contain itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """An index range that nothing in the program takes apart."""

    name: str
    size: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Product:
    """Factors in index order, the left one major. No factors: the dim of size 1."""

    factors: tuple[Dim, ...]
    size: int

    def __str__(self) -> str:
        return " × ".join(f"({f})" if isinstance(f, Sum) else str(f) for f in self.factors) or "1"


@dataclass(frozen=True, slots=True)
class Sum:
    """Terms laid end to end."""

    terms: tuple[Dim, ...]
    size: int

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


Dim = Axis | Product | Sum
ONE = Product((), 1)
_NAME = re.compile(r"@\d+")


def in_words(reason: str, said: Callable[[str], str]) -> str:
    """A reason with the names that a solver gave to axes replaced by what ``said`` gives for them."""
    return _NAME.sub(lambda found: said(found[0]), reason)


def product(dims: Iterable[Dim]) -> Dim:
    """The normal form of a product of dims that are in normal form themselves."""
    factors: list[Dim] = []
    for dim in dims:
        factors.extend(dim.factors if isinstance(dim, Product) else (dim,))
    for position, factor in enumerate(factors[:-1]):
        if isinstance(factor, Sum):
            rest = factors[position + 1 :]
            spread = add(product([term, *rest]) for term in factor.terms)
            return product([*factors[:position], spread])
    if len(factors) == 1:
        return factors[0]
    return Product(tuple(factors), math.prod(f.size for f in factors)) if factors else ONE


def add(dims: Iterable[Dim]) -> Dim:
    """The normal form of a sum of dims that are in normal form themselves."""
    terms: list[Dim] = []
    for dim in dims:
        terms.extend(dim.terms if isinstance(dim, Sum) else (dim,))
    return terms[0] if len(terms) == 1 else Sum(tuple(terms), sum(t.size for t in terms))


def axes_of(dim: Dim) -> Iterator[Axis]:
    """Every axis in a dim, left to right, repeats included."""
    if isinstance(dim, Axis):
        yield dim
    else:
        for part in dim.factors if isinstance(dim, Product) else dim.terms:
            yield from axes_of(part)


def size_with(dim: Dim, widths: Mapping[str, int]) -> int:
    """The size of a dim once the axes named in ``widths`` have those sizes."""
    if isinstance(dim, Axis):
        return widths.get(dim.name, dim.size)
    if isinstance(dim, Product):
        return math.prod(size_with(f, widths) for f in dim.factors)
    return sum(size_with(t, widths) for t in dim.terms)


@dataclass(slots=True)
class _Variable:
    """What the solver knows of one axis: itself, or what it turned out to be."""

    axis: Axis
    value: Dim | None = None
    frozen: str = ""


def _unlike(left: Dim, right: Dim) -> tuple[Dim, Dim]:
    """Two dims without the terms that both begin or end with."""
    ours, theirs = (list(dim.terms if isinstance(dim, Sum) else (dim,)) for dim in (left, right))
    for place in (0, -1):
        while len(ours) > 1 and len(theirs) > 1 and ours[place] == theirs[place]:
            del ours[place], theirs[place]
    return add(ours), add(theirs)


class Solver:
    """Unification over dims. Axes are made by `fresh`; `resolve` says what they have become."""

    def __init__(self) -> None:
        self._variables: dict[str, _Variable] = {}
        self.failures: list[str] = []

    def fresh(self, size: int, frozen: str = "") -> Dim:
        """A new axis; the dim ``1`` where the size is 1, since that has no structure to remove.

        Its name has the form that `in_words` finds in a reason.
        """
        if size == 1:
            return ONE
        axis = Axis(f"@{len(self._variables)}", size)
        self._variables[axis.name] = _Variable(axis, frozen=frozen)
        return axis

    def resolve(self, dim: Dim) -> Dim:
        """The dim in normal form, over axes that are still free."""
        if isinstance(dim, Axis):
            variable = self._variables[dim.name]
            if variable.value is None:
                return dim
            variable.value = self.resolve(variable.value)
            return variable.value
        if isinstance(dim, Product):
            parts = [self.resolve(f) for f in dim.factors]
            return dim if all(a is b for a, b in zip(parts, dim.factors, strict=True)) else product(parts)
        parts = [self.resolve(t) for t in dim.terms]
        return dim if all(a is b for a, b in zip(parts, dim.terms, strict=True)) else add(parts)

    def named(self, name: str) -> Dim:
        """What an axis has become, by its name."""
        return self.resolve(self._variables[name].axis)

    def frozen(self, axis: Axis) -> str:
        """Why a free axis may not shrink, or the empty string."""
        return self._variables[axis.name].frozen

    def freeze(self, dim: Dim, reason: str) -> None:
        """Forbid removal along every axis of a dim. The first reason stays."""
        for axis in axes_of(self.resolve(dim)):
            variable = self._variables[axis.name]
            variable.frozen = variable.frozen or reason

    def unify(self, left: Dim, right: Dim, where: Callable[[], str]) -> None:
        """State that two dims of equal size are the same. ``where`` names the operator if they cannot be."""
        if left is right:
            return
        left, right = self.resolve(left), self.resolve(right)
        if left is right or left == right:
            return
        if left.size != right.size or not self._solve(left, right):
            left, right = _unlike(self.resolve(left), self.resolve(right))
            reason = f"{where()} needs {left} = {right}, which has no solution"
            self.failures.append(reason)
            self.freeze(left, reason)
            self.freeze(right, reason)

    def split(self, dim: Dim, sizes: Sequence[int], where: Callable[[], str]) -> list[Dim]:
        """Cut a dim into consecutive pieces of the given sizes (their sum is the dim's size)."""
        if len(sizes) == 1:
            return [dim]
        whole = self.resolve(dim)
        if isinstance(whole, Axis) and (reason := self.frozen(whole)):
            return [self.fresh(size, reason) for size in sizes]  # nothing of it can go, so nothing needs to be known
        pieces = [self.fresh(size) for size in sizes]
        self.unify(dim, add(pieces), where)
        return pieces

    def _bind(self, axis: Axis, value: Dim) -> None:
        variable = self._variables[axis.name]
        variable.value = value
        if variable.frozen:
            self.freeze(value, variable.frozen)

    def _solve(self, left: Dim, right: Dim) -> bool:
        left, right = self.resolve(left), self.resolve(right)
        if left == right:
            return True
        if isinstance(left, Axis):
            self._bind(left, right)
            return True
        if isinstance(right, Axis):
            self._bind(right, left)
            return True
        if isinstance(left, Product) and isinstance(right, Product):
            return self._products(left, right)
        if isinstance(left, Sum) and isinstance(right, Sum):
            return self._sums(left, right)
        if isinstance(left, Sum) and isinstance(right, Product):
            return self._sum_product(left, right)
        assert isinstance(left, Product) and isinstance(right, Sum)
        return self._sum_product(right, left)

    def _products(self, left: Product, right: Product) -> bool:
        """Match factors from the left; the longer first factor is taken apart."""
        a, b = left.factors[0], right.factors[0]
        if a.size < b.size:
            left, right, a, b = right, left, b, a
        taken, width = 0, 1
        while width < a.size and taken < len(right.factors):
            width *= right.factors[taken].size
            taken += 1
        if width == a.size:
            head = product(right.factors[:taken])
        elif a.size % b.size == 0 and isinstance(a, Axis):
            taken, head = 1, product([b, self.fresh(a.size // b.size)])
        else:
            return False
        if not self._solve(a, head):
            return False
        remains = left.factors[1:] if width == a.size else (self._last_factor(head), *left.factors[1:])
        return self._solve(product(remains), product(right.factors[taken:]))

    @staticmethod
    def _last_factor(dim: Dim) -> Dim:
        assert isinstance(dim, Product)
        return dim.factors[-1]

    def _sums(self, left: Sum, right: Sum) -> bool:
        """Match terms from the left; the longer first term is cut."""
        a, b = left.terms[0], right.terms[0]
        if a.size < b.size:
            left, right, a, b = right, left, b, a
        rest = left.terms[1:]
        if a.size > b.size:
            cut = self._cut(a, b.size)
            if cut is None:
                return False
            a, rest = cut[0], (cut[1], *rest)
        if not self._solve(a, b):
            return False
        if not rest:
            return True
        return self._solve(add(map(self.resolve, rest)), add(map(self.resolve, right.terms[1:])))

    def _cut(self, dim: Dim, at: int) -> tuple[Dim, Dim] | None:
        """A dim that is no sum, as two terms, the first of size ``at``; None where it cannot be cut there."""
        if isinstance(dim, Axis):
            first, second = self.fresh(at), self.fresh(dim.size - at)
            self._bind(dim, add([first, second]))
            return first, second
        if not isinstance(dim, Product) or not dim.factors:
            return None
        major, minor = dim.factors[0], product(dim.factors[1:])
        if at % minor.size or not isinstance(major, Axis):
            return None
        halves = self._cut(major, at // minor.size)
        return halves and (product([halves[0], minor]), product([halves[1], minor]))

    def _sum_product(self, total: Sum, factors: Product) -> bool:
        """``n × y`` against ``t1 + t2 + …``: n becomes a sum, one term for each t, and each n_i × y meets its t_i."""
        major, minor = factors.factors[0], product(factors.factors[1:])
        if not isinstance(major, Axis) or any(term.size % minor.size for term in total.terms):
            return False
        parts = [self.fresh(term.size // minor.size) for term in total.terms]
        self._bind(major, add(parts))
        return all(
            self._solve(product([part, self.resolve(minor)]), self.resolve(term))
            for part, term in zip(parts, total.terms, strict=True)
        )
