"""`lorashear export`: what formats hold a result, a folder for transformers, and layers padded to one width."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import lorashear
from conftest import REMOVED
from lorashear.cli import main
from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.layout import layout
from lorashear.engines import exporter, padded
from lorashear.errors import LorashearError

pytestmark = pytest.mark.usefixtures("one_thread")

ROUTES = {"uniform": "mistral", "hidden": "llama", "layers": "lorashear_llama"}
"""Of 6 heads to hidden sizes 32 and 30, and of layers with 6 and 2 heads."""
PROMPTS = ([5], [3, 40, 41, 2], [9, 8, 7, 6, 5, 4, 3, 2])


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()


def greedy(model: Any, prompt: list[int], count: int, cache: str | None) -> list[int]:
    """Tokens that a model tells; without a cache by reading everything again for each."""
    ids = torch.tensor([prompt])
    if cache is None:
        for _ in range(count):
            with torch.inference_mode():
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        return ids[0].tolist()
    told = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, min_new_tokens=count,
        cache_implementation=cache, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return told[0].tolist()


@pytest.mark.parametrize("name", REMOVED)
@pytest.mark.filterwarnings("ignore")  # torch of a static cache that is not compiled
def test_transformers_generates_from_every_cache_and_takes_an_adapter(
    name: str, results: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert lorashear.export(results[name], "transformers", out) == ""
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == ROUTES[name] and config["head_dim"] == 8
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    model = loaded(out)
    for prompt in PROMPTS:
        want = greedy(model, prompt, 48, None)
        assert len(set(want)) > 2
        assert greedy(model, prompt, 48, "dynamic") == greedy(model, prompt, 48, "static") == want
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    with torch.inference_mode():
        want, plain = (m(torch.tensor([PROMPTS[2]])).logits for m in (adapted, loaded(out)))
        got = adapted.merge_and_unload()(torch.tensor([PROMPTS[2]])).logits
    assert torch.allclose(got, want, atol=1e-4) and not torch.allclose(plain, want, atol=1e-2)


def test_padded_is_an_ordinary_model_that_computes_the_same(results: dict[str, Path], tmp_path: Path) -> None:
    """Heads, queries of a head and MLP columns are other ones in each layer; in the stored bits nothing but zeros is new."""
    out = tmp_path / "out"
    said = lorashear.export(results["layers"], "padded", out)
    assert said.startswith("padded to 6 query and 3 key-value heads and 46 columns in every layer, which costs ")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "mistral" and not {"auto_map", "module_overrides", "pruned_from"} & set(config)
    assert not list(out.glob("*.py")) and (out / "tokenizer.json").exists()
    small, wide = loaded(results["layers"]), AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert type(wide).__name__ == "MistralForCausalLM"
    ids = torch.randint(96, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got, want = wide(ids).logits, small(ids).logits
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    for prompt in PROMPTS:
        assert greedy(wide, prompt, 48, "dynamic") == greedy(small, prompt, 48, "dynamic")
    for name, before in small.state_dict().items():
        after = wide.state_dict()[name]
        assert after.count_nonzero() == before.count_nonzero() and torch.equal(after[after != 0], before[before != 0])
    more = sum(p.numel() for p in wide.parameters()) - sum(p.numel() for p in small.parameters())
    assert f"costs {2 * more:,} bytes" in said  # of bfloat16


def test_padded_has_the_eps_that_fewer_channels_give_every_norm(folder: Path, tmp_path: Path) -> None:
    """Small weights, so that it matters."""
    model = loaded(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e-3)
    model.save_pretrained(tmp_path / "dense")
    removed = {"model.hidden": list(range(16)), "model.layers.0.mlp.ffn": [1, 2]}
    lorashear.apply(lorashear.plan(tmp_path / "dense", removed), tmp_path / "dense", tmp_path / "small")
    lorashear.export(tmp_path / "small", "padded", tmp_path / "wide")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["rms_norm_eps"] == 2e-6
    ids = torch.tensor([PROMPTS[2]])
    with torch.inference_mode():
        want, got = (loaded(tmp_path / name)(ids).logits for name in ("small", "wide"))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_padded_in_several_files_and_from_a_real_model(shipped: Path, tmp_path: Path, monkeypatch: Any) -> None:
    lorashear.compile(shipped, 0.4, tmp_path / "small", one_shot=True, per_layer=True)
    monkeypatch.setattr(padded, "layout", lambda shapes: layout(shapes, 1_000_000))
    tracemalloc.start()
    lorashear.export(tmp_path / "small", "padded", tmp_path / "wide")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = max(info.bytes for info in Checkpoint.open(tmp_path / "wide").tensors.values())
    assert most < 2 * largest < Checkpoint.open(tmp_path / "wide").bytes / 2  # a tensor at a time
    assert len(list((tmp_path / "wide").glob("*.safetensors"))) > 1
    small, wide = loaded(tmp_path / "small"), loaded(tmp_path / "wide")
    for prompt in PROMPTS:
        assert greedy(wide, prompt, 64, "dynamic") == greedy(small, prompt, 64, "dynamic")


def test_the_formats_and_why_not(
    results: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lorashear", "export", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    code, shown, _ = told("--list", results["uniform"])
    assert code == 0 and [line.split()[0] for line in shown.splitlines()] == list(exporter.TARGETS)
    assert "transformers  yes, for transformers" in shown and "no, its layers have equal widths" in shown
    code, shown, _ = told("--list", results["layers"], "--json")
    assert code == 0 and json.loads(shown)["padded"] is None
    out = tmp_path / "out"
    code, shown, _ = told(results["layers"], "--to", "padded", "--out", out)
    assert code == 0 and shown.startswith("padded to 6 query") and shown.endswith(f"written to {out}\n")
    before = (out / "config.json").read_bytes()
    odd = tmp_path / "odd"
    shutil.copytree(results["layers"], odd)
    config = json.loads((odd / "config.json").read_text())
    config["module_overrides"]["model.layers.1.input_layernorm"] = {"variance_epsilon": 1e-3}
    (odd / "config.json").write_text(json.dumps(config))
    adapted = tmp_path / "adapted"
    shutil.copytree(results["layers"], adapted)
    (adapted / "adapter").mkdir()
    for words, sentence in (
        ((results["layers"], "--to", "padded", "--out", out), "is not empty; choose another one"),
        (
            (results["uniform"], "--to", "padded", "--out", tmp_path / "new"),
            "cannot go to padded: its layers have equal",
        ),
        (
            (odd, "--to", "padded", "--out", tmp_path / "new"),
            "its norms have different values of variance_epsilon: 1e-06, 0.001",
        ),
        ((adapted, "--to", "padded", "--out", tmp_path / "new"), "merge that first"),
        ((results["layers"], "--to", "gguff", "--out", tmp_path / "new"), "there is no export to gguff"),
        ((results["layers"], "--to", "padded", "--out", tmp_path / "new", "--dtype", "f16"), "leave dtype out"),
        ((results["layers"], "--to", "padded"), "pass --to and --out"),
        ((results["layers"], "--list", "--to", "padded"), "leave --to and --out out"),
        ((tmp_path / "none", "--list"), "no model folder"),
    ):
        code, shown, error = told(*words)
        lines = [line for line in error.splitlines() if line.startswith("lorashear: ")]
        assert code == 2 and len(lines) == 1 and sentence in lines[0] and not shown, (words, error)
    assert not (tmp_path / "new").exists() and (out / "config.json").read_bytes() == before


def test_nothing_is_left_of_an_export_that_fails(
    results: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(padded, "_padded", stop)
    with pytest.raises(KeyboardInterrupt):
        lorashear.export(results["layers"], "padded", tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(LorashearError, match="is neither"):
        lorashear.export(3, "padded", tmp_path / "out")
