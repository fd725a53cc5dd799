"""Errors: one sentence that names the operator, the module path and the axes, says what was found, and what to do."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CLIPConfig, CLIPModel, T5Config, T5ForConditionalGeneration, ViTModel

import lorashear
from lorashear.errors import Fault, LorashearError
from lorashear.models import analysed
from lorashear_ir.ops import TABLE
from lorashear_ir.ops.base import Dims
from test_bad_input import refused, run
from test_theorem import random_llama
from tools.cases import tiny

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.down(torch.relu(self.up(x) * scale))


class Branching(Inner):
    def forward(self, x, scale=1.0):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Picking(Inner):
    def forward(self, x, scale=1.0):
        return super().forward(x[x > 0].view(-1, 6))


class Failing(Inner):
    def forward(self, x, scale=1.0):
        raise RuntimeError("no such thing\nand more lines")


class Outer(nn.Module):
    def __init__(self, inner: type[nn.Module] = Inner) -> None:
        super().__init__()
        self.inner = inner()

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.inner(x, scale)


X = torch.ones(2, 6)


def sentence(call: Callable[[], object]) -> str:
    """The error of a call, which must be one line."""
    with pytest.raises(lorashear.LorashearError) as caught:
        call()
    said = str(caught.value)
    assert said and "\n" not in said
    return said


def test_a_rule_that_contradicts_itself(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of ours: exit code 1, and still one sentence."""
    right = TABLE["relu"]

    def swapped(node: Any, typing: Any) -> list[Dims]:
        return [tuple(reversed(dims)) for dims in right.type(node, typing)]

    monkeypatch.setitem(TABLE, "relu", replace(right, type=swapped))  # type: ignore[arg-type]
    wanted = (
        "the rule of relu in inner gives (dim 0 of inner.up.weight, dim 0 of x) for a result of shape [2, 8]; "
        "this is a fault of LoRAShear, not of the model: please report it"
    )
    for call in (
        lambda: lorashear.trace(Outer(), X),
        lambda: lorashear.groups(Outer(), X),
        lambda: lorashear.prune(Outer(), {}, X),
    ):
        assert sentence(call) == wanted
    with pytest.raises(Fault):
        lorashear.groups(Outer(), X)

    def failing(node: Any, typing: Any) -> list[Dims]:
        raise IndexError("tuple index out of range")

    monkeypatch.setitem(TABLE, "silu", replace(TABLE["silu"], type=failing))  # type: ignore[arg-type]
    assert run(monkeypatch, "groups", folder) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = (each for each in said.err.splitlines() if each.startswith("lorashear: "))
    assert said.err.rstrip().endswith(line) and "Traceback" not in said.err
    assert "the rule of silu in model.layers.0.mlp.act_fn fails with IndexError: tuple index out of range" in line
    assert "please report it" in line


@pytest.mark.parametrize(
    ("make", "inputs", "words"),
    [
        (Outer, None, "Outer is no transformers model: pass inputs; its forward takes x, scale"),
        (Outer, {}, "Outer cannot be called with these inputs: missing a required argument: 'x'; its forward takes x,"),
        (Outer, {"x": X, "y": X}, "unexpected keyword argument 'y'; its forward takes x, scale"),
        (Outer, (X, 1.0, X), "too many positional arguments; its forward takes x, scale"),
        (Outer, torch.ones(2, 5), r"Outer cannot be traced with inputs x: .*\[2, 5\] X \[6, 8\] in module inner.up$"),
        (Outer, "text", "Outer cannot be traced with inputs x: .* must be Tensor, not str in module inner.up$"),
        (
            lambda: nn.Sequential(nn.Linear(6, 6)),
            {"x": X},
            "missing a required argument: 'input'; its forward takes input",
        ),
    ],
)
def test_inputs_that_are_missing_or_wrong(make: Callable[[], nn.Module], inputs: Any, words: str) -> None:
    for call in (lorashear.trace, lorashear.groups, lambda m, i: lorashear.prune(m, {}, i)):
        assert re.search(words, sentence(functools.partial(call, make(), inputs)))


def test_a_model_that_is_called_with_more_than_token_ids() -> None:
    vision = ViTModel(tiny("vit", num_hidden_layers=1))
    assert re.match(
        "ViTModel needs pixel_values, not token ids alone: pass inputs; its forward takes pixel_values, ",
        sentence(lambda: lorashear.groups(vision)),
    )
    small = T5Config(vocab_size=96, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, decoder_start_token_id=0)
    assert re.match(
        "T5ForConditionalGeneration needs the inputs of its encoder and of its decoder, not token ids alone: pass inputs; "
        "its forward takes input_ids, attention_mask, decoder_input_ids",
        sentence(lambda: lorashear.groups(T5ForConditionalGeneration(small))),
    )
    layers = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    both = CLIPModel(CLIPConfig(text_config=layers, vision_config={**layers, "image_size": 8, "patch_size": 4}))
    assert re.search(
        "in module vision_model.embeddings; if it needs more than token ids, pass inputs$",
        sentence(lambda: lorashear.groups(both)),
    )


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (Branching, "its control flow depends on data: a number is read out of a tensor in module inner"),
        (Picking, "a shape depends on data: aten.nonzero.default in module inner"),
        (Failing, "no such thing in module inner"),
    ],
)
def test_a_model_that_cannot_be_traced(inner: type[nn.Module], words: str) -> None:
    for call in (
        lambda: lorashear.trace(Outer(inner), X),
        lambda: lorashear.groups(Outer(inner), X),
        lambda: lorashear.prune(Outer(inner), {}, X),
    ):
        assert sentence(call) == f"Outer cannot be traced with inputs x: {words}"


