"""What training brings, and when structures should go: test perplexity after equal tokens and equal tuning.

    python tools/study_training.py [--shared ../shared/data] [--only NAME ...] [--ratio 0.5] [--tokens 300000] [--seeds 3]

Prunes the checkpoint that ships with the repository and, where the folder --shared is there, two models of stories, one of
them on a story a window. Everything is chosen on train and valid text: each trained row takes the learning rate, of three,
that gives the lowest perplexity on the valid split, and is run with that at further seeds. Perplexities are of the test split.

A run is a line of the file --results; runs that it has are not made again, so a study that was stopped goes on. --table
prints what is there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

import lorashear
from lorashear import data, training
from lorashear.config import BATCH
from lorashear.evaluate import perplexity
from subjects import CONTEXT, SHARED, TEST, Subject, subjects

PRUNED: dict[str, dict[str, Any]] = {
    "one-shot": {"one_shot": True},
    "one-shot + LoRA": {},
    "LHSPG as in the paper": {
        **{"lhspg": 0.5, "warm_up": 0.2, "periods": 3, "policy": "half-space"},
        **{"criterion": "lora", "compensate": False, "distill": 0.0},
    },
    "LHSPG in its best form": {"lhspg": 0.2},
}
"""Settings of `lorashear.compile`. As in the paper: a warm-up, periods, the half-space policy, ranked by the gradients of the
adapters, without refit or divergence. The best form: one straight ramp in the first fifth of the steps, refitted."""
ROWS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense + LoRA": {},
    **{
        f"{kind}: {label}": {**more, "per_layer": kind == "per layer"}
        for kind, (label, more) in product(("uniform", "per layer"), PRUNED.items())
    },
}
UNTRAINED = ("dense", "uniform: one-shot", "per layer: one-shot")
CONTROL = "uniform: one-shot + LoRA"
FACTORS = tuple(2.0**power for power in range(-3, 3))
"""Of the default learning rate: the default itself and its half are tried, and on from the better one while that helps."""


@dataclass(frozen=True)
class Trial:
    """One run: a row of the table at a learning rate and a seed."""

    subject: Subject
    ratio: float
    row: str
    tokens: int
    rate: float = 1.0
    seed: int = 0

    @property
    def key(self) -> dict[str, Any]:
        """What it is known by in the file of results."""
        about = {"model": self.subject.folder.name, "removed": self.ratio, "row": self.row, "settings": ROWS[self.row]}
        return {**about, "tokens": self.tokens, "rate": self.rate, "seed": self.seed}


def run(trial: Trial) -> dict[str, Any]:
    """Its key, perplexities on the valid and test split, and seconds."""
    started = time.perf_counter()
    subject, packed = trial.subject, not trial.subject.single
    try:
        model = _model(trial, packed)
    except lorashear.LorashearError as error:  # a loss that is no number
        return {**trial.key, "failed": str(error)}
    tokenizer = AutoTokenizer.from_pretrained(subject.folder)
    found = {}
    for split in ("valid", "test"):
        windows = data.windows(tokenizer, data.read_texts([subject.text[split]]), CONTEXT, TEST, packed=packed)
        found[split] = round(perplexity(model, windows).perplexity, 4)
    return {**trial.key, **found, "seconds": round(time.perf_counter() - started)}


def _model(trial: Trial, packed: bool) -> Any:
    subject, more = trial.subject, ROWS[trial.row]
    dense = lorashear.load(subject.folder).float()
    rate = trial.rate * training.default_rate(dense.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    if trial.row == "dense":
        return dense
    if trial.row == "dense + LoRA":
        tokenizer, train = AutoTokenizer.from_pretrained(subject.folder), data.read_texts([subject.text["train"]])
        windows = data.windows(tokenizer, train, CONTEXT, -(-trial.tokens // CONTEXT), trial.seed, packed=packed)
        steps = round(trial.tokens * len(windows) / (BATCH * data.tokens_in(windows)))
        if not packed:  # shorter ones, so more of them
            windows = data.windows(tokenizer, train, CONTEXT, steps * BATCH, trial.seed, packed=packed)
        carrying = training.adapted(dense, rank=16, seed=trial.seed)
        training.train(carrying, windows, training.Recipe(steps, rate, distill=0.0, seed=trial.seed))
        return carrying
    settings = {"seed": trial.seed, "packed": packed, "context": CONTEXT, "learning_rate": rate, **more}
    settings["tokens"] = None if "one_shot" in more else trial.tokens
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        return lorashear.compile(subject.folder, trial.ratio, out, text=subject.text["train"], **settings).model.float()


class Results:
    """The runs that were made, in a file that grows by a line a run."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.runs: list[dict[str, Any]] = []
        if file.exists():
            self.runs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def of(self, trial: Trial) -> dict[str, Any] | None:
        return next((each for each in self.runs if trial.key.items() <= each.items()), None)

    def add(self, run: dict[str, Any]) -> None:
        self.runs.append(run)
        with self.file.open("a", encoding="utf-8") as file:
            print(json.dumps(run), file=file)

    def make(self, trials: Iterable[Trial], pool: Any) -> None:
        """Those that are not there yet."""
        missing = [trial for trial in trials if self.of(trial) is None]
        for made in tqdm(pool.imap_unordered(run, missing), total=len(missing), unit="run", disable=not missing):
            self.add(made)

    def best(self, subject: Subject, ratio: float, row: str, tokens: int) -> Trial | None:
        """The row at the learning rate that suits the valid split best; None where none was run."""
        trials = [Trial(subject, ratio, row, tokens, rate) for rate in FACTORS]
        done = [(found["valid"], trial) for trial in trials if (found := self.of(trial)) and "valid" in found]
        return min(done, key=lambda each: each[0])[1] if done else None


