"""A trained adapter of peft takes the same road to disk as the weights: merged into the slice, or cut to fit it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import lorashear
from lorashear import applying
from lorashear.cli import main
from lorashear.errors import LorashearError
from tools.cases import TOKENS, tiny
from tools.families import TOLERANCE

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

ALL = {"target_modules": "all-linear", "r": 3, "lora_alpha": 5}


def base(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny(family, tie_word_embeddings=False)).to(dtype).save_pretrained(folder)
    return folder


def adapter(folder: Path, model: Path, **settings: Any) -> Path:
    """An adapter with random weights in A and B, as if it had been trained."""
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.4 + 0.1)
    wrapped.save_pretrained(folder)
    return folder


def removed(model: Path) -> dict[str, list[int]]:
    return {
        name: [block * each.axis.size + 1 for block in range(each.blocks)]
        for name, each in lorashear.groups(model).items()
        if each.prunable and each.axis.size > 1
    }


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.float().eval()(input_ids=TOKENS).logits


CASES = {
    "plain": ("llama", ALL),
    "some layers, ranks and alphas of their own, rslora": (
        "llama",
        {
            **{"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 3, "use_rslora": True},
            **{"rank_pattern": {"0.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 7}},
        },
    ),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "o_proj", "lm_head"], "r": 2}),
    "weights stored as in × out": ("gpt2", {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}),
    "several parameters in one tensor on disk": ("hrm_text", ALL),
    "DoRA": ("llama", {**ALL, "use_dora": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_merged_and_kept_are_the_same_model(name: str, tmp_path: Path) -> None:
    family, settings = CASES[name]
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    model = base(tmp_path / "model", family)
    trained = adapter(tmp_path / "adapter", model, **settings)
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), trained)
    within = {f"base_model.model.{name}": indices for name, indices in removed(model).items()}
    want = logits(lorashear.prune(whole, within))
    plan = lorashear.plan(model, removed(model))

    lorashear.apply(plan, model, tmp_path / "kept", lora=trained, adapter="keep")
    kept = PeftModel.from_pretrained(lorashear.load(tmp_path / "kept"), tmp_path / "kept" / "adapter")
    assert (logits(kept) - want).abs().max() < TOLERANCE * want.abs().max()
    assert (logits(lorashear.load(tmp_path / "kept")) - want).abs().max() > 1e-3 * want.abs().max()
    if "use_dora" in settings:
        with pytest.raises(LorashearError, match="is a DoRA adapter, which needs the whole weight's norms: keep it"):
            lorashear.apply(plan, model, tmp_path / "merged", lora=trained)
        return
    lorashear.apply(plan, model, tmp_path / "merged", lora=trained)
    assert not (tmp_path / "merged" / "adapter").exists()
    assert (logits(lorashear.load(tmp_path / "merged")) - want).abs().max() < TOLERANCE * want.abs().max()


def test_16_bits_are_rounded_once(tmp_path: Path) -> None:
    """Every weight is the nearest bfloat16 of the sum in float32."""
    model = base(tmp_path / "model", "llama", torch.bfloat16)
    trained = adapter(tmp_path / "adapter", model, **ALL)
    lorashear.apply(lorashear.plan(model, {}), model, tmp_path / "out", lora=trained)
    weights, merged = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    parts = load_file(trained / "adapter_model.safetensors")
    for name, weight in weights.items():
        prefix = "base_model.model." + name.removesuffix("weight")
        a, b = (parts.get(f"{prefix}lora_{which}.weight") for which in "AB")
        exact = weight.double() if a is None else weight.double() + 5 / 3 * (b.double() @ a.double())
        step = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 8)
        assert merged[name].dtype is torch.bfloat16
        assert ((merged[name].double() - exact).abs() <= step * 1.01).all()


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base(tmp_path / "model", "llama")
    trained = adapter(tmp_path / "adapter", model, **ALL)
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    lorashear.plan(model, removed(model)).save(plan)
    words = ["apply", str(plan), str(model), "--out", str(out), "--lora", str(trained), "--adapter"]
    for how, code, said in (("keep", 0, "written to"), ("mix", 2, "adapter is mix; there are merge, keep")):
        monkeypatch.setattr("sys.argv", ["lorashear", *words, how, "--overwrite"])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == code
        printed = capsys.readouterr()
        assert said in printed.out + printed.err
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 3 and config["base_model_name_or_path"] is None


def test_a_stopped_merge_goes_on(tmp_path: Path) -> None:
    model = base(tmp_path / "model", "llama")
    trained = adapter(tmp_path / "adapter", model, **ALL)
    plan = lorashear.plan(model, removed(model))
    lorashear.apply(plan, model, tmp_path / "whole", lora=trained, shard_bytes=9000)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lorashear.apply(plan, model, tmp_path / "out", lora=trained, shard_bytes=9000, progress=stop)
    with pytest.raises(LorashearError, match="is of another request"):
        lorashear.apply(plan, model, tmp_path / "out", shard_bytes=9000, resume=True)
    applying.apply(plan, model, tmp_path / "out", lora=trained, shard_bytes=9000, resume=True)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_what_is_no_adapter_of_this_model(tmp_path: Path) -> None:
    model = base(tmp_path / "model", "llama")
    plan = lorashear.plan(model, {})

    def refused(folder: Path, words: str) -> None:
        with pytest.raises(LorashearError, match=words) as caught:
            lorashear.apply(plan, model, tmp_path / "out", lora=folder)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused(model, "is no adapter of peft: it lacks adapter_config.json")
    other = base(tmp_path / "gpt2", "gpt2")
    refused(
        adapter(tmp_path / "1", other, target_modules=["c_attn"], fan_in_fan_out=True),
        "adapts transformer.h.0.attn.c_attn, and .* stores no tensor",
    )
    whole = adapter(tmp_path / "2", model, target_modules=["q_proj"], modules_to_save=["lm_head"])
    refused(whole, "'base_model.model.lm_head.weight' in .* is no part of a LoRA adapter of a weight")
    trained = adapter(tmp_path / "3", model, target_modules=["q_proj"])
    config = json.loads((trained / "adapter_config.json").read_text())
    (trained / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    refused(trained, "is a IA3 adapter; only LORA can be sliced or merged")
    (trained / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    refused(trained, "began with pissa, which changes the base weights as well")
    (trained / "adapter_config.json").write_text(json.dumps({**config, "alora_invocation_tokens": [1]}))
    refused(trained, "has alora_invocation_tokens, which no merged weight can have")
    wide = tmp_path / "wide"
    AutoModelForCausalLM.from_config(tiny("llama", intermediate_size=50)).save_pretrained(wide)
    refused(adapter(tmp_path / "5", wide, target_modules=["up_proj"]), r"which do not make \[48, 32\]")
