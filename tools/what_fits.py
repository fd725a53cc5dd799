"""What memory a run takes at most, by the estimate that `compile --dry-run` prints, for the shapes of well-known models.

    python tools/what_fits.py [--context 2048]

In bfloat16 on a GPU: a window of the context at once (`--micro-batch 1`), activations computed twice
(`--gradient-checkpointing`), 20 % of the parameters to go. Nothing is run and no weights are made; what a machine really takes
is less (tests/test_estimate.py).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from lorashear.config import Settings
from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.estimate import Estimate
from lorashear.learning import fitting

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
SHAPES: dict[str, tuple[int, ...]] = {
    "TinyLlama 1.1B": (2048, 5632, 22, 32, 4, 32000),
    "LLaMA 3.2 1B": (2048, 8192, 16, 32, 8, 128256),
    "LLaMA 3.2 3B": (3072, 8192, 28, 24, 8, 128256),
    "Qwen3 4B": (2560, 9728, 36, 32, 8, 151936),
    "LLaMA 2 7B": (4096, 11008, 32, 32, 32, 32000),
    "LLaMA 3.1 8B": (4096, 14336, 32, 32, 8, 128256),
    "Qwen3 8B": (4096, 12288, 36, 32, 8, 151936),
    "LLaMA 2 13B": (5120, 13824, 40, 40, 40, 32000),
}
TIED = ("LLaMA 3.2 1B", "LLaMA 3.2 3B", "Qwen3 4B")
WINDOWS = 160  # that are calibrated on, and choose between splits
CASES: dict[str, dict[str, Any]] = {
    "pruned": {"one_shot": True},
    "trained": {"tokens": 10**6},
    "trained, `--distill 0`": {"tokens": 10**6, "distill": 0.0},
    "trained in 4 processes, `--fsdp`": {"tokens": 10**6, "fsdp": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=2048, help="tokens a window in training")
    args = parser.parse_args()
    print(f"| shape | {' | '.join(CASES)} |\n|---|{'---:|' * len(CASES)}")
    for name in SHAPES:
        print(
            f"| {name} | {' | '.join(f'{memory(name, each, args.context) / 1e9:.0f} GB' for each in CASES.values())} |"
        )


def shaped(name: str) -> PreTrainedConfig:
    """The config of a model of that shape."""
    fields: dict[str, Any] = dict(zip(FIELDS, SHAPES[name], strict=True))
    fields["tie_word_embeddings"] = name in TIED
    return Qwen3Config(**fields, head_dim=128) if name.startswith("Qwen3") else LlamaConfig(**fields)


def memory(name: str, case: dict[str, Any], context: int) -> int:
    """Bytes on the GPU, in the stage that the case is about: pruned with windows of 512 tokens, or trained with longer ones."""
    config = shaped(name)
    config.max_position_embeddings = context
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    training = "tokens" in case
    settings = Settings(ratio=0.2, device="cuda", micro_batch=1, gradient_checkpointing=True, **case)
    return Estimate.of_compile(
        Checkpoint(Path(), {}, {}),
        replace(fitting.sizes(model, replace(settings, context=context)), batch=512),
        settings,
        Path.cwd(),
        tokens=0 if training else WINDOWS * 512,
        shares=4 if settings.fsdp else 1,
    ).memory


if __name__ == "__main__":
    main()
