"""Trained models, pruned with equal widths and with widths per layer, for the tests of graphs that other engines run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import lorashear
from lorashear.engines.exporter import refusals
from onnx_results import PROMPTS, ROOT, TRAINED, names, result

SHARED = ROOT.parent / "shared" / "data" / "models"
FORMS = ("uniform", "layers")
BEGINNINGS = ("The little", "Once upon a time", "One day, Lily and Tom went to the park. They saw a big")


def usual() -> list[Any]:
    """What `names` has; with LORASHEAR_MODELS=all all that `every` has."""
    return every() if os.environ.get("LORASHEAR_MODELS") == "all" else names()


def every() -> list[Any]:
    """What `names` has, and all decoders of `../shared/data` in both forms, as parameters. They are slow: it is traced for each."""
    found = sorted(file.parent for file in SHARED.glob("*/config.json"))
    made = [(folder.name, form) for folder in (TRAINED["shipped"], *found) for form in FORMS]
    made.remove((TRAINED["shipped"].name, "uniform"))  # which `names` has as "shipped"
    if found:
        made.remove((TRAINED["shared"].name, "layers"))  # and this as "shared"
    more: list[Any] = [pytest.param("/".join(pair), marks=pytest.mark.slow) for pair in made]
    if not found:
        more.append(pytest.param("shared/all", marks=pytest.mark.skip(reason="no ../shared/data")))
    return [*names(), *more]


def small_result(name: str, folder: Path, format: str) -> Path:
    """That result in a folder; skips where the format cannot hold such a model, and says why."""
    model, _, form = name.rpartition("/")
    if not model:
        return result(name, folder)
    source = TRAINED["shipped"] if model == TRAINED["shipped"].name else SHARED / model
    if why := refusals(source)[format]:
        pytest.skip(f"{model} cannot go to {format}: {why}")
    lorashear.compile(source, 0.3, folder / "small", one_shot=True, per_layer=form == "layers")
    return folder / "small"


def prompts(small: Path) -> list[list[int]]:
    """Of text, where there is a tokenizer: on any tokens a trained model may tell one token for ever."""
    file = small / "tokenizer.json"
    if not file.is_file():
        return [list(each) for each in PROMPTS]
    return [Tokenizer.from_file(str(file)).encode(text).ids for text in BEGINNINGS]
