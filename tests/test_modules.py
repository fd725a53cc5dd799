"""Small nets that the random programs do not draw: which of their axes may go, and that removed equals neutral for each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
)

import lorashear
from lorashear.errors import LorashearError
from lorashear.pruning import masked
from lorashear_ir.groups import Groups
from lorashear_ir.text import parse
from tools.cases import TOKENS, randomised, tiny
from tools.families import TOLERANCE

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """``down(middle(up(x)))``; twelve channels between, or those seen in another shape."""

    def __init__(self, middle: Callable[..., Tensor], *view: int, **held: Tensor) -> None:
        super().__init__()
        self.up, self.view, self.middle = nn.Linear(6, 12), view or (12,), middle
        self.held = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in held.items()})
        with torch.no_grad():
            self.down = nn.Linear(self.inside(X).shape[-1], 5)

    def inside(self, x: Tensor) -> Tensor:
        return self.middle(self.up(x).view(-1, *self.view), **dict(self.held)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.inside(x))


def rms(x: Tensor, eps: float = 1e-2) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def attended(x: Tensor, *, keys: int = 3, values: int = 3, query: Tensor | None = None) -> Tensor:
    """Attention over four places of three heads of which keys and values have fewer; the channels are 3 × 4 × 1."""
    q = (x if query is None else query)[..., None]
    return F.scaled_dot_product_attention(q, x[:, :keys, :, None], x[:, :values, :, None], scale=0.3)


def normed(x: Tensor, w: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-2).pow(-0.5) * w


ONE, HEADS, BOTH = torch.ones(1), torch.ones(4, 1), torch.ones(4, 3)

NETS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "a norm's weight along its channels": (lambda: Between(lambda x, w: rms(x) * w, w=torch.ones(12)), [12]),
    "a norm's weight for each head and channel": (lambda: Between(lambda x, w: rms(x) * w, 4, 3, w=BOTH), [3, 4]),
    "a norm with one gain for all": (lambda: Between(lambda x, w: rms(x) * w, w=ONE), []),
    "a norm with one gain for each head": (lambda: Between(lambda x, w: rms(x) * w, 4, 3, w=HEADS), [4]),
    "a norm over two dims": (lambda: Between(lambda x, w: F.rms_norm(x, (4, 3), w, 1e-2), 4, 3, w=BOTH), []),
    "a norm by a square root": (
        lambda: Between(lambda x, w: w * (x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-2)), w=torch.ones(12)),
        [12],
    ),
    "a norm by a square root upside down": (
        lambda: Between(lambda x, w: torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2) / x * w, w=torch.ones(12)),
        [],
    ),
    "a norm by a power, over dim 1 of 2": (lambda: Between(normed, w=torch.ones(12)), [12]),
    "a norm with torch's own eps": (
        lambda: Between(lambda x, w: F.rms_norm(1e-4 * x, (12,), w), w=torch.ones(12)),
        [12],
    ),
    "two norms of one weight": (
        lambda: Between(lambda x, w: rms(rms(x) * w + x) * w, w=torch.ones(12)),
        [12],
    ),
    "two norms of one weight, each with its eps": (
        lambda: Between(lambda x, w: rms(rms(x) * w + x, 0.3) * w, w=torch.ones(12)),
        [],
    ),
    "two norms of one weight, one of which adds 1": (
        lambda: Between(lambda x, w: rms(rms(x) * w + x) * (1 + w), w=torch.ones(12)),
        [],
    ),
    "hardtanh that keeps zero": (lambda: Between(lambda x: F.hardtanh(x).sum(-1, keepdim=True)), [12]),
    "hardtanh that does not": (lambda: Between(lambda x: F.hardtanh(x, 0.5, 1.0).sum(-1, keepdim=True)), []),
    "clamped from above": (lambda: Between(lambda x: x.clamp_max(0.2).sum(-1, keepdim=True)), [12]),
    "clamped below zero": (lambda: Between(lambda x: x.clamp_max(-0.2).sum(-1, keepdim=True)), []),
    "threshold": (lambda: Between(lambda x: F.threshold(x, 0.1, 0.0).sum(-1, keepdim=True)), [12]),
    "threshold with another value": (lambda: Between(lambda x: F.threshold(x, 0.1, 2.0).sum(-1, keepdim=True)), []),
    "places of maxima": (
        lambda: Between(
            lambda x: F.adaptive_max_pool2d(x, (1, 2), return_indices=True)[1].float().sum(1, keepdim=True), 3, 2, 2
        ),
        [],
    ),
    "dropped-out features": (lambda: Between(lambda x: F.dropout2d(x, training=False), 3, 2, 2), [2, 2, 3]),
    "addcmul": (lambda: Between(lambda x: torch.addcmul(x, x, x).sum(-1, keepdim=True)), [12]),
    "lerp": (lambda: Between(lambda x: torch.lerp(x, -x, 0.3).sum(-1, keepdim=True)), [12]),
    "broadcast together": (lambda: Between(lambda x: sum(torch.broadcast_tensors(x, x * 2))), [12]),  # type: ignore[arg-type]
    "turned": (lambda: Between(lambda x: x.mT, 3, 4), [3, 4]),
    "pixels": (lambda: Between(lambda x: F.pixel_shuffle(x, 2), 12, 1, 1), [3]),
    "one query for all": (
        lambda: Between(lambda x, q: attended(x, query=q), 3, 4, q=torch.ones(1, 3, 1)),
        [3],
    ),
    "one key for all heads": (lambda: Between(lambda x: attended(x, keys=1), 3, 4), [2]),
    "one value for all heads": (lambda: Between(lambda x: attended(x, values=1), 3, 4), [2]),
}


def between(groups: Groups) -> list[str]:
    return [name for name, each in groups.items() if each.prunable]


def difference(model: nn.Module, inputs: Any, removed: dict[str, list[int]], groups: Groups | None = None) -> float:
    """Between zeroed and removed, of the largest number; ``groups`` are the model's, where they are known."""

    def run(module: nn.Module) -> Tensor:
        with torch.inference_mode():
            made = module(**inputs) if isinstance(inputs, dict) else module(inputs)
        return made if isinstance(made, Tensor) else made[0]

    zero = copy.deepcopy(model)
    masked(zero, groups or lorashear.groups(model, inputs), removed)
    want, got = run(zero), run(lorashear.prune(model, removed, inputs))
    assert not torch.equal(want, run(model)), "nothing was removed that counts"
    return float((want - got).abs().max() / want.abs().max())


