"""Speeds are only measured, not judged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorashear.errors import LorashearError
from lorashear.evaluation import speed
from lorashear.evaluation.speed import compare_speed, decode_speed, forward_speed

VOCABULARY = 53


def tiny(attention_dropout: float = 0.0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=attention_dropout,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # the default initialisation predicts every token alike
        model.lm_head.weight.normal_(std=2)
    return model


class TestSpeed:
    def test_decoding_and_forward_have_a_speed(self) -> None:
        model = tiny().train()
        assert decode_speed(model, prompt=4, tokens=3, repeats=1) > 0
        assert forward_speed(model, length=8, batch=2, repeats=1) > 0
        assert model.training

    def test_the_models_run_by_turns_and_the_ratio_is_of_medians(self, monkeypatch: pytest.MonkeyPatch) -> None:
        order: list[str] = []
        seconds = iter([9.0, 9.0, 1.0, 0.5, 2.0, 4.0, 3.0, 0.25])  # two to warm up, then three rounds of two

        def run(model: SimpleNamespace, **_: int) -> tuple[int, float]:
            order.append(model.name)
            return 1, next(seconds)

        monkeypatch.setattr(speed, "_decode", run)
        dense, pruned = SimpleNamespace(name="dense"), SimpleNamespace(name="pruned")
        found = compare_speed(dense, pruned, "decode", repeats=3)  # pyright: ignore[reportArgumentType]
        assert order == ["dense", "pruned"] * 4
        assert (found.dense, found.pruned, found.ratio) == (0.5, 2.0, 4.0)

    def test_a_smaller_model_is_compared_on_both_kinds(self) -> None:
        for kind in ("decode", "forward"):
            found = compare_speed(tiny(), tiny(), kind, length=8, prompt=4, tokens=2, repeats=2)
            assert found.ratio == pytest.approx(found.pruned / found.dense)

    def test_no_repeats_measure_nothing(self) -> None:
        with pytest.raises(LorashearError, match="measure nothing"):
            forward_speed(tiny(), repeats=0)
