"""What is added from outside: rows of operators, and criteria that are functions. Zeroed equals removed for both."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorashear
from lorashear.errors import LorashearError
from lorashear.pruning import masked, pruned
from lorashear.recipes.reading import read
from lorashear_ir.ops import TABLE, pointwise, register
from lorashear_passes import scores
from lorashear_passes.oneshot import Settings, compress
from lorashear_passes.scores import ScoreError
from test_modules import Between, X, difference
from test_scores import batches
from test_theorem import check, random_llama
from tools.cases import randomised

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


@torch.library.custom_op("lorashear_tests::soften", mutates_args=())
def soften(x: Tensor, most: float) -> Tensor:
    return most * torch.tanh(x / most)


@torch.library.custom_op("lorashear_tests::relu", mutates_args=())
def other_relu(x: Tensor) -> Tensor:
    """Not zero at zero, whatever its name."""
    return x.relu() + 1


@soften.register_fake
def _(x: Tensor, most: float) -> Tensor:
    return torch.empty_like(x)


@other_relu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.fixture
def table() -> Iterator[dict[str, Any]]:
    """The op table, as it was again at the end."""
    before = dict(TABLE)
    yield TABLE
    TABLE.clear()
    TABLE.update(before)


def summed(operator: Any) -> nn.Module:
    """A net that adds up what the operator gives, without a weight."""
    return randomised(Between(lambda x: operator(x).sum(-1, keepdim=True)))


def reasons(model: nn.Module) -> set[str]:
    """Of the twelve channels between."""
    return {group.reason for group in lorashear.groups(model, X).values() if group.size == 12}


# ---- operators


def test_a_row_from_outside_lets_go_what_had_none(table: dict[str, Any]) -> None:
    model = summed(lambda x: soften(x, 3.0))
    assert reasons(model) == {"soften in the model has no rule"}
    register("soften", pointwise.row(keeps_zero=True))
    name = next(name for name, group in lorashear.groups(model, X).items() if group.prunable)
    assert difference(model, X, {name: [0, 5]}) < 1e-5


def test_a_wrong_row_is_seen_where_its_results_are_added_up(table: dict[str, Any]) -> None:
    model = summed(torch.special.i0)
    register("special_i0", pointwise.row(keeps_zero=True))
    name = next(name for name, group in lorashear.groups(model, X).items() if group.prunable)
    assert difference(model, X, {name: [0, 5]}) > 1e-3
    table["special_i0"] = pointwise.row(keeps_zero=False)
    (reason,) = reasons(model)
    assert reason.startswith("sum in the model adds up over it")


def test_a_row_that_is_there_stays(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the operator relu has a row in .* already: give yours another name"):
        register("relu", pointwise.row(keeps_zero=False))


def test_a_name_of_pytorchs_is_not_its_operator() -> None:
    assert reasons(summed(other_relu)) == {"lorashear_tests_relu in the model has no rule"}
    assert reasons(summed(torch.relu)) == {""}


# ---- criteria


def backwards(model: nn.Module, groups: Mapping[str, Any], given: Any, seed: int) -> dict[str, Tensor]:
    """The last structures go first."""
    return {name: -torch.arange(group.size, dtype=torch.float32) for name, group in groups.items()}


@pytest.mark.parametrize("text", [False, True], ids=["without text", "with text"])
def test_the_lowest_scores_go_and_zeroed_equals_removed(text: bool) -> None:
    model = random_llama("grouped-query")
    groups = lorashear.groups(model)
    chosen = groups.only(("head", "ffn", "hidden"))
    given = batches() if text else None
    outcome = compress(model, chosen, given, ratio=0.3, settings=Settings(criterion=backwards, compensate=False))
    assert outcome.removed
    for name, gone in outcome.removed.items():
        size = groups[name].size
        assert gone == list(range(size - len(gone), size)), name
    check(model, groups, outcome.removed)


def test_it_is_called_once_with_the_groups_the_text_and_the_seed() -> None:
    model, seen = random_llama("tied"), []

    def recorded(of: nn.Module, groups: Mapping[str, Any], given: Any, seed: int) -> dict[str, Tensor]:
        seen.append((of, set(groups), list(given), seed))
        return backwards(of, groups, given, seed)

    chosen, text = lorashear.groups(model).only(("ffn",)), batches()
    settings = Settings(criterion=recorded, seed=7)
    compress(model, chosen, text, ratio=0.05, heldout=batches(1, seed=4), settings=settings)
    assert seen == [(model, set(chosen), text, 7)]


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        ([1.0], "criterion odd gives a list; it is a mapping of scores by the name of each group"),
        ({}, "criterion odd gives no scores for model.layers.0.mlp.ffn; each group"),
        ([0.0, 1.0], r"scores of shape \[2\] for model.layers.0.mlp.ffn; it has 40 structures, a score each"),
        ([float("nan")] * 40, "gives a score for model.layers.0.mlp.ffn that is no finite number"),
        ("many", "criterion odd gives no numbers for model.layers.0.mlp.ffn: "),
    ],
)
def test_what_are_no_scores_is_said(gives: Any, said: str) -> None:
    model = random_llama("grouped-query")
    groups = lorashear.groups(model).only(("ffn",))

    def odd(*_: Any) -> Any:
        return gives if gives in ([1.0], {}) else dict.fromkeys(groups, gives)

    with pytest.raises(ScoreError, match=said):
        scores.by_function(odd, model, groups, (), 0)


def test_a_function_compiles_and_is_recorded_by_its_name(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASHEAR_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "small"
    request: dict[str, Any] = {"text": text, "windows": 4, "context": 16, "one_shot": True}
    result = lorashear.compile(folder, 0.3, out, criterion=backwards, **request)
    assert result.report["criterion"] == result.plan.settings["criterion"] == "backwards"
    assert "Criterion: backwards" in (out / "README.md").read_text()
    assert not list((tmp_path / "cache").glob("knowledge/*")), "another function of this name may be another one"
    gone = result.plan.removed["model.layers.0.mlp.ffn"]
    assert list(gone) == list(range(48 - len(gone), 48))
    model, groups = lorashear.load(folder).float(), lorashear.groups(folder)
    removed = {name: list(indices) for name, indices in result.plan.removed.items()}
    zeroed = copy.deepcopy(model)
    masked(zeroed, groups, removed)
    tokens = torch.arange(12).reshape(1, 12)
    with torch.inference_mode():
        want = zeroed(input_ids=tokens).logits
        got = pruned(model, model.config, groups, removed)(input_ids=tokens).logits
    assert (want - got).abs().max() < 1e-4 * want.abs().max()
    assert json.loads((out / "lorashear" / "report.json").read_text())["criterion"] == "backwards"
    recipe = out / "lorashear" / "recipe.yaml"
    assert "criterion: null  # was given in memory and has no name: pass it\n" in recipe.read_text()
    assert read(recipe).unnamed == ("criterion",)
    with pytest.raises(LorashearError, match=r"pass criterion in Python, or another one \(--criterion NAME\)"):
        lorashear.compile(recipe=recipe, out=tmp_path / "again")
    again = lorashear.compile(recipe=recipe, out=tmp_path / "again", criterion=backwards)
    assert again.plan.removed == result.plan.removed


def taylor(*_: Any) -> dict[str, Tensor]:
    return {}


@pytest.mark.parametrize(
    ("criterion", "more", "said"),
    [
        (lambda *_: {}, {}, "a function called <lambda>, and results are known by its name: write it as a def"),
        (taylor, {}, "a function called taylor, as a criterion of LoRAShear is: call it otherwise"),
        (backwards, {"lhspg": 0.5, "tokens": 100}, "criterion is the function backwards, .* lhspg ranks again"),
        (7, {}, "criterion is 7; there are obs, .*, and in Python a function of your own"),
        (lambda *_: {}, {"lhspg": 0.5, "tokens": 100}, "<lambda>"),
    ],
)
def test_what_a_criterion_cannot_be(folder: Path, criterion: Any, more: dict[str, Any], said: str) -> None:
    settings = more or {"one_shot": True}
    with pytest.raises(LorashearError, match=said):
        lorashear.compile(folder, 0.2, criterion=criterion, **settings)


def test_scores_that_are_none_end_a_compile_with_a_sentence(folder: Path, tmp_path: Path) -> None:
    def empty(*_: Any) -> dict[str, Tensor]:
        return {}

    with pytest.raises(LorashearError, match="criterion empty gives no scores for "):
        lorashear.compile(folder, 0.2, tmp_path / "out", one_shot=True, criterion=empty)
    assert not (tmp_path / "out").exists()
