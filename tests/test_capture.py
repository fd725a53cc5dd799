"""Capture: a recorded forward is the graph that torch.export gives, the model stays as it was, errors say where."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
)

import lorashear
from lorashear_ir.graph import Argument, Graph, Ref
from lorashear_passes.capture import CaptureError, capture, export
from lorashear_passes.infer import infer
from lorashear_passes.record import CannotRecord, record
from lorashear_passes.tracing import whole_experts

IDS = {"input_ids": torch.zeros(2, 5, dtype=torch.long), "use_cache": False}
SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
HEADS = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}


def causal(config: PreTrainedConfig, device: str = "meta") -> nn.Module:
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config).eval()


class Net(nn.Module):
    """Convolutions, every kind of source, changes in place, nested inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2))
        self.again = self.body[0]
        self.head = nn.Linear(8, 10)
        self.layer = nn.TransformerEncoderLayer(10, 2, 12, batch_first=True)
        self.scale = torch.ones(10)
        self.register_buffer("passing", torch.ones(10), persistent=False)
        self.register_buffer("unused", torch.ones(10), persistent=False)

    def forward(self, x: torch.Tensor, more: dict[str, Any]) -> dict[str, Any]:
        y = self.head(self.body(x).mean((2, 3))) * self.scale + self.passing + torch.tensor([2.0, 1.0] * 5)
        y += more["Shift"][0]
        y[:, 0] = float(torch.tensor(3.0))
        values, where = self.layer(y.unsqueeze(1)).squeeze(1).topk(2)
        return {"values": values, "pair": (where, y), "same": x, "number": 3}


NET_INPUTS = {"x": torch.zeros(2, 3, 9, 9), "more": {"Shift": [torch.zeros(10)]}}
FAMILIES: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "llama": lambda: (causal(LlamaConfig(**HEADS)), on_meta()),
    "llama, tied, real, mask": lambda: (
        causal(LlamaConfig(**HEADS, tie_word_embeddings=True), "cpu").bfloat16(),
        {**IDS, "attention_mask": torch.ones(2, 5, dtype=torch.long)},
    ),
    "gpt2": lambda: (causal(GPT2Config(**SIZES)), on_meta()),
    "bloom": lambda: (causal(BloomConfig(**SIZES)), on_meta()),
    "gemma3": lambda: (causal(Gemma3TextConfig(**HEADS)), on_meta()),
    "mixtral": lambda: (causal(MixtralConfig(**HEADS, num_local_experts=4)), on_meta()),
    "mamba": lambda: (causal(MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, state_size=6)), on_meta()),
    "bert": lambda: (BertModel(BertConfig(**SIZES, intermediate_size=48)).eval(), {"input_ids": IDS["input_ids"]}),
    "peft": lambda: (
        get_peft_model(causal(LlamaConfig(**HEADS), "cpu"), LoraConfig(target_modules=["q_proj"], r=3)).eval(),
        IDS,
    ),
    "convolutions": lambda: (Net().eval(), NET_INPUTS),
}


def on_meta() -> dict[str, Any]:
    return {**IDS, "input_ids": IDS["input_ids"].to("meta")}


def renumbered(graph: Graph) -> Graph:
    """The graph with values named by their order, sources by their paths."""
    paths = {s.path: re.sub(r"lifted_tensor_\d+", "lifted_tensor", s.path) for s in graph.sources}
    graph = replace(graph, sources=tuple(replace(s, path=paths[s.path]) for s in graph.sources))
    sources = sorted(graph.sources, key=lambda each: (each.role, each.path))
    names = {each.value.name: f"s{i}" for i, each in enumerate(sources)}
    made = [value for node in graph.nodes for value in node.outputs]
    names |= {value.name: f"v{i}" for i, value in enumerate(made)}

    def argument(given: Argument) -> Argument:
        if isinstance(given, Ref):
            return Ref(names[given.name])
        return tuple(map(argument, given)) if isinstance(given, tuple) else given

    return replace(
        graph,
        sources=tuple(replace(s, value=replace(s.value, name=names[s.value.name])) for s in sources),
        nodes=tuple(
            replace(
                node,
                arguments=tuple(map(argument, node.arguments)),
                outputs=tuple(replace(value, name=names[value.name]) for value in node.outputs),
            )
            for node in graph.nodes
        ),
        outputs=tuple(names[name] for name in graph.outputs),
    )


def numberless(graph: Graph) -> Graph:
    return replace(graph, sources=tuple(replace(each, holds="") for each in graph.sources))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
