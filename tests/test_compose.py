"""Composed operators: what is found in which model, and that nothing but the text changes."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lorashear_ir.functions import canonical, expand
from lorashear_ir.graph import Graph
from lorashear_ir.text import TextError, parse, show
from lorashear_passes.capture import capture
from lorashear_passes.compose import compose
from lorashear_passes.flow import Flow
from lorashear_passes.groups import group
from lorashear_passes.infer import infer
from lorashear_passes.outline import outline

LAYERS = 2
SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    sliding_window=4,
    rotary_dim=4,
    pad_token_id=0,
    num_local_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=20,
)
LATENT = dict(
    head_dim=4,
    num_key_value_heads=4,
    kv_lora_rank=12,
    q_lora_rank=10,
    qk_rope_head_dim=4,
    qk_nope_head_dim=6,
    v_head_dim=6,
    n_routed_experts=4,
    n_group=2,
    topk_group=1,
    first_k_dense_replace=1,
)


def build(family: str, *, attention: str | None = None, **sizes: Any) -> nn.Module:
    known = AutoConfig.for_model(family)
    names = set(known.to_dict()) | set(known.attribute_map)
    config = type(known)(**{name: value for name, value in (SIZES | sizes).items() if name in names})
    config._experts_implementation = "batched_mm"
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def adapted(**options: Any) -> nn.Module:
    peft = pytest.importorskip("peft")
    adapters = options.pop("adapters", ("default",))
    config = peft.LoraConfig(r=4, target_modules="all-linear", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model = peft.get_peft_model(build("llama"), config, adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, config)
    if len(adapters) > 1:
        model.base_model.set_adapter(list(adapters))
    return model.to("meta")


# What each model is, and how often a decoder layer has each composed operator; the rest stands outside the layers.
MODELS: dict[str, tuple[Any, str, str]] = {
    "llama": (lambda: build("llama"), "2 rms_norm, rope, attention, gated_mlp", "rms_norm"),
    "llama eager": (
        lambda: build("llama", attention="eager"),
        "2 rms_norm, rope, attention, gated_mlp",
        "rms_norm",
    ),
    "qwen3": (lambda: build("qwen3"), "4 rms_norm, rope, attention, gated_mlp", "rms_norm"),
    "gemma2 eager": (
        lambda: build("gemma2", attention="eager"),
        "4 rms_norm, rope, attention, gated_mlp",
        "rms_norm",
    ),
    "gemma3": (lambda: build("gemma3_text"), "6 rms_norm, rope, attention, gated_mlp", "rms_norm"),
    "gpt2": (lambda: build("gpt2"), "attention, mlp", ""),
    "gpt_neox": (lambda: build("gpt_neox"), "rope, attention, mlp", ""),
    "gptj": (lambda: build("gptj"), "2 rope, attention, mlp", ""),
    "falcon": (lambda: build("falcon"), "rope, attention, mlp", ""),
    "bloom": (lambda: build("bloom"), "attention, mlp", ""),
    "phi3": (lambda: build("phi3"), "2 rms_norm, rope, attention, gated_mlp", "rms_norm"),
    "olmo2": (lambda: build("olmo2"), "4 rms_norm, rope, attention, gated_mlp", "rms_norm"),
    "cohere": (lambda: build("cohere"), "layer_norm, rope, attention, gated_mlp", "layer_norm"),
    "gpt_oss": (lambda: build("gpt_oss"), "2 rms_norm, rope, attention, experts", "rms_norm"),
    "mixtral": (lambda: build("mixtral"), "2 rms_norm, rope, attention, experts", "rms_norm"),
    # All experts run at once, beside a shared gated MLP.
    "llama4": (lambda: build("llama4_text"), "2 rms_norm, 2 rope, attention, experts, gated_mlp", "rms_norm"),
    # An activation that is learnt; a norm inside the MLP.
    "apertus": (lambda: build("apertus"), "4 rms_norm, rope, attention, mlp", "rms_norm"),
    "bitnet": (lambda: build("bitnet"), "3 rms_norm, rope, attention, gated_mlp", "rms_norm"),
    # One layer is dense, the other has experts and a shared gated MLP.
    "deepseek_v3": (
        lambda: build("deepseek_v3", **LATENT),
        "4 rms_norm, rope, attention, gated_mlp",
        "rms_norm, experts",
    ),
    "lora": (
        adapted,
        "2 rms_norm, 4 lora_linear, rope, attention, gated_mlp",
        "rms_norm",
    ),
    "rslora, two adapters": (
        lambda: adapted(use_rslora=True, adapters=("first", "second"), lora_dropout=0.1),
        "2 rms_norm, 4 lora_linear, rope, attention, gated_mlp",
        "rms_norm",
    ),
    "dora": (
        lambda: adapted(use_dora=True),
        "2 rms_norm, 4 lora_linear, rope, attention, gated_mlp",
        "rms_norm",
    ),
}


@cache
def captured(name: str) -> Graph:
    inputs = {"input_ids": torch.zeros(2, 5, dtype=torch.long, device="meta"), "use_cache": False}
    return capture(MODELS[name][0](), inputs)


def counted(words: str) -> Counter[str]:
    count: Counter[str] = Counter()
    for word in filter(None, words.split(", ")):
        number, _, kind = word.rpartition(" ")
        count[kind] += int(number or 1)
    return count


def found(graph: Graph) -> Counter[str]:
    kinds = {function.name: function.kind for function in graph.functions}
    return Counter(kinds[node.op] for node in graph.nodes if node.op in kinds)


@pytest.mark.parametrize("name", MODELS)
def test_composition(name: str) -> None:
    graph = captured(name)
    composed = compose(graph)

    _, layer, outside = MODELS[name]
    wanted = counted(outside)
    for _ in range(LAYERS):
        wanted += counted(layer)
    assert found(composed) == wanted

    assert parse(show(composed)) == composed
    assert canonical(expand(composed)) == canonical(graph)


@pytest.mark.parametrize("name", sorted(MODELS.keys()))  # phi3 slices a dim of size 0: no rule for that yet
def test_groups_are_the_same_with_and_without(name: str) -> None:
    typed = infer(captured(name))
    composed = compose(typed)
    assert parse(show(composed)) == composed
    assert dict(group(composed)) == dict(group(typed))
    assert dict(group(infer(compose(captured(name))))) == dict(group(typed))


def test_text_of_a_llama_layer(pytestconfig: pytest.Config) -> None:
    """A decoder layer fits on a screen, and reads as the model does."""
    golden = Path(__file__).parent / "text" / "llama_layer.txt"
    composed = compose(infer(captured("llama")))
    functions = show(Graph("", (), (), (), functions=composed.functions)).splitlines()[1:-1]
    layer = [line for line in str(composed).splitlines() if '@ "model.layers.0' in line]
    assert len(layer) < 30
    assert [line for line in layer if len(line) > 160 and "rope" not in line] == []  # which prints two typed values
    assert "\n".join([*functions, "", *layer, ""]) == golden.read_text()


def test_layers_share_functions() -> None:
    composed = compose(captured("llama"))
    assert [f.name for f in composed.functions] == ["rms_norm.0", "rope.0", "attention.0", "gated_mlp.0"]
    nested = compose(captured("lora")).functions[-1]
    assert [node.op for node in nested.nodes] == ["lora_linear.2", "silu", "lora_linear.2", "mul", "lora_linear.3"]


class Plain(nn.Module):
    """What looks like composed operators and is not quite."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.a(x))  # used twice, so not the inside of an MLP
        return self.b(hidden) + hidden, self.c(self.a(x))  # two linear layers without a nonlinearity


