"""LHSPG: what fades is exactly neutral at the end, so the slice of the trained model is exact; and nothing jumps on the way."""

from __future__ import annotations

import gc
import json
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorashear
from lorashear import models
from lorashear.learning import attaching, training
from lorashear.learning.mixture import Mixture
from lorashear.run import Run
from lorashear.verifying import verify
from lorashear_passes.gates import Gates
from lorashear_passes.lhspg import POLICIES, Lhspg, Schedule
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
    model = attaching.attach(random_llama("tied").to(dtype), rank=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    chosen = dict(models.analysed(model).only(kinds).items())
    widths = {name: -(-units(group) // 2) for name, group in chosen.items()}
    return model, Lhspg(model, chosen, widths, batches(), schedule, settings)


def trained(model: Any, lhspg: Lhspg, steps: int, micro_batch: int | None = None) -> None:
    windows = torch.cat([batch["input_ids"] for batch in batches(8)])
    hyper = training.Hyperparameters(steps, 1e-2, batch=4, distill=0.0, micro_batch=micro_batch)
    training.train(model, Mixture.of(windows, hyper), companion=lhspg)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=batches(1)[0]["input_ids"]).logits.float()


def sliced(model: Any, removed: dict[str, list[int]]) -> Any:
    return lorashear.prune(
        model.merge_and_unload(), {name.removeprefix(PREFIX): indices for name, indices in removed.items()}
    )


@pytest.mark.parametrize(
    ("criterion", "compensate", "periods", "policy"),
    [
        ("obs", True, 1, "decay"),
        ("obs", False, 3, "half-space"),
        ("wanda", True, 3, "decay"),
        ("flap", True, 2, "half-space"),
        ("taylor", True, 2, "decay"),
        ("lora", False, 2, "decay"),
        ("magnitude", False, 3, "half-space"),
        ("random", True, 3, "decay"),
    ],
)
def test_the_slice_computes_what_the_trained_model_computes(
    criterion: str, compensate: bool, periods: int, policy: str
) -> None:
    schedule = Schedule(2, periods, 3, policy)
    model, lhspg = begun(schedule, Settings(criterion=criterion, compensate=compensate))
    trained(model, lhspg, schedule.steps + 3)  # and some steps after the last period
    want = logits(model)
    counted = {name: len(indices) for name, indices in lhspg.removed.items() if lhspg.chosen[name].kind != "query"}
    assert counted == {name: units(lhspg.chosen[name]) - lhspg.widths[name] for name in counted}
    got = logits(sliced(model, lhspg.removed))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert torch.equal(got.argmax(-1), want.argmax(-1))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kinds", [("hidden",), (*KINDS, "hidden")], ids=["hidden", "all"])
def test_hidden_channels_fade_with_all_that_they_own(kinds: tuple[str, ...], policy: str) -> None:
    model, lhspg = begun(Schedule(1, 2, 3, policy), kinds=kinds)
    trained(model, lhspg, 9)
    want = logits(model)
    got = logits(sliced(model, lhspg.removed))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_weights_end_at_exactly_zero(policy: str) -> None:
    model, lhspg = begun(Schedule(0, 1, 7, policy), dtype=torch.bfloat16)
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


def test_a_gate_waits_where_the_loss_wants_its_structure_back() -> None:
    """Of two channels one lowers the loss and one raises it; where nothing says so the gate follows the ramp."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(3, 2))
        model[1].weight.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    gates = Gates(model, [("1", "ffn", torch.tensor([[0], [1], [2]]))], {"ffn": 3, "hidden": 1}, 8)
    gone = {"ffn": torch.ones(3), "hidden": torch.ones(1)}
    for left in range(8, 0, -1):
        model(torch.ones(4, 2)).mean().backward()  # channel 0 raises it, channel 1 lowers it, channel 2 does neither
        before = gates.values["ffn"].clone()
        gone = {name: gone[name] * factor for name, factor in gates.moved(gates.next(left)).items()}
        if left > 1:
            assert gates.values["ffn"][0] < before[0] or before[0] == 0
            assert gates.values["ffn"][1] == 1
            torch.testing.assert_close(gates.values["ffn"][2], torch.tensor((left - 1) / 8))
        torch.testing.assert_close(gone, gates.values)
    assert not any(map(torch.any, gates.values.values()))
    gates.close()
    model(torch.ones(4, 2)).mean().backward()
    assert not gates._moments["ffn"].any()


def test_gates_hold_no_activation_beyond_the_step() -> None:
    """Nor anything else: a run would grow with every step."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 1, bias=False))
    Gates(model, [("1", "ffn", torch.tensor([[0]]))], {"ffn": 1}, 8)
    seen: list[weakref.ref[torch.Tensor]] = []
    model[1].register_forward_pre_hook(lambda _, given: seen.append(weakref.ref(given[0])))
    model(torch.ones(4, 2)).mean().backward()
    gc.collect()
    assert seen and seen[0]() is None


def test_the_gradient_of_a_gate_is_that_of_the_loss() -> None:
    """Against a difference quotient over what all readers of a structure, adapters too, see of it."""
    model, lhspg = begun(Schedule(0, 1, 4, "half-space"), Settings(compensate=False), kinds=("ffn",))
    lhspg(0)
    assert lhspg._gates
    rows = batches(1)[0]["input_ids"]

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(input_ids=rows).logits.flatten(0, 1), rows.flatten())

    loss().backward()
    name = f"{PREFIX}model.layers.1.mlp.ffn"
    found = lhspg._gates._moments[name]
    layer = model.get_submodule(f"{PREFIX}model.layers.1.mlp.down_proj")
    for place in (0, len(found) // 2):
        column = lhspg.removed[name][place]
        losses = []
        for scale in (1.01, 0.99):
            before = layer.base_layer.weight.detach().clone(), layer.lora_A.default.weight.detach().clone()
            with torch.no_grad():
                layer.base_layer.weight[:, column] *= scale
                layer.lora_A.default.weight[:, column] *= scale
                losses.append(loss().item())
                layer.base_layer.weight.copy_(before[0])
                layer.lora_A.default.weight.copy_(before[1])
        assert found[place].item() == pytest.approx((losses[0] - losses[1]) / 0.02, rel=0.02, abs=2e-4)


@pytest.mark.parametrize("policy", ["decay", "half-space"])
def test_windows_by_parts_and_activations_computed_twice_change_nothing(policy: str) -> None:
    """A gate sees every gradient once, although what it reads is computed twice."""
    found: list[dict[str, torch.Tensor]] = []
    seen: list[int] = []
    for micro_batch, twice in ((None, False), (3, False), (None, True)):
        torch.manual_seed(0)
        model, lhspg = begun(Schedule(1, 1, 4, policy))
        if twice:
            attaching.checkpoint_activations(model)
        count = [0]
        layer = model.get_submodule(f"{PREFIX}model.layers.0.mlp")
        layer.register_forward_pre_hook(lambda module, _, count=count: count.__setitem__(0, count[0] + module.training))
        trained(model, lhspg, 6, micro_batch)
        found.append({name: p.detach() for name, p in model.named_parameters()})
        seen.append(count[0])
    assert seen == [6, 12, 12]
    for other in found[1:]:
        assert all((other[name] - value).abs().max() < 2e-3 for name, value in found[0].items())


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


@pytest.fixture(scope="module")
def exact(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small folder in float32, so that nothing is rounded on disk."""
    path = tmp_path_factory.mktemp("exact") / "model"
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("per_layer", "prune", "adapter"),
    [(False, KINDS, "merge"), (True, KINDS, "keep"), (False, ("ffn", "hidden"), "keep"), (True, ("hidden",), "merge")],
)
def test_compile_slices_what_was_trained(
    exact: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    per_layer: bool,
    prune: tuple[str, ...],
    adapter: str,
) -> None:
    """The cut model begins recovery as what the dense one was when everything had faded, and ends it as what the folder is."""
    held: list[Any] = []
    begun: list[torch.Tensor] = []
    learner = Run.learner

    def kept(*given: Any) -> Any:
        held.append(learner(*given))
        begun.append(logits(held[-1]))
        return held[-1]

    monkeypatch.setattr(Run, "learner", kept)
    result = lorashear.compile(
        exact,
        0.3,
        tmp_path / "out",
        text=text,
        windows=8,
        tokens=3000,
        context=32,
        rank=3,
        lhspg=0.5,
        periods=2,
        warm_up=0.2,
        policy="half-space" if per_layer else "decay",
        adapter=adapter,
        per_layer=per_layer,
        prune=prune,
    )
    record = result.report["training"]
    assert record["steps"] == 12 and record["lhspg"] == {
        **{"warm_up": 1, "periods": 2, "length": 2},
        "policy": "half-space" if per_layer else "decay",
    }
    small = result.model if adapter == "merge" else PeftModel.from_pretrained(result.model, result.folder / "adapter")
    faded, recovered = (logits(each) for each in held)
    for got, want in ((begun[1], faded), (logits(small), recovered)):
        assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert (faded - recovered).abs().max() > 1e-2 * faded.abs().max()
    stages = result.report["recovery"]["stages"]
    assert [(each["name"], each["steps"], each["before"], each["schedule"]) for each in stages] == [
        ("corpora", 6, 6, 12)
    ]
    assert "bit for bit as planned" in verify(exact, result.folder)[0]
    log = (result.folder / "lorashear" / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 13))
    assert "a LoRA adapter of rank 3 was trained on 3,072 tokens" in (result.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lhspg": 1.5}, "lhspg is 1.5; it is a share of the tokens, from 0 to 1"),
        ({"lhspg": 0.5, "periods": 0}, "periods is 0; LHSPG has 1 or more"),
        ({"lhspg": 0.5, "policy": "jump"}, "policy is jump; there are decay, half-space"),
        ({"lhspg": 0.5, "warm_up": -0.5}, "warm_up is -0.5; it is a share of LHSPG's steps, 0 or more and under 1"),
        (
            {"lhspg": 0.5, "periods": 9},
            "tokens is 3000, of which LHSPG gets 6 steps, too few for a warm-up of 0 and 9 periods: give more tokens, or",
        ),
        ({"lhspg": 0.5, "tokens": None, "one_shot": True}, "lhspg is a share of the tokens to train on: pass tokens"),
    ],
)
def test_a_request_that_makes_no_sense(
    folder: Path, text: Path, tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(lorashear.LorashearError, match=sentence):
        lorashear.compile(
            folder, 0.3, tmp_path / "out", **{"text": text, "windows": 4, "context": 32, "tokens": 3000, **settings}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_that_reach_nothing_that_is_pruned(exact: Path, text: Path, tmp_path: Path) -> None:
    lora = get_peft_model(AutoModelForCausalLM.from_pretrained(exact), LoraConfig(r=2, target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    settings: dict[str, Any] = {"windows": 4, "tokens": 3000, "context": 32, "lhspg": 0.5, "prune": ("ffn",)}
    with pytest.raises(lorashear.LorashearError, match="no adapter reaches model.layers.0.mlp.ffn or any other group"):
        lorashear.compile(exact, 0.1, tmp_path / "out", text=text, lora=tmp_path / "lora", **settings)