FFN, QUERY, HEAD = "model.layers.0.mlp.ffn", "model.layers.0.self_attn.query", "model.layers.0.self_attn.head"


@functools.cache
def llama() -> tuple[nn.Module, lorashear.Groups]:
    model = random_llama("grouped-query")
    return model, analysed(model)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        (
            {"model.layers.0.mlp.fn": [0]},
            f"no group is called model.layers.0.mlp.fn; the nearest name is {FFN}, and `lo",
        ),
        ({"?": [0]}, r"no group is called \?; the first of 16 is model.embed_tokens.channel, and `lorashear groups`"),
        ({FFN: [40]}, f"{FFN} has structures 0 to 39; 40 is none of them"),
        ({FFN: [-1]}, f"{FFN} has structures 0 to 39; -1 is none of them"),
        ({FFN: [2, 1, 1]}, rf"{FFN} names a structure twice: \[1, 1, 2\]"),
        ({FFN: 3}, f"{FFN} names structures by 3; give a list of their numbers"),
        ({FFN: "12"}, f"{FFN} names structures by '12'; give a list of their numbers"),
        ({FFN: ["a"]}, f"{FFN} names a structure 'a', which is no whole number"),
        ({FFN: [1.0]}, f"{FFN} names a structure 1.0, which is no whole number"),
        ({FFN: [True]}, f"{FFN} names a structure True, which is no whole number"),
        ({FFN: [torch.tensor(1)]}, rf"{FFN} names a structure tensor\(1\), which is no whole number"),
        ({QUERY: [0]}, rf"{QUERY} loses \[1, 0, 0, 0\] structures from its 4 blocks; every block that stays must"),
        ({QUERY: [0, 2, 4]}, r"loses \[1, 1, 1, 0\] structures from its 4 blocks; every block .* lose equally many"),
        ({HEAD: [3], QUERY: [0, 2]}, r"loses \[1, 1, 0, 0\] structures from its 4 blocks"),
        ({FFN: range(40)}, f"{FFN} would lose all its 40 structures; one must stay"),
        ({HEAD: range(4)}, f"{HEAD} would lose all its 4 structures; one must stay"),
        ({HEAD: [3], QUERY: range(6)}, f"{QUERY} would lose all 2 structures of a block; one must stay"),
        (
            {"model.layers.channel": [0]},
            "model.layers.channel cannot be pruned: it is a dim of model.rotary_emb.inv_freq, which is not stored but "
            r"recomputed from the config and read by \w+ in model.rotary_emb",
        ),
        (
            {"model.embed_tokens.channel": [0]},
            "cannot be pruned: embedding in model.embed_tokens looks it up by an index computed from data",
        ),
        (
            {"model.layers.0.self_attn.channel": [0]},
            r"LlamaForCausalLM cannot take these widths \(no config can express these widths: "
            r"model.layers.0.self_attn.channel 8 → 7\): .* in module model.layers.0.self_attn",
        ),
    ],
)
def test_a_plan_that_no_model_can_be_made_of(removed: dict[str, Any], words: str) -> None:
    assert re.search(words, sentence(lambda: lorashear.prune(llama()[0], removed)))


def test_numbers_may_come_in_an_array() -> None:
    model, groups = llama()
    for numbers in (np.array([1, 5]), torch.tensor([1, 5]), [np.int64(1), 5], {1, 5}):
        small = lorashear.prune(model, {FFN: numbers})
        assert small.get_parameter("model.layers.0.mlp.up_proj.weight").shape == (38, 32)
    with pytest.raises(KeyError, match=f"the nearest name is {FFN}"):
        groups["model.layers.0.mlp.fn"]


def test_too_few_experts_for_the_router() -> None:
    model = AutoModelForCausalLM.from_config(tiny("mixtral", num_hidden_layers=1))
    (expert,) = (name for name, each in analysed(model).items() if each.kind == "expert")
    assert sentence(lambda: lorashear.prune(model, {expert: range(7)})) == (
        f"{expert} would be left with 1 of its 8 structures; the router chooses 2 at a time"
    )


