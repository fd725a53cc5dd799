"""What half of a 1B model saves on this machine's CPU: dense and pruned by turns, `make bench-speed`.

    python -m tools.bench_speed [--shape llama-3.2-1b tinyllama-1.1b] [--dtype bfloat16 float32] [--rounds 5]

LLaMA shapes with random weights, one after the other, half of all parameters pruned by magnitude, without text. Decoding reads
every weight for each token and computes little with it, so where memory bounds it the bytes decide: half as many in bfloat16 as
in float32. A CPU whose products in bfloat16 are slow is bound by those instead; both are measured, and the faster one counts.
By default heads, queries and MLP channels go: hidden channels would take columns of the embedding with them, which is looked up
and not read where it is not tied to the output head. MLP widths are multiples of 32, whole registers of either.

A sentence below the table says what the shape allows, and what it leaves where decoding gains less.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

import lorashear
from lorashear.evaluation.bandwidth import explained
from lorashear.evaluation.speed import Cost, measure
from lorashear.terminal.progress import Terminal
from lorashear.terminal.stages import Progress
from tools.bench_apply import SHAPE, make_checkpoint

RATIO, ROUND_TO, SCALE = 0.5, 32, 0.02
POSITIONS = {"max_position_embeddings": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {**SHAPE, **POSITIONS},
    "tinyllama-1.1b": {
        **{**SHAPE, **POSITIONS, "vocab_size": 32000, "intermediate_size": 5632, "num_hidden_layers": 22},
        **{"num_key_value_heads": 4, "tie_word_embeddings": False},
    },
}
HEADS = (
    "shape",
    "dtype",
    "batch",
    "prompt tok/s",
    "decode tok/s",
    "ratio",
    "at most",
    "spread",
    "cache",
    "peak memory",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="rows at once; several are measured each")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--tokens", type=int, default=32, help="to decode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prune", default="head,query,ffn", help="kinds of structures")
    parser.add_argument("--dir", type=Path, help="where to work; 4 GB are needed")
    args = parser.parse_args()
    disable_progress_bar()
    print(
        f"{platform.machine()} CPU with {torch.get_num_threads()} threads, torch {torch.__version__}, dense → pruned\n"
    )
    print(f"| {' | '.join(HEADS)} |\n|---|---|{'---:|' * (len(HEADS) - 2)}")
    below: list[str] = []
    for name in args.shape:
        with tempfile.TemporaryDirectory(prefix="lorashear-bench-", dir=args.dir) as scratch, Terminal() as terminal:
            dense, pruned = make(SHAPES[name], Path(scratch), args.prune.split(","), terminal)
            for dtype in args.dtype:
                terminal.say(f"{name} in {dtype}")
                sizes = (args.batch, args.prompt, args.tokens, args.rounds)
                costs = compared(dense, pruned, dtype, *sizes, terminal.progress)
                for before, after in zip(costs[::2], costs[1::2], strict=True):
                    print(row(name, dtype, before, after), flush=True)
                    below.append(f"{name} in {dtype}: {explained(before, after)}")
    print("", *below, sep="\n")


def make(shape: dict[str, Any], folder: Path, kinds: Sequence[str], terminal: Terminal) -> tuple[Path, Path]:
    """The dense model and its half, in folders of their own."""
    terminal.say("make and prune")
    dense, pruned = folder / "dense", folder / "pruned"
    make_checkpoint(dense, shape, SCALE)
    lorashear.compile(
        dense, RATIO, pruned, one_shot=True, prune=tuple(kinds), round_to=ROUND_TO, progress=terminal.progress
    )
    return dense, pruned


def compared(
    dense: Path,
    pruned: Path,
    dtype: str,
    batches: Sequence[int],
    prompt: int,
    tokens: int,
    rounds: int,
    progress: Progress,
) -> list[Cost]:
    """Of each batch size what the dense model costs, and the pruned one."""
    folders = {"dense": dense, "pruned": pruned}
    models = {name: AutoModelForCausalLM.from_pretrained(at, dtype=dtype).eval() for name, at in folders.items()}
    return measure(
        models, batches=batches, prompt=prompt, tokens=tokens, rounds=rounds, folders=folders, progress=progress
    )


def row(shape: str, dtype: str, dense: Cost, pruned: Cost) -> str:
    """A line of the table."""
    noise = "" if dense.spread is None else f"{max(dense.spread, pruned.spread or 0):.0%}"
    cells = [
        shape,
        dtype,
        str(pruned.batch),
        f"{dense.prefill:,.1f} → {pruned.prefill:,.1f} ({pruned.prefill_ratio:.2f}×)",
        f"{dense.decode:,.2f} → {pruned.decode:,.2f}",
        f"{pruned.decode_ratio:.2f}×",
        f"{pruned.decode_bound:.2f}×",
        noise,
        f"{_size(dense.cache_bytes)} → {_size(pruned.cache_bytes)}",
        f"{_size(dense.peak_bytes)} → {_size(pruned.peak_bytes)}",
    ]
    return f"| {' | '.join(cells)} |"


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    main()
