"""What LHSPG costs: a step of LoRA training with structures that fade beside the same step without, on one model.

    python tools/bench_lhspg.py [--pairs 8] [--windows 8] [--length 256]

A LLaMA of 104 M parameters with random weights, every linear map adapted, half of the MLP channels and of the KV heads to
go. In one run every second step is one of LHSPG, and the median of the ratios of neighbours is printed; so is the peak of the
process's memory beyond what it had after its imports, first of LoRA alone and then of LHSPG, which ranks and refits as well.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorashear import attaching, models, training
from lorashear.config import BATCH
from lorashear_passes.lhspg import Lhspg, Schedule
from lorashear_passes.surgery import Settings, units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="of steps")
    parser.add_argument("--windows", type=int, default=BATCH, help="windows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    args = parser.parse_args()
    before = _peak()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=15,
        num_attention_heads=12,
        num_key_value_heads=6,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    parameters = sum(p.numel() for p in model.parameters())
    carrying = attaching.attach(model, rank=16)
    windows = torch.randint(0, config.vocab_size, (args.windows, args.length))
    recipe = training.Recipe(2 * args.pairs + 1, 1e-4, batch=args.windows, distill=0.0)
    chosen = dict(models.analysed(carrying).only(("head", "ffn")).items())
    widths = {name: units(group) // 2 for name, group in chosen.items()}
    calibration = [{"input_ids": windows[:1], "use_cache": False}]
    training.train(carrying, windows, replace(recipe, steps=2))
    plain_bytes = _peak() - before
    lhspg = Lhspg(
        carrying, chosen, widths, calibration, Schedule(0, 1, 1_000_000), Settings(criterion="wanda", compensate=True)
    )
    lhspg(0)  # once a period, and no part of a step
    print(
        f"{parameters / 1e6:.0f} M parameters, {args.windows} × {args.length} tokens a step, fp32, {platform.machine()} CPU, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    times: list[float] = []
    last = time.perf_counter()

    def stepped(step: training.Step) -> None:
        nonlocal last
        if step.step % 2:
            lhspg(step.step)
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if step.step > 2 and step.step % 2:  # the first one is slow whatever it does
            plain, fading = times[-2:]
            print(f"LoRA {plain:.2f} s, LHSPG {fading:.2f} s = {fading / plain:.3f}", flush=True)

    training.train(carrying, windows, recipe, stepped=stepped)
    ratios = [fading / plain for plain, fading in zip(times[1::2], times[2::2], strict=True)]
    print(f"median {statistics.median(ratios):.3f}")
    fading_bytes = _peak() - before
    print(f"memory {plain_bytes / 1e9:.2f} GB, LHSPG {fading_bytes / 1e9:.2f} GB = {fading_bytes / plain_bytes:.3f}")


def _peak() -> int:
    """The most memory that this process had so far, in bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found


if __name__ == "__main__":
    main()
