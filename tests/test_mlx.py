"""Results in mlx-lm, run by it: `make test-mlx`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import lorashear

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed: make test-mlx"),
]
PROMPTS = ("def ", "class Reader:\n    ", "import os\nimport sys\n\nfor name in ")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "models"


def sources(shipped: Path) -> Iterator[Path]:
    yield shipped
    yield from (folder for folder in sorted(SHARED.glob("*")) if folder.is_dir())


@pytest.mark.parametrize("per_layer", [False, True])
def test_greedy_tokens_and_logits_are_those_of_torch(per_layer: bool, shipped: Path, tmp_path: Path) -> None:
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.generate import generate_step

    for at, source in enumerate(sources(shipped)):
        small, out = tmp_path / f"small{at}", tmp_path / f"out{at}"
        lorashear.compile(source, 0.3, small, one_shot=True, per_layer=per_layer)
        lorashear.export(small, "mlx" if per_layer else "transformers", out)
        theirs, tokenizer, *_ = mlx_lm.load(str(out), trust_remote_code=True)
        theirs.set_dtype(mx.float32)
        ours: Any = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32, trust_remote_code=True).eval()
        for prompt in PROMPTS:
            ids = tokenizer.encode(prompt)
            with torch.inference_mode():
                want = ours(torch.tensor([ids])).logits[0]
                told = ours.generate(
                    torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), do_sample=False,
                    max_new_tokens=64, min_new_tokens=64, eos_token_id=None, pad_token_id=0,
                )[0, len(ids) :].tolist()  # fmt: skip
            got = torch.tensor(theirs(mx.array([ids]))[0].tolist())
            assert (got - want).abs().max() < 1e-3 * want.abs().max(), source.name
            found = [int(token) for token, _ in generate_step(mx.array(ids), theirs, max_tokens=64)]
            assert found == told, source.name
