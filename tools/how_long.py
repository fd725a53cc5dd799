"""What arithmetic a run takes, for the shapes of well-known models, and how long a card is at it.

    python -m tools.how_long [--tokens 10000000] [--hidden 128] [--windows 16]

A LLaMA of random weights with LLaMA 3's proportions, small enough for this machine, is pruned for real, at two depths, and every
multiplication is counted: those of matrices, as forwards of the dense model over the calibration text, and those of Cholesky
factors and solutions in float64, as cubes of the hidden size. Both grow linearly with the layers; what the shapes of real models
take follows from that. Training is two forwards of the pruned model (one of them backwards: LoRA's own products are few) and one of the
dense model for each token. Nothing is timed: a card's minutes are those at half its published peaks, and what is no
multiplication, reading and writing come on top. A dash: by `what_fits.py` it has not the memory.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

import lorashear
from tools.what_fits import CASES, SHAPES, memory, shaped

SHIPPED = Path(__file__).resolve().parent.parent / "examples" / "stdlib-llama-2.8m"
CARDS = {"RTX 4090": (165e12, 1.3e12, 24e9), "A100": (312e12, 19.5e12, 80e9), "H100 SXM": (989e12, 67e12, 80e9)}
"""By NVIDIA's data sheets: peaks in dense bfloat16 with float32 sums and in float64 (of the A100 and H100 by tensor cores), FLOP/s;
bytes of memory."""
REACHED = 0.5
CALIBRATION = 128 * 512  # tokens, which are the defaults
CONTEXT = 64
DEPTHS = (2, 4)
RATIO = 0.2


@dataclass(frozen=True)
class Work:
    """FLOPs: of matrix products, and of linear algebra in float64."""

    products: float
    exact: float


class Exact(TorchDispatchMode):
    """Counts the FLOPs of factorisations and solutions (Golub and Van Loan, Matrix Computations, chapters 3 and 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        n = args[0].shape[-1] if name in ("linalg_cholesky_ex", "cholesky_inverse", "_linalg_solve_ex") else 0
        if name == "linalg_cholesky_ex":
            self.flops += n**3 / 3
        elif name == "cholesky_inverse":
            self.flops += 2 * n**3 / 3
        elif name == "cholesky_solve":
            self.flops += 2 * args[1].shape[-1] ** 2 * args[0].shape[-1]
        elif name == "_linalg_solve_ex":
            self.flops += 2 * n**3 / 3 + 2 * n**2 * args[1].shape[-1]
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000_000, help="that are trained on")
    parser.add_argument("--hidden", type=int, default=128, help="size of the small model, a multiple of 64")
    parser.add_argument("--windows", type=int, default=16, help="of 64 tokens, that it is calibrated on")
    args = parser.parse_args()
    disable_progress_bar()
    some = [measured(args.hidden, depth, args.windows) for depth in DEPTHS]
    print(
        f"| shape | run | matrix products | float64 | {' | '.join(CARDS)} |\n|---|---|---:|---:|{'---:|' * len(CARDS)}"
    )
    for name in SHAPES:
        for run, work in worked(name, some, args.tokens).items():
            taken = memory(name, CASES[run.partition(" ")[0]], 2048)
            minutes = " | ".join(
                f"{seconds(work, card) / 60:.0f} min" if taken <= CARDS[card][2] else "–" for card in CARDS
            )
            print(
                f"| {name} | {run} | {work.products / 1e15:,.0f} PFLOP | {work.exact / 1e12:,.0f} TFLOP | {minutes} |"
            )


def measured(hidden: int, layers: int, windows: int) -> Work:
    """What pruning takes: of a dense forward over the calibration text, and of the cube of the hidden size."""
    shape: dict[str, Any] = {
        **{"vocab_size": 2048, "hidden_size": hidden, "intermediate_size": 7 * hidden // 2, "head_dim": hidden // 32},
        **{"num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8},
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape))
    tokens = torch.zeros(8, CONTEXT, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(tokens)
    forward = counted.get_total_flops() / tokens.numel()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save_pretrained(folder / "dense")
        AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder / "dense")
        (folder / "text.txt").write_text(Path(__file__).read_text(encoding="utf-8") * 20, encoding="utf-8")
        os.environ["LORASHEAR_CACHE"] = str(folder / "cache")  # nothing is known beforehand
        marks: dict[str, Work] = {}
        with FlopCounterMode(display=False) as counted, Exact() as exact:

            def mark(line: str) -> None:
                marks[line] = Work(counted.get_total_flops(), exact.flops)

            lorashear.compile(
                folder / "dense",
                0.2,
                folder / "pruned",
                text=folder / "text.txt",
                one_shot=True,
                context=CONTEXT,
                windows=windows,
                say=mark,
            )
    begun, ended = (
        next(work for line, work in marks.items() if re.search(each, line)) for each in (r"\d prune$", r"\d prune  ")
    )
    return Work(
        (ended.products - begun.products) / (forward * windows * CONTEXT), (ended.exact - begun.exact) / hidden**3
    )


def worked(name: str, some: list[Work], tokens: int) -> dict[str, Work]:
    """What a model of some shape takes to be pruned in one shot, and to be trained after that."""
    config = shaped(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    forward = 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    layers = int(config.num_hidden_layers)
    pruned = Work(
        _at(layers, *(work.products for work in some)) * forward * CALIBRATION,
        _at(layers, *(work.exact for work in some)) * int(config.hidden_size) ** 3,
    )
    return {
        f"pruned by {RATIO:.0%} in one shot": pruned,
        f"trained on {tokens / 1e6:.0f} M tokens": Work((2 * (1 - RATIO) + 1) * forward * tokens, 0.0),
    }


def seconds(work: Work, card: str) -> float:
    """Of a card at a share of its peaks."""
    products, exact, _ = CARDS[card]
    return (work.products / products + work.exact / exact) / REACHED


def _at(layers: int, first: float, second: float) -> float:
    """On the straight line through what the two depths took."""
    return first + (second - first) * (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])


if __name__ == "__main__":
    main()
