"""Random programs try to break the analysis: removed must equal neutral, no structure may be too big, none frozen in vain.

`make test` runs a small profile; `make test-deep` runs tens of thousands of programs (LORASHEAR_PROGRAMS sets how many).
Every counterexample that was found stays in `counterexamples.py`, and is tried against all three properties.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorashear_ir.axes import Axis, Dim, Product, Solver, axes_of
from lorashear_ir.graph import Argument, Node
from lorashear_ir.groups import Group, Groups, Selection, SelectionError, TensorCut
from lorashear_ir.ops import TABLE, Dims, Typing
from lorashear_ir.ops.base import Zeros
from lorashear_passes import neutralise
from lorashear_passes import program as running
from lorashear_passes.groups import group
from lorashear_passes.neutralise import neutralised
from lorashear_passes.program import Program as Captured
from lorashear_passes.program import record, sliced
from lorashear_passes.resize import resize
from tests.counterexamples import COUNTEREXAMPLES
from tests.programs import BATCH, INPUT, Program, Sketch, sketch_of, sketches

PROGRAMS = int(os.environ.get("LORASHEAR_PROGRAMS", "60"))
MOST_PARTS = 7  # occurrences of an axis in weights, of which every subset is tried
MOST_SIZES = 64  # combinations of numbers in operators

profile = settings(
    max_examples=PROGRAMS, deadline=None, derandomize=PROGRAMS <= 60, suppress_health_check=list(HealthCheck)
)


def inputs(seed: int = 1) -> torch.Tensor:
    return torch.randn(BATCH, INPUT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def captured(sketch: Sketch) -> tuple[Captured, Groups]:
    program = record(Program(sketch), {"x": inputs()})
    return program, group(program.graph)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-7 * max(1e-3, float(b.abs().max())))


# ---- removed == neutral


def plan(groups: Groups, rng: random.Random) -> dict[str, list[int]]:
    removed: dict[str, list[int]] = {}
    for name, each in groups.items():
        most = each.axis.size - max(1, each.least)
        if each.prunable and most > 0 and rng.random() < 0.8:
            take = rng.randint(1, most)
            removed[name] = [
                b * each.axis.size + i for b in range(each.blocks) for i in rng.sample(range(each.axis.size), take)
            ]
    try:
        groups.check(removed)
    except SelectionError:  # together they leave top-k too few
        return {}
    return removed


def removed_equals_neutral(sketch: Sketch, seed: int) -> None:
    program, groups = captured(sketch)
    removed = plan(groups, random.Random(seed))
    x = inputs()
    with torch.inference_mode():
        small, zeroed = sliced(program, groups, removed)(x), neutralised(program, groups, removed)(x)
    assert close(small, zeroed), (removed, small, zeroed)


# ---- nothing is frozen in vain


def nothing_is_frozen_in_vain(sketch: Sketch) -> None:
    """A frozen group that could have gone after all, wherever the structure is taken, was frozen without need.

    Left out: the program's inputs and outputs; axes of two indices, since one index broadcasts; groups whose weights do
    not move the output at all; programs that use only the sign or the order of some numbers, and that a norm with one
    gain for all scales before only their order or direction counts; programs in which something computed from the input is
    the same whatever it is; and what `VALUES` says.
    """
    ops = {step.op for step in sketch.steps}
    if ops & {"masked", "onehot"} or (ops & {"gather", "length"} and _scales_all_alike(sketch)):
        return
    program, groups = captured(sketch)
    for each in groups.values():
        if each.prunable or each.axis.size < 3 or any(word in each.reason for word in VALUES):
            continue
        alone = forced(groups, each.name)
        needless = all(exact(program, alone, each, i) for i in range(each.axis.size))
        assert not (needless and matters(program, alone, each)) or hides_its_input(program), each


def _scales_all_alike(sketch: Sketch) -> bool:
    """Whether some RMSNorm has one gain for all that it normalises."""
    return any(s.op in ("rms", "rms1") and sketch.weights[s.weights[0]][-1] == 1 for s in sketch.steps)


def hides_its_input(program: Captured) -> bool:
    """Whether something computed from the input is, in half of its places, the same whatever the input.

    ``x - x``, a LayerNorm of one number, a clamp that most numbers exceed: what it is computed from may go, as no rule
    looks for that.
    """
    module = running.runnable(program)
    held: dict[str, list[torch.Tensor]] = {}

    class Kept(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and result.dtype.is_floating_point:
                held.setdefault(n.name, []).append(result)
            return result

    with torch.inference_mode():
        for x in map(inputs, range(1, 5)):
            Kept(module).run(x)
    of_input: set[torch.fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or of_input & set(node.all_input_nodes):
            of_input.add(node)
    return any(
        node.op == "call_function"
        and node.name in held
        and torch.stack([v == held[node.name][0] for v in held[node.name]]).all(0).double().mean() >= 0.5
        for node in of_input
    )


VALUES = (
    *("input", "output"),
    "amax",  # which index is the largest depends on the data
    "prod",  # a factor may be 1, as the cosine of 0 is
    "by their order",  # the order may not matter in the end
    "index computed from data",  # a constant index may happen to look up other places
    "scaled_dot_product_attention in the model sums over it",  # what adds the same to all scores changes none
    "infinite where the weights are zero",  # 1/0 times zero is no number; the runner, which divides by 1, hides that
)
"""Reasons that are right for some values and not for others: the analysis looks at the program alone."""


def forced(groups: Groups, name: str) -> Groups:
    """The groups, one of which may go although it is frozen."""
    every = [replace(g, prunable=True, reason="", least=1) if g.name == name else g for g in groups.values()]
    return Groups(every, groups.tensors, groups.norms, groups.tied, groups.typed)


def exact(program: Captured, groups: Groups, each: Group, index: int) -> bool:
    removed = {each.name: [b * each.axis.size + index for b in range(each.blocks)]}
    try:
        small, zeroed = sliced(program, groups, removed), neutralised(program, groups, removed)
        with torch.inference_mode():
            return all(close(small(x), zeroed(x)) for x in map(inputs, range(1, 5)))
    except (RuntimeError, IndexError, AssertionError, ZeroDivisionError):  # no such program
        return False


def matters(program: Captured, groups: Groups, each: Group) -> bool:
    """Whether some index moves the output."""
    x, dense = inputs(), running.runnable(program)
    with torch.inference_mode():
        every = (neutralised(program, groups, {each.name: [i]})(x) for i in range(each.axis.size))
        return not all(close(zeroed, dense(x)) for zeroed in every)


# ---- no smaller structure exists


def no_smaller_structure_exists(sketch: Sketch) -> None:
    """No part of what a structure takes can be cut alone: tried with every mixture of old and new sizes.

    A part is a set of places in the types of weights where the axis stands.
    """
    program, groups = captured(sketch)
    for each in groups.values():
        if not each.prunable or each.axis.size < 3 or each.kind == "expert" or each.blocks > 1:
            continue
        parts = [
            (name, dim, i)
            for (name, dim), type_ in zip(each.slots, each.dims, strict=True)
            for i in range(list(axes_of(type_)).count(each.axis))
        ]
        if not 1 < len(parts) <= MOST_PARTS:
            continue
        search = Search(program, resize(program.graph, groups, {each.name: [1]}).nodes)
        for count in range(1, len(parts)):
            for part in itertools.combinations(parts, count):
                assert not search.runs_with(cut_only(groups, each, frozenset(part), index=1)), (each, part)


Part = tuple[str, int, int]


def cut_only(groups: Groups, each: Group, parts: frozenset[Part], index: int) -> dict[str, TensorCut]:
    """What of every tensor goes with one index of an axis, at these of the places where the axis stands."""
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dim in each.slots:
        chosen = [i for n, d, i in parts if (n, d) == (name, dim)]
        if chosen:
            numbered, _ = _numbered(groups.tensors[name][dim], each.axis, 0)
            selection = Selection({f"{each.axis.name}#{i}": (1, frozenset([index])) for i in chosen})
            keep.setdefault(name, {})[dim] = tuple(selection.kept(numbered))
    return {name: TensorCut(cut) for name, cut in keep.items()}


def _numbered(dim: Dim, axis: Axis, count: int) -> tuple[Dim, int]:
    """The dim with each occurrence of an axis under a name of its own."""
    if isinstance(dim, Axis):
        return (Axis(f"{axis.name}#{count}", axis.size), count + 1) if dim == axis else (dim, count)
    made: list[Dim] = []
    for part in dim.factors if isinstance(dim, Product) else dim.terms:
        part, count = _numbered(part, axis, count)
        made.append(part)
    return (replace(dim, factors=tuple(made)) if isinstance(dim, Product) else replace(dim, terms=tuple(made))), count


class Search:
    """Tries whether a program runs with only some cuts, under every mixture of sizes, and computes what zeroing gives."""

    def __init__(self, program: Captured, after: tuple[Node, ...]) -> None:
        self.module, self.dense = running.runnable(program), running.runnable(program)
        self.tensors = {name: tensor.detach() for name, tensor in running.tensors(self.dense)}
        nodes = {node.name: node for node in self.module.graph.nodes}
        self.changed: list[tuple[torch.fx.Node, Any, Node, list[Node]]] = []
        for before, small in zip(program.graph.nodes, after, strict=True):
            if (before.op, before.arguments) != (small.op, small.arguments):
                place = nodes[before.outputs[0].name.partition(".")[0]]
                stored = place.target, place.args, place.kwargs
                self.changed.append((place, stored, before, _mixtures(before, small)))

    def runs_with(self, cuts: dict[str, TensorCut]) -> bool:
        if math.prod(len(choices) for *_, choices in self.changed) > MOST_SIZES:
            return False
        self._put(self.module, cuts, running.cut_tensor)
        want: torch.Tensor | None = None
        x = inputs()
        with torch.inference_mode():
            for chosen in itertools.product(*(choices for *_, choices in self.changed)):
                self._rewrite(chosen)
                with suppress(RuntimeError, IndexError, ZeroDivisionError):  # no such program
                    made = Steps(self.module).run(x)
                    if want is None:
                        self._put(self.dense, cuts, neutralise.zeroed)
                        want = Steps(self.dense).run(x)
                    if close(made, want):
                        return True
        return False

    def _put(
        self,
        module: torch.fx.GraphModule,
        cuts: dict[str, TensorCut],
        change: Callable[[torch.Tensor, TensorCut], torch.Tensor],
    ) -> None:
        for name, tensor in self.tensors.items():
            running.replace_tensor(module, name, change(tensor, cuts[name]) if name in cuts else tensor)

    def _rewrite(self, chosen: tuple[Node, ...]) -> None:
        for (place, stored, before, _), node in zip(self.changed, chosen, strict=True):
            place.target, place.args, place.kwargs = stored
            running.rewrite_node(place, before, node)


class Steps(torch.fx.Interpreter):
    """Runs a graph node by node, without compiling it; an error is raised as it is."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False


