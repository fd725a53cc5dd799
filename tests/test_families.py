"""Every family of the table: the theorem, and its groups pinned as text (``pytest --update`` rewrites the texts)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

from lorashear.models import analysed, example_inputs, groups
from lorashear_ir.groups import Groups
from tools.cases import TOKENS, Case, cases, randomised
from tools.families import TOLERANCE, check

TEXTS = Path(__file__).parent / "text" / "families"
PINNED = "5.23"  # of transformers: another version may write a family's forward in other words

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # what transformers says of single families
]


def made(case: Case) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = randomised(case.make())
    return model, dict(case.inputs or {**example_inputs(model), "input_ids": TOKENS})


def text(found: Groups) -> str:
    """The types of all parameters, then the groups."""
    types = [f"{name}: {', '.join(map(str, dims))}" for name, dims in found.tensors.items()]
    lines = []
    for each in found.values():
        size = f"{each.size} in {each.blocks} blocks" if each.blocks > 1 else str(each.size)
        least = f", at least {each.least}" if each.least > 1 else ""
        verdict = "prunable" if each.prunable else f"frozen: {each.reason}"
        lines.append(f"{each.name}: {each.kind} {size}{least}, {each.parameters} weights each, {verdict}")
    return "\n".join([*types, "", *lines]) + "\n"


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_zeroed_equals_removed(case: Case) -> None:
    model, inputs = made(case)
    alone, together = check(model, inputs)
    for finding in (*alone, together):
        assert finding.moved > 1e-3, f"{finding} changes nothing, so the test shows nothing"
        assert finding.difference < TOLERANCE, finding
        assert finding.same_choice, finding
    assert {"ffn"} <= set(together.kinds.split("+"))


@pytest.mark.skipif(not transformers.__version__.startswith(PINNED), reason=f"the texts are of transformers {PINNED}")
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_groups_are_the_expected_ones(case: Case, pytestconfig: pytest.Config) -> None:
    model, inputs = made(case)
    got = text(analysed(model, inputs))
    path = TEXTS / (re.sub(r"\W+", "-", case.name).strip("-") + ".txt")
    if pytestconfig.getoption("--update"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(got)
    assert got == path.read_text()


def test_what_the_class_cannot_take_is_not_prunable_and_says_so() -> None:
    case = next(case for case in cases() if case.name == "llama")
    model, inputs = made(case)
    value = groups(model, inputs)["model.layers.0.self_attn.channel"]
    assert not value.prunable
    assert "LlamaConfig" in value.reason
