"""The numbered examples run as they stand, from a folder that is not the repository's.

01 is left out, which is `make demo`. 03 trains the checkpoint that ships for 80 minutes; with LORASHEAR_EXAMPLES=all it takes ten steps.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def last_line(folder: Path, name: str, *arguments: str) -> str:
    """What an example prints last; run in a folder of its own."""
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "ir", "passes"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def numbers(line: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*\.?\d*(?:e[+-]\d+)?", line)]


def test_pruning_by_hand(tmp_path: Path) -> None:
    line = last_line(tmp_path, "02_prune_by_hand.py")
    before, after, difference = numbers(line)
    assert "zeroed and removed differ by" in line
    assert after < before
    assert difference < 1e-4


@pytest.mark.skipif(os.environ.get("LORASHEAR_EXAMPLES") != "all", reason="set LORASHEAR_EXAMPLES=all")
def test_training_the_checkpoint(tmp_path: Path) -> None:
    last_line(tmp_path, "03_train_checkpoint.py", "--out", "trained", "--steps", "10")
    shapes = {name: tensor.shape for name, tensor in load_file(tmp_path / "trained" / "model.safetensors").items()}
    shipped = load_file(ROOT / "examples" / "stdlib-llama-2.8m" / "model.safetensors")
    assert shapes == {name: tensor.shape for name, tensor in shipped.items()}


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
