"""Results as ONNX graphs, run by ONNX Runtime beside torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, MambaConfig, MistralConfig, MixtralConfig, T5Config

import lorashear
from lorashear.disk.checkpoint import Checkpoint
from lorashear.engines import onnx_graph, onnx_model, openvino_model
from lorashear.engines.exporter import refusals
from lorashear.errors import LorashearError
from onnx_results import Running, cut, greedy, loaded
from trained_results import prompts, small_result, usual

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=usual())
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A result, and what was written of it."""
    small = small_result(request.param, tmp_path_factory.mktemp(request.param.replace("/", "-")), "onnx")
    out = small.with_name("onnx")
    stored = {info.dtype for info in Checkpoint.open(small).tensors.values()}
    assert (" became float32" in lorashear.export(small, "onnx", out)) == (stored != {"F32"})
    return loaded(small), Running(out), out, prompts(small)


@pytest.fixture(scope="module")
def uniform(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with tied embeddings and a tokenizer."""
    return cut("uniform", folder, tmp_path_factory.mktemp("tied") / "small")


def test_greedy_tokens_are_those_of_torch(exported: Any) -> None:
    model, running, _, beginnings = exported
    for prompt in beginnings:
        want = greedy(model, prompt)
        assert len(set(want)) > 1 and running.greedy(prompt) == want


def test_logits_are_those_of_torch_all_at_once_and_step_by_step(exported: Any) -> None:
    model, running, *_ = exported
    ids = torch.randint(model.config.vocab_size, (2, 24))
    with torch.inference_mode():
        want = model(ids).logits.numpy()
    running.clear(2)
    whole = running.read(ids)
    running.clear(2)
    steps = np.concatenate([running.read(some) for some in ids.split([1, 9, *[1] * 10, 4], 1)], 1)
    differences = np.abs(whole - want).max(), np.abs(steps - want).max()
    print("largest difference of a logit {:.1e}, in steps {:.1e}".format(*differences), f"of {np.abs(want).max():.1f}")
    assert max(differences) < 1e-4


def test_rows_may_be_padded_on_the_left(exported: Any) -> None:
    model, running, *_ = exported
    ids = torch.randint(model.config.vocab_size, (2, 16))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    running.clear(2)
    got = np.concatenate([running.read(ids[:, :12], mask[:, :12]), running.read(ids[:, 12:])], 1)
    with torch.inference_mode():
        for row, begin in ((0, 6), (1, 0)):
            assert np.abs(got[row, begin:] - model(ids[row : row + 1, begin:]).logits.numpy()[0]).max() < 1e-4


def test_each_layer_has_its_own_heads_and_the_files_say_what_is_there(exported: Any) -> None:
    import onnx

    model, running, out, _ = exported
    onnx.checker.check_model(str(out / "model.onnx"))
    heads = [layer.self_attn.k_proj.out_features // layer.self_attn.head_dim for layer in model.model.layers]
    assert [running.inputs[f"past_key_values.{at}.value"].shape[1] for at in range(len(heads))] == heads
    assert running.inputs["attention_mask"].shape == ["batch_size", "total_sequence_length"]
    genai = json.loads((out / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["num_key_value_heads"] == max(heads)
    assert genai["model"]["decoder"]["num_hidden_layers"] == len(heads)
    assert genai["model"]["eos_token_id"] == model.generation_config.eos_token_id
    assert genai["model"]["context_length"] == model.config.max_position_embeddings
    assert genai["search"]["past_present_share_buffer"] is False
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert b".py" not in (out / "model.onnx").read_bytes()  # no stack traces


def test_half_precision_and_nothing_said(uniform: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    lorashear.export(uniform, "onnx", tmp_path / "out", dtype="float16", progress=lambda *args: seen.append(args))
    assert capfd.readouterr() == ("", "")
    weights = sum(each.numel() for each in loaded(uniform).parameters())
    assert 2 * weights <= (tmp_path / "out" / "model.onnx.data").stat().st_size < 3 * weights
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("w1") == AutoTokenizer.from_pretrained(
        uniform
    ).encode("w1")
    assert len(seen) > 5 and seen[-1][1] == seen[-1][2]
    running = Running(tmp_path / "out")
    ids = torch.randint(96, (1, 12))
    with torch.inference_mode():
        want = loaded(uniform)(ids).logits.numpy()
    assert np.abs(running.read(ids) - want).max() < 1e-2 * np.abs(want).max()


def test_what_it_cannot_hold(uniform: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    for config, why in (
        (MistralConfig(**sizes, **heads, sliding_window=8), "its layer 0 sees 8 tokens, and all are meant"),
        (MixtralConfig(**sizes, **heads, num_local_experts=4), "it has experts, of which a graph would copy weights"),
        (MambaConfig(**sizes, state_size=4), "it keeps no keys and values"),
        (T5Config(vocab_size=96, d_model=32, num_layers=1), "no causal language model can be built"),
    ):
        odd = tmp_path / config.model_type
        shutil.copytree(folder, odd)
        config.save_pretrained(odd)
        assert why in (refusals(odd)["onnx"] or ""), config.model_type
        with pytest.raises(LorashearError, match="cannot go to onnx: "):
            lorashear.export(odd, "onnx", tmp_path / "out")
    adapted = tmp_path / "adapted"
    shutil.copytree(uniform, adapted)
    (adapted / "adapter").mkdir()
    assert "merge that first" in (refusals(adapted)["onnx"] or "")
    with pytest.raises(LorashearError, match="dtype is bf16, which onnx does not have; there is float32, float16"):
        lorashear.export(uniform, "onnx", tmp_path / "out", dtype="bf16")
    monkeypatch.setattr(onnx_model, "find_spec", lambda name: None)
    with pytest.raises(LorashearError, match=r"needs onnx and onnxscript, .* pip install 'lorashear\[onnx\]'"):
        lorashear.export(uniform, "onnx", tmp_path / "out")
    monkeypatch.setattr(openvino_model, "find_spec", lambda name: None)
    with pytest.raises(LorashearError, match=r"needs openvino, .* pip install 'lorashear\[openvino\]'"):
        lorashear.export(uniform, "openvino", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_whole_or_nothing(uniform: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("conversion failed") from ValueError("no rule for aten.odd.\nIt was met here")

    def stop(model: Any, kept: Any, file: Path, told: Any) -> Any:
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(LorashearError) as raised:
        lorashear.export(uniform, "onnx", tmp_path / "deep" / "out")
    assert str(raised.value) == f"'{uniform}' cannot go to onnx: torch.onnx cannot export it: no rule for aten.odd"
    monkeypatch.setattr(onnx_graph, "write_graph", stop)
    with pytest.raises(KeyboardInterrupt):
        lorashear.export(uniform, "onnx", tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())
