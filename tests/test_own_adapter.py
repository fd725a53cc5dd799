"""`compile` of a model and the adapter that belongs to it: the two are pruned as one model, and the adapter is what trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorashear
from lorashear.run import Run
from lorashear.verifying import verify

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
SETTINGS: dict[str, Any] = {"windows": 8, "context": 32, "prune": ("head", "query", "ffn", "hidden")}
RANK = 3


def adapted(model: Path, **more: Any) -> Any:
    """A PeftModel that has learned something that matters."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(**{"r": RANK, "lora_alpha": 5, "target_modules": ["q_proj", "o_proj", "down_proj"], **more})
    found = get_peft_model(base, config).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=random) * 0.4 - 0.1)
    return found


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small folder in float32, so that nothing is rounded on disk, with ``lora`` beside it and ``merged``."""
    path = tmp_path_factory.mktemp("own") / "model"
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    trained = adapted(path)
    trained.save_pretrained(path.with_name("lora"))
    shutil.copytree(path, path.with_name("merged"), ignore=shutil.ignore_patterns("*.safetensors"))
    trained.merge_and_unload().save_pretrained(path.with_name("merged"))
    return path


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12) + 5
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits


def whole(result: lorashear.CompileResult) -> Any:
    """A result with the adapter that may lie beside it."""
    beside = result.folder / "adapter"
    return PeftModel.from_pretrained(result.model, beside) if beside.exists() else result.model


@pytest.fixture(scope="module")
def wanted(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> lorashear.CompileResult:
    """What becomes of the merged model."""
    out = tmp_path_factory.mktemp("wanted") / "out"
    return lorashear.compile(model.with_name("merged"), 0.3, out, text=text, one_shot=True, **SETTINGS)


@pytest.mark.parametrize("adapter", ["merge", "keep"])
def test_one_shot_gives_what_the_merged_model_gives(
    model: Path, text: Path, tmp_path: Path, wanted: lorashear.CompileResult, adapter: str
) -> None:
    lora = model.with_name("lora")
    out = tmp_path / "out"
    result = lorashear.compile(model, 0.3, out, text=text, lora=lora, adapter=adapter, one_shot=True, **SETTINGS)
    assert result.plan.removed == wanted.plan.removed
    assert (out / "adapter").exists() == (adapter == "keep")
    want, got = logits(wanted.model), logits(whole(result))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert result.report["perplexity"]["before"] == pytest.approx(wanted.report["perplexity"]["before"], rel=1e-4)
    assert "bit for bit as planned" in verify(model, out)[0]


def test_a_model_in_memory_is_the_same_and_stays_as_it_is(
    model: Path, text: Path, tmp_path: Path, wanted: lorashear.CompileResult
) -> None:
    given = adapted(model)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(model)
    result = lorashear.compile(given, 0.3, tmp_path / "out", text=text, tokenizer=tokenizer, one_shot=True, **SETTINGS)
    want, got = logits(wanted.model), logits(result.model)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    after = given.state_dict()
    assert set(after) == set(before) and all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("lhspg", [0.0, 0.5])
def test_it_is_what_is_trained(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lhspg: float
) -> None:
    """With LHSPG the cut model begins recovery as what the dense one was when everything had faded."""
    held: list[Any] = []
    begun: list[torch.Tensor] = []
    learner = Run.learner

    def noted(*given: Any) -> Any:
        held.append(learner(*given))
        begun.append(logits(held[-1]))
        return held[-1]

    monkeypatch.setattr(Run, "learner", noted)
    lora = model.with_name("lora")
    settings = {**SETTINGS, "tokens": 3000, "lhspg": lhspg, "lora": lora, "text": text}
    kept, merged = (lorashear.compile(model, 0.3, tmp_path / how, adapter=how, **settings) for how in ("keep", "merge"))
    want, got = logits(merged.model), logits(whole(kept))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    if lhspg:
        faded = logits(held[0])
        assert (begun[1] - faded).abs().max() < 1e-4 * faded.abs().max()
    else:
        assert kept.report["perplexity"]["after"] < kept.report["perplexity"]["pruned"]
    trained = whole(kept)
    assert {name.split(".")[-4] for name, _ in trained.named_parameters() if "lora_A" in name} == {
        *("q_proj", "o_proj", "down_proj")
    }
    assert trained.peft_config["default"].r == kept.report["training"]["rank"] == RANK


def no_adapter(model: Path, lora: Path) -> Any:
    lora.mkdir()
    return model


def with_norms(model: Path, lora: Path) -> Any:
    adapted(model, use_dora=True).save_pretrained(lora)
    return model


def with_two(model: Path, lora: Path) -> Any:
    found = adapted(model)
    found.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    return found


def merged_in(model: Path, lora: Path) -> Any:
    found = adapted(model)
    found.merge_adapter()
    return found


def put_on(model: Path, lora: Path) -> Any:
    found = AutoModelForCausalLM.from_pretrained(model)
    found.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return found


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (no_adapter, "is no adapter of peft: it lacks adapter_config.json or adapter_model.safetensors"),
        (with_norms, "is a DoRA adapter, which needs the whole weight's norms"),
        (with_two, "the PeftModel has adapters default, second; compile takes a model with one"),
        (merged_in, r"the adapter is merged into the weights: call unmerge_adapter\(\), or pass merge_and_unload\(\)"),
        (put_on, "LlamaForCausalLM carries adapters that were put on by add_adapter: pass a PeftModel instead"),
    ],
)
def test_what_cannot_be_pruned_with_it(
    given: Callable[[Path, Path], Any], sentence: str, model: Path, text: Path, tmp_path: Path
) -> None:
    lora = tmp_path / "lora"
    base = given(model, lora)
    beside = lora if lora.exists() else None
    with pytest.raises(lorashear.LorashearError, match=sentence):
        lorashear.compile(base, 0.3, tmp_path / "out", text=text, lora=beside, one_shot=True, **SETTINGS)
    assert not (tmp_path / "out").exists()
