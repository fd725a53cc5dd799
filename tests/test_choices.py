"""Multiple choice by log-likelihood, against plain forward passes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, MambaConfig

import lorashear
from lorashear import LorashearError
from lorashear.evaluation import choices
from lorashear.evaluation.choices import positions, score
from lorashear.evaluation.items import Item, Suite

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return lorashear.load(folder).float()


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    """Of words, w0 to w93; <s> is 0, w0 is 2. It adds no token of its own."""
    return AutoTokenizer.from_pretrained(folder)


def item(query: str, *told: str, gold: int = 0) -> Item:
    space = " " if query else ""
    return Item(tuple((query, space + text) for text in told), tuple(map(len, told)), gold)


def suite(*items: Item) -> Suite:
    return Suite("mine", items, {})


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def several() -> Suite:
    """Of many lengths, some with one token to tell and some with more."""
    random = np.random.default_rng(0)

    def some(most: int) -> str:
        return words(*random.integers(0, 94, random.integers(1, most)).tolist())

    return suite(*(item(some(30), some(2), some(6), some(9), gold=int(random.integers(3))) for _ in range(40)))


def plain(model: Any, read: list[int], told: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([read + told])).logits[0].double()
    return sum(logits[len(read) - 1 + at].log_softmax(-1)[token].item() for at, token in enumerate(told))


def test_log_likelihoods_of_what_follows_the_context(model: Any, tokenizer: Any) -> None:
    found = score(model, tokenizer, suite(item("w1 w2", "w3", "w4 w5 w6"), item("", "w3 w4", "w5")))
    wanted = [
        [plain(model, [3, 4], [5]), plain(model, [3, 4], [6, 7, 8])],
        [plain(model, [0], [5, 6]), plain(model, [0], [7])],
    ]
    assert np.array(found.loglikelihoods) == pytest.approx(np.array(wanted), rel=1e-5)
    assert (found.tokens, found.truncated) == (1 + 3 + 2 + 1, 0)


def test_the_likeliest_and_the_likeliest_a_character(model: Any, tokenizer: Any) -> None:
    found = score(model, tokenizer, several())
    for at, (values, one) in enumerate(zip(found.loglikelihoods, several().items, strict=True)):
        assert found.correct[at] == (max(values) == values[one.gold])
        each = [value / length for value, length in zip(values, one.lengths, strict=True)]
        assert found.normalised[at] == (max(each) == each[one.gold])
    assert found.correct.dtype == found.normalised.dtype == bool
    assert 0 < found.accuracy < 1 and found.accuracy == found.correct.mean()
    assert found.accuracy_norm == found.normalised.mean() != found.accuracy
    assert found.accuracy_error == pytest.approx(found.correct.std(ddof=1) / 40**0.5)


def test_a_text_that_begins_with_bos_in_letters_or_tokens_does_not_get_it_twice(model: Any, tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    found = score(model, tokenizer, suite(item("w1", "w2", "w3"), item("<s> w1", "w2", "w3"), item("", "<s> w2", "w3")))
    wanted = [plain(model, [0, 3], [4]), plain(model, [0, 3], [5])]
    assert found.loglikelihoods[0] == pytest.approx(wanted, rel=1e-5)
    assert found.loglikelihoods[1] == found.loglikelihoods[0]
    assert found.loglikelihoods[2] == pytest.approx([plain(model, [0], [4]), plain(model, [0], [5])], rel=1e-5)
    assert found.tokens == 6


def test_white_space_at_the_end_of_a_context_is_the_continuations(model: Any, tokenizer: Any) -> None:
    joined = [Item((("w1 w2", between + "w3"), ("w1 w2", between + "w4")), (2, 2), 0) for between in (" ", "\n ")]
    moved = [Item((("w1 w2" + at, "w3"), ("w1 w2" + at, "w4")), (2, 2), 0) for at in (" ", "\n ")]
    assert (
        score(model, tokenizer, suite(*joined)).loglikelihoods == score(model, tokenizer, suite(*moved)).loglikelihoods
    )
    assert choices._moved("a \n", "b") == ("a", " \nb")


def test_what_is_too_long_loses_its_beginning(model: Any, tokenizer: Any) -> None:
    """Of 64 positions, all of them are used."""
    long = list(range(10, 80))
    found = score(
        model, tokenizer, suite(item(words(*long), "w1", "w2 w3"), item(words(*long[:63]), "w1 w2", "w1 w2 w3"))
    )
    ids = [number + 2 for number in long]
    wanted = [
        [plain(model, ids[-64:], [3]), plain(model, ids[-63:], [4, 5])],
        [plain(model, ids[:63], [3, 4]), plain(model, ids[1:63], [3, 4, 5])],
    ]
    assert np.array(found.loglikelihoods) == pytest.approx(np.array(wanted), rel=1e-5)
    assert found.truncated == 3


def test_a_batch_changes_nothing_but_float_errors(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    together = score(model, tokenizer, several())
    for limits in ({"TOKENS_PER_BATCH": 1}, {"LOGIT_BYTES": 4 * 96 * 40}, {"TOKENS_PER_BATCH": 100}):
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(choices, name, value)
            apart = score(model, tokenizer, several())
        assert np.array(apart.loglikelihoods) == pytest.approx(np.array(together.loglikelihoods), abs=2e-5)
        assert (apart.correct == together.correct).all() and (apart.normalised == together.normalised).all()
    assert score(model, tokenizer, several()).loglikelihoods == together.loglikelihoods


def test_a_model_that_gives_all_logits_in_bfloat16(folder: Path, tokenizer: Any) -> None:
    class Whole(nn.Module):
        """Without `logits_to_keep`, as a PeftModel is."""

        def __init__(self) -> None:
            super().__init__()
            self.inner: Any = lorashear.load(folder)
            self.config = self.inner.config

        def forward(self, **given: Any) -> Any:
            assert "logits_to_keep" not in given
            return self.inner(**given)

    whole = Whole()
    found = score(whole, tokenizer, several())
    assert found.loglikelihoods == score(whole.inner, tokenizer, several()).loglikelihoods
    one = several().items[0]
    read = [int(word[1:]) + 2 for word in one.options[0][0].split()]
    told = [int(word[1:]) + 2 for word in one.options[2][1].split()]
    assert found.loglikelihoods[0][2] == pytest.approx(plain(whole.inner, read, told), rel=0.02)


def test_logits_are_computed_in_single(tokenizer: Any) -> None:
    """Of all tokens alike, where bfloat16 would say -4.56 for -log 96."""

    class Flat(nn.Module):
        config = LlamaConfig(vocab_size=96, max_position_embeddings=64)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 96, dtype=torch.bfloat16))

    found = score(
        Flat(),
        tokenizer,
        suite(item("w1", "w2 w3", "w4", gold=1), item("w1", "w3", "w4"), item("w1", "w3", "w4", gold=1)),
    )
    assert found.loglikelihoods[0] == pytest.approx([-2 * np.log(96), -np.log(96)], rel=1e-6)
    # of equals the first
    assert found.correct.tolist() == [True, True, False]


def test_few_sequences_for_many_options(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with one last token each share one, and the same option twice is scored the same."""
    rows: list[int] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: rows.append(len(given["input_ids"])) or forward(**given))
    found = score(model, tokenizer, suite(item("w1 w2", "w3", "w4", "w5"), item("w1 w2 w3", "w6 w7", "w6 w7", gold=1)))
    assert sum(rows) == 2
    first, second = found.loglikelihoods[1]
    assert first == second and not found.correct[1]


