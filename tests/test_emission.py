"""Every dense family, and mixtures of experts, at widths of its own in every layer: saved, and loaded by transformers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import lorashear
from lorashear import modeling_lorashear
from lorashear.emission import emit, registering
from lorashear.models import build_twin, read_config
from tools.cases import NAMED, TOKENS, causal, falcon, rope, tiny
from tools.families import TOLERANCE
from tools.round_trips import apart, loaded_alone, pruned, saved

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # what transformers says of single families
]

ODD = [
    name
    for name in ("internlm3", "llama4_text", "axk1", "laguna", "minicpm3", "beam", "dbrx", "hrm_text")
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
]
"""Another config's class; a prefix that no parameter has; names that would be read as others if changed twice; a
width that the class reads from its config while it runs; a number of each layer that looks like heads that only one loses;
attributes of which a wrong value leads further at first; several parameters in one tensor on disk."""

KINDS = "llama gemma2 phi3 gpt2 gpt_neox bloom cohere2 mixtral gpt_oss deepseek_v3 mamba2 jamba".split()
"""A family for each kind of block. `test_families.py`, `make round-trips` and LORASHEAR_FAMILIES=all have the others too."""

CASES = [
    *(apart(name) for name in (NAMED if os.environ.get("LORASHEAR_FAMILIES") == "all" else KINDS)),
    *map(apart, ODD),
    *map(rope, ("dynamic", "longrope", "llama3")),
    falcon(new_decoder_architecture=True),
    falcon(alibi=True),
]
PARTS = 3
"""Each loads its folders in one process, and no more than a minute's work that only one of two workers can do."""


@pytest.mark.parametrize("part", range(PARTS))
def test_a_result_of_every_family_loads_with_transformers_alone(part: int, tmp_path: Path) -> None:
    """The theorem ties the model pruned in memory to the zeroed one (`test_families.py`); this ties the folder to it.

    With LORASHEAR_FAMILIES=all of all those of `NAMED`.
    """
    cases = CASES[part::PARTS]
    folders = [pruned(case, tmp_path / str(number)) for number, case in enumerate(cases)]
    for case, found in zip(cases, loaded_alone(folders), strict=True):
        assert found.difference < TOLERANCE, case.name
        assert (found.greedy, found.again) == ("", ""), case.name
        assert found.name.startswith("Lorashear"), case.name


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = pruned(causal(family), tmp_path_factory.mktemp(family))
        return made[family]

    return of


def test_the_config_says_the_widths(small: Callable[[str], Path]) -> None:
    """Fields that engines read are those of the result; where layers differ, by the convention of transformers."""
    config = json.loads((small("qwen3") / "config.json").read_text())
    weights = load_file(small("qwen3") / "model.safetensors")
    assert config["hidden_size"] == weights["model.norm.weight"].shape[0]
    assert config["pruned_from"]["hidden_size"] == 32
    resolved = read_config(small("qwen3")).per_layer_config
    for layer in range(2):
        path = f"model.layers.{layer}."
        own = resolved[layer]
        assert own.intermediate_size == weights[f"{path}mlp.up_proj.weight"].shape[0]
        assert own.num_attention_heads * 8 == weights[f"{path}self_attn.q_proj.weight"].shape[0]
        assert own.num_key_value_heads * 8 == weights[f"{path}self_attn.k_proj.weight"].shape[0]


def test_a_result_can_be_pruned_again(small: Callable[[str], Path], tmp_path: Path) -> None:
    first = small("gemma2")
    (first / "want.safetensors").unlink()
    groups = lorashear.groups(first)
    removed = {name: [0] for name, each in groups.items() if each.prunable and each.kind in ("hidden", "ffn")}
    lorashear.apply(lorashear.plan(first, removed), first, tmp_path / "again")
    once, twice = (lorashear.load(folder).eval() for folder in (first, tmp_path / "again"))
    assert twice.config.pruned_from["hidden_size"] == 32
    assert twice.config.hidden_size == once.config.hidden_size - len(removed["model.hidden"])
    with torch.inference_mode():
        want, got = (m(input_ids=TOKENS).logits for m in (lorashear.prune(once, removed), twice))
    assert torch.allclose(want, got, rtol=0, atol=TOLERANCE * float(want.abs().max()))


