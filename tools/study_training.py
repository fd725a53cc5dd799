"""What training brings, and when structures should go: test perplexity after equal tokens and equal tuning.

    python tools/study_training.py [--shared ../shared/data] [--only NAME ...] [--ratio 0.5] [--tokens 300000] [--seeds 3]

Prunes the checkpoint that ships with the repository and, where the folder --shared is there, two models of stories, one of
them on a story a window. Everything is chosen on train and valid text: each trained row takes the learning rate, halved or
doubled as long as that helps, of the lowest perplexity on the valid split, and is run with that at further seeds. Perplexities
are of the test split.

A run is a line of the file --results; runs that it has are not made again, so a study that was stopped goes on. --table
prints what is there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from subjects import CONTEXT, SHARED, TEST, Subject, subjects
from trials import ADAPTED, DENSE, Results, Trial, as_it_is, machines, workers
from within import equal

EQUAL = "equal shares: one-shot + LoRA"
PRUNED: dict[str, dict[str, Any]] = {
    "one-shot": {"tokens": None},
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
    DENSE: {"tokens": None},
    ADAPTED: {},
    EQUAL: {"per_layer": False, "within": equal},
    **{
        f"{kind}: {label}": {**more, "per_layer": kind == "per layer"}
        for kind, (label, more) in product(("uniform", "per layer"), PRUNED.items())
    },
}
CONTROLS = (EQUAL, "uniform: one-shot + LoRA")
FACTORS = tuple(2.0**power for power in range(-3, 4))
"""Of the default learning rate: the default itself and its half are tried, and on from the better one while that helps."""


def trials(subject: Subject, ratio: float, tokens: int, device: str = "cpu") -> dict[str, Trial]:
    """A run of every row at the default learning rate and the first seed."""
    made: dict[str, Trial] = {}
    for row, more in ROWS.items():
        settings = {"tokens": tokens, **more}
        within = settings.pop("within", as_it_is)
        made[row] = Trial(subject, ratio, row, settings, within=within, device=device)
    return made


def make(results: Results, pool: Any, first: Sequence[Trial], seeds: int) -> None:
    """All runs: for each row the learning rate, then that with further seeds."""
    results.make(first, pool)
    trained = [trial for trial in first if trial.settings["tokens"]]
    tried = [replace(trial, rate=0.5) for trial in trained]
    while tried:
        results.make(tried, pool)
        best = [best for trial in trained if (best := tuned(results, trial))]
        around = [replace(trial, rate=trial.rate * by) for trial in best for by in (0.5, 2.0)]
        tried = [trial for trial in around if trial.rate in FACTORS and results.of(trial) is None]
    best = [best for trial in trained if (best := tuned(results, trial))]
    results.make([replace(trial, seed=seed) for seed in range(1, seeds) for trial in best], pool)


def tuned(results: Results, trial: Trial) -> Trial | None:
    """The run at the learning rate that suits the valid split best; None where there is none."""
    tried = [replace(trial, rate=rate) for rate in FACTORS]
    done = [(found["valid"], each) for each in tried if (found := results.of(each)) and "valid" in found]
    return min(done, key=lambda each: each[0])[1] if done else None


def table(results: Results, some: Sequence[tuple[Subject, float]], tokens: int, seeds: int) -> None:
    lines: list[str] = []
    shown: list[dict[str, Any]] = []
    for subject, ratio in some:
        found: dict[str, tuple[Trial, list[float]]] = {}
        for row, trial in trials(subject, ratio, tokens).items():
            if best := tuned(results, trial):
                runs = [results.of(replace(best, seed=seed)) for seed in range(seeds)]
                done = [run for run in runs if run and "test" in run]
                found[row] = best, [run["test"] for run in done]
                shown += done
        means = {row: statistics.mean(tests) for row, (_, tests) in found.items()}
        for row, (best, tests) in found.items():
            pruned = row not in (DENSE, ADAPTED) and bool(best.settings["tokens"])
            closed = [
                f"{(means[control] - means[row]) / (means[control] - means[DENSE]):.0%}"
                if pruned and control in means
                else ""
                for control in CONTROLS
            ]
            rate = f"{best.rate:g} ×" if best.settings["tokens"] else ""
            seen = " / ".join(f"{each:.3f}" for each in tests)
            cells = [subject.folder.name, f"{ratio:.0%}", row, rate, seen, f"{means[row]:.3f}", *closed]
            lines.append(f"| {' | '.join(cells)} |")
    print(
        f"{tokens:,} tokens in windows of {CONTEXT}, rank 16; {TEST} valid and {TEST} test windows, fp32, "
        f"{machines(shown)}. The last columns say how much of the gap of two controls to the dense model is closed.\n"
    )
    print(
        "| model | removed | configuration | learning rate | test perplexity, by seed | mean | of equal shares' gap | of the best uniform's |"
    )
    print("|---|---|---|---:|---|---:|---:|---:|")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--ratio", type=float, help="one instead of the two of each model")
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on, of the rows that train")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=Path("training-runs.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what is there, and run nothing")
    args = parser.parse_args()
    disable_progress_bar()
    results = Results(args.results)
    with tempfile.TemporaryDirectory() as scratch, suppress(KeyboardInterrupt):
        some = [
            (subject, ratio)
            for subject in subjects(args.shared, Path(scratch))
            if (subject.folder.name in args.only if args.only else subject.folder.name != "stories260k")
            for ratio in ([args.ratio] if args.ratio else subject.ratios)
        ]
        if not args.table:
            with workers(args.jobs, Path(scratch)) as pool:
                first = [trials(subject, ratio, args.tokens, args.device).values() for subject, ratio in some]
                make(results, pool, [trial for each in first for trial in each], args.seeds)
        table(results, some, args.tokens, args.seeds)


if __name__ == "__main__":
    main()
