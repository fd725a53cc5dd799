"""Results as ONNX graphs, run by ONNX Runtime; by onnxruntime-genai and OpenVINO where they are: `make test-onnx`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import lorashear
from lorashear.checkpoint import Checkpoint
from lorashear.engines import onnx_graph
from lorashear.engines.exporter import TARGETS
from lorashear.errors import LorashearError

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ([5], [3, 40, 41, 2], [9, 8, 7, 6, 5, 4, 3, 2])
TOKENS = 48
NAMES = ("uniform", "layers")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "models"


def needed(package: str) -> Any:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: make test-onnx")


def torch_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_greedy(folder: Path, prompt: list[int], count: int = TOKENS) -> list[int]:
    ids = torch.tensor([prompt])
    told = torch_model(folder).generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, min_new_tokens=count,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return told[0].tolist()


@pytest.fixture(scope="session")
def graphs(results: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("onnx") / name for name in NAMES}
    for name, out in made.items():
        assert lorashear.export(results[name], "onnx", out) == ""
    return made


class Session:
    """A graph in ONNX Runtime, with its cache."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        self.shapes = {each.name: each.shape for each in self.session.get_inputs()}
        self.past: dict[str, np.ndarray] = {}

    def __call__(self, ids: list[list[int]], mask: np.ndarray | None = None) -> np.ndarray:
        """Logits of new tokens behind those that it has read."""
        rows = np.array(ids)
        if not self.past:
            empty = {name: shape for name, shape in self.shapes.items() if name.startswith("past")}
            self.past = {n: np.zeros((len(rows), s[1], 0, s[3]), np.float32) for n, s in empty.items()}
        before = next(iter(self.past.values())).shape[2]
        if mask is None:
            mask = np.ones((len(rows), before + rows.shape[1]), np.int64)
        places = np.maximum(mask.cumsum(1) - 1, 0)[:, before:]
        given = {"input_ids": rows, "attention_mask": mask, "position_ids": places, **self.past}
        logits, *present = self.session.run(None, given)
        self.past = dict(zip(self.past, present, strict=True))
        return np.asarray(logits)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_those_of_torch(name: str, results: dict[str, Path], graphs: dict[str, Path]) -> None:
    for prompt in PROMPTS:
        run, told, new = Session(graphs[name]), list(prompt), list(prompt)
        for _ in range(TOKENS):
            new = [int(run([new])[0, -1].argmax())]
            told += new
        assert told == torch_greedy(results[name], prompt)
        assert len(set(told)) > 2


@pytest.mark.parametrize("name", NAMES)
def test_logits_at_any_length_and_with_padding(name: str, results: dict[str, Path], graphs: dict[str, Path]) -> None:
    ids = torch.randint(96, (2, 21), generator=torch.Generator().manual_seed(0))
    model = torch_model(results[name])
    with torch.inference_mode():
        want = model(ids).logits.numpy()
        alone = model(ids[1:, 4:]).logits.numpy()
    largest = 1e-4 * np.abs(want).max()
    assert np.abs(Session(graphs[name])(ids.tolist()) - want).max() < largest
    run, at = Session(graphs[name]), 0
    for count in (1, 7, 2, 11):
        assert np.abs(run(ids[:, at : at + count].tolist()) - want[:, at : at + count]).max() < largest
        at += count
    mask = np.ones((2, 21), np.int64)
    mask[1, :4] = 0
    padded = Session(graphs[name])(ids.tolist(), mask)
    assert np.abs(padded[0] - want[0]).max() < largest and np.abs(padded[1, 4:] - alone[0]).max() < largest


def test_each_layer_has_its_heads_and_the_folder_all_that_engines_want(graphs: dict[str, Path]) -> None:
    shapes = Session(graphs["layers"]).shapes
    assert shapes["input_ids"] == ["batch", "sequence"] and shapes["attention_mask"] == ["batch", "total"]
    assert [shapes[f"past_key_values.{layer}.key"] for layer in (0, 1)] == [
        ["batch", 3, "past", 8],
        ["batch", 2, "past", 8],
    ]
    names = {file.name for file in graphs["layers"].iterdir()}
    assert {"config.json", "genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"} <= names
    config = json.loads((graphs["layers"] / "genai_config.json").read_text())
    assert config["model"]["context_length"] == 64 and config["model"]["decoder"]["num_hidden_layers"] == 2