@pytest.mark.parametrize("name", NETS)
def test_what_may_go_goes_exactly(name: str) -> None:
    make, sizes = NETS[name]
    model = randomised(make())
    groups = lorashear.groups(model, X)
    assert sorted(groups[each].size for each in between(groups)) == sizes
    for each in between(groups):
        assert difference(model, X, {each: [0]}, groups) < TOLERANCE
    assert parse(str(lorashear.trace(model, X))) == lorashear.trace(model, X)


def test_indices_that_the_program_returns_are_not_renumbered() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.tags = nn.Linear(6, 7), nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.tags(F.relu(self.inner(x))).argmax(-1)

    groups = lorashear.groups(Tagger(), X)
    (tags,) = (each for each in groups.values() if ("tags.weight", 0) in each.slots)
    assert (tags.prunable, tags.reason) == (False, "the program's output holds indices into it")
    (inner,) = (each for each in groups.values() if ("inner.weight", 0) in each.slots)
    assert inner.prunable


@pytest.mark.parametrize(("highest", "prunable"), [(4, True), (3, False)])
def test_indices_held_within_what_they_point_into(highest: int, prunable: bool) -> None:
    """As classes do that mark a token without an expert by a number past the last."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.experts = nn.Linear(6, 5), nn.Parameter(torch.ones(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            scores, chosen = self.router(x).topk(2)
            return (self.experts[chosen.clamp(0, highest)] * scores.softmax(-1)[..., None]).sum(1)

    model = randomised(Experts())
    (expert,) = (each for each in lorashear.groups(model, X).values() if each.kind == "expert")
    assert expert.prunable is prunable
    if prunable:
        small = lorashear.prune(model, {expert.name: [1, 4]}, X)
        with torch.no_grad():  # a score that is never chosen
            model.router.weight[[1, 4]], model.router.bias[[1, 4]] = 0.0, -1e9
        assert torch.allclose(small(X), model(X), atol=1e-6)
    else:
        assert expert.reason == "clamp in the model counts with indices into it"


def test_a_number_that_a_class_makes_of_a_width_is_seen() -> None:
    """DeBERTa scales by a tensor made of the width of a head, in its forward."""
    config = DebertaV2Config(
        **{"vocab_size": 96, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "max_position_embeddings": 16, "position_buckets": 4},
        **{"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    )
    model, inputs = randomised(DebertaV2Model(config)), {"input_ids": TOKENS}
    groups = lorashear.groups(model, inputs)
    scaled = groups["encoder.layer.0.attention.self.channel"]
    assert not scaled.prunable
    assert "encoder.layer.0.attention.self.lifted_tensor_2 has constant" in scaled.reason
    for name in between(groups):
        assert difference(model, inputs, {name: [0]}, groups) < TOLERANCE


def test_a_number_in_a_users_own_llama_is_seen() -> None:
    class Scaled(LlamaForCausalLM):
        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            h = self.model.embed_tokens(input_ids)
            return super().forward(inputs_embeds=h * torch.tensor(h.shape[-1] ** 0.5), use_cache=False)

    groups = lorashear.groups(Scaled(tiny("llama")))
    assert not groups["hidden"].prunable
    assert "lifted_tensor_0 has constant" in groups["hidden"].reason
    assert {each.kind for each in groups.values() if each.prunable} == {"ffn", "head", "query"}


def test_towers_with_as_many_heads_are_told_apart() -> None:
    """One tower's heads cannot go, since its class asks more of their number; the other's can."""
    sides = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**sides, "vocab_size": 96, "max_position_embeddings": 8, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config={**sides, "image_size": 8, "patch_size": 4})
    model = randomised(SiglipModel(config))
    inputs = {"input_ids": TOKENS, "pixel_values": torch.randn(3, 3, 8, 8)}
    groups = lorashear.groups(model, inputs)
    heads = {name: each for name, each in groups.items() if each.kind == "head"}
    (text_heads,) = (name for name in heads if name.startswith("text_model"))
    assert heads[text_heads].prunable
    assert any(not each.prunable for each in heads.values())
    small = lorashear.prune(model, {text_heads: [0]}, inputs)
    assert small.get_parameter("text_model.encoder.layers.0.self_attn.q_proj.weight").shape == (12, 16)


def test_a_parameter_may_have_the_name_of_an_argument() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.x = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x) * self.x)

    model = randomised(Scaled())
    (name,) = between(lorashear.groups(model, X))
    assert difference(model, X, {name: [1, 2]}) < TOLERANCE


@pytest.mark.parametrize("name", ["code", "graph", "return"])
def test_names_that_no_captured_module_can_have(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(6, 8)
            self.add_module(name, nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, name)(self.up(x))

    (group,) = between(lorashear.groups(Named(), X))
    assert difference(Named().eval(), X, {group: [0]}) < TOLERANCE


@pytest.mark.parametrize("removed", [None, ["ffn"], "ffn"])
def test_a_plan_that_is_no_mapping(removed: Any) -> None:
    with pytest.raises(LorashearError, match=r"^prune takes structures by group name, as \{name: \[0, 1\]\}, and "):
        lorashear.prune(NETS["lerp"][0](), removed, X)


def test_a_model_that_python_cannot_copy() -> None:
    model = LlamaForCausalLM(tiny("llama"))
    model.kept = model.lm_head.weight * 2  # part of a computation, which autograd does not copy
    with pytest.raises(LorashearError, match="^LlamaForCausalLM cannot be copied, so no smaller one can be made of it"):
        lorashear.groups(model)


def test_a_class_that_goes_through_a_set() -> None:
    """Each deep copy of this set has the other order, as it can have with names too (Gemma 4's kinds of layers)."""

    class Ways(LlamaForCausalLM):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config)
            self.own = {7, 15}

        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            h = self.model.embed_tokens(input_ids)
            for way in self.own:
                h = h - 1 if way == 7 else torch.relu(h)
            return super().forward(inputs_embeds=h, use_cache=False)

    model = randomised(Ways(tiny("llama")))
    assert [*copy.deepcopy(model.own)] != [*model.own]
    groups = lorashear.groups(model)
    removed = {name: [0] for name, each in groups.items() if each.kind == "ffn"}
    small = lorashear.prune(model, removed)
    masked(model, groups, removed)
    assert torch.allclose(small(TOKENS).logits, model(TOKENS).logits, atol=1e-4)