def _mixtures(before: Node, small: Node) -> list[Node]:
    """The node with every mixture of numbers between those before and those after."""
    if before.op != small.op or len(before.arguments) != len(small.arguments):
        return [before, small]
    pairs = zip(before.arguments, small.arguments, strict=True)
    return [
        replace(before, arguments=arguments) for arguments in itertools.product(*(list(_between(*p)) for p in pairs))
    ]


def _between(a: Argument, b: Argument) -> Iterator[Argument]:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        yield from itertools.product(*(list(_between(*pair)) for pair in zip(a, b, strict=True)))
    elif type(a) is int and type(b) is int:
        yield from range(min(a, b), max(a, b) + 1)
    else:
        yield from dict.fromkeys((a, b))


# ---- the tests


@profile
@given(sketches(), st.integers(0, 1000))
def test_removed_equals_neutral(sketch: Sketch, seed: int) -> None:
    removed_equals_neutral(sketch, seed)


@profile
@given(sketches(4))
def test_nothing_is_frozen_in_vain(sketch: Sketch) -> None:
    nothing_is_frozen_in_vain(sketch)


@profile
@given(sketches(3))
def test_no_smaller_structure_exists(sketch: Sketch) -> None:
    no_smaller_structure_exists(sketch)


@pytest.mark.parametrize("sketch", COUNTEREXAMPLES.values(), ids=COUNTEREXAMPLES)
def test_counterexamples_stay_mended(sketch: Sketch) -> None:
    for seed in range(3):
        removed_equals_neutral(sketch, seed)
    nothing_is_frozen_in_vain(sketch)
    no_smaller_structure_exists(sketch)