def test_a_limit_takes_the_first_and_progress_is_told(model: Any, tokenizer: Any) -> None:
    told: list[tuple[int, int]] = []
    found = score(model, tokenizer, several(), limit=5, progress=lambda done, of: told.append((done, of)))
    whole = score(model, tokenizer, several())
    assert np.array(found.loglikelihoods) == pytest.approx(np.array(whole.loglikelihoods[:5]), abs=2e-5)
    assert told[-1] == (15, 15) and len(found.correct) == 5
    assert len(score(model, tokenizer, several(), limit=1000).correct) == 40
    with pytest.raises(LorashearError, match="^limit is 0; ask for 1 item or more$"):
        score(model, tokenizer, several(), limit=0)


def test_the_models_mode_comes_back(model: Any, tokenizer: Any) -> None:
    model.train()
    score(model, tokenizer, suite(item("w1", "w2", "w3")))
    assert all(module.training for module in model.modules())
    model.eval()


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (
            item("w1", words(*range(65)), "w2"),
            "mine, item 2, option 1: its continuation has 65 tokens and the model 64 positions; "
            "drop the item or take a model with more",
        ),
        (
            Item((("w1", " w2"), ("w1", " \u2028")), (2, 1), 0),
            "mine, item 2, option 2: the tokenizer makes no token of its continuation; mend it or drop the item",
        ),
    ],
)
def test_an_option_that_cannot_be_scored(model: Any, tokenizer: Any, one: Item, sentence: str) -> None:
    with pytest.raises(LorashearError) as caught:
        score(model, tokenizer, suite(item("w1", "w2", "w3"), one))
    assert str(caught.value) == sentence


def test_no_context_and_no_token_to_put_there(model: Any, tokenizer: Any) -> None:
    tokenizer.bos_token = None
    assert score(model, tokenizer, suite(item("", "w1", "w2"))).tokens == 2  # EOS, then
    tokenizer.eos_token = None
    assert score(model, tokenizer, suite(item("w1", "w1", "w2"))).tokens == 2
    with pytest.raises(LorashearError, match="^mine has items without a context, and the tokenizer neither a BOS nor"):
        score(model, tokenizer, suite(item("w1", "w1", "w2"), item("", "w1", "w2")))


def test_where_a_model_says_how_much_it_reads(tokenizer: Any) -> None:
    def said(config: Any) -> int:
        return positions(SimpleNamespace(config=config), tokenizer)

    assert said(GPT2Config(n_positions=77)) == 77
    assert said(LlamaConfig(max_position_embeddings=88)) == 88
    assert said(MambaConfig()) == 2048
    tokenizer.model_max_length = 99
    assert said(MambaConfig()) == 99