def test_in_half_the_bytes(results: dict[str, Path], graphs: dict[str, Path], tmp_path: Path) -> None:
    lorashear.export(results["uniform"], "onnx", tmp_path / "half", dtype="float16")
    half, whole = ((folder / "model.onnx.data").stat().st_size for folder in (tmp_path / "half", graphs["uniform"]))
    assert half < 0.6 * whole


def test_what_cannot_be_exported(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = TARGETS["onnx"].refusal
    source = Checkpoint.open(folder)

    def of(**changed: Any) -> str | None:
        return refusal(Checkpoint(source.folder, {**source.config, **changed}, source.tensors))

    assert of() is None
    assert of(sliding_window=32) == "not all of its layers attend to all tokens"
    assert of(layer_types=["full_attention", "linear_attention"]) == "not all of its layers attend to all tokens"
    assert (
        of(num_attention_heads=None, model_type="mamba") == "a mamba has no cache of keys and values that is known here"
    )

    def odd(*_: Any, **__: Any) -> Any:
        raise RuntimeError("cannot be said\nin ONNX")

    with monkeypatch.context() as patched:
        patched.setattr(onnx_graph.torch.onnx, "export", odd)
        with pytest.raises(
            LorashearError, match="^LlamaForCausalLM cannot be exported as an ONNX graph: cannot be said$"
        ):
            lorashear.export(folder, "onnx", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(LorashearError, match=r"pip install 'lorashear\[onnx\]'$"):
        lorashear.export(folder, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.onnx
@needed("openvino")
@pytest.mark.parametrize("per_layer", [False, True])
def test_small_trained_models(per_layer: bool, shipped: Path, tmp_path: Path) -> None:
    """The shipped one, and those of shared data."""
    for source in (shipped, *sorted(each for each in SHARED.glob("*") if each.is_dir())):
        small, out = tmp_path / source.name, tmp_path / f"{source.name}-onnx"
        lorashear.compile(source, 0.3, small, one_shot=True, per_layer=per_layer)
        lorashear.export(small, "onnx", out)
        for prompt in PROMPTS:
            run, told, new = Session(out), list(prompt), list(prompt)
            for _ in range(64):
                new = [int(run([new])[0, -1].argmax())]
                told += new
            assert told == torch_greedy(small, prompt, 64), source.name


@pytest.mark.onnx
@needed("onnxruntime_genai")
@pytest.mark.parametrize("name", NAMES)
def test_genai_tells_the_same_tokens(name: str, results: dict[str, Path], graphs: dict[str, Path]) -> None:
    import onnxruntime_genai as genai

    model = genai.Model(str(graphs[name]))
    for prompt in PROMPTS:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + TOKENS, min_length=len(prompt) + TOKENS, do_sample=False)
        generator = genai.Generator(model, params)
        generator.append_tokens(np.array([prompt], np.int32))
        for _ in range(TOKENS):
            generator.generate_next_token()
        assert list(generator.get_sequence(0)) == torch_greedy(results[name], prompt)


@pytest.mark.onnx
@needed("openvino")
@pytest.mark.parametrize("name", NAMES)
def test_openvino_tells_the_same_tokens_with_its_cache_as_a_state(
    name: str, results: dict[str, Path], graphs: dict[str, Path]
) -> None:
    import openvino
    from openvino import passes

    model = openvino.convert_model(graphs[name] / "model.onnx")
    # A state begins as its shape says, with nothing where that may be any number: a row is one.
    model.reshape({port: [1, *list(port.get_partial_shape())[1:]] for port in model.inputs})
    pairs = {}
    for port in model.inputs:
        kept = port.get_any_name()
        if kept.startswith("past_key_values."):
            pairs[kept] = kept.replace("past_key_values", "present")
    manager = passes.Manager()
    manager.register_pass(passes.MakeStateful(pairs))
    manager.run_passes(model)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", exact)
    for prompt in PROMPTS:
        run, told, new = compiled.create_infer_request(), list(prompt), list(prompt)
        for _ in range(TOKENS):
            places = np.arange(len(told) - len(new), len(told))[None]
            given = {"input_ids": [new], "attention_mask": np.ones((1, len(told)), np.int64), "position_ids": places}
            run.infer({name: np.asarray(value, np.int64) for name, value in given.items()})
            new = [int(run.get_tensor("logits").data[0, -1].argmax())]
            told += new
        assert told == torch_greedy(results[name], prompt)
