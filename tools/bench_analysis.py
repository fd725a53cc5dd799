"""Time the analysis on LLaMA shapes without weights: `make bench`.

Each shape runs in a process of its own, so that its peak memory is its own. Prints one table.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import torch

SHAPES = {
    "LLaMA-7B": {},
    "LLaMA-3-70B": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


def measure(name: str) -> dict[str, float]:
    """Seconds of a warm meta forward, capture, inference and grouping; peak resident memory in GB."""
    from transformers import LlamaConfig

    from lorashear.models import build_twin, captured, example_inputs
    from lorashear_passes.groups import group
    from lorashear_passes.infer import infer

    twin = build_twin(LlamaConfig(**SHAPES[name]))
    inputs = example_inputs(twin)
    seconds: dict[str, float] = {}

    def timed(what: str, run):
        start = time.perf_counter()
        result = run()
        seconds[what] = time.perf_counter() - start
        return result

    with torch.no_grad():
        tokens = inputs["input_ids"]
        twin(input_ids=tokens)
        timed("meta forward", lambda: twin(input_ids=tokens))
    graph = timed("capture", lambda: captured(twin))
    typed = timed("inference", lambda: infer(graph))
    timed("grouping", lambda: group(typed))
    return {**seconds, "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    for name in SHAPES:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:12}", "  ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
