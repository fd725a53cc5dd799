"""Results in onnxruntime-genai, run by it: `make test-onnxruntime-genai`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import lorashear
from lorashear.engines.genai_tokenizer import BEYOND, UNKNOWN
from onnx_results import greedy, loaded
from trained_results import every, prompts, small_result

pytestmark = [
    pytest.mark.onnxruntime_genai,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime_genai") is None,
        reason="onnxruntime-genai is not installed: make test-onnxruntime-genai",
    ),
]
TEXTS = (
    "",
    'Once upon a time, there was a girl named Lily. She said, "hi!"\nThen',
    "def f(x):\n    return x+1  # done\n",
    "  two  spaces ",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600",
)


@pytest.fixture(scope="module", params=every())
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A result, what was written of it, and what was said."""
    small = small_result(request.param, tmp_path_factory.mktemp(request.param.replace("/", "-")), "onnx")
    out = small.with_name("out")
    return small, out, lorashear.export(small, "onnx", out)


def test_greedy_tokens_and_logits_are_those_of_torch(exported: Any) -> None:
    import onnxruntime_genai as genai

    small, out, _ = exported
    theirs, ours = genai.Model(str(out)), loaded(small)
    end = ours.generation_config.eos_token_id
    for prompt in prompts(small):
        length = len(prompt) + 64
        settings = genai.GeneratorParams(theirs)
        settings.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(theirs, settings)
        generator.append_tokens(prompt)
        with torch.inference_mode():
            logits = ours(torch.tensor([prompt])).logits[0, -1].numpy()
        found = np.array(generator.get_logits()).reshape(-1)
        difference = np.abs(np.delete(found - logits, end)).max()  # `min_length` changes that of the end
        print(f"largest difference of a logit {difference:.1e} of {np.abs(logits).max():.1f}")
        assert difference < 1e-4
        for _ in range(64):
            generator.generate_next_token()
        want = greedy(ours, prompt, end=end)
        assert len(set(want)) > 1 and generator.get_sequence(0).tolist()[len(prompt) :] == want


def test_its_tokenizer_splits_text_as_ours_where_nothing_else_was_said(exported: Any, shared_data: Path) -> None:
    import onnxruntime_genai as genai

    small, out, said = exported
    if not (small / "tokenizer.json").is_file():
        pytest.skip("a random model without a tokenizer")
    theirs, ours = genai.Tokenizer(genai.Model(str(out))), Tokenizer.from_file(str(small / "tokenizer.json"))
    theirs.update_options(add_special_tokens="true")
    texts = list(TEXTS)
    for file in ("tinystories/test.jsonl", "c4/valid.jsonl"):
        lines = (shared_data / "text" / file).read_text(encoding="utf-8").splitlines()[:200]
        texts += [json.loads(line)["text"][:3000] for line in lines]
    if UNKNOWN in said:
        known = set("".join(ours.get_vocab())) | {" "}
        assert -1 in theirs.encode("".join(texts)).tolist()
        texts = [text for text in texts if set(text) <= known]
        assert texts
    same = [text for text in texts if theirs.encode(text).tolist() == ours.encode(text).ids]
    print(f"{len(same)} of {len(texts)} texts are split as the tokenizer does")
    assert (len(same) < len(texts)) == (BEYOND in said)
