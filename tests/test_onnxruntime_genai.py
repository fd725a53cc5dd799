"""Results in onnxruntime-genai, run by it: `make test-onnxruntime-genai`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import lorashear
from onnx_results import PROMPTS, greedy, loaded, names, result

pytestmark = [
    pytest.mark.onnxruntime_genai,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime_genai") is None,
        reason="onnxruntime-genai is not installed: make test-onnxruntime-genai",
    ),
]


@pytest.mark.parametrize("name", names())
def test_greedy_tokens_are_those_of_torch(name: str, tmp_path: Path) -> None:
    import onnxruntime_genai as genai

    small = result(name, tmp_path)
    lorashear.export(small, "onnx", tmp_path / "out")
    theirs, ours = genai.Model(str(tmp_path / "out")), loaded(small)
    for prompt in PROMPTS:
        length = len(prompt) + 64
        settings = genai.GeneratorParams(theirs)
        settings.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(theirs, settings)
        generator.append_tokens(prompt)
        for _ in range(64):
            generator.generate_next_token()
        want = greedy(ours, prompt, end=ours.generation_config.eos_token_id)
        assert len(set(want)) > 1 and generator.get_sequence(0).tolist()[len(prompt) :] == want
