"""A width that a config sets counts only where the class computes the same with it."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import lorashear
from lorashear.emission import emit
from lorashear.emission.fields import driven, search
from lorashear.emission.following import still
from lorashear.models import analysed
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Groups
from tools.cases import case_of, tiny


def family(name: str) -> tuple[torch.nn.Module, Groups]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny(name)).eval()
    return model, analysed(model)


def typed(groups: Groups) -> Graph:
    assert groups.typed is not None
    return groups.typed


def of_kind(groups: Groups, kind: str) -> dict[str, list[int]]:
    return {name: [0] for name, each in groups.items() if each.kind == kind and each.prunable}


def test_a_scale_that_is_recomputed_from_the_width() -> None:
    """Gemma multiplies its embeddings by √hidden, which its config would change and which is not stored."""
    model, groups = family("gemma")
    removed = of_kind(groups, "hidden")
    assert emit.expresses(model.config, groups, removed)
    made, reason = emit.by_fields(model.config, groups, removed)
    assert made is None and "model.embed_tokens.embed_scale, which is not stored, has other values" in reason

    able = lorashear.groups(model)
    assert all(able[name].prunable for name in removed)
    made, _ = emit.solve(model.config, groups, removed)
    assert made is not None and made.route == "generated"
    assert (made.config.hidden_size, made.config.pruned_from["hidden_size"]) == (31, 32)


@pytest.mark.parametrize("kind", ["ffn", "head"])
def test_widths_that_change_nothing_else_stay(kind: str) -> None:
    model, groups = family("gemma")
    made, _ = emit.solve(model.config, groups, of_kind(groups, kind))
    assert made is not None and made.route == "own"


def test_a_scale_in_the_program() -> None:
    """DeepSeek-V3.2's indexer multiplies by 1/√heads: a field sets how many, and would set the factor too."""
    model, groups = family("deepseek_v32")
    able = lorashear.groups(model)
    states = [able[name] for name in of_kind(groups, "state")]
    assert states
    assert all(not each.prunable and "computes something else" in each.reason for each in states)
    assert all(able[name].prunable for name in of_kind(groups, "hidden"))


def test_a_field_that_has_the_same_number_by_chance_stays() -> None:
    """LLaMA 2 7B has 4096 hidden channels and a context of 4096, Mistral 7B besides a window of 4096."""
    config = tiny("mistral", hidden_size=64, max_position_embeddings=64, sliding_window=64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    groups = analysed(model)
    made, _ = emit.solve(config, groups, of_kind(groups, "hidden"))
    assert made is not None
    new = made.config
    assert (new.hidden_size, new.max_position_embeddings, new.sliding_window) == (63, 64, 64)


def test_numbers_in_modules_that_only_look_like_a_width_are_still() -> None:
    config = tiny("mistral", hidden_size=64, max_position_embeddings=64, sliding_window=64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    groups = analysed(model)
    fixed = {name for _, name in still(model, typed(groups), groups, of_kind(groups, "hidden"))}
    assert {"sliding_window", "max_position_embeddings"} <= fixed
    assert "hidden_size" not in fixed


def test_where_no_field_sets_a_width_only_its_own_numbers_may_follow() -> None:
    """GPT-2's heads: no field sets them apart from the hidden size."""
    model, groups = family("gpt2")
    removed = of_kind(groups, "head") | of_kind(groups, "ffn")
    fixed = {name for _, name in still(model, typed(groups), groups, removed)}
    assert "n_positions" in fixed
    assert not {"num_heads", "split_size", "nf"} & fixed


def test_a_number_that_shows_in_no_shape_by_itself_is_not_still() -> None:
    """The experts of DeepSeek-V3 are groups times experts: one group less is read from a field that no shape needs."""
    model, groups = family("deepseek_v3")
    removed = {"model.layers.1.mlp.channel": [0]}
    fixed = {name for _, name in still(model, typed(groups), groups, removed)}
    assert "topk_group" in fixed
    assert not {"n_group", "num_group"} & fixed


def test_fields_that_must_change_together() -> None:
    """The class refuses each change alone; a third field with the same number is left as it is."""

    def misses(changes: dict[str, int]) -> float:
        now = {"heads": 4, "width": 4, "window": 4, **changes}
        return math.inf if now["heads"] != now["width"] else 2 * (now["heads"] - 3)

    choices = {"heads": [3], "width": [3], "window": [3]}
    assert next(search(choices, misses)) == {"heads": 3, "width": 3}
    assert list(search(choices, misses))[-1] == {"heads": 3, "width": 3, "window": 3}
    assert list(search({"heads": [3]}, misses)) == []


def test_of_several_fields_that_give_the_shapes_those_that_give_the_program() -> None:
    """Half the key heads, or half of each: the same shapes. Qwen3-Next's gated delta net splits them otherwise."""
    model = case_of("qwen3_next").make()
    groups = analysed(model)
    names = [name for name in groups if name.endswith(".linear_attn.ffn")]
    assert driven(model.config, groups, names) == [{"linear_num_value_heads": 2, "linear_num_key_heads": 1}]


def test_what_a_class_takes_for_another_width_in_its_cache() -> None:
    """RecurrentGemma keeps a state as wide as the hidden channels for a convolution over the recurrent ones."""
    model, groups = family("recurrent_gemma")
    removed = {n: [0] for n, each in groups.items() if each.prunable and (each.kind, each.size) == ("ffn", 8)}
    made, reason = emit.solve(model.config, groups, removed)
    assert made is not None, reason
    changed = made.config.module_overrides["model.layers.0.temporal_block"]
    assert changed == {"lru_width": 28, "hidden_size": 28}
