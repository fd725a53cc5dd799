"""Random programs try to break the analysis: removed must equal neutral, no structure may be too big, none frozen in vain.

`make test` runs a small profile; `make test-deep` runs tens of thousands of programs (LORASHEAR_PROGRAMS sets how many).
"""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import replace

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorashear_ir.groups import Group, Groups, SelectionError, TensorCut
from lorashear_passes import program as running
from lorashear_passes.groups import group
from lorashear_passes.neutralise import neutralised, zeroed
from lorashear_passes.program import Program as Captured
from lorashear_passes.program import record, sliced
from lorashear_passes.resize import resize
from tests.programs import BATCH, Program, Sketch, sketches

PROGRAMS = int(os.environ.get("LORASHEAR_PROGRAMS", "60"))
small_profile = settings(
    max_examples=PROGRAMS, deadline=None, derandomize=PROGRAMS <= 60, suppress_health_check=list(HealthCheck)
)


def inputs(seed: int = 1) -> torch.Tensor:
    return torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(seed))


def captured(sketch: Sketch) -> tuple[Captured, Groups]:
    program = record(Program(sketch), {"x": inputs()})
    return program, group(program.graph)


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


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * max(1e-6, float(b.abs().max())))


@small_profile
@given(sketches(), st.integers(0, 1000))
def test_removed_equals_neutral(sketch: Sketch, seed: int) -> None:
    program, groups = captured(sketch)
    removed = plan(groups, random.Random(seed))
    x = inputs()
    with torch.inference_mode():
        assert close(sliced(program, groups, removed)(x), neutralised(program, groups, removed)(x))


def forced(groups: Groups, name: str) -> Groups:
    """The groups, one of which may go although it is frozen."""
    every = [replace(g, prunable=True, reason="", least=1) if g.name == name else g for g in groups.values()]
    return Groups(every, groups.tensors, groups.norms, groups.tied, groups.typed)


@small_profile
@given(sketches(4))
def test_nothing_is_frozen_in_vain(sketch: Sketch) -> None:
    """A frozen group that could have gone after all, wherever the structure is taken, was frozen without need."""
    program, groups = captured(sketch)
    for each in groups.values():
        if each.prunable or each.axis.size < 3 or "input" in each.reason or "output" in each.reason:
            continue
        assert not all(exact(program, forced(groups, each.name), each, i) for i in range(each.axis.size)), each


def exact(program: Captured, groups: Groups, each: Group, index: int) -> bool:
    removed = {each.name: [b * each.axis.size + index for b in range(each.blocks)]}
    try:
        with torch.inference_mode():
            return all(
                close(sliced(program, groups, removed)(x), neutralised(program, groups, removed)(x))
                for x in (inputs(1), inputs(2))
            )
    except (RuntimeError, IndexError, AssertionError, ZeroDivisionError):  # no such program
        return False


@small_profile
@given(sketches(3))
def test_no_smaller_structure_exists(sketch: Sketch) -> None:
    """Of the tensors that a structure is cut from, no part can be cut alone: tried with every mixture of old and new sizes."""
    program, groups = captured(sketch)
    for each in groups.values():
        if not each.prunable or not 1 < len(each.slots) < 6 or each.axis.size < 3 or each.kind == "expert":
            continue
        removed = {each.name: [b * each.axis.size + 1 for b in range(each.blocks)]}
        for count in range(1, len(each.slots)):
            for part in itertools.combinations(each.slots, count):
                assert not cut_alone(program, groups, removed, frozenset(part)), (each, part)


def cut_alone(
    program: Captured, groups: Groups, removed: dict[str, list[int]], part: frozenset[tuple[str, int]]
) -> bool:
    """Whether some choice of sizes makes a program that runs with only ``part`` cut, and computes what zeroing gives."""
    cuts = {}
    for name, cut in groups.cuts(removed).items():
        keep = {dim: kept for dim, kept in cut.keep.items() if (name, dim) in part}
        if keep:
            cuts[name] = TensorCut(keep)
    small = resize(program.graph, groups, removed)
    changed = [
        (before, after)
        for before, after in zip(program.graph.nodes, small.nodes, strict=True)
        if (before.op, before.arguments) != (after.op, after.arguments)
    ]
    if len(changed) > 4:
        return False
    x = inputs()
    zeros = running.runnable(program)
    for name, tensor in running.tensors(zeros):
        if name in cuts:
            running.replace_tensor(zeros, name, zeroed(tensor.detach(), cuts[name]))
    with torch.inference_mode():
        want = zeros(x)
    for chosen in itertools.product((False, True), repeat=len(changed)):
        module = running.runnable(program)
        for name, tensor in running.tensors(module):
            if name in cuts:
                running.replace_tensor(module, name, running.cut_tensor(tensor.detach(), cuts[name]))
        rewritten = [pair for pair, yes in zip(changed, chosen, strict=True) if yes]
        running.rewrite(module, rewritten)
        try:
            with torch.inference_mode():
                if close(module(x), want):
                    return True
        except (RuntimeError, IndexError):
            continue
    return False
