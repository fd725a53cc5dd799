"""Results in vLLM on the CPU, by its transformers backend and by the plugin: `make test-vllm`, which gives vLLM a Python of its own.

Its kernels for the CPU have no heads below 32 dims: heads of the checkpoints are padded to that before they are pruned, which changes
nothing of what they compute.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorashear
from tests.wide_heads import widen_heads

VLLM = os.environ.get("LORASHEAR_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(VLLM is None, reason="no vLLM: `make test-vllm` installs and runs it"),
]
PROMPTS = ("def ", "class Reader:\n    ", "import os\nimport sys\n\nfor name in ")
SHARED = ("stories260k", "tinystories-656k", "babyllama-105")
BACKEND, NATIVE = {"model_impl": "transformers"}, {"model_impl": "vllm"}


@pytest.fixture(scope="module")
def pruned(shipped: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """30 % of a model, the shipped one or one by name, in one shot."""
    root = tmp_path_factory.mktemp("pruned")

    def get(name: str, **settings: Any) -> Path:
        source = shipped if name == "shipped" else request.getfixturevalue("shared_data") / "models" / name
        wide, out = root / name, root / f"{name}-{len(list(root.iterdir()))}"
        if not wide.exists():
            widen_heads(source, wide, 32)
        lorashear.compile(wide, 0.3, out, one_shot=True, **settings)
        return out

    return get


def check_in_vllm(folder: Path, work: Path, adapter: Path | None = None, **engine: Any) -> None:
    """64 greedy tokens after each prompt are those of torch, and so are the log-probabilities of the likely ones."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    task = {
        "folder": str(folder),
        "prompts": prompts,
        "tokens": 64,
        "engine": engine,
        "adapter": adapter and str(adapter),
    }
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": ""}
    if "tensor_parallel_size" in engine:
        env["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"  # a core each: by itself it wants a NUMA node for each
    assert VLLM is not None
    ran = subprocess.run(
        [VLLM, str(Path(__file__).with_name("vllm_run.py")), str(work / "made.json")],
        input=json.dumps(task), env=env, cwd=work, text=True, capture_output=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    worst = 0.0
    for ids, found in zip(prompts, json.loads((work / "made.json").read_text()), strict=True):
        with torch.inference_mode():
            told = model.generate(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), do_sample=False,
                max_new_tokens=64, min_new_tokens=64, eos_token_id=None, pad_token_id=0,
            )[0]  # fmt: skip
            likely = model(input_ids=told[None]).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        assert found["tokens"] == told[len(ids) :].tolist()
        for want, step in zip(likely, found["logprobs"], strict=True):
            worst = max(worst, *(abs(value - want[int(token)].item()) for token, value in step.items()))
    print(f"{folder.name} {engine}: largest difference of a log-probability {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("name", ["shipped", *SHARED])
def test_equal_widths_are_an_ordinary_model(name: str, pruned: Any, tmp_path: Path) -> None:
    check_in_vllm(pruned(name), tmp_path, **NATIVE)


@pytest.mark.parametrize("engine", [BACKEND, NATIVE], ids=["backend", "plugin"])
@pytest.mark.parametrize("name", ["shipped", *SHARED])
def test_widths_per_layer(name: str, engine: dict[str, str], pruned: Any, tmp_path: Path) -> None:
    check_in_vllm(pruned(name, per_layer=True), tmp_path, **engine)


@pytest.mark.parametrize("engine", [BACKEND, NATIVE], ids=["backend", "plugin"])
def test_an_adapter_on_widths_per_layer(engine: dict[str, str], pruned: Any, tmp_path: Path) -> None:
    folder, adapter = pruned("shipped", per_layer=True), tmp_path / "adapter"
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=8, target_modules=targets, init_lora_weights=False))
    model.save_pretrained(adapter)
    check_in_vllm(folder, tmp_path, adapter, enable_lora=True, **engine)


def test_two_devices_share_each_layer(pruned: Any, tmp_path: Path) -> None:
    folder = pruned("shipped", per_layer=True, target="vllm", tensor_parallel=2)
    check_in_vllm(folder, tmp_path, tensor_parallel_size=2, distributed_executor_backend="mp", **NATIVE)


def test_a_mistral_of_widths_per_layer(pruned: Any, shipped: Path, tmp_path: Path) -> None:
    wide = widen_heads(shipped, tmp_path / "wide", 32)
    config = json.loads((wide / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    (wide / "config.json").write_text(json.dumps(config))
    lorashear.compile(wide, 0.3, tmp_path / "small", one_shot=True, per_layer=True)
    check_in_vllm(tmp_path / "small", tmp_path, **NATIVE)


def test_fewer_channels_and_widths_per_layer(pruned: Any, tmp_path: Path) -> None:
    check_in_vllm(pruned("shipped", per_layer=True, prune=("head", "query", "ffn", "hidden")), tmp_path, **NATIVE)


def test_what_the_layers_of_vllm_cannot_have_is_refused(pruned: Any, tmp_path: Path) -> None:
    folder = pruned("shipped", per_layer=True)
    config = json.loads((folder / "config.json").read_text())
    config["module_overrides"]["model.layers.0.self_attn"]["scaling"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssertionError, match="model.layers.0.self_attn has a scaling of its own"):
        check_in_vllm(folder, tmp_path, **NATIVE)
