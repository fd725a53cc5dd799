"""The model card of a result: its front matter, and the snippets by which engines run it."""

from __future__ import annotations

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import lorashear
from lorashear import card
from lorashear.text.subsets import UNNAMED, titles

pytestmark = pytest.mark.usefixtures("one_thread")
CONTENT: dict[str, Any] = {
    "model": "owner/big",
    "inherited": {"license": "mit"},
    "text": ["owner/text:en:train", "a=b.txt"],
}


@pytest.fixture(scope="module")
def licensed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("licensed") / "model"
    shutil.copytree(folder, path)
    front = {"license": "other", "license_name": "own", "license_link": "LICENSE", "language": ["en"], "tags": ["x"]}
    (path / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# A model\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_card_says_whose_licence_which_plan_and_how_to_run_it(
    per_layer: bool, licensed: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small"
    lorashear.compile(licensed, 0.2, out, text=[str(text)], one_shot=True, per_layer=per_layer, windows=8, context=16)
    found = ModelCard.load(out / "README.md")
    front = found.data.to_dict()
    assert (front["license"], front["license_name"], front["language"]) == ("other", "own", ["en"])
    assert front["tags"] == ["lorashear", "pruned"] and "base_model" not in front and "datasets" not in front
    assert sha256((out / "lorashear" / "plan.json").read_bytes()).hexdigest() in found.content
    assert f"Text: `{text.name}`." in found.content and str(text.parent) not in found.content
    assert ("vllm serve FOLDER --trust-remote-code --model-impl transformers" in found.content) == per_layer
    for said in ("vllm serve FOLDER", "--to gguf --out FOLDER.gguf", "--to onnx", "--to openvino", "--to mlx"):
        assert (said in found.content) == ("gguf" not in said), said  # llama.cpp has no tokenizer of words
    places = [found.content.index(said) for said in ("Criterion: ", "\n## Recipe\n", "\n## Use it\n")]
    assert places == sorted(places)
    shown = re.search(r"`lorashear compile --recipe (\S+) --out DIR`.*?```yaml\n(.*?)```", found.content, re.DOTALL)
    assert shown is not None
    wanted = {"model": licensed.name, "ratio": 0.2, "text": [text.name], "one-shot": True, "seed": 0}
    wanted |= {"criterion": "obs", "windows": 8, "context": 16, **({"per-layer": True} if per_layer else {})}
    assert yaml.safe_load(shown[2]) == wanted
    again = lorashear.compile(recipe=out / shown[1], out=tmp_path / "again")
    assert (again.folder / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    wanted |= {"model": str(licensed), "text": [str(text)]}
    assert yaml.safe_load((out / shown[1]).read_text(encoding="utf-8")).items() > wanted.items()
    python = re.search(r"```python\n(.*?)```", found.content, re.DOTALL)
    assert python is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python[1].replace("FOLDER", "small"), names)
    assert (
        names["model"].num_parameters()
        == json.loads((out / "lorashear/report.json").read_text())["parameters"]["after"]
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
def test_an_adapter_beside_it_is_loaded_too(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small"
    more: dict[str, Any] = {"tokens": 320, "context": 16, "windows": 8, "distill": 0.0, "adapter": "keep"}
    lorashear.compile(folder, 0.2, out, text=[str(text)], **more)
    found = (out / "README.md").read_text()
    assert "vllm serve FOLDER --enable-lora --lora-modules adapter=FOLDER/adapter" in found and "--to onnx" not in found
    python = re.search(r"```python\n(.*?)```", found, re.DOTALL)
    assert python is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python[1].replace("FOLDER", "small"), names)
    assert type(names["model"]).__name__.startswith("PeftModel")


def test_what_comes_from_a_hub_is_named() -> None:
    found = yaml.safe_load(card._front(CONTENT))
    assert found["base_model"] == "owner/big" and found["license"] == "mit" and found["datasets"] == ["owner/text"]


def test_texts_are_named_without_folders(text: Path) -> None:
    assert titles({UNNAMED: [text, "owner/name:en"], "code": [str(text)]}) == (
        text.name,
        "owner/name:en",
        f"code={text.name}",
    )


@pytest.mark.parametrize(
    "readme", ["", "# no front matter", "---\nlicense: [\n---\n", "---\nlicense: mit", "---\n- a\n---\n"]
)
def test_a_card_that_cannot_be_read_is_none(readme: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert card.inherited(tmp_path) in ({}, {"license": "mit"})
    assert card.inherited(tmp_path / "none") == {}


def test_without_a_tokenizer_none_is_loaded(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    out = lorashear.compile(tmp_path / "model", 0.2, tmp_path / "small", one_shot=True).folder
    python = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert python is not None
    lines = [
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
    ]
    assert python[1].splitlines() == lines