def table(results: Results, some: Sequence[tuple[Subject, float]], tokens: int, seeds: int) -> None:
    print(
        f"{tokens:,} tokens in windows of {CONTEXT}, rank 16; {TEST} valid and {TEST} test windows, fp32, "
        f"{platform.machine()} CPU, torch {torch.__version__}. The gap closed is that of the uniform control, "
        "one-shot + LoRA, to the dense model.\n"
    )
    print("| model | removed | configuration | learning rate | test perplexity, by seed | mean | gap closed |")
    print("|---|---|---|---:|---|---:|---:|")
    for subject, ratio in some:
        found: dict[str, tuple[Trial, list[float]]] = {}
        for row in ROWS:
            if best := results.best(subject, ratio, row, tokens):
                runs = [results.of(replace(best, seed=seed)) for seed in range(seeds)]
                found[row] = best, [run["test"] for run in runs if run and "test" in run]
        means = {row: statistics.mean(tests) for row, (_, tests) in found.items()}
        for row, (best, tests) in found.items():
            closed = ""
            if row.startswith(("uniform", "per layer")) and row not in UNTRAINED and CONTROL in means:
                closed = f"{(means[CONTROL] - means[row]) / (means[CONTROL] - means['dense']):.0%}"
            rate = "" if row in UNTRAINED else f"{best.rate:g} ×"
            shown = " / ".join(f"{each:.3f}" for each in tests)
            print(
                f"| {subject.folder.name} | {ratio:.0%} | {row} | {rate} | {shown} | {means[row]:.3f} | {closed} |",
                flush=True,
            )


def _quiet() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()


def make(results: Results, pool: Any, subject: Subject, ratio: float, tokens: int, seeds: int) -> None:
    """All runs of a model at a ratio: for each row the learning rate, then that with further seeds."""
    results.make([Trial(subject, ratio, row, tokens) for row in ROWS], pool)
    trained = [row for row in ROWS if row not in UNTRAINED]
    tried = [Trial(subject, ratio, row, tokens, 0.5) for row in trained]
    while tried:
        results.make(tried, pool)
        tried = []
        for row in trained:
            best = results.best(subject, ratio, row, tokens)
            around = [replace(best, rate=best.rate * by) for by in (0.5, 2.0)] if best else []
            tried += [each for each in around if each.rate in FACTORS and results.of(each) is None]
    best = [results.best(subject, ratio, row, tokens) for row in trained]
    results.make([replace(each, seed=seed) for seed in range(1, seeds) for each in best if each], pool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--ratio", type=float, help="one instead of the two of each model")
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on, of the rows that train")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--results", type=Path, default=Path("training-runs.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what is there, and run nothing")
    args = parser.parse_args()
    results = Results(args.results)
    with tempfile.TemporaryDirectory() as scratch, suppress(KeyboardInterrupt):
        os.environ.setdefault("LORASHEAR_CACHE", f"{scratch}/cache")
        some = [
            (subject, ratio)
            for subject in subjects(args.shared, Path(scratch))
            if subject.folder.name in (args.only or (subject.folder.name,)) and subject.folder.name != "stories260k"
            for ratio in ([args.ratio] if args.ratio else subject.ratios)
        ]
        if not args.table:
            with multiprocessing.get_context("spawn").Pool(args.jobs, initializer=_quiet) as pool:
                for subject, ratio in some:
                    make(results, pool, subject, ratio, args.tokens, args.seeds)
        table(results, some, args.tokens, args.seeds)


if __name__ == "__main__":
    main()
