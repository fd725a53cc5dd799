"""The whole path on real trained checkpoints that are not ours. Skipped where ``../shared/data`` is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorashear
from lorashear.verifying import verify


@pytest.mark.parametrize("per_layer", [False, True], ids=["uniform", "per layer"])
@pytest.mark.parametrize("name", ["babyllama-105", "stories260k", "tinystories-656k"])
def test_a_real_checkpoint_comes_back_smaller(shared_data: Path, tmp_path: Path, name: str, per_layer: bool) -> None:
    source, text = shared_data / "models" / name, shared_data / "text" / "tinystories" / "train.jsonl"
    result = lorashear.compile(
        source, 0.2, tmp_path / "small", text=text, one_shot=True, per_layer=per_layer, windows=24, context=128
    )
    parameters, perplexity = result.report["parameters"], result.report["perplexity"]
    assert parameters["before"] == {"babyllama-105": 936_448, "stories260k": 260_032, "tinystories-656k": 656_000}[name]
    assert parameters["after"] <= 0.8 * parameters["before"] < parameters["after"] + 3 * 128 * 5
    assert perplexity["before"] < perplexity["after"] < 2.5 * perplexity["before"]
    assert "differ by" in verify(source, tmp_path / "small")[-1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in model.parameters()) == parameters["after"]
    ids = AutoTokenizer.from_pretrained(tmp_path / "small")("Once upon a time", return_tensors="pt").input_ids
    with_cache, without = (
        model.generate(ids, max_new_tokens=24, do_sample=False, use_cache=cache, eos_token_id=None)
        for cache in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_the_sliced_folder_alone_is_the_masked_model(shared_data: Path, tmp_path: Path) -> None:
    """Its one matrix of embeddings is stored as lm_head.weight, under the name that is not the first."""
    source = shared_data / "models" / "tinystories-656k"
    groups = lorashear.groups(source)
    removed = {name: [1, 3] for name, group in groups.items() if group.kind in ("ffn", "hidden")}
    lorashear.apply(lorashear.plan(source, removed), source, tmp_path / "small")
    small, by_hand = lorashear.load(tmp_path / "small"), lorashear.prune(source, removed)
    tokens = torch.arange(24).reshape(1, 24)
    with torch.inference_mode():
        torch.testing.assert_close(small(input_ids=tokens).logits, by_hand(input_ids=tokens).logits)
