"""Models with adapters of peft: base weight and adapters move together, ranks are axes, the result is peft's or merged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

import lorashear
from lorashear import report
from lorashear.models import analysed, keywords
from lorashear_ir.groups import Groups
from lorashear_passes.groups import group
from lorashear_passes.neutralise import neutralised
from lorashear_passes.program import record
from tools.cases import TOKENS, randomised, tiny
from tools.families import TOLERANCE, choose, compared, run

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # what peft and transformers say of each other's old names
]
INPUTS = {"input_ids": TOKENS, "use_cache": False}
DEPTH = {"gpt2": "n_layer"}
LAYER = "base_model.model.model.layers.0"
ALL = {"target_modules": "all-linear"}
EVERY = {"head", "query", "ffn", "hidden", "rank"}


def adapted(*configs: Mapping[str, Any], family: str = "llama", layers: int = 1, **fields: Any) -> PeftModel:
    """A tiny model with one adapter for each config, called default, second, …; the first is active."""
    base = AutoModelForCausalLM.from_config(tiny(family, **{DEPTH.get(family, "num_hidden_layers"): layers}, **fields))
    names = ("default", "second", "third")
    model = get_peft_model(base, LoraConfig(**configs[0]), names[0])
    for name, each in zip(names[1:], configs[1:], strict=False):
        model.add_adapter(name, LoraConfig(**each))
    assert isinstance(model, PeftModel)
    randomised(model)
    return model


def masked(model: PeftModel, groups: Groups, removed: Mapping[str, Sequence[int]]) -> torch.Tensor:
    """What the active adapters give, the structures at their neutral value; groups of others are not in the program."""
    program = record(model, keywords(model, INPUTS))
    found = group(program.graph)
    names = {(slot, each.kind): name for name, each in found.items() for slot in each.slots}
    same = {name: {names.get((slot, groups[name].kind)) for slot in groups[name].slots} - {None} for name in removed}
    return run(neutralised(program, found, {each: removed[name] for name in removed for each in same[name]}), INPUTS)


def with_buffers(model: torch.nn.Module, source: torch.nn.Module) -> torch.nn.Module:
    """With the random rotary frequencies, which no folder stores."""
    for name, buffer in model.named_buffers():
        buffer.copy_(source.get_buffer(name))
    return model


def assert_equal(dense: torch.Tensor, want: torch.Tensor, got: torch.Tensor) -> None:
    found = compared("", dense, want, got)
    assert found.moved > 1e-3, "the plan changes nothing, so the test shows nothing"
    assert found.difference < TOLERANCE
    assert found.same_choice


def slots(groups: Groups, name: str) -> dict[str, int]:
    return {path.removeprefix(f"{LAYER}."): dim for path, dim in groups[name].slots}


def of_linear(name: str, dim: int, adapters: Sequence[str] = ("default",), *, dora: bool = False) -> dict[str, int]:
    """The slots of a linear map along its rows (0) or columns (1)."""
    magnitude = {f"{name}.lora_magnitude_vector.{each}.weight": 0 for each in adapters if dora and dim == 0}
    half = "lora_B" if dim == 0 else "lora_A"
    return {
        f"{name}.base_layer.weight": dim,
        **{f"{name}.{half}.{each}.weight": dim for each in adapters},
        **magnitude,
    }


RANKS = {**ALL, "r": 4, "rank_pattern": {"q_proj": 8, "o_proj": 1, "up_proj": 8}}
CASES: dict[str, tuple[tuple[Mapping[str, Any], ...], Mapping[str, Any]]] = {
    "ranks 1, 4, 8": ((RANKS,), {}),
    "chosen targets": (({"r": 4, "target_modules": ["q_proj", "down_proj"]},), {}),
    "rslora": (({**ALL, "r": 4, "use_rslora": True},), {}),
    "dropout": (({**ALL, "r": 4, "lora_dropout": 0.3},), {}),
    "dora": (({**ALL, "r": 4, "use_dora": True},), {}),
    "tied": (({**ALL, "r": 4},), {"tie_word_embeddings": True}),
    "bias": (({**ALL, "r": 4, "bias": "all"},), {"attention_bias": True, "mlp_bias": True}),
    "lora_bias": (
        ({"r": 4, "target_modules": ["q_proj", "down_proj"], "lora_bias": True},),
        {"attention_bias": True, "mlp_bias": True},
    ),
    "saved whole": (({"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},), {}),
    "tied, one saved whole": (
        ({"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},),
        {"tie_word_embeddings": True},
    ),
    "tied, one adapted": (({"r": 4, "target_modules": ["embed_tokens", "q_proj"]},), {"tie_word_embeddings": True}),
    "embedding": (({"r": 4, "target_modules": ["embed_tokens", "q_proj"]},), {}),
    "gpt2": (({"r": 4, "target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True},), {"family": "gpt2"}),
    "gpt2 dora": (({"r": 4, "target_modules": ["c_attn", "c_proj"], "use_dora": True},), {"family": "gpt2"}),
    "router": (({"r": 4, "target_modules": ["q_proj", "gate"]},), {"family": "mixtral"}),
}


FROZEN = {
    **dict.fromkeys(("gpt2", "gpt2 dora"), {"query", "hidden"}),  # layer norms; every head has keys of its own
    "router": {"hidden"},  # peft adapts a router's weight as a parameter; see below
}


@pytest.mark.parametrize("name", CASES)
def test_zeroed_equals_removed_equals_merged(name: str) -> None:
    configs, fields = CASES[name]
    model = adapted(*configs, **fields)
    groups = analysed(model)
    removed = choose(groups, EVERY, seed=3)
    assert {groups[each].kind for each in removed} == EVERY - FROZEN.get(name, set())
    small = lorashear.prune(model, removed)
    assert isinstance(small, PeftModel)
    got = run(small, INPUTS)
    assert_equal(run(model, INPUTS), masked(model, groups, removed), got)
    plain = lorashear.prune(model, removed, merge=True)
    assert not any("lora" in each or "base_layer" in each for each in plain.state_dict())
    assert compared("", got, got, run(plain, INPUTS)).difference < TOLERANCE
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_groups_are_the_expected_ones(dora: bool) -> None:
    groups = (analysed if dora else lorashear.groups)(adapted({**ALL, "r": 4, "use_dora": dora}))
    rows = [of_linear(f"self_attn.{each}_proj", 0, dora=dora) for each in "qkv"]
    assert slots(groups, f"{LAYER}.self_attn.head") == {
        **{name: dim for each in rows for name, dim in each.items()},
        **of_linear("self_attn.o_proj", 1),
    }
    assert slots(groups, f"{LAYER}.self_attn.query") == {**rows[0], **of_linear("self_attn.o_proj", 1)}
    assert slots(groups, f"{LAYER}.mlp.ffn") == {
        **of_linear("mlp.gate_proj", 0, dora=dora),
        **of_linear("mlp.up_proj", 0, dora=dora),
        **of_linear("mlp.down_proj", 1),
    }
    hidden = slots(groups, "base_model.model.hidden")
    assert hidden == {
        "base_model.model.model.embed_tokens.weight": 1,
        **{n: d for each in "qkv" for n, d in of_linear(f"self_attn.{each}_proj", 1).items()},
        **of_linear("self_attn.o_proj", 0, dora=dora),
        **of_linear("mlp.gate_proj", 1),
        **of_linear("mlp.up_proj", 1),
        **of_linear("mlp.down_proj", 0, dora=dora),
        "input_layernorm.weight": 0,
        "post_attention_layernorm.weight": 0,
        "base_model.model.model.norm.weight": 0,
        "base_model.model.lm_head.weight": 1,
    }
    for path in (*(f"self_attn.{each}_proj" for each in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        rank = groups[f"{LAYER}.{path}.rank"]
        assert rank.kind == "rank" and rank.prunable and rank.size == 4
        assert slots(groups, rank.name) == {f"{path}.lora_A.default.weight": 0, f"{path}.lora_B.default.weight": 1}
    prunable = {each.kind for each in groups.values() if each.prunable}
    assert prunable == (
        EVERY | {"channel"} if dora else EVERY
    )  # the class can set no width of values, which is asked once


def test_an_operator_names_all_groups_that_it_stands_in() -> None:
    groups = analysed(adapted({**ALL, "r": 4}))
    q = f"{LAYER}.self_attn.q_proj"
    head, query, rank, hidden = (
        f"{LAYER}.self_attn.head",
        f"{LAYER}.self_attn.query",
        f"{q}.rank",
        "base_model.model.hidden",
    )
    standing = {path: each.groups for each in groups.operators() for path in each.weights}
    assert set(standing[f"{q}.lora_A.default.weight"]) == {hidden, rank}
    assert {head, query, rank} < set(standing[f"{q}.lora_B.default.weight"])
    assert {head, query, hidden} < set(standing[f"{q}.base_layer.weight"])
    lines = report.operator_table(groups).splitlines()
    rows = {row["module"]: row for row in json.loads(json.dumps(report.operator_rows(groups)))}
    for part, names in {
        "base_layer": {head, query, hidden},
        "lora_A.default": {hidden, rank},
        "lora_B.default": {head, query, rank},
    }.items():
        (line,) = (each for each in lines if each.split(maxsplit=1)[0] == f"{q}.{part}")
        assert all(name in line for name in names)
        assert names <= set(rows[f"{q}.{part}"]["groups"])
    held = {row["name"]: set(row["operators"]) for row in report.group_rows(groups)}
    assert all(f"{q}.lora_B.default" in held[name] for name in (head, query, rank))


TWO = ({**ALL, "r": 4}, {"r": 3, "target_modules": ["q_proj", "down_proj"], "use_rslora": True, "use_dora": True})


@pytest.mark.parametrize("active", [["default"], ["second"], ["default", "second"]], ids="+".join)
def test_every_adapter_shrinks_whichever_is_active(active: list[str]) -> None:
    model = adapted(*TWO)
    model.base_model.set_adapter(active)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    groups = analysed(model)
    ffn = slots(groups, f"{LAYER}.mlp.ffn")
    assert {f"mlp.down_proj.lora_A.{each}.weight": 1 for each in ("default", "second")}.items() <= ffn.items()
    assert len([each for each in groups if each.startswith(f"{LAYER}.self_attn.q_proj.rank")]) == 2
    removed = choose(groups, EVERY, seed=4)
    small = lorashear.prune(model, removed)
    assert model.active_adapters == small.active_adapters == active
    assert {n: p.requires_grad for n, p in small.named_parameters()} == before
    merged = run(lorashear.prune(model, removed, merge=True), INPUTS)
    assert compared("", merged, run(small, INPUTS), merged).difference < TOLERANCE
    for chosen in (active, ["second"], ["default"]):
        for each in (model, small):
            each.base_model.set_adapter(chosen)
        assert_equal(run(model, INPUTS), masked(model, groups, removed), run(small, INPUTS))
    with model.disable_adapter(), small.disable_adapter():
        wider = {name: i for name, i in removed.items() if groups[name].kind != "rank"}
        assert_equal(run(model, INPUTS), masked(model, groups, wider), run(small, INPUTS))


def test_every_copy_of_a_module_that_is_saved_whole_shrinks() -> None:
    config = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    model = adapted(config, config)
    groups = analysed(model)
    removed = {"base_model.model.hidden": [0, 7, 30]}
    small = lorashear.prune(model, removed)
    for name in ("original_module", "modules_to_save.default", "modules_to_save.second"):
        assert small.get_submodule(f"base_model.model.lm_head.{name}").weight.shape == (96, 29)
        assert (f"base_model.model.lm_head.{name}.weight", 1) in groups["base_model.model.hidden"].slots
    for chosen in ("default", "second"):
        for each in (model, small):
            each.set_adapter(chosen)
        assert_equal(run(model, INPUTS), masked(model, groups, removed), run(small, INPUTS))


def test_ranks_are_noted_saved_and_loaded(tmp_path: Path) -> None:
    model = adapted({**RANKS, "lora_alpha": 6}, {**ALL, "r": 4, "use_rslora": True}, layers=2)
    removed = choose(analysed(model), {"query", "ffn", "hidden"}, seed=5)
    ranks = {"self_attn.q_proj.rank": [0, 3, 5], "mlp.down_proj.rank": [1], "self_attn.q_proj.rank.2": [0, 1, 2]}
    removed |= {f"{LAYER}.{name}": taken for name, taken in ranks.items()}
    small = lorashear.prune(model, removed)
    q, before = (each.get_submodule(f"{LAYER}.self_attn.q_proj") for each in (small, model))
    assert q.r == {"default": 5, "second": 1}
    assert before.r == {"default": 8, "second": 4}
    assert q.scaling == before.scaling
    assert (q.in_features, q.out_features) == tuple(q.base_layer.weight.shape[::-1])
    assert small.peft_config["default"].r == model.peft_config["default"].r == 4
    assert small.peft_config["default"].rank_pattern["model.layers.0.self_attn.q_proj"] == 5
    assert small.peft_config["second"].rank_pattern == {"model.layers.0.self_attn.q_proj": 1}
    assert model.peft_config["second"].rank_pattern == {}
    small.save_pretrained(tmp_path / "adapters")
    wanted = {}
    for name in ("default", "second"):
        small.set_adapter(name)
        wanted[name] = run(small, INPUTS)
    plain = small.unload()
    plain.save_pretrained(tmp_path / "base")
    base = with_buffers(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval(), plain)
    again = PeftModel.from_pretrained(base, tmp_path / "adapters")
    again.load_adapter(tmp_path / "adapters" / "second", "second")
    for name, logits in wanted.items():
        again.set_adapter(name)
        torch.testing.assert_close(run(again, INPUTS), logits, rtol=1e-4, atol=1e-4)


def test_training_goes_on_and_changes_only_adapters() -> None:
    model = adapted({**ALL, "r": 4, "lora_dropout": 0.2}).train()
    small = lorashear.prune(model, choose(analysed(model), EVERY, seed=6))
    assert small.training and model.training
    assert small.get_submodule(f"{LAYER}.self_attn.q_proj.lora_dropout.default").training
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    optimizer = torch.optim.SGD((p for p in small.parameters() if p.requires_grad), lr=1e-2)
    small(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    moved = {name for name, p in small.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert all((p.grad is not None) == ("lora_" in name) for name, p in small.named_parameters())


def test_the_config_of_a_merged_model_says_its_widths(tmp_path: Path) -> None:
    model = adapted({**ALL, "r": 4})
    removed = choose(analysed(model), {"query", "ffn", "hidden"}, seed=7)
    plain = lorashear.prune(model, removed, merge=True)
    plain.save_pretrained(tmp_path / "plain")
    again = with_buffers(AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval(), plain)
    torch.testing.assert_close(run(again, INPUTS), run(plain, INPUTS))


def test_a_module_without_a_config_stays_a_peft_model() -> None:
    base = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 6))
    model = randomised(get_peft_model(base, LoraConfig(r=3, target_modules=["0", "2"])))
    x = torch.randn(2, 6)
    (ffn,) = (each.name for each in lorashear.groups(model, x).values() if each.kind == "ffn" and each.prunable)
    small = lorashear.prune(model, {ffn: [0, 9]}, x)
    assert isinstance(small, PeftModel)
    merged = lorashear.prune(model, {ffn: [0, 9]}, x, merge=True)
    assert isinstance(merged, torch.nn.Sequential)
    torch.testing.assert_close(merged(x), small(x))


def test_another_method_of_peft_needs_no_rule_either() -> None:
    base = AutoModelForCausalLM.from_config(tiny("llama", num_hidden_layers=1))
    model = get_peft_model(base, IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]))
    randomised(model)
    groups = analysed(model)
    assert slots(groups, f"{LAYER}.mlp.ffn")["mlp.down_proj.ia3_l.default"] == 1
    removed = choose(groups, EVERY, seed=8)
    assert_equal(run(model, INPUTS), masked(model, groups, removed), run(lorashear.prune(model, removed), INPUTS))


def test_adapters_on_parameters_are_frozen_with_a_reason() -> None:
    groups = analysed(adapted({"r": 4, "target_parameters": ["mlp.experts.gate_up_proj"]}, family="mixtral"))
    for each in groups.values():
        if any("experts.lora_" in path for path, _ in each.slots):
            assert each.kind == "ffn" or (not each.prunable and f"{LAYER}.mlp.experts" in each.reason)


def test_a_token_that_is_trained_alone_freezes_the_residual_stream() -> None:
    config = {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}
    hidden = analysed(adapted(config))["base_model.model.hidden"]
    assert hidden.reason == "index_copy in base_model.model.model.embed_tokens.token_adapter has no rule"


def refused(words: str, model: torch.nn.Module, **options: Any) -> None:
    with pytest.raises(lorashear.LorashearError, match=words) as caught:
        lorashear.prune(model, {}, **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_merged_or_traced_is_refused() -> None:
    plain = AutoModelForCausalLM.from_config(tiny("llama", num_hidden_layers=1))
    refused("LlamaForCausalLM is no PeftModel with adapters in its layers, so there is nothing to", plain, merge=True)
    model = adapted({"r": 2, "target_modules": ["q_proj"]})
    with model.disable_adapter():
        refused("the adapters of this PeftModel are disabled: enable those to merge", model, merge=True)
    model.merge_adapter()
    refused(f"adapter default is merged into {LAYER}.self_attn.q_proj.*call unmerge_adapter", model)
    model.unmerge_adapter()
    lorashear.prune(model, {f"{LAYER}.self_attn.q_proj.rank": [0]})
    prefix = get_peft_model(plain, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    refused("PeftModelForCausalLM cannot be traced .* the forward returns a DynamicCache", prefix)