def test_importing_lorashear_is_enough_for_the_usual_call(small: Callable[[str], Path]) -> None:
    script = """
import sys
import {first}
import {second}
model = transformers.AutoModelForCausalLM.from_pretrained({folder!r})
print(type(model).__name__, type(model).__module__)
model.save_pretrained({folder!r} + "/saved")
"""
    for first, second in (("lorashear", "transformers"), ("transformers", "lorashear")):
        (small("gemma2") / "modeling_lorashear.py").write_text("raise SystemExit('code of the folder was run')\n")
        code = script.format(first=first, second=second, folder=str(small("gemma2")))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.split() == ["LorashearGemma2ForCausalLM", "lorashear.modeling_lorashear"], done.stderr
    own = Path(lorashear.__file__).with_name("modeling_lorashear.py")
    assert (small("gemma2") / "saved" / "modeling_lorashear.py").read_bytes() == own.read_bytes()
    again = json.loads((small("gemma2") / "saved" / "config.json").read_text())
    assert again["auto_map"]["AutoModelForCausalLM"] == "modeling_lorashear.LorashearGemma2ForCausalLM"


def test_every_language_model_has_its_generated_classes() -> None:
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        made = registering.classes(model_type)
        assert made["AutoConfig"].model_type == f"lorashear_{made['AutoConfig'].__base__.model_type}"
        assert made["AutoModelForCausalLM"].config_class is made["AutoConfig"]
        for each in made.values():
            assert getattr(modeling_lorashear, each.__name__) is each


def test_importing_lorashear_imports_no_transformers() -> None:
    code = "import sys, lorashear; print('transformers' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_a_number_that_equals_a_width_by_chance_stays(tmp_path: Path) -> None:
    """Mistral 7B has a window of 4096 beside 4096 hidden channels; no operator of the traced program reads it there."""
    config = read_config(saved(causal("mistral", sliding_window=32), tmp_path / "source"))
    twin = build_twin(config)
    removed = {"hidden": [0], "model.layers.0.mlp.ffn": [0]}
    made, reason = emit.solve(config, lorashear.groups(twin), removed)
    assert made is not None, reason
    names = {name for values in made.config.module_overrides.values() for name in values}
    shapes = {"weight", "in_features", "out_features", "embedding_dim", "hidden_size", "intermediate_size"}
    assert names == {*shapes, "variance_epsilon"}
    assert (made.config.hidden_size, made.config.sliding_window) == (31, 32)
    assert made.config.rms_norm_eps == pytest.approx(config.rms_norm_eps * 32 / 31)  # for engines that look there


def test_a_place_in_the_cache_is_no_width() -> None:
    """The attention of layer 2 has two heads, and the number 2 as its place in the KV cache, which no traced operator reads."""
    config = tiny("gpt2", num_hidden_layers=3, num_attention_heads=2)
    groups = lorashear.groups(build_twin(config))
    made, reason = emit.solve(config, groups, {"transformer.h.2.attn.head": [0]})
    assert made is not None, reason
    changed = made.config.module_overrides["transformer.h.2.attn"]
    assert changed["num_heads"] == 1
    assert "layer_idx" not in changed


@pytest.mark.parametrize("layers", [(0, 1), (1,)], ids=["own", "generated"])
def test_experts_of_odd_widths_run_as_they_are_loaded(layers: tuple[int, ...], tmp_path: Path) -> None:
    """torch multiplies experts in one go only where their rows are whole 16 bytes; transformers asks it to by default."""
    source = saved(causal("mixtral"), tmp_path / "source")
    removed = {f"model.layers.{layer}.mlp.experts.ffn": [0] for layer in layers}
    plan = lorashear.plan(source, removed)
    assert plan.route == ("own" if len(layers) == 2 else "generated")
    lorashear.apply(plan, source, tmp_path / "out")
    for folder in (source, tmp_path / "out"):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.inference_mode():
            got = model(input_ids=TOKENS).logits
    with torch.inference_mode():
        want = lorashear.prune(AutoModelForCausalLM.from_pretrained(source).eval(), removed)(input_ids=TOKENS).logits
    assert torch.allclose(got, want, rtol=0, atol=TOLERANCE * float(want.abs().max()))


def test_what_loading_would_make_anew_from_another_number_is_refused() -> None:
    """GPT-J's table of positions is made from its rotary dim, here as large as its number of heads, which no field sets."""
    twin = build_twin(causal("gptj").make().config)
    groups = lorashear.groups(twin)
    made, reason = emit.solve(twin.config, groups, {"transformer.h.0.attn.head": [0]})
    assert made is None and "embed_positions, which is not stored, has other values" in reason
