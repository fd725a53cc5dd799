"""Perplexity against the loss of transformers and against a published table."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lorashear import likelihood
from lorashear.errors import LorashearError
from lorashear.likelihood import batch_size, perplexity
from lorashear.text.data import pack, read_texts

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


def some_windows(count: int, length: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count, length))


class TestPerplexity:
    def test_it_is_the_loss_of_transformers(self) -> None:
        model, windows = tiny(), some_windows(7, 12)
        with torch.no_grad():
            wanted = model(input_ids=windows, labels=windows).loss.item()
        found = perplexity(model, windows)
        assert found.nll == pytest.approx(wanted, rel=1e-6)
        assert found.tokens == 7 * 11
        assert found.perplexity == math.exp(found.nll)
        assert found.perplexity > VOCABULARY  # a random model with strong opinions

    def test_neither_the_batch_nor_the_pieces_of_the_loss_change_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, windows = tiny(), some_windows(7, 12)
        whole = perplexity(model, windows, batch=7).nll
        monkeypatch.setattr(likelihood, "LOSS_BYTES", 5 * 4 * VOCABULARY)
        for batch in (1, 2, 3):
            assert perplexity(model, windows, batch=batch).nll == pytest.approx(whole, rel=1e-6)

    def test_every_module_gets_its_mode_back(self) -> None:
        model = tiny().train()
        model.model.layers[0].eval()
        modes = [module.training for module in model.modules()]
        perplexity(model, some_windows(2, 8))
        assert [module.training for module in model.modules()] == modes

    def test_a_failing_forward_gives_the_mode_back_too(self) -> None:
        model = tiny().train()
        with pytest.raises(IndexError):
            perplexity(model, torch.full((1, 8), VOCABULARY))
        assert all(module.training for module in model.modules())

    def test_training_goes_on_after_it(self) -> None:
        model, windows = tiny().train(), some_windows(2, 8)
        perplexity(model, windows)
        model(input_ids=windows, labels=windows).loss.backward()
        assert model.lm_head.weight.grad is not None

    def test_dropout_is_off(self) -> None:
        model, windows = tiny(attention_dropout=0.5).train(), some_windows(2, 8)
        assert perplexity(model, windows) == perplexity(model, windows)

    def test_the_loss_of_a_half_precision_model_is_computed_in_single(self) -> None:
        model, windows = tiny().bfloat16(), some_windows(4, 12)
        with torch.no_grad():
            logits = model(input_ids=windows).logits[:, :-1].double()
        wanted = nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
        assert perplexity(model, windows, batch=4).nll == pytest.approx(wanted, rel=1e-6)
        assert model.dtype == torch.bfloat16

    def test_no_mask_and_no_cache_are_asked_for(self) -> None:
        class Spy(nn.Module):
            def forward(self, **given: object) -> SimpleNamespace:
                assert given.keys() == {"input_ids", "use_cache"}
                assert given["use_cache"] is False
                ids = given["input_ids"]
                assert isinstance(ids, torch.Tensor)
                return SimpleNamespace(logits=torch.zeros(*ids.shape, VOCABULARY))

        found = perplexity(Spy(), some_windows(3, 5))
        assert found.perplexity == pytest.approx(VOCABULARY)

    def test_a_hopeless_model_is_infinitely_perplexed_and_a_broken_one_is_not_a_number(self) -> None:
        class Constant(nn.Module):
            def __init__(self, value: float) -> None:
                super().__init__()
                self.value = value

            def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
                logits = torch.zeros(*input_ids.shape, VOCABULARY)
                logits[..., 0] = self.value
                return SimpleNamespace(logits=logits)

        windows = torch.ones(1, 4, dtype=torch.int64)
        assert perplexity(Constant(1e6), windows).perplexity == math.inf
        assert math.isnan(perplexity(Constant(math.nan), windows).nll)

    def test_nothing_to_predict_is_refused(self) -> None:
        for shape in ((0, 8), (3, 1)):
            with pytest.raises(LorashearError, match="leave nothing to predict"):
                perplexity(tiny(), torch.zeros(shape, dtype=torch.int64))

    def test_the_batch_keeps_the_logits_under_half_a_gigabyte(self) -> None:
        assert batch_size(512, 512) == 32
        assert batch_size(2048, 32_000) == 2
        assert batch_size(2048, 128_256) == 1
        assert batch_size(100_000, 100_000) == 1

    @pytest.mark.parametrize(("name", "length", "wanted"), [("stories260k", 512, 3.849), ("babyllama-105", 256, 2.175)])
    def test_the_table_of_shared_data(self, shared_data: Path, name: str, length: int, wanted: float) -> None:
        """On fifty windows spread over the text; on all of them, minutes of work, the three decimals agreed."""
        folder = shared_data / "models" / name
        model = AutoModelForCausalLM.from_pretrained(folder)
        documents = read_texts([shared_data / "text" / "tinystories" / "test.jsonl"])
        windows = pack(AutoTokenizer.from_pretrained(folder), documents, length)
        assert perplexity(model, windows[:: len(windows) // 50]).perplexity == pytest.approx(wanted, rel=0.02)
