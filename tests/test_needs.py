"""`--target`: widths that an engine needs, and what it cannot load, refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import lorashear
from lorashear.disk.checkpoint import Checkpoint
from lorashear.engines.exporter import TARGETS, refusals
from lorashear.engines.llama import Llama
from lorashear.engines.needs import NEEDS, multiples
from lorashear.errors import LorashearError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_multiples_of_all_who_ask() -> None:
    assert multiples(None, 1, 1) == {"ffn": 1, "hidden": 1, "head": 1}
    assert multiples(None, 1, 24) == {"ffn": 24, "hidden": 24, "head": 1}
    assert multiples("llama.cpp", 1, 48) == {"ffn": 768, "hidden": 768, "head": 1}
    assert multiples("vllm", 4, 1) == {"ffn": 512, "hidden": 128, "head": 4}
    assert {needs.format for needs in NEEDS.values()} <= set(TARGETS)


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_result_has_the_widths(per_layer: bool, shipped: Path, tmp_path: Path) -> None:
    """4 key-value heads of 2 queries, and 512 columns, in each layer before."""
    out = tmp_path / "out"
    lorashear.compile(shipped, 0.3, out, one_shot=True, per_layer=per_layer, target="vllm", tensor_parallel=2)
    for layer in Llama.of(Checkpoint.open(out)).layers:
        assert layer.kv_heads % 2 == 0 and layer.ffn % 256 == 0
    settings = json.loads((out / "lorashear" / "report.json").read_text())["settings"]
    assert (settings["target"], settings["tensor_parallel"]) == ("vllm", 2)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in which every target finds something to remove of every kind."""
    config = LlamaConfig(
        vocab_size=96, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=64, tie_word_embeddings=True, eos_token_id=0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("wide") / "model"
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("target", NEEDS)
def test_a_result_can_be_exported_for_its_target(target: str, per_layer: bool, wide: Path, tmp_path: Path) -> None:
    """As `export --list` shows it; of hidden channels as well, which change every norm."""
    lorashear.compile(
        wide, 0.6, tmp_path / "out", one_shot=True, per_layer=per_layer, target=target, prune=("head", "ffn", "hidden")
    )
    assert refusals(tmp_path / "out")[NEEDS[target].format] is None
    llama, of = Llama.of(Checkpoint.open(tmp_path / "out")), multiples(target, 1, 1)
    assert llama.is_uniform != per_layer and llama.hidden < 512 and llama.hidden % of["hidden"] == 0
    assert llama.eps == pytest.approx(1e-6 * 512 / llama.hidden)
    assert not any(layer.ffn % of["ffn"] for layer in llama.layers)


@pytest.mark.slow
@pytest.mark.parametrize("target", NEEDS)
def test_a_trained_result_too(target: str, shipped: Path, tmp_path: Path) -> None:
    for per_layer in (False, True):
        lorashear.compile(
            shipped, 0.3, tmp_path / "out", one_shot=True, per_layer=per_layer, target=target, overwrite=True
        )
        assert refusals(tmp_path / "out")[NEEDS[target].format] is None


def test_what_an_engine_cannot_do_is_refused_before_any_work(shipped: Path, tmp_path: Path) -> None:
    for words, sentence in (
        ({"target": "tensorrt"}, "^target is tensorrt; there are transformers, llama.cpp, vllm, onnx, mlx$"),
        ({"tensor_parallel": 2}, r"pass target \(vllm\)$"),
        ({"target": "llama.cpp", "tensor_parallel": 2}, r"pass target \(vllm\)$"),
        ({"target": "mlx", "adapter": "keep"}, "^an adapter that is kept cannot go to mlx:"),
        ({"target": "vllm", "tensor_parallel": 0}, "^tensor_parallel is 0;"),
        ({"target": "vllm", "tensor_parallel": 3}, "has 4 key-value heads in a layer, which 3 devices cannot share:"),
    ):
        with pytest.raises(LorashearError, match=sentence):
            lorashear.compile(shipped, 0.3, tmp_path / "out", one_shot=True, **words)
    assert not (tmp_path / "out").exists()