@pytest.mark.parametrize("family", FAMILIES)
def test_a_recording_is_the_exported_graph(family: str) -> None:
    model, inputs = FAMILIES[family]()
    with whole_experts(model):
        recorded = record(model, inputs)
        exported = export(model, inputs)
    if any(each.role == "constant" and not each.holds for each in exported.sources):
        # torch 2.11 exports the constants of a model on the meta device without their numbers.
        assert str(renumbered(numberless(recorded))) == str(renumbered(numberless(exported)))
    else:
        assert str(renumbered(recorded)) == str(renumbered(exported))
    assert lorashear.parse(str(recorded)) == recorded


def test_names_are_those_of_the_operators_and_paths() -> None:
    model, inputs = FAMILIES["convolutions"]()
    graph = record(model, inputs)
    found = {each.path: (each.role, each.value.name) for each in graph.sources}
    assert found["x"] == ("input", "x")
    assert found["more_shift_0"] == ("input", "more_shift_0")
    assert found["body.0.weight"] == ("parameter", "p_body_0_weight")
    assert found["body.1.running_mean"] == ("parameter", "b_body_1_running_mean")  # stored, so it can be sliced
    assert found["passing"] == ("buffer", "b_passing")
    assert found["scale"] == ("constant", "c_scale")
    assert found["lifted_tensor_0"] == ("constant", "c_lifted_tensor")
    assert "unused" not in found
    assert [node.outputs[0].name for node in graph.nodes if node.op == "linear"] == [
        *("linear", "linear_1", "linear_2", "linear_3", "linear_4")
    ]
    assert str(record(model, inputs)) == str(graph)


