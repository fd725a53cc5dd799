"""The numbered examples run as they stand, from a folder that is not the repository's.

Two are left out, which take minutes and more: 01 is `make demo`, 03 trains the checkpoint that ships.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_readme import ROOT, run

pytestmark = pytest.mark.slow


def last_line(folder: Path, name: str) -> str:
    """What an example prints last; run in a folder of its own, without arguments."""
    return run(folder, sys.executable, str(ROOT / "examples" / name)).splitlines()[-1]


def numbers(line: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*\.?\d*(?:e[+-]\d+)?", line)]


def test_pruning_by_hand(tmp_path: Path) -> None:
    line = last_line(tmp_path, "02_prune_by_hand.py")
    before, after, difference = numbers(line)
    assert "zeroed and removed differ by" in line
    assert after < before
    assert difference < 1e-4


def test_pruning_any_module(tmp_path: Path) -> None:
    line = last_line(tmp_path, "04_prune_any_module.py")
    before, after, difference = numbers(line)
    assert "zeroed and removed differ by" in line
    assert after < before
    assert difference < 1e-4


def test_adapting_what_was_pruned(tmp_path: Path) -> None:
    """The adapter brings a good part of what was lost back, and what it was merged into is an ordinary, smaller folder."""
    line = last_line(tmp_path, "05_prune_then_adapt.py")
    assert line.startswith("perplexity: ")
    dense, pruned, adapted = numbers(line)[:3]
    assert dense < adapted < (dense + pruned) / 2 + 2 < pruned
    merged = load_file(tmp_path / "out" / "adapted" / "merged" / "model.safetensors")
    assert not [name for name in merged if "lora" in name]
    assert sum(tensor.numel() for tensor in merged.values()) <= 0.8 * 2_828_736


def test_a_plan_elsewhere(tmp_path: Path) -> None:
    assert last_line(tmp_path, "06_plan_elsewhere.py").endswith("is what the plan says, bit for bit")
    out = tmp_path / "out" / "elsewhere"
    assert json.loads((out / "plan.json").read_text(encoding="utf-8"))["removed"]
    weights = load_file(out / "smaller" / "model.safetensors")
    assert weights["model.layers.0.mlp.up_proj.weight"].shape == torch.Size([256, 192])
