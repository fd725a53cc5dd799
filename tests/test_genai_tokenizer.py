"""What is written and said of a tokenizer for onnxruntime-genai, which `test_onnxruntime_genai.py` holds against it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lorashear.engines.genai_tokenizer import BEYOND, CONFIG, FILE, UNKNOWN, notes, tell


def template(*single: str | None) -> dict[str, Any]:
    """Special tokens around a text, which is None."""
    parts = [{"SpecialToken": {"id": each}} if each else {"Sequence": {"id": "A"}} for each in single]
    return {"type": "TemplateProcessing", "single": parts}


def written(folder: Path, processor: Any, **config: Any) -> dict[str, Any]:
    """What is in the config afterwards."""
    (folder / FILE).write_text(json.dumps({"post_processor": processor}))
    (folder / CONFIG).write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, **config}))
    tell(folder)
    return json.loads((folder / CONFIG).read_text())


def test_the_config_says_what_is_put_around_a_text(tmp_path: Path) -> None:
    level = {"type": "ByteLevel"}
    for processor, adds in (
        (None, (False, False)),
        (level, (False, False)),
        (template("<s>", None), (True, False)),
        ({"type": "Sequence", "processors": [level, template("<s>", None, "</s>")]}, (True, True)),
        (template("<odd>", None), (None, None)),
        ({"type": "RobertaProcessing"}, (None, None)),
    ):
        found = written(tmp_path, processor)
        assert (found.get("add_bos_token"), found.get("add_eos_token")) == adds, processor
    assert written(tmp_path, template("<s>", None), add_bos_token=False)["add_bos_token"] is False


def test_transformers_reads_the_same_tokens(shipped: Path, tmp_path: Path) -> None:
    for file in (FILE, CONFIG):
        shutil.copy(shipped / file, tmp_path / file)
    before = AutoTokenizer.from_pretrained(tmp_path).encode("def f(x):\n")
    tell(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["add_bos_token"] is True
    assert AutoTokenizer.from_pretrained(tmp_path).encode("def f(x):\n") == before


def test_a_folder_without_a_tokenizer_is_left_alone(tmp_path: Path) -> None:
    tell(tmp_path)
    assert not list(notes(tmp_path)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("old", [False, True])
def test_where_it_splits_otherwise(old: bool, tmp_path: Path) -> None:
    """Merges are pairs, or of before, with a space between."""
    every = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for model, decoder, said in (
        ({"vocab": every, "merges": [("▁", "a"), ("▁a", "b")], "byte_fallback": True}, None, []),
        ({"vocab": every, "merges": [("▁", "▁")], "byte_fallback": True}, None, [BEYOND]),
        ({"vocab": {"a": 0}, "merges": [], "byte_fallback": True}, None, [UNKNOWN]),
        ({"vocab": every, "merges": [], "byte_fallback": False}, None, [UNKNOWN]),
        ({"vocab": every, "merges": [("a", "▁")], "byte_fallback": True}, None, [BEYOND]),
        ({"vocab": {"a": 0}, "merges": []}, {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}, []),
    ):
        merges = [" ".join(pair) if old else list(pair) for pair in model["merges"]]
        content = {"model": {"type": "BPE", **model, "merges": merges}, "decoder": decoder}
        (tmp_path / FILE).write_text(json.dumps(content))
        assert list(notes(tmp_path)) == said, model