def test_too_few_experts_in_a_group_and_too_few_groups() -> None:
    fields = {"num_hidden_layers": 1, "first_k_dense_replace": 0, "num_experts_per_tok": 2}
    model = AutoModelForCausalLM.from_config(tiny("deepseek_v3", n_group=4, topk_group=2, **fields))
    groups = analysed(model)
    (expert,) = (each for each in groups.values() if each.kind == "expert")
    (segment,) = (each for each in groups.values() if ".mlp." in each.name and each.size == 4)
    assert (expert.size, expert.blocks, segment.size) == (8, 4, 4)
    every_first = [0, 2, 4, 6]
    assert re.search(
        f"{expert.name} would be left with 1 of 2 structures in a block; the router needs 2",
        sentence(lambda: lorashear.prune(model, {expert.name: every_first})),
    )
    assert re.search(
        "the router chooses 2 at a time",
        sentence(lambda: lorashear.prune(model, {segment.name: [0, 1, 2]})),
    )


def test_too_few_of_two_axes_that_are_chosen_among_together() -> None:
    class Grid(nn.Module):
        """Each row is one of 4 × 3, of which seven are chosen."""

        def __init__(self) -> None:
            super().__init__()
            self.rows, self.columns = nn.Linear(6, 4), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self.rows(x)[:, :, None] + self.columns(x)[:, None]
            return scores.flatten(1).topk(7)[0].sum(-1)

    groups = lorashear.groups(Grid(), X)
    rows, columns = (
        next(name for name, each in groups.items() if (weight, 0) in each.slots)
        for weight in ("rows.weight", "columns.weight")
    )
    lorashear.prune(Grid(), {rows: [0]}, X)
    lorashear.prune(Grid(), {columns: [0]}, X)
    assert sentence(lambda: lorashear.prune(Grid(), {rows: [0], columns: [0]}, X)) == (
        f"{rows} and {columns} would leave 6 to choose 7 from; remove fewer of them"
    )


def test_the_command_line_says_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig, ViTConfig

    vision = tmp_path / "vision"
    ViTConfig(num_hidden_layers=1).save_pretrained(vision)
    for verb in ("groups", "trace"):
        said = refused(monkeypatch, capsys, tmp_path, verb, vision)
        assert "no causal language model can be built from this vit config: ViTConfig is no decoder-only" in said
    config = AutoConfig.for_model("bert", architectures=["BertForMaskedLM"], num_hidden_layers=1)
    config.save_pretrained(tmp_path / "bert")
    said = refused(monkeypatch, capsys, tmp_path, "groups", tmp_path / "bert")
    assert "no causal language model can be built from this bert config: it is that of BertForMaskedLM" in said

    class Gate(nn.SiLU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) if input.max() > 1 else input

    def branching(*_: object, **__: object) -> nn.Module:
        model = random_llama("tied")
        model.get_submodule("model.layers.1.mlp").act_fn = Gate()
        return model

    monkeypatch.setattr("lorashear.models.as_module", branching)
    for verb in ("groups", "trace"):
        assert refused(monkeypatch, capsys, tmp_path, verb, folder) == (
            "lorashear: LlamaForCausalLM cannot be traced with inputs input_ids, use_cache: its control flow depends on "
            "data: a number is read out of a tensor in module model.layers.1.mlp.act_fn"
        )


@pytest.mark.parametrize(
    ("model", "what"), [(None, "a NoneType"), (nn.Linear, "the class Linear"), (len, "a builtin_function_or_method")]
)
@pytest.mark.parametrize("call", [lorashear.groups, lorashear.trace, lambda model: lorashear.prune(model, {})])
def test_what_is_no_model(call: Callable[[Any], Any], model: Any, what: str) -> None:
    sentence = f"^a model is a folder, a hub id or a torch module, and {what} is none: pass one of these$"
    with pytest.raises(LorashearError, match=sentence):
        call(model)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (torch.compile, "OptimizedModule only runs another module: pass that one, its attribute _orig_mod"),
        (nn.DataParallel, "DataParallel only runs another module: pass that one, its attribute module"),
        (
            torch.jit.script,
            "RecursiveScriptModule is TorchScript, whose operators are compiled: pass the module it was made from",
        ),
        (
            lambda module: nn.Sequential(module, nn.LazyLinear(4)),
            "Sequential has no shape yet for 1.weight: call it once with its inputs",
        ),
        (
            lambda module: torch.ao.quantization.quantize_dynamic(module, {nn.Linear}),
            "Sequential has quantised weights in module 0: prune first, quantise the result",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_module_that_hides_its_operators(wrap: Callable[[nn.Module], nn.Module], words: str) -> None:
    module = wrap(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)))
    for call in (lorashear.trace, lorashear.groups, lambda m, i: lorashear.prune(m, {}, i)):
        assert sentence(functools.partial(call, module, X)) == words


def test_an_error_of_one_word_says_its_kind() -> None:
    class Keyed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return {}["scale"] * x

    said = sentence(lambda: lorashear.groups(nn.Sequential(nn.Linear(6, 6), Keyed()), X))
    assert said == "Sequential cannot be traced with inputs input: KeyError 'scale' in module 1"
