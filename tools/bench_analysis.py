"""Time the analysis on LLaMA shapes without weights, beside others: `make bench`.

CPU seconds on one thread, and how many forwards on the meta device that is, timed in the same process. Each row runs in
a process of its own: its time is that of a first call, its peak memory its own. Torch-Pruning's row needs
`pip install 'lorashear[bench]'`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
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
LAYERS = (16, 32, 64, 128)
LIMIT = 90
"""Seconds for a row: on some shapes Torch-Pruning does not come to an end."""

Seconds = dict[str, Any]
"""Seconds of each step; a row may add a note."""


def clocked(seconds: Seconds, what: str, run: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = run()
    seconds[what] = time.process_time() - start
    return result


def lorashear(twin: Any, inputs: dict[str, Any]) -> Seconds:
    from lorashear.models import captured
    from lorashear_passes.groups import group
    from lorashear_passes.infer import infer

    seconds: Seconds = {}
    graph = clocked(seconds, "capture", lambda: captured(twin, inputs))
    typed = clocked(seconds, "inference", lambda: infer(graph))
    clocked(seconds, "grouping", lambda: group(typed))
    return seconds


def torch_export(twin: Any, inputs: dict[str, Any]) -> Seconds:
    from lorashear_passes.capture import export

    seconds: Seconds = {}
    clocked(seconds, "capture", lambda: export(twin, inputs))
    return seconds


def make_fx(twin: Any, inputs: dict[str, Any]) -> Seconds:
    """Without module names, and with the parameters as constants."""
    from torch.fx.experimental.proxy_tensor import make_fx as trace

    tokens, seconds = inputs["input_ids"], Seconds()
    clocked(seconds, "capture", lambda: trace(lambda ids: twin(input_ids=ids).logits, pre_dispatch=True)(tokens))
    return seconds


def torch_pruning(twin: Any, inputs: dict[str, Any]) -> Seconds:
    """What it does before it prunes: autograd's graph, and the groups in that."""
    try:
        import torch
        import torch_pruning as tp  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SystemExit("not installed: pip install 'lorashear[bench]'") from None

    tokens, seconds = inputs["input_ids"], Seconds()
    rows, length = tokens.shape
    # With a cache it finds no end; a mask that is given need not be looked into.
    mask = torch.zeros(rows, 1, length, length, device=tokens.device)
    given = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}
    graph = tp.DependencyGraph()
    options = {"output_transform": lambda result: result.logits}
    clocked(seconds, "graph", lambda: graph.build_dependency(twin, given, **options))
    groups = clocked(seconds, "groups", lambda: list(graph.get_all_groups()))
    attention = twin.model.layers[0].self_attn
    members = [{dependency.target.module for dependency, _ in group} for group in groups]
    if any(attention.v_proj in each and attention.o_proj not in each for each in members):
        return {**seconds, "note": "but the values are in a group without o_proj, which reads them"}
    return seconds


ROWS = {"LoRAShear": lorashear, "torch.export": torch_export, "make_fx": make_fx, "Torch-Pruning": torch_pruning}


def measure(row: str, shape: str) -> Seconds:
    """Seconds of a warm forward on the meta device and of each step, and the peak resident memory in GB."""
    import torch
    from transformers import LlamaConfig

    from lorashear.models import build_twin, example_inputs

    torch.set_num_threads(1)
    twin = build_twin(LlamaConfig(**SHAPES[shape]))
    inputs = example_inputs(twin)
    forwards: list[float] = []
    with torch.no_grad():
        for _ in range(4):  # the first warms up
            taken: Seconds = {}
            clocked(taken, "forward", lambda: twin(input_ids=inputs["input_ids"]))
            forwards.append(taken["forward"])
    found = {"forward": min(forwards), **ROWS[row](twin, inputs)}
    return {**found, "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def growth() -> dict[str, list[float]]:
    """Milliseconds a layer of inference and grouping, best of three, over `LAYERS`."""
    from transformers import LlamaConfig

    from lorashear.models import build_twin, captured
    from lorashear_passes.groups import group
    from lorashear_passes.infer import infer

    found: dict[str, list[float]] = {"inference": [], "grouping": []}
    for layers in LAYERS:
        graph = captured(build_twin(LlamaConfig(num_hidden_layers=layers)))
        best = {"inference": float("inf"), "grouping": float("inf")}
        for _ in range(3):
            taken: Seconds = {}
            typed = clocked(taken, "inference", lambda: infer(graph))
            clocked(taken, "grouping", lambda: group(typed))
            best = {what: min(best[what], taken[what]) for what in best}
        for what, each in best.items():
            found[what].append(each * 1000 / layers)
    return found


def apart(*arguments: str) -> Any:
    """What this file prints as JSON in a process of its own, or in words why it printed none."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
    except subprocess.TimeoutExpired:
        return f"did not come to an end in {LIMIT} s"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1])


def described(found: Seconds | str) -> str:
    if isinstance(found, str):
        return found
    forward, peak, note = found.pop("forward"), found.pop("peak GB"), found.pop("note", "")
    steps = (f"{what} {each:6.3f} s = {each / forward:5.1f} forwards" for what, each in found.items())
    return f"{', '.join(steps)}; forward {forward:.3f} s; peak {peak:.2f} GB{note and '; '}{note}"


def main() -> None:
    match sys.argv[1:]:
        case ["growth"]:
            print(json.dumps(growth()))
        case [row, shape]:
            print(json.dumps(measure(row, shape)))
        case _:
            for shape in SHAPES:
                print(shape)
                for row in ROWS:
                    print(f"  {row:14}{described(apart(row, shape))}", flush=True)
            print(f"milliseconds a layer, {', '.join(map(str, LAYERS))} layers of LLaMA-7B")
            for what, each in apart("growth").items():
                print(f"  {what:14}{'  '.join(f'{ms:.3f}' for ms in each)}")


if __name__ == "__main__":
    main()
