"""The main job, on the checkpoint that ships with the repository: `make demo` runs this.

    python examples/01_demo.py [FOLDER]        results go to FOLDER, by default ./out/demo

Compiles at 20 % and 50 %, and prints one table: dense, pruned (the plan's plain slice), pruned and compensated.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import lorashear
from lorashear.evaluation.speed import measure
from lorashear.likelihood import perplexity
from lorashear.terminal.progress import Terminal
from lorashear.text.data import read_texts, windows
from stdlib_text import write

MODEL = Path(__file__).with_name("stdlib-llama-2.8m")
CONTEXT, TEST_WINDOWS = 256, 130  # 33,150 scored tokens


def main() -> None:
    disable_progress_bar()
    started = time.perf_counter()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo").resolve()
    os.environ.setdefault("LORASHEAR_CACHE", str(out / "cache"))
    text = write(out / "text")
    held_out = windows(AutoTokenizer.from_pretrained(MODEL), read_texts([text["test"]]), CONTEXT, TEST_WINDOWS)
    dense = lorashear.load(MODEL).float()
    print("dense: measuring perplexity")
    rows = [row("dense", MODEL, dense, dense, held_out, None)]
    for percent in (20, 50):
        begin = time.perf_counter()
        folder, plain = out / f"{percent}-percent", out / f"{percent}-percent-not-compensated"
        with Terminal() as terminal:
            terminal.say(f"compile at {percent} %")
            result = lorashear.compile(
                MODEL,
                percent / 100,
                folder,
                text=text["train"],
                one_shot=True,
                overwrite=True,
                say=terminal.say,
                progress=terminal.progress,
            )
        seconds = time.perf_counter() - begin
        print(f"{percent} %: measuring perplexity and speed, some seconds more")
        lorashear.apply(result.plan, MODEL, plain, overwrite=True)
        rows.append(row(f"{percent} % pruned", plain, lorashear.load(plain).float(), dense, held_out, None))
        rows.append(row(f"{percent} % + compensated", folder, result.model.float(), dense, held_out, seconds))
    title = f"stdlib-llama-2.8m, test split, context {CONTEXT}, seed 0, fp32, {torch.get_num_threads()} CPU threads"
    table = Table(title=title, box=box.MARKDOWN)
    heads = ("", "parameters", "bytes", "perplexity", "decode tok/s, dense → pruned", "prompt tok/s", "seconds")
    for head in heads:
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    Console(width=140).print(table)
    print("compensated: what stays was refitted by least squares, without training")
    print(
        "×: the median of the ratios within rounds in which both models run; a busy machine moves the speeds themselves more"
    )
    print(f"{held_out.shape[0] * (CONTEXT - 1):,} held-out tokens; {time.perf_counter() - started:.0f} s in all")
    print(f"the folders lie in {out}")


def row(
    name: str,
    folder: Path,
    model: torch.nn.Module,
    dense: torch.nn.Module,
    held_out: torch.Tensor,
    seconds: float | None,
) -> tuple[str, ...]:
    found = perplexity(model, held_out)
    speeds: list[str] = []
    if seconds is not None:
        before, now = measure({"dense": dense, name: model}, batches=[4], rounds=7)
        speeds = [
            f"{before.decode:,.0f} → {now.decode:,.0f} ({now.decode_ratio:.2f}×)",
            f"{before.prefill:,.0f} → {now.prefill:,.0f} ({now.prefill_ratio:.2f}×)",
        ]
    return (
        name,
        f"{sum(p.numel() for p in model.parameters()):,}",
        f"{sum(f.stat().st_size for f in folder.glob('*.safetensors')):,}",
        f"{found.perplexity:.3f}",
        *(speeds or ("", "")),
        f"{seconds:.0f}" if seconds is not None else "",
    )


if __name__ == "__main__":
    main()