def test_autocast_and_grad_modes_leave_no_trace() -> None:
    """torch.export folds such a block into one operator that no rule could type."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
                return self.inner(x)

    graph = capture(Mixed(), {"x": torch.zeros(2, 4)})
    assert [(node.op, node.module, node.outputs[0].dtype) for node in graph.nodes] == [("linear", "inner", "bf16")]


def test_what_cannot_be_recorded_is_exported() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.vmap(self.inner)(x)

    model, inputs = Mapped(), {"x": torch.zeros(2, 4)}
    with pytest.raises(CannotRecord, match="no operator shows"):
        record(model, inputs)
    assert "linear" in [node.op for node in capture(model, inputs).nodes]


class Looping(nn.Module):
    """Experts in a loop over those that some token chose, found among so many classes."""

    classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 6)), nn.Parameter(torch.randn(4, 6, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).topk(2)
        result = torch.zeros_like(x)
        mask = F.one_hot(chosen, self.classes).permute(2, 1, 0)
        for (expert,) in mask.sum((-1, -2)).nonzero():
            slot, token = torch.where(mask[expert])
            hidden = F.relu(F.linear(x[token], self.up[expert]))
            result.index_add_(0, token, F.linear(hidden, self.down[expert]) * weights[token, slot, None])
        return result


def test_a_loop_over_what_was_chosen_goes_over_everything() -> None:
    """The width of the experts is one group, whichever of them this token chooses; no expert is a structure."""
    torch.manual_seed(0)
    model, x = Looping(), torch.randn(1, 6)
    found = lorashear.groups(model, inputs={"x": x})
    width = next(each for each in found.values() if ("up", 1) in each.slots)
    assert width.prunable and set(width.slots) == {("up", 1), ("down", 2)}
    assert not any(("up", 0) in each.slots for each in found.values())


def test_where_everything_is_too_much_choices_are_made_up() -> None:
    """A mask with a class more than there are experts, as DBRX has it: no token ever chooses that one."""
    model = Looping()
    model.classes = 5
    found = lorashear.groups(model, inputs={"x": torch.randn(3, 6)})
    assert {each.name for each in found.values() if each.prunable} == {"ffn"}


class Counting(nn.Module):
    """How many tokens each expert gets is read out of a tensor, as in JetMoE; the split goes by it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 6)), nn.Parameter(torch.randn(4, 6, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, chosen = self.router(x).topk(2)
        counts = torch.zeros(len(x), 4).scatter(1, chosen, 1).long().sum(0).tolist()
        order = chosen.flatten().sort()[1]
        parts = x[order // 2].split(counts)
        made = [F.relu(part @ up.T) @ down.T for part, up, down in zip(parts, self.up, self.down, strict=True)]
        return torch.zeros_like(x).index_add(0, order // 2, torch.cat(made))


def test_numbers_of_tokens_are_made_up() -> None:
    model, x = Counting(), torch.randn(5, 6)
    found = lorashear.groups(model, inputs={"x": x})
    width = next(each for each in found.values() if ("up", 1) in each.slots)
    assert width.prunable and set(width.slots) == {("up", 1), ("down", 2)}
    ops = [node.op for node in capture(model, {"x": x}).nodes]
    assert "index" in ops and "slice" not in ops  # an index that was made up is none that is known


def test_what_a_loop_over_everything_cannot_do_is_said() -> None:
    model = Looping()
    model.up = nn.Parameter(model.up[:3])
    sentence = r"index 3 is out of bounds .* where nonzero_numpy was taken to find every place"
    with pytest.raises(lorashear.LorashearError, match=sentence):
        lorashear.groups(model, inputs={"x": torch.randn(3, 6)})


def test_a_graph_module_keeps_its_module_paths() -> None:
    model = Net().eval()
    program = torch.export.export(model, (), NET_INPUTS, strict=False)
    graph = capture(program.module(), NET_INPUTS)
    assert {"body.0", "layer.self_attn", "head"} <= {node.module for node in graph.nodes}


class Forgetful(nn.Module):
    """Its forward assigns whatever it can, and then may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
        self.tied = self.inner[0]
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.kept: list[torch.Tensor] = []
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept.append(x)
        self.cache = self.inner(x)
        self.seen = self.cache.sum(0)
        self.register_buffer("late", self.cache)
        self.inner.register_forward_hook(lambda *_: None)
        if self.fails:
            raise RuntimeError("not today.")
        return self.cache


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = Forgetful().train()
    model.inner.eval()
    model.fails = fails
    tensors = [*model.named_parameters(), *model.named_buffers()]
    before = [(name, id(tensor), tensor.clone()) for name, tensor in tensors]
    attributes = [(m, list(vars(m)), m.training, list(m._forward_hooks)) for m in model.modules()]
    called, flags = nn.Module.__call__, (torch.compiler.is_compiling(), torch.compiler.is_exporting())
    if fails:
        with pytest.raises(CaptureError, match=r"^Forgetful cannot be traced with inputs x: not today$"):
            capture(model, {"x": torch.zeros(2, 4)})
    else:
        capture(model, {"x": torch.zeros(2, 4)})
    after = [*model.named_parameters(), *model.named_buffers()]
    assert [(name, id(tensor)) for name, tensor in after] == [(name, key) for name, key, _ in before]
    assert all(torch.equal(tensor, old) for (_, tensor), (_, _, old) in zip(after, before, strict=True))
    assert [(m, list(vars(m)), m.training, list(m._forward_hooks)) for m in model.modules()] == attributes
    assert model.kept == []
    assert nn.Module.__call__ is called
    assert (torch.compiler.is_compiling(), torch.compiler.is_exporting()) == flags
    assert model(torch.ones(2, 4)).shape == (2, 4) if not fails else True


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if x.sum() > 0 else x


class Picked(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x[x.sum(1) > 0])


class Hidden(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.data)


class Opaque(Gate):
    def forward(self, x: torch.Tensor) -> Any:
        return object()


@pytest.mark.parametrize(
    ("model", "inputs", "sentence"),
    [
        (
            nn.Sequential(nn.Linear(4, 4), Gate()),
            ["input"],
            "Sequential cannot be traced with inputs input: its control flow depends on data: a number is read out of a tensor in module 1",
        ),
        (Picked(), ["x"], "Picked cannot be traced with inputs x: a shape depends on data: aten.nonzero.default"),
        (Gate(), ["y"], "Gate cannot be traced with inputs y: Gate.forward() got an unexpected keyword argument 'y'"),
        (
            Gate(),
            [],
            "Gate cannot be traced without inputs: Gate.forward() missing 1 required positional argument: 'x'",
        ),
        (
            nn.Sequential(nn.Linear(5, 4)),
            ["input"],
            "Sequential cannot be traced with inputs input: a and b must have same reduction dim, but got [2, 4] X [5, 4] in module 0",
        ),
        (
            Hidden(),
            ["x"],
            "Hidden cannot be traced with inputs x: a tensor comes from where no operator shows (as .data or vmap make it) in module inner",
        ),
        (Opaque(), ["x"], "Opaque cannot be traced with inputs x: the forward returns a object"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_errors_say_where(
    model: nn.Module, inputs: list[str], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(model, {name: torch.zeros(2, 4) for name in inputs})
    assert str(caught.value) == sentence
    assert capfd.readouterr() == ("", "")


def test_inference_finds_the_same_axes() -> None:
    model, inputs = FAMILIES["llama"]()
    assert infer(capture(model, inputs)).axes == infer(export(model, inputs)).axes