class Mixed(nn.Module):
    """Twice two linear maps with ``between`` in the middle."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.up, self.down, self.way = nn.Linear(6, 12), nn.Linear(12, 5), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "one by one":
            return torch.vmap(lambda row: self.down(torch.relu(self.up(row))))(x)
        if self.way == "where":
            rows, _ = torch.where(x > -9)
            return self.down(torch.relu(self.up(x[rows])))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.way == "autocast"):
            h = torch.relu(self.up(x))
        return self.down(h.float())


@pytest.mark.parametrize("way", ["one by one", "where", "autocast", "no autocast"])
def test_what_no_exported_program_can_keep_is_cut_in_its_modules(way: str) -> None:
    model = Mixed(way).eval()
    assert between(lorashear.groups(model, X)) == ["ffn"]
    assert type(lorashear.prune(model, {"ffn": [0]}, X)) is Mixed
    assert difference(model, X, {"ffn": [0, 5]}) < TOLERANCE


def test_an_operator_that_runs_a_program_of_its_own_freezes() -> None:
    class Flexible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 24), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.up(x).view(1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
            return self.down(flex_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[union-attr]

    groups = lorashear.groups(Flexible(), X)
    assert not between(groups)
    assert groups["up.channel"].reason == "flex_attention in the model has no rule"


def test_a_tensor_that_is_given_twice_is_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.down(self.a(x) * self.b(y))

    model, other = Two(), X + 1
    small = lorashear.prune(model, {}, (X, X))
    assert torch.allclose(small(X, other), model(X, other))


def test_a_program_is_as_its_module_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    small = lorashear.prune(model, {}, X)
    assert model.training and not small.training
    assert torch.allclose(small(X), model.eval()(X))


def test_widths_that_a_class_takes_only_together_are_frozen() -> None:
    """One number in its attention serves queries and keys, and values too."""
    config = DistilBertConfig(vocab_size=96, dim=16, n_layers=1, n_heads=4, hidden_dim=20)
    groups = lorashear.groups(DistilBertModel(config), {"input_ids": TOKENS})
    values = groups["transformer.layer.0.attention.channel"]
    assert values.reason.endswith("only together with others, as that of transformer.layer.0.attention.channel.2")
    assert between(groups) == ["transformer.layer.0.attention.head", "transformer.layer.0.ffn.ffn"]


def test_odd_names_in_the_text_of_a_graph() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module('with"quote', nn.Linear(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.nan_to_num(getattr(self, 'with"quote')(x), nan=0.0, posinf=float("inf"))

    graph = lorashear.trace(Odd(), X)
    assert parse(str(graph)) == graph
