"""The theorem: structures set to zero and structures removed compute the same function.

Every parameter and buffer is random, and the masked model must differ from the dense one, so that a plan that does
nothing cannot pass.
"""

from __future__ import annotations

import copy
import functools
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lorashear
from lorashear.pruning import masked, pruned
from lorashear_ir.groups import TensorCut

SHAPES = {
    "grouped-query": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "multi-head": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "multi-query": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "tied": {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "biases": {"num_attention_heads": 8, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
}
KINDS = [("head",), ("query",), ("ffn",), ("hidden",), ("head", "query", "ffn"), ("head", "query", "ffn", "hidden")]


def random_llama(shape: str, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    config = LlamaConfig(
        **{
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "rms_norm_eps": 1e-2,  # large, so that a forgotten correction of eps shows
            "max_position_embeddings": 64,
            **SHAPES[shape],
        }
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
        for buffer in model.buffers():
            buffer.copy_(torch.rand(buffer.shape, generator=generator))
    return model


@functools.cache
def groups_of(shape: str):
    """The groups of a shape; capture is the slow part of these tests."""
    return lorashear.groups(random_llama(shape))


def choose(groups, kinds: tuple[str, ...], seed: int, *, uniform: bool) -> dict[str, list[int]]:
    """A random plan that takes something from every group of the kinds that has something to give."""
    rng = random.Random(seed)
    removed: dict[str, list[int]] = {}
    count = {kind: rng.random() for kind in ("head", "query", "ffn", "hidden")}
    for name, group in groups.items():
        if group.kind not in kinds or not group.prunable:
            continue
        share = count[group.kind] if uniform else rng.random()
        take = max(1, min(group.axis.size - 1, int(share * group.axis.size)))
        removed[name] = [
            block * group.axis.size + i
            for block in range(group.blocks)
            for i in rng.sample(range(group.axis.size), take)
        ]
    return removed


def check(model: torch.nn.Module, groups, removed: dict[str, list[int]]) -> torch.nn.Module:
    zeroed = copy.deepcopy(model)
    masked(zeroed, groups, removed)
    small = pruned(model, model.config, groups, removed)
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        dense, want, got = (m(input_ids=tokens).logits.float() for m in (model, zeroed, small))
    scale = want.abs().max()
    assert (want - dense).abs().max() > 1e-2 * scale, "the plan changes nothing, so the test shows nothing"
    assert (want - got).abs().max() < 1e-4 * scale
    assert torch.equal(want.argmax(-1), got.argmax(-1))
    return small


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
@pytest.mark.parametrize("shape", SHAPES)
def test_zeroed_equals_removed_uniform(shape: str, kinds: tuple[str, ...]) -> None:
    model = random_llama(shape)
    groups = groups_of(shape)
    removed = choose(groups, kinds, seed=len(kinds), uniform=True)
    if not removed:
        assert (shape, kinds) in {("multi-head", ("query",)), ("multi-query", ("head",))}
        return
    check(model, groups, removed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES)
def test_zeroed_equals_removed_per_layer(shape: str, seed: int) -> None:
    model = random_llama(shape)
    groups = groups_of(shape)
    kinds = ("head", "query", "ffn", "hidden")[: 3 + seed % 2]
    check(model, groups, choose(groups, kinds, seed, uniform=False))


@pytest.fixture(scope="module")
def shipped_pair(shipped: Path):
    """The trained checkpoint in bfloat16, and its groups."""
    return LlamaForCausalLM.from_pretrained(shipped, dtype=torch.bfloat16).eval(), lorashear.groups(shipped)


@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "per layer"])
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_zeroed_equals_removed_on_the_shipped_checkpoint(shipped_pair, kinds: tuple[str, ...], uniform: bool) -> None:
    stored, groups = shipped_pair
    removed = choose(groups, kinds, seed=len(kinds) + uniform, uniform=uniform)
    check(copy.deepcopy(stored).float(), groups, removed)
    check_bits(stored, groups, removed)


def test_the_model_given_is_untouched() -> None:
    model = random_llama("tied")
    before = {name: p.clone() for name, p in model.named_parameters()}
    lorashear.prune(model, choose(groups_of("tied"), ("ffn",), 1, uniform=True))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def check_bits(model: torch.nn.Module, groups, removed: dict[str, list[int]]) -> None:
    small = dict(pruned(model, model.config, groups, removed).named_parameters())
    cuts = groups.cuts(removed)
    assert cuts
    for name, parameter in small.items():
        want, cut = model.get_parameter(name), cuts.get(name, TensorCut({}))
        if cut.scale != 1.0:
            assert "norm" in name  # fewer hidden channels: the mean is over fewer
            continue
        for dim, kept in cut.keep.items():
            want = want.index_select(dim, torch.tensor(kept))
        assert torch.equal(want.view(torch.int16), parameter.view(torch.int16)), name


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_tensors_are_sliced_bit_for_bit(shape: str, uniform: bool) -> None:
    groups = groups_of(shape)
    removed = choose(groups, ("head", "query", "ffn", "hidden"), 2, uniform=uniform)
    check_bits(random_llama(shape, torch.bfloat16), groups, removed)


def test_slices_partition_each_slot() -> None:
    groups = groups_of("grouped-query")
    for group in groups.values():
        for position, (name, dim) in enumerate(group.slots):
            owned = [i for s in range(group.size) for i in group.slices(s)[position][2]]
            assert len(owned) == len(set(owned)) or group.kind == "channel"
            assert set(owned) == set(range(groups.tensors[name][dim].size))
        assert group.parameters == groups.count() - groups.count({group.name: group.axis.size - 1}) or group.blocks > 1


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ({"model.layers.9.mlp.ffn": [0]}, "no group is called model.layers.9.mlp.ffn"),
        ({"model.layers.0.mlp.ffn": [40]}, "has structures 0 to 39; 40 is none of them"),
        ({"model.layers.0.mlp.ffn": [1, 1]}, "names a structure twice"),
        ({"model.layers.0.mlp.ffn": range(40)}, "would lose all its 40 structures"),
        ({"model.layers.0.self_attn.query": [0]}, "every block that stays must lose equally many"),
        ({"model.layers.0.self_attn.query": range(8)}, "would lose all"),
        ({"model.layers.0.self_attn.channel": [0]}, "no field of LlamaConfig sets this width alone"),
        ({"model.embed_tokens.channel": [0]}, "looks it up by an index computed from data"),
    ],
)
def test_impossible_selections_are_refused_in_one_sentence(removed: dict[str, list[int]], words: str) -> None:
    with pytest.raises(lorashear.LorashearError, match=words):
        model = random_llama("grouped-query")
        pruned(model, model.config, groups_of("grouped-query"), {name: list(i) for name, i in removed.items()})
