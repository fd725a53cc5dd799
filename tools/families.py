"""The theorem on every family of language model in transformers: `make families` prints the table in docs/families.md.

A family is built tiny from its own config, with every parameter and buffer random. Its groups are found, structures of
every prunable kind are set to their neutral value and removed, and the two must compute the same. A family that cannot be
built or traced has its reason in the table.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorashear.models import example_inputs, groups, keywords
from lorashear.pruning import masked, prune
from lorashear_ir.groups import Groups
from lorashear_passes.capture import CaptureError
from lorashear_passes.groups import group
from lorashear_passes.neutralise import neutralised
from lorashear_passes.program import Program, record, sliced
from tools.cases import TOKENS, case_of, cases, randomised
from tools.rows import TooLong, limited, printed, sentence

TOLERANCE = 1e-4  # of the largest logit


def choose(found: Groups, kinds: set[str], seed: int) -> dict[str, list[int]]:
    """A random plan: the same number from every group of a kind and size, at random places."""
    rng = random.Random(seed)
    removed: dict[str, list[int]] = {}
    takes: dict[tuple[str, int], int] = {}
    for name, each in found.items():
        most = each.axis.size - max(each.least, 1)
        if each.kind in kinds and each.prunable and most > 0:
            take = takes.setdefault((each.kind, each.axis.size), rng.randint(1, most))
            removed[name] = [
                block * each.axis.size + i
                for block in range(each.blocks)
                for i in rng.sample(range(each.axis.size), take)
            ]
    return removed


def run(model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    with torch.inference_mode():
        result = model(**inputs)
    return (
        result if isinstance(result, torch.Tensor) else next(v for v in result.values() if isinstance(v, torch.Tensor))
    )


@dataclass(frozen=True)
class Finding:
    """What zeroing and removing structures of some kinds gave, relative to the largest logit."""

    kinds: str
    difference: float
    moved: float  # by how much the zeroed model differs from the dense one
    same_choice: bool  # the same argmax everywhere


def compared(kinds: str, dense: torch.Tensor, want: torch.Tensor, got: torch.Tensor) -> Finding:
    scale = float(want.abs().max())
    difference, moved = (float((want - other).abs().max()) / scale for other in (got, dense))
    return Finding(kinds, difference, moved, bool(torch.equal(want.argmax(-1), got.argmax(-1))))


def check(model: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[list[Finding], Finding]:
    """Each prunable kind alone in the captured program, and all that the class can take together, by `prune`."""
    dense = run(model, inputs)
    able = groups(model, inputs)
    program = recorded(model, inputs)
    alone: list[Finding] = []
    if program is not None:
        found = group(program.graph)
        for kind in sorted({each.kind for each in found.values() if each.prunable}):
            removed = choose(found, {kind}, seed=len(kind))
            if removed:
                want, got = (run(make(program, found, removed), inputs) for make in (neutralised, sliced))
                alone.append(compared(kind, dense, want, got))
    removed = choose(able, {each.kind for each in able.values() if each.prunable}, seed=3)
    if program is not None:
        want = run(neutralised(program, able, removed), inputs)
    else:
        zero = copy.deepcopy(model)
        masked(zero, able, removed)
        want = run(zero, inputs)
    together = compared(
        "+".join(sorted({able[n].kind for n in removed})), dense, want, run(prune(model, removed, inputs), inputs)
    )
    return alone, together


def recorded(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Program | None:
    """The program that can be run; None where only the class itself can be (torch.export refuses what reads positions)."""
    try:
        return record(model, keywords(model, inputs))
    except CaptureError:
        return None


def row(name: str) -> str:
    """One line of the table."""
    start = time.process_time()
    try:
        with limited():
            case = case_of(name)
            torch.manual_seed(0)
            model = randomised(case.make())
            inputs = case.inputs or {**example_inputs(model), "input_ids": TOKENS}
            alone, together = check(model, inputs)
    except (Exception, TooLong) as error:  # whatever a family fails with is what the table is for
        return f"| {name} | | | | {sentence(error)} |"
    findings = [*alone, together]
    worst = max(f.difference for f in findings)
    wrong = [f.kinds for f in findings if f.difference > TOLERANCE or not f.same_choice]
    verdict = f"wrong: {', '.join(wrong)}" if wrong else "exact"
    seconds = time.process_time() - start
    kinds = ", ".join(f.kinds for f in alone)
    return f"| {name} | {kinds} | {together.kinds.replace('+', ', ')} | {seconds:.1f} | {worst:.0e}, {verdict} |"


if __name__ == "__main__":
    printed(
        "| family | exact in the program | by its class | CPU seconds | largest difference, or why not |\n"
        "|---|---|---|---:|---|",
        row,
        [case.name for case in cases()],
        __doc__,
    )
