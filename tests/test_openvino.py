"""Results in OpenVINO, run by it: `make test-openvino`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lorashear
from onnx_results import greedy, loaded, result
from trained_results import every, prompts, small_result

pytestmark = [
    pytest.mark.openvino,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        importlib.util.find_spec("openvino") is None, reason="openvino is not installed: make test-openvino"
    ),
]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def read(request: Any, ids: list[list[int]], past: int, order: list[int]) -> np.ndarray:
    """The logits of rows of tokens after ``past`` others."""
    rows, new = np.shape(ids)
    given = {
        "input_ids": np.array(ids),
        "attention_mask": np.ones((rows, past + new), np.int64),
        "position_ids": np.tile(np.arange(past, past + new), (rows, 1)),
        "beam_idx": np.array(order, np.int32),
    }
    return request.infer(given)["logits"].copy()


@pytest.mark.parametrize("name", every())
def test_greedy_tokens_are_those_of_torch(name: str, tmp_path: Path) -> None:
    import openvino

    small, out = small_result(name, tmp_path, "openvino"), tmp_path / "out"
    lorashear.export(small, "openvino", out)
    assert {"openvino_model.xml", "openvino_model.bin", "config.json"} <= {file.name for file in out.iterdir()}
    assert not [file for file in out.iterdir() if "onnx" in file.name or "genai" in file.name]
    request = openvino.Core().compile_model(out / "openvino_model.xml", "CPU", EXACT).create_infer_request()
    ours = loaded(small)
    for prompt in prompts(small):
        request.reset_state()
        told = [int(read(request, [prompt], 0, [0])[0, -1].argmax())]
        while len(told) < 64:
            told.append(int(read(request, [told[-1:]], len(prompt) + len(told) - 1, [0])[0, -1].argmax()))
        want = greedy(ours, prompt)
        assert len(set(want)) > 1 and told == want
    ids = torch.randint(ours.config.vocab_size, (2, 9))
    request.reset_state()
    read(request, ids[:, :6].tolist(), 0, [0, 1])
    got = read(request, ids[[1, 1], 6:].tolist(), 6, [1, 1])  # the second row goes on as both
    with torch.inference_mode():
        want = ours(ids[[1, 1]]).logits[:, 6:].numpy()
    difference = np.abs(got - want).max()
    print(f"largest difference of a logit {difference:.1e} of {np.abs(want).max():.1f}")
    assert difference < 1e-3


def test_half_precision_takes_half_the_bytes(tmp_path: Path) -> None:
    small = result("layers", tmp_path)
    for dtype in ("float32", "float16"):
        lorashear.export(small, "openvino", tmp_path / dtype, dtype=dtype)
    whole, half = ((tmp_path / dtype / "openvino_model.bin").stat().st_size for dtype in ("float32", "float16"))
    assert half < 0.6 * whole