# ---- the properties can fail


def broken(monkeypatch: pytest.MonkeyPatch, op: str, **changes: object) -> None:
    """Another rule for an operator."""
    monkeypatch.setitem(TABLE, op, replace(TABLE[op], **changes))  # type: ignore[arg-type]


def caught(holds: Callable[[Sketch], None], most: int) -> bool:
    """Whether a property fails on one of some hundred programs."""
    for seed in range(400):
        try:
            holds(sketch_of(random.Random(seed), most))
        except AssertionError:
            return True
    return False


def removed_once(sketch: Sketch) -> None:
    removed_equals_neutral(sketch, 0)


def test_a_mean_that_counts_as_exact_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in ("mean", "amax", "logsumexp", "prod"):
        broken(monkeypatch, op, zero=TABLE["sum"].zero)
    assert caught(removed_once, 6)


def test_a_sum_that_counts_as_exact_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Zeros, "need", lambda *_: None)
    assert caught(removed_once, 6)


def test_two_axes_in_one_group_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a linear map are tied to those of every other that has as many."""

    def tied(node: Node, t: Typing) -> list[Dims]:
        rows = t.of(node.arguments[1])[0]
        for name, dims in t.dims.items():
            if name.startswith("p_w") and len(dims) == 2 and dims[0].size == rows.size:
                t.solver.unify(rows, dims[0], str)
        return right(node, t)

    right = TABLE["linear"].type
    broken(monkeypatch, "linear", type=tied)
    assert caught(no_smaller_structure_exists, 5)


def test_two_halves_in_one_group_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of a dim are taken for the same axis where they are as long."""
    right = Solver.split

    def tied(solver: Solver, dim: Dim, sizes: list[int], where: Callable[[], str]) -> list[Dim]:
        pieces = right(solver, dim, sizes, where)
        for piece in pieces[1:]:
            if piece.size == pieces[0].size:
                solver.unify(pieces[0], piece, where)
        return pieces

    monkeypatch.setattr(Solver, "split", tied)
    assert caught(no_smaller_structure_exists, 5)


def test_a_needless_freeze_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations freeze what they treat."""
    right = TABLE["tanh"].type

    def frozen(node: Node, t: Typing) -> list[Dims]:
        for dim in t.of(node.arguments[0]):
            t.solver.freeze(dim, "is frozen for no reason")
        return right(node, t)

    for op in ("tanh", "relu", "gelu", "silu", "abs", "neg", "mul"):
        broken(monkeypatch, op, type=frozen)
    assert caught(nothing_is_frozen_in_vain, 4)
