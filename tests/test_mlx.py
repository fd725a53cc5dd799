"""Results in mlx-lm, run by it: `make test-mlx`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lorashear
from lorashear.engines.exporter import refusals
from lorashear.engines.mlx import ROPES

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed: make test-mlx"),
]
PROMPTS = ("def ", "class Reader:\n    ", "import os\nimport sys\n\nfor name in ")
OLD = {"original_max_position_embeddings": 32}
FIELDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **OLD},
    "yarn": {"factor": 4.0, **OLD},
    "dynamic": {"factor": 4.0},
}
"""Of rotary embeddings of each type."""
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
        lorashear.export(small, "mlx", out)
        assert (out / "mlx_lorashear_llama.py").is_file() == per_layer
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


def random(folder: Path, rope: str) -> Path:
    """A random model, whose config has the newer names of rotary embeddings alone, in a folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=0,
        rope_parameters={"rope_theta": 5000.0, "rope_type": rope, **FIELDS[rope]},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.02, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["dense", "layers", "channels"])
@pytest.mark.parametrize("rope", ROPES)
def test_config_says_what_it_reads(rope: str, form: str, tmp_path: Path) -> None:
    """Rotary embeddings by their older names, the eps of norms that have fewer channels, whether embeddings are tied."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    small = dense = random(tmp_path / "dense", rope)
    if form != "dense":
        removed = {"model.layers.0.mlp.ffn": [1, 2]} | ({"hidden": list(range(32))} if form == "channels" else {})
        small = tmp_path / "small"
        lorashear.apply(lorashear.plan(dense, removed), dense, small)
    lorashear.export(small, "mlx", tmp_path / "out")
    theirs, *_ = load_model(tmp_path / "out", trust_remote_code=True)
    ours: Any = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32, trust_remote_code=True).eval()
    ids = torch.randint(96, (1, 120), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = ours(ids).logits[0]
    got = torch.tensor(theirs(mx.array(ids.tolist()))[0].tolist())
    print(f"{rope} {form}: largest difference of a logit {(got - want).abs().max():.1e} of {want.abs().max():.1f}")
    assert (got - want).abs().max() < 1e-3 * want.abs().max()


def test_other_rotary_embeddings_are_refused(tmp_path: Path) -> None:
    assert refusals(random(tmp_path / "dense", "dynamic"))["mlx"] == (
        "its rotary embeddings are of type dynamic; mlx-lm has default, linear, llama3, yarn"
    )
