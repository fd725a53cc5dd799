"""LHSPG: what fades is exactly neutral at the end, so the slice of the trained model is exact; and nothing jumps on the way."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import lorashear
from lorashear import models, training
from lorashear_passes.lhspg import Lhspg, Schedule
from lorashear_passes.surgery import Settings, units
from test_theorem import random_llama

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ("head", "query", "ffn")
PREFIX = "base_model.model."


def batches(count: int = 3) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(0, 96, (4, 12), generator=random), "use_cache": False} for _ in range(count)]


def begun(
    schedule: Schedule, settings: Settings | None = None, kinds: tuple[str, ...] = KINDS, dtype: Any = torch.float32
) -> tuple[Any, Lhspg]:
    """A small LLaMA with an adapter that has learned something, and half of everything to go."""
    model = training.adapted(random_llama("tied").to(dtype), rank=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    chosen = dict(models.analysed(model).only(kinds).items())
    widths = {name: -(-units(group) // 2) for name, group in chosen.items()}
    return model, Lhspg(model, chosen, widths, batches(), schedule, settings)


def trained(model: Any, lhspg: Lhspg, steps: int) -> None:
    windows = torch.cat([batch["input_ids"] for batch in batches(8)])
    lhspg(0)
    recipe = training.Recipe(steps, 1e-2, batch=4, distill=0.0)
    training.train(model, windows, recipe, stepped=lambda step: lhspg(step.step))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=batches(1)[0]["input_ids"]).logits.float()


def sliced(model: Any, removed: dict[str, list[int]]) -> Any:
    return lorashear.prune(
        model.merge_and_unload(), {name.removeprefix(PREFIX): indices for name, indices in removed.items()}
    )


@pytest.mark.parametrize("periods", [1, 3])
@pytest.mark.parametrize("compensate", [False, True], ids=["plain", "refitted"])
@pytest.mark.parametrize("criterion", ["obs", "wanda", "magnitude", "random"])
def test_the_slice_computes_what_the_trained_model_computes(criterion: str, compensate: bool, periods: int) -> None:
    model, lhspg = begun(Schedule(2, periods, 2), Settings(criterion=criterion, compensate=compensate))
    trained(model, lhspg, 2 + 2 * periods + 3)  # and some steps after the last period
    want = logits(model)
    counted = {name: len(indices) for name, indices in lhspg.removed.items() if lhspg.chosen[name].kind != "query"}
    assert counted == {name: units(lhspg.chosen[name]) - lhspg.widths[name] for name in counted}
    got = logits(sliced(model, lhspg.removed))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert torch.equal(got.argmax(-1), want.argmax(-1))


@pytest.mark.parametrize("kinds", [("hidden",), (*KINDS, "hidden")], ids=["hidden", "all"])
def test_hidden_channels_fade_with_all_that_they_own(kinds: tuple[str, ...]) -> None:
    model, lhspg = begun(Schedule(1, 2, 3), kinds=kinds)
    trained(model, lhspg, 9)
    want = logits(model)
    got = logits(sliced(model, lhspg.removed))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_bfloat16_weights_end_at_exactly_zero() -> None:
    model, lhspg = begun(Schedule(0, 1, 7), dtype=torch.bfloat16)
    trained(model, lhspg, 9)
    for group in map(lhspg.chosen.__getitem__, lhspg.removed):
        for structure in lhspg.removed[group.name]:
            for name, dim, indices in group.slices(structure):
                assert not model.get_parameter(name).index_select(dim, torch.tensor(list(indices))).any()


def test_earlier_structures_stay_in_the_redundant_set() -> None:
    model, lhspg = begun(Schedule(0, 4, 1))
    seen = []
    for step in range(5):
        lhspg(step)
        gone = {
            (name, dim, index)
            for group in map(lhspg.chosen.__getitem__, lhspg.removed)
            for structure in lhspg.removed[group.name]
            for name, dim, indices in group.slices(structure)
            for index in indices
        }
        seen.append(gone)
    assert seen[0] and seen[0] < seen[1] < seen[2] < seen[3] == seen[4]


def test_nothing_changes_before_the_warm_up_is_over() -> None:
    model, lhspg = begun(Schedule(3, 1, 2))
    before = {name: p.clone() for name, p in model.named_parameters()}
    for step in range(4):  # the fourth chooses, and the first to fade is the fifth
        lhspg(step)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert lhspg.removed
    lhspg(4)
    assert not all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("compensate", [False, True], ids=["plain", "refitted"])
def test_the_function_leaves_from_where_it_was_and_moves_in_even_steps(compensate: bool) -> None:
    """Without training: from the dense model to the pruned (and refitted) one, no step larger than a few of the even ones."""
    length = 16
    model, lhspg = begun(Schedule(0, 1, length), Settings(compensate=compensate))
    seen = [logits(model)]
    for step in range(length + 1):
        lhspg(step)
        seen.append(logits(model))
    assert torch.equal(seen[0], seen[1])
    whole = (seen[-1] - seen[0]).norm()
    assert all((b - a).norm() < 4 * whole / length for a, b in pairwise(seen[1:]))


def test_what_fades_goes_down_by_the_paper_s_factor() -> None:
    """At step t of T by (T - t - 1) / (T - t), base and adapter alike."""
    model, lhspg = begun(Schedule(0, 1, 5), Settings(compensate=False), kinds=("ffn",))
    layer = model.get_submodule(f"{PREFIX}model.layers.0.mlp.down_proj")
    base, lora = layer.base_layer.weight, layer.lora_A.default.weight
    start = base.clone(), lora.clone()
    lhspg(0)
    gone = lhspg.removed[f"{PREFIX}model.layers.0.mlp.ffn"]
    kept = [index for index in range(base.shape[1]) if index not in gone]
    for step in range(1, 6):
        lhspg(step)
        for value, first in zip((base, lora), start, strict=True):
            torch.testing.assert_close(value[:, gone], first[:, gone] * (5 - step) / 5)
            assert torch.equal(value[:, kept], first[:, kept])
    assert not base[:, gone].any() and not lora[:, gone].any()


def test_the_optimizer_cannot_bring_back_what_is_gone() -> None:
    model, lhspg = begun(Schedule(0, 1, 1), kinds=("ffn",))
    lhspg(0)
    lhspg(1)
    lora = model.get_parameter(f"{PREFIX}model.layers.0.mlp.down_proj.lora_A.default.weight")
    gone = lhspg.removed[f"{PREFIX}model.layers.0.mlp.ffn"]
    for step in range(2, 5):
        lora.data.add_(1.0)
        lhspg(step)
        assert not lora[:, gone].any()


@pytest.mark.parametrize("wrong", [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_a_schedule_needs_periods_and_steps(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no schedule has"):
        Schedule(*wrong)
    assert Schedule(2, 3, 4).steps == 14
