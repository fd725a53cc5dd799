"""Time `lorashear apply` beside `cp` of as many bytes, on a checkpoint that it makes itself: `make bench-apply`.

A checkpoint of Llama-3.2-1B's shapes (2.5 GB, bfloat16, random) is cut by two plans: 75 % of the MLP channels and 6 of 8
KV heads, where only down_proj and o_proj are cut along their columns; and 75 % of the hidden channels too, where nearly
every tensor is. Runs alternate with `cp` of a file of the result's size; each begins with nothing left to flush and ends
with what it wrote on disk. What counts is the ratio. Each slice is a process of its own, which tells its private memory beyond its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lorashear.disk.layout import layout
from lorashear.disk.output import NewFile

SHAPE = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "vocab_size": 128256},
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
}
REPEATS = 5


def make_checkpoint(folder: Path, shape: Mapping[str, Any] = SHAPE, scale: float = 1.0) -> None:
    """A checkpoint of random bits that are finite bfloat16 numbers, of the standard deviation ``scale``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    placed = layout({name: ("BF16", tuple(p.shape)) for name, p in model.named_parameters()})
    noise = (scale * np.random.default_rng(0).standard_normal(1 << 22)).astype(np.float32)
    noise = (noise.view(np.uint32) >> 16).astype("<u2")
    for shard in placed.shards:
        with NewFile(folder / shard.name) as file:
            file.write(shard.header)
            for tensor in shard.tensors:
                left = tensor.bytes // 2
                while left:
                    file.write(noise[: min(left, len(noise))])
                    left -= min(left, len(noise))
            file.flush()


def make_plans(folder: Path, into: Path) -> dict[str, Path]:
    import lorashear

    rng = random.Random(0)
    groups = lorashear.groups(folder)
    gone: dict[str, list[int]] = {}
    for name, group in groups.items():
        if group.prunable and group.kind in ("ffn", "head", "hidden"):
            gone[name] = sorted(rng.sample(range(group.size), group.size // 4))
    plans = {"heads and MLP": {n: i for n, i in gone.items() if groups[n].kind != "hidden"}, "hidden too": gone}
    paths = {name: into / f"{name.replace(' ', '-')}.json" for name in plans}
    for name, removed in plans.items():
        lorashear.plan(folder, removed).save(paths[name])
    return paths


def slice_once(plan: Path, model: Path, out: Path) -> tuple[float, int, int]:
    """Seconds, private memory beyond the imports, bytes written; in a process of its own."""
    os.sync()
    command = [sys.executable, __file__, "--child", str(plan), str(model), str(out)]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, private, written = json.loads(made.stdout.splitlines()[-1])
    return float(seconds), int(private), int(written)


def child(plan: str, model: str, out: str) -> None:
    from lorashear.applying import apply
    from lorashear.plans import Plan

    before = private()
    most = [before]
    start = time.perf_counter()
    estimate = apply(Plan.load(plan), model, out, progress=lambda *_: most.append(max(most.pop(), private())))
    print(json.dumps([time.perf_counter() - start, most[0] - before, estimate.written]))


def private() -> int:
    """Bytes of memory that are this process' own."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+)", status)
    assert found, "this needs Linux"
    return 1024 * int(found[1])


def copy_once(source: Path, out: Path) -> float:
    os.sync()
    start = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", str(source), str(out)], check=True)
    descriptor = os.open(out, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help="where to work; 8 GB are needed")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    with tempfile.TemporaryDirectory(prefix="lorashear-bench-", dir=options.dir) as scratch:
        folder = Path(scratch)
        make_checkpoint(folder / "model")
        plans = make_plans(folder / "model", folder)
        print(f"{'plan':<16}{'written':>10}{'apply':>9}{'cp':>9}{'speed / cp':>12}{'private memory':>16}")
        for name, plan in plans.items():
            ratios: list[float] = []
            rows: list[tuple[float, float]] = []
            most = written = 0
            copied = folder / "copied"
            for turn in tqdm(range(REPEATS + 1), name, leave=False):  # the first fills the page cache
                seconds, memory, written = slice_once(plan, folder / "model", folder / "out")
                if not copied.exists():
                    (folder / "out" / "model.safetensors").rename(copied)
                subprocess.run(["rm", "-r", str(folder / "out")], check=True)
                beside = copy_once(copied, folder / "again")
                (folder / "again").unlink()
                if turn:
                    ratios.append(beside / seconds)
                    rows.append((seconds, beside))
                    most = max(most, memory)
            copied.unlink()
            mine, theirs = (statistics.median(column) for column in zip(*rows, strict=True))
            print(
                f"{name:<16}{written / 1e9:>7.2f} GB{mine:>7.2f} s{theirs:>7.2f} s"
                f"{statistics.median(ratios):>12.2f}{most / 1e6:>13.0f} MB"
            )


if __name__ == "__main__":
    main()
