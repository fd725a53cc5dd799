"""What recovery brings on each kind of text: a mixture that follows what was lost against equal shares, at equal tokens.

    python tools/study_recovery.py [--shared ../shared/data] [--only NAME ...] [--tokens 200000] [--seeds 2]

Prunes the checkpoint that ships with the repository and, where the folder --shared is there, two models of stories, in one shot
and by LHSPG, and trains what is left with and without the dense model in the loss, on subsets of clearly different kind. Losses
are of test text that nothing else sees; the degradation of a subset is max(0, loss − dense), in nats a token. The last rows have
instruction data behind the text, with and without some of the text among it.

A run is a line of the file --results; runs that it has are not made again, so a study that was stopped goes on. --table
prints what is there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import lorashear
from lorashear.learning.processes import Processes
from lorashear.likelihood import mean_loss
from lorashear.text import data
from lorashear.text.calibration import held_out
from lorashear.text.instructions import instruction_windows
from subjects import CONTEXT, SHARED, Subject, subjects
from trials import DENSE, Results, machine, machines, workers

TEST = 96
"""Windows of each subset."""
TRANSFER = 0.2
"""Of the tokens, for LHSPG."""
WAYS = {"one-shot": 0.0, "LHSPG": TRANSFER}
TUNED = "one-shot, dynamic, then instructions"


@dataclass(frozen=True)
class Recovery:
    """One run: how a subject is pruned and trained, None for not at all."""

    subject: Subject
    ratio: float
    train: Mapping[str, Path]
    test: Mapping[str, Path]
    instruct: Path | None
    row: str
    settings: Mapping[str, Any] | None
    seed: int = 0

    @property
    def key(self) -> dict[str, Any]:
        """What it is known by in the file of results."""
        about = {"model": self.subject.folder.name, "removed": self.ratio, "row": self.row, "seed": self.seed}
        return {**about, "settings": self.settings and dict(self.settings)}


def run(trial: Recovery) -> dict[str, Any]:
    """Its key, the loss of each subset on test text, in nats a token, seconds, and what it ran on; with instructions, the losses on
    what the run held out, before that stage and behind it."""
    started, packed = time.perf_counter(), not trial.subject.single
    folder, found = trial.subject.folder, dict[str, Any]()
    with tempfile.TemporaryDirectory() as scratch:
        if trial.settings is not None:
            settings = {"text": trial.train, "context": CONTEXT, "packed": packed, "dtype": "float32", **trial.settings}
            settings |= {"instruct": trial.instruct} if settings.pop("tuned", False) else {}
            folder = Path(scratch) / "out"
            made = lorashear.compile(trial.subject.folder, trial.ratio, folder, seed=trial.seed, **settings)
            if "instruct" in settings:
                found["tuning"] = [made.report["recovery"]["stages"][-1]["measured"][i]["loss"] for i in (0, -1)]
        model, tokenizer = lorashear.load(folder).float(), AutoTokenizer.from_pretrained(folder)
        losses = {
            name: mean_loss(
                model, data.windows(tokenizer, data.read_texts([file]), CONTEXT, TEST, packed=packed), Processes()
            )
            for name, file in trial.test.items()
        }
        if trial.instruct:  # the same ones are held out of every training
            held = held_out(instruction_windows(tokenizer, trial.instruct, CONTEXT).rows, trial.seed).heldout
            losses["instructions"] = mean_loss(model, held, Processes())
    seconds = round(time.perf_counter() - started)
    return {**trial.key, **found, "loss": losses, "seconds": seconds, "machine": machine("cpu")}


def trials(subject: Subject, shared: Path, tokens: int, seed: int) -> Iterator[Recovery]:
    """Every row of a subject."""
    text = shared / "text"
    train = {"stories": text / "tinystories" / "train.jsonl", "wiki": text / "wikitext-2" / "valid.txt"}
    train["web"] = text / "c4" / "train.jsonl"
    test = {"stories": text / "tinystories" / "test.jsonl", "wiki": text / "wikitext-2" / "test.txt"}
    test["web"] = text / "c4" / "valid.jsonl"
    if subject.text["train"] != train["stories"]:
        train, test = {"code": subject.text["train"], **train}, {"code": subject.text["test"], **test}
    instruct = text / "alpaca" / "alpaca_en_demo.jsonl"
    ratio = max(subject.ratios)

    def trial(row: str, settings: Mapping[str, Any] | None) -> Recovery:
        return Recovery(subject, ratio, train, test, instruct, row, settings, seed)

    yield trial(DENSE, None)
    yield trial("one-shot", {"one_shot": True})
    yield trial("LHSPG", {"tokens": round(TRANSFER * tokens), "lhspg": 1.0})
    for (way, lhspg), mixture, distill in product(WAYS.items(), ("static", "dynamic"), (0.0, 0.8)):
        row = f"{way}, {mixture}{'' if distill else ', no distillation'}"
        yield trial(row, {"tokens": tokens, "lhspg": lhspg, "mixture": mixture, "distill": distill})
    for replay in (0.0, 0.5):
        more = {"tokens": tokens, "tuned": True, "replay": replay}
        yield trial(f"{TUNED}{f' and {replay:.0%} text' if replay else ' alone'}", more)


def table(results: Results, rows: list[list[Recovery]]) -> None:
    """``rows`` are the seeds of each."""
    names = list(dict.fromkeys(name for seeds in rows for name in (*seeds[0].test, "instructions")))
    found = {(s[0].subject.folder.name, s[0].row): [r for t in s if (r := results.of(t))] for s in rows}
    shown = [run for runs in found.values() for run in runs]
    print(f"{TEST} test windows of {CONTEXT} tokens of each subset, fp32, {machines(shown)}.\n")
    print(f"| model | removed | configuration | {' | '.join(names)} | worst degradation | mean | mean loss |")
    print(f"|---|---|---|{'---:|' * (len(names) + 3)}")
    for (model, row), runs in found.items():
        dense = found[model, DENSE]
        if not runs or not dense:
            continue
        mean = {name: statistics.mean(run["loss"][name] for run in runs) for name in runs[0]["loss"]}
        lost = [max(0.0, mean[name] - dense[0]["loss"][name]) for name in mean if name != "instructions"]
        cells = [model, f"{runs[0]['removed']:.0%}", row, *(f"{mean[n]:.3f}" if n in mean else "" for n in names)]
        text = statistics.mean(mean[name] for name in mean if name != "instructions")
        print(f"| {' | '.join([*cells, f'{max(lost):.3f}', f'{statistics.mean(lost):.3f}', f'{text:.3f}'])} |")


def tuning(results: Results, rows: list[list[Recovery]]) -> None:
    """What the stage of instructions changed, on what the runs held out; ``rows`` are the seeds of each."""
    print("\n| model | configuration | subset | before | behind | change |\n|---|---|---|---:|---:|---:|")
    for seeds in rows:
        runs = [run for trial in seeds if (run := results.of(trial)) and "tuning" in run]
        for name in runs[0]["tuning"][0] if runs else ():
            before, behind = (statistics.mean(run["tuning"][i][name] for run in runs) for i in (0, 1))
            cells = [runs[0]["model"], seeds[0].row, name, f"{before:.3f}", f"{behind:.3f}", f"{behind - before:+.3f}"]
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 0 on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument("--results", type=Path, default=Path("recovery-runs.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what is there, and run nothing")
    args = parser.parse_args()
    disable_progress_bar()
    if not args.shared.is_dir():
        parser.error(f"{args.shared} is not there: it has the other kinds of text")
    results = Results(args.results)
    with tempfile.TemporaryDirectory() as scratch, suppress(KeyboardInterrupt):
        some = [
            subject
            for subject in subjects(args.shared, Path(scratch))
            if (subject.folder.name in args.only if args.only else subject.folder.name != "stories260k")
        ]
        seeds = [[t for s in some for t in trials(s, args.shared, args.tokens, seed)] for seed in range(args.seeds)]
        if not args.table:
            with workers(args.jobs, Path(scratch)) as pool:
                for each in seeds:
                    results.make(each, pool, run)
        rows = [list(each) for each in zip(*seeds, strict=True)]
        table(results, rows)
        tuning(results, rows)


if __name__ == "__main__":
    main()
