"""What models cost: the order of runs, medians and ratios with a clock that is given, bytes by their formulas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

import lorashear
from lorashear.errors import LorashearError
from lorashear.evaluation import speed
from lorashear.evaluation.bandwidth import cache_bytes, decode_bound, explained, read_bytes, weight_bytes
from lorashear.evaluation.greedy import Run, prompt_ids, run
from lorashear.evaluation.speed import Cost, measure, rotated, spread

LAYERS, KV_HEADS, HEAD_DIM, VOCABULARY, HIDDEN = 2, 2, 4, 53, 16


def tiny(tied: bool = False, **changed: Any) -> LlamaForCausalLM:
    shape = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": LAYERS}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 64}
    shape |= {"bos_token_id": None, "eos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**(shape | changed), tie_word_embeddings=tied)).eval()
    with torch.no_grad():  # the default initialisation predicts every token alike
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None: ...


class TestARun:
    def test_it_decodes_what_generate_does(self) -> None:
        model, ids = tiny(), prompt_ids(VOCABULARY, 2, 7)
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        read: list[torch.Tensor] = []
        model.register_forward_pre_hook(lambda _, __, named: read.append(named["input_ids"]), with_kwargs=True)
        run(model, ids, 5)
        assert torch.equal(torch.cat(read, dim=1), wanted[:, :-1])

    def test_the_prompt_gives_logits_of_its_last_position_alone(self) -> None:
        model, shapes = tiny(), []
        model.lm_head.register_forward_hook(lambda _, __, logits: shapes.append(tuple(logits.shape)))
        run(model, prompt_ids(VOCABULARY, 3, 7), 2)
        assert shapes == [(3, 1, VOCABULARY)] * 3

    def test_a_model_is_left_in_its_mode(self) -> None:
        model = tiny().train()
        run(model, prompt_ids(VOCABULARY, 1, 4), 1)
        assert model.training

    def test_without_a_cache_everything_is_read_again(self) -> None:
        class Bare(nn.Module):
            """Likes the last token best that it has read."""

            lengths: list[int] = []

            def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
                self.lengths.append(input_ids.shape[1])
                return SimpleNamespace(logits=nn.functional.one_hot(input_ids, VOCABULARY))

        done = run(Bare(), prompt_ids(VOCABULARY, 1, 4), 3)
        assert Bare.lengths == [4, 5, 6, 7]
        assert cache_bytes(done.cache) is None

    def test_a_state_space_goes_on_from_its_state(self) -> None:
        shape = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 4}
        model = MambaForCausalLM(MambaConfig(**shape)).eval()
        read: list[int] = []
        model.register_forward_pre_hook(lambda _, __, named: read.append(named["input_ids"].shape[1]), with_kwargs=True)
        done = run(model, prompt_ids(VOCABULARY, 1, 9), 2)
        assert read == [9, 1, 1]
        inner, kernel = 16, 4
        assert cache_bytes(done.cache) == 2 * inner * (kernel + 4) * 4


class TestMeasuring:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """Seconds for the first token and the rest: one round to warm up, then three of dense and pruned."""
        seconds = {
            "dense": [(9, 9), (1.0, 4.0), (2.0, 8.0), (4.0, 2.0)],
            "pruned": [(9, 9), (0.5, 1.0), (2.0, 4.0), (1.0, 4.0)],
        }
        order: list[str] = []

        def timed(model: Any, ids: torch.Tensor, tokens: int) -> Run:
            order.append(model.named)
            first, rest = seconds[model.named].pop(0)
            return Run(first, rest, {"keys": torch.zeros(ids.shape[0], tokens)})

        monkeypatch.setattr(speed, "run", timed)
        yield order

    def test_medians_of_rounds_and_ratios_within_them(self, clock: list[str]) -> None:
        models = {"dense": tiny(), "pruned": tiny()}
        for name, model in models.items():
            model.named = name  # pyright: ignore[reportAttributeAccessIssue]
        told: list[tuple[str, int, int]] = []
        dense, pruned = measure(
            models, batches=[2], prompt=8, tokens=4, rounds=3, progress=lambda *each: told.append(each)
        )
        assert clock == ["dense", "pruned", "pruned", "dense"] * 2
        assert told == [("speed", done, 8) for done in range(1, 9)]
        assert (dense.time_to_first_token, pruned.time_to_first_token) == (2.0, 1.0)
        assert (dense.prefill, pruned.prefill) == (8.0, 16.0)
        assert (dense.decode, pruned.decode) == (2.0, 2.0)  # equal medians, and yet
        assert (dense.decode_ratio, pruned.decode_ratio) == (1.0, 2.0)  # of 4, 2 and ½
        assert (dense.prefill_ratio, pruned.prefill_ratio) == (1.0, 2.0)  # of 2, 1 and 4
        assert dense.spread == pytest.approx((3.0 - 1.5) / 2.0)
        assert dense.cache_bytes == 2 * 4 * 4
        assert (dense.name, dense.batch, dense.prompt, dense.tokens, dense.rounds) == ("dense", 2, 8, 4, 3)

    def test_every_model_comes_first_in_turn(self) -> None:
        orders = [rotated("abc", turn) for turn in range(4)]
        assert ["".join(order) for order in orders] == ["abc", "bca", "cab", "abc"]
        following = ["".join(sum(orders, []))[i : i + 2] for i in range(11)]
        for name in "abc":
            assert len({pair[0] for pair in following if pair[1] == name}) > 1

    def test_spread(self) -> None:
        assert spread([4.0]) is None
        assert spread([4.0, 4.0]) == 0
        assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_real_models_of_every_batch_size(self, dtype: torch.dtype) -> None:
        models = {"wide": tiny().to(dtype), "narrow": tiny(intermediate_size=8, vocab_size=40).to(dtype)}
        costs = measure(models, batches=[1, 3], prompt=5, tokens=4, rounds=2, warm_up=0)
        assert [(cost.name, cost.batch) for cost in costs] == [(n, b) for b in (1, 3) for n in models]
        for cost in costs:
            entries = cost.batch * (5 + 4)
            assert cost.cache_bytes == LAYERS * 2 * KV_HEADS * HEAD_DIM * entries * dtype.itemsize
            assert cost.weight_bytes == weight_bytes(models[cost.name])
            assert cost.peak_bytes is None and "folder" in (cost.no_peak or "")
            assert cost.time_to_first_token > 0 and cost.decode > 0 and cost.prefill > 0
        assert costs[0].decode_bound == costs[0].decode_ratio == 1
        assert costs[1].decode_bound == costs[0].read_bytes / costs[1].read_bytes > 1

    @pytest.mark.slow
    def test_a_model_whose_layers_differ(self, folder: Path, tmp_path: Path) -> None:
        gone = {"model.layers.0.self_attn.head": [0, 2, 3], "model.layers.1.mlp.ffn": list(range(9))}
        lorashear.apply(lorashear.plan(folder, gone), folder, tmp_path / "pruned")
        models = {"dense": lorashear.load(folder), "pruned": lorashear.load(tmp_path / "pruned")}
        dense, pruned = measure(models, prompt=6, tokens=2, rounds=1, warm_up=0)
        assert (dense.cache_bytes, pruned.cache_bytes) == (2 * (4 + 4) * 8 * 8 * 2, 2 * (1 + 4) * 8 * 8 * 2)
        assert pruned.weight_bytes < dense.weight_bytes and pruned.decode_bound > 1 and pruned.spread is None

    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            ({"batches": [1, 0]}, "batches is 0, which leaves nothing to measure"),
            ({"batches": []}, "there is no batch size"),
            ({"prompt": 0}, "prompt is 0, which"),
            ({"tokens": 0}, "tokens is 0, which"),
            ({"rounds": 0}, "rounds is 0, which"),
            ({"warm_up": -1}, "warm_up is -1; it is a number of rounds"),
            ({"prompt": 60, "tokens": 5}, "one has 64 positions, and a prompt of 60 and 5 more tokens need 65"),
        ],
    )
    def test_what_cannot_be_measured(self, wrong: dict[str, Any], sentence: str) -> None:
        with pytest.raises(LorashearError, match=f"^{sentence}"):
            measure({"one": tiny()}, **wrong)

    def test_no_models_and_no_language_models(self) -> None:
        with pytest.raises(LorashearError, match="there is no model"):
            measure({})
        with pytest.raises(LorashearError, match="Linear has no config"):
            measure({"linear": nn.Linear(2, 2)})


class TestBytes:
    def test_tied_weights_count_once(self) -> None:
        apart, tied = tiny(), tiny(tied=True)
        assert weight_bytes(apart) - weight_bytes(tied) == VOCABULARY * HIDDEN * 4

    def test_a_table_that_is_only_looked_up_is_read_by_the_row(self) -> None:
        apart, tied = tiny(), tiny(tied=True)
        table = VOCABULARY * HIDDEN * 4
        every = sum(p.nbytes for p in apart.parameters())
        assert read_bytes(apart) == every - table + HIDDEN * 4
        assert read_bytes(apart, batch=3, cache=10) == every - table + 3 * HIDDEN * 4 + 10
        assert read_bytes(tied) == sum(p.nbytes for p in tied.parameters()) == every - table

    def test_positions_are_looked_up_too(self) -> None:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=20, n_embd=8, n_layer=1, n_head=2))
        assert read_bytes(model) == sum(p.nbytes for p in model.parameters()) - 19 * 8 * 4

    def test_a_cache_of_any_kind(self) -> None:
        class Slots:
            __slots__ = ("kept", "unset")

        keys, slots = torch.zeros(2, 3), Slots()
        slots.kept = torch.zeros(5, dtype=torch.bfloat16)
        around: dict[str, Any] = {"layers": [(keys, keys), slots], "again": keys[:], "model": nn.Linear(4, 4), "n": 7}
        around["itself"] = around
        assert cache_bytes(around) == 24 + 10
        assert cache_bytes(torch.zeros(1, 3).expand(50, 3)) == 12
        assert cache_bytes(None) is None

    def test_the_limit_is_the_ratio_of_bytes(self) -> None:
        dense, pruned = tiny(), tiny(intermediate_size=12)
        gone = LAYERS * 3 * 12 * HIDDEN * 4
        reads = read_bytes(dense)
        assert decode_bound(dense, pruned) == pytest.approx(reads / (reads - gone))
        assert decode_bound(dense, pruned, caches=(100, 50)) == pytest.approx((reads + 100) / (reads - gone + 50))


def cost(name: str, decode: float, ratio: float, read: int, limit: float) -> Cost:
    given = {"batch": 1, "prompt": 8, "tokens": 4, "rounds": 3, "time_to_first_token": 1.0, "prefill": 8.0}
    given |= {"spread": 0.0, "prefill_ratio": 1.0, "weight_bytes": read, "cache_bytes": 0, "no_peak": None}
    given |= {"prefill_noise": None, "decode_noise": None}
    given |= {"name": name, "decode": decode, "decode_ratio": ratio, "read_bytes": read, "decode_bound": limit}
    return Cost(**given, peak_bytes=None)


def test_a_ratio_is_noise_where_half_of_the_rounds_lie_around_one() -> None:
    assert speed.around_one([0.9, 1.0, 1.1, 1.3]) and speed.around_one([0.5, 1.5])
    assert speed.around_one([1.5, 1.6, 0.9, 1.7, 1.4]) is False and speed.around_one([0.8, 0.9, 0.7]) is False
    assert speed.around_one([1.2]) is None


class TestExplaining:
    def test_what_does_not_shrink_is_the_rest_of_the_time(self) -> None:
        """100 ms dense and 60 ms pruned at half the bytes: 80 ms go into reading 2 GB, 40 into 1 GB, 20 into neither."""
        dense = cost("dense", 10, 1.0, 2 * 10**9, 1.0)
        said = explained(dense, cost("small", 1000 / 60, 10 / 6, 10**9, 2.0))
        assert "a step of dense reads 2.00 GB" in said and "of small 1.00 GB" in said
        assert "gains 2.00 times at most" in said and "it gained 1.67 times" in said
        assert "as if 20.0 of the 60.0 ms" in said and "the 100.0 ms of dense" in said

    def test_a_gain_that_the_bytes_explain(self) -> None:
        dense = cost("dense", 10, 1.0, 2 * 10**6, 1.0)
        assert "as if" not in explained(dense, cost("small", 20, 2.0, 10**6, 2.0))
        assert "as if" not in explained(dense, cost("same", 10, 1.0, 2 * 10**6, 1.0))