def test_what_is_used_elsewhere_or_lacks_a_part_is_left() -> None:
    graph = capture(Plain(), {"x": torch.zeros(2, 6)})
    assert compose(graph) == graph
    assert canonical(expand(compose(graph))) == canonical(graph)


class Crossed(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = x.sin(), y.cos()
        return a.relu() * b, b.relu() * a


def test_regions_that_need_each_other_are_not_both_folded() -> None:
    """a and b' need each other, though no path leaves and re-enters either alone."""
    flow = Flow(capture(Crossed(), {"x": torch.zeros(2, 3), "y": torch.zeros(2, 3)}))
    assert [node.op for node in flow.nodes] == ["sin", "cos", "relu", "mul", "relu", "mul"]
    graph = outline(flow, "pair", [frozenset({0, 5}), frozenset({1, 3}), frozenset({0, 2})])
    assert [node.op for node in graph.nodes].count("pair.0") == 1
    assert canonical(expand(graph)) == canonical(flow.graph)


def test_a_region_that_a_path_leaves_and_re_enters_is_left() -> None:
    chain = capture(nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid()), {"input": torch.zeros(2, 3)})
    assert outline(Flow(chain), "ends", [frozenset({0, 2})]) == chain


def test_text_of_a_weight_that_is_not_there() -> None:
    with pytest.raises(TextError, match=r"line 2: there is no parameter or buffer a\.weight"):
        parse('graph G\n%x f32[2] = relu(.weight) @ "a"\nreturn %x\n')
