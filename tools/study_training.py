"""What training brings, and when structures should go: test perplexity after equal tokens.

    python tools/study_training.py [--shared ../shared/data] [--only NAME ...] [--ratio 0.5] [--tokens 300000] [--seeds 1]

Prunes the checkpoint that ships with the repository and, where the folder --shared is there, its three models, the one that
has never seen packed text on a document a window. Calibrates, chooses and trains on the train split, prints perplexities on
the test split, one table row a configuration: the dense model trained on the same tokens, the one-shot result, the same
trained (the control), and LHSPG in several schedules.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import lorashear
from lorashear import data, training
from lorashear.config import BATCH
from lorashear.evaluate import perplexity
from subjects import CONTEXT, SHARED, TEST, Subject, subjects

TRAINED: dict[str, dict[str, Any]] = {
    "one-shot + LoRA": {},
    "one-shot + LoRA, text alone": {"distill": 0.0},
    "LHSPG in 5 % of the tokens, one period": {"lhspg": 0.05},
    "LHSPG in 20 %, one period": {"lhspg": 0.2},
    "LHSPG in 20 %, half-space": {"lhspg": 0.2, "policy": "half-space"},
    "LHSPG in 50 %: a fifth of it warm-up, three periods": {"lhspg": 0.5, "warm_up": 0.2, "periods": 3},
}


def rows(subject: Subject, ratio: float, tokens: int, seed: int) -> Iterator[tuple[str, float, float]]:
    """Configuration, test perplexity, seconds."""
    tokenizer = AutoTokenizer.from_pretrained(subject.folder)
    packed = not subject.single
    test = data.windows(tokenizer, data.read_texts([subject.text["test"]]), CONTEXT, TEST, packed=packed)
    dense = lorashear.load(subject.folder).float()
    yield "dense", perplexity(dense, test).perplexity, 0.0
    started = time.perf_counter()
    train = data.read_texts([subject.text["train"]])
    windows = data.windows(tokenizer, train, CONTEXT, -(-tokens // CONTEXT), seed, packed=packed)
    steps = round(tokens * len(windows) / (BATCH * data.tokens_in(windows)))
    if packed is False:  # shorter ones, so more of them
        windows = data.windows(tokenizer, train, CONTEXT, steps * BATCH, seed, packed=packed)
    rate = training.default_rate(dense.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    carrying = training.adapted(lorashear.load(subject.folder).float(), rank=16, seed=seed)
    training.train(carrying, windows, training.Recipe(steps, rate, distill=0.0, seed=seed))
    yield "dense + LoRA, text alone", perplexity(carrying, test).perplexity, time.perf_counter() - started
    for per_layer in (False, True):
        kind = "per layer" if per_layer else "uniform"
        for label, more in ({"one-shot": {"one_shot": True}} | TRAINED).items():
            started = time.perf_counter()
            settings = {"tokens": None if "one_shot" in more else tokens, "per_layer": per_layer, "seed": seed, **more}
            settings["packed"] = packed
            result = lorashear.compile(subject.folder, ratio, text=subject.text["train"], context=CONTEXT, **settings)
            found = perplexity(result.model.float(), test).perplexity
            yield f"{kind}: {label}", found, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--ratio", type=float, help="one instead of the two of each model")
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    args = parser.parse_args()
    disable_progress_bar()
    print(
        f"{args.tokens:,} tokens in windows of {CONTEXT}, rank 16; {TEST} test "
        f"windows, fp32, {platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| model | removed | seed | configuration | test perplexity | seconds |\n|---|---|---:|---|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("LORASHEAR_CACHE", f"{scratch}/cache")
        for subject in subjects(args.shared, Path(scratch)):
            name = subject.folder.name
            if args.only and name not in args.only:
                continue
            for ratio, seed in product([args.ratio] if args.ratio else subject.ratios, range(args.seeds)):
                for label, found, seconds in rows(subject, ratio, args.tokens, seed):
                    print(f"| {name} | {ratio:.0%} | {seed} | {label} | {found:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
