"""`--target`: widths that an engine needs, and what it cannot load, refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lorashear
from lorashear.checkpoint import Checkpoint
from lorashear.engines.exporter import TARGETS
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


def test_what_an_engine_cannot_do_is_refused_before_any_work(shipped: Path, tmp_path: Path) -> None:
    for words, sentence in (
        ({"target": "tensorrt"}, "^target is tensorrt; there are transformers, llama.cpp, vllm, onnx$"),
        ({"tensor_parallel": 2}, r"pass target \(vllm\)$"),
        ({"target": "llama.cpp", "tensor_parallel": 2}, r"pass target \(vllm\)$"),
        ({"target": "vllm", "tensor_parallel": 0}, "^tensor_parallel is 0;"),
        ({"target": "vllm", "tensor_parallel": 3}, "has 4 key-value heads in a layer, which 3 devices cannot share:"),
    ):
        with pytest.raises(LorashearError, match=sentence):
            lorashear.compile(shipped, 0.3, tmp_path / "out", one_shot=True, **words)
    assert not (tmp_path / "out").exists()
