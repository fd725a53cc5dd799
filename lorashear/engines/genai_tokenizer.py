"""What onnxruntime-genai makes of a folder's tokenizer, and has to be told of it. No torch, no tokenizers here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorashear.disk.checkpoint import json_object
from lorashear.disk.folder import write_json

CONFIG, FILE = "tokenizer_config.json", "tokenizer.json"
SPACE = "▁"
UNKNOWN = "onnxruntime-genai's own tokenizer gives -1 for a character that has no token here"
BEYOND = "onnxruntime-genai's own tokenizer cuts text before each last space, and tokens here go beyond that: give it token ids"
_BEHIND = re.compile(f".{SPACE}")
"""Of a merge: also of two spaces, since the last of some is cut off from those before it."""


def tell(folder: Path) -> None:
    """Write into a folder's config whether text gets a token before and behind it, where `tokenizer.json` says so alone.

    onnxruntime-genai reads that from the config, and puts both where it finds nothing.
    """
    found, config = _read(folder, FILE), _read(folder, CONFIG)
    if not found or not config or (around := _around(found)) is None:
        return
    ends = [_content(config.get(name)) for name in ("bos_token", "eos_token")]
    if all(not part or part == [end] for part, end in zip(around, ends, strict=True)):
        adds = {name: bool(part) for name, part in zip(("add_bos_token", "add_eos_token"), around, strict=True)}
        write_json(folder / CONFIG, {**adds, **config})


def notes(folder: Path) -> Iterator[str]:
    """Where it splits text otherwise than the tokenizer does."""
    model = _read(folder, FILE).get("model", {})
    if model.get("type") != "BPE" or _is_byte_level(_read(folder, FILE)):
        return
    tokens: Mapping[str, int] = model["vocab"]
    if not (model.get("byte_fallback") and all(f"<0x{byte:02X}>" in tokens for byte in range(256))):
        yield UNKNOWN
    if any(_BEHIND.search("".join(pair.split(" ") if isinstance(pair, str) else pair)) for pair in model["merges"]):
        yield BEYOND


def _around(found: Mapping[str, Any]) -> tuple[list[str], list[str]] | None:
    """Special tokens before and behind a text; None where something else than a template puts them."""
    processor = found.get("post_processor")
    if processor is None:
        return [], []
    steps = processor.get("processors", [processor])
    templates = [each for each in steps if each["type"] == "TemplateProcessing"]
    if len(templates) > 1 or any(each["type"] not in ("TemplateProcessing", "ByteLevel") for each in steps):
        return None
    if not templates:
        return [], []
    parts = [each.get("SpecialToken", {}).get("id") for each in templates[0]["single"]]
    text = parts.index(None)
    return parts[:text], parts[text + 1 :]


def _is_byte_level(found: Mapping[str, Any]) -> bool:
    """Whether its tokens are of bytes, by what puts them together again."""
    decoder = found.get("decoder") or {}
    return any(each["type"] == "ByteLevel" for each in decoder.get("decoders", [decoder]) if each)


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read(folder: Path, name: str) -> dict[str, Any]:
    """A file's content, or nothing where it is not there."""
    file = folder / name
    return json_object(file.read_bytes(), f"'{file}'") if file.is_file() else {}
