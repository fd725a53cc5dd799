"""Which rank, refit and split keeps the most: test perplexity after one-shot pruning, no training.

    python tools/study_criteria.py [--shared ../shared/data] [--only NAME ...] [--windows 128]

Prunes the checkpoint that ships with the repository on the standard library's source and, where the folder --shared is
there, its three models on TinyStories. Calibrates on the train split, chooses splits on the valid split, prints
perplexities on the test split, one table row a configuration.
"""

from __future__ import annotations

import argparse
import math
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import lorashear
from lorashear_ir.groups import Groups
from lorashear_passes.oneshot import Settings, compress
from lorashear_passes.splits import Budget, equal_shares
from lorashear_passes.surgery import Measured
from lorashear_passes.walk import Batch, heldout_loss, swapped
from subjects import CONTEXT, GUARD, SHARED, TEST, Subject, batches, subjects

KINDS = ("head", "query", "ffn")
ROWS = {
    "random, no refit": Settings(criterion="random", compensate=False),
    "magnitude, no refit": Settings(criterion="magnitude", compensate=False),
    "taylor, no refit": Settings(criterion="taylor", compensate=False),
    "lora, no refit": Settings(criterion="lora", compensate=False),
    "flap, no refit": Settings(criterion="flap", compensate=False),
    "wanda, no refit": Settings(criterion="wanda", compensate=False),
    "obs, no refit": Settings(compensate=False),
    "random, refit": Settings(criterion="random"),
    "magnitude, refit": Settings(criterion="magnitude"),
    "taylor, refit": Settings(criterion="taylor"),
    "lora, refit": Settings(criterion="lora"),
    "flap, refit": Settings(criterion="flap"),
    "wanda, refit": Settings(criterion="wanda"),
    "obs, refit": Settings(),
    "obs, refit, λ 1e-2": Settings(damp=1e-2),
    "obs, refit, λ 1e-4": Settings(damp=1e-4),
    "obs, refit to the dense model's output": Settings(target="dense"),
}
"""All at the uniform widths that `compile` would choose."""


class Study:
    """One model: prunes it one way after another and prints a row each."""

    def __init__(self, subject: Subject, windows: int) -> None:
        self.name = subject.folder.name
        self.model: nn.Module = AutoModelForCausalLM.from_pretrained(subject.folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(subject.folder)
        self.train, self.guard, self.test = (
            batches(tokenizer, subject.text[split], count, subject.single)
            for split, count in (("train", windows), ("valid", GUARD), ("test", TEST))
        )
        # What `compile` calibrates on, where it differs from how the model wants to be read.
        self.packed = batches(tokenizer, subject.text["train"], windows, False) if subject.single else []
        self.groups: Groups = lorashear.groups(self.model)
        self.known: Measured = {}

    def run(self, ratio: float) -> None:
        chosen = self.groups.only(KINDS)
        dense = math.exp(heldout_loss(self.model, self.test))
        print(f"| {self.name} | {ratio:.0%} | dense | {dense:.3f} | |", flush=True)
        equal = Budget(chosen, ratio).widths(equal_shares(chosen))
        self.row(ratio, "split: equal shares", Settings(), widths=equal)
        chosen_by: dict[str, Any] = {"heldout": self.guard, "measured": self.known}
        widths = self.row(ratio, "split: measured (default)", Settings(), **chosen_by)
        self.row(ratio, "split: measured, per layer", Settings(), per_layer=True, **chosen_by)
        for label, settings in ROWS.items():
            self.row(ratio, label, settings, widths=widths)
        if self.packed:
            self.row(ratio, "obs, refit, calibrated on packed windows", Settings(), text=self.packed, widths=widths)

    def row(
        self, ratio: float, label: str, settings: Settings, text: Sequence[Batch] | None = None, **more: Any
    ) -> Mapping[str, int]:
        chosen = self.groups.only(KINDS)
        outcome = compress(self.model, chosen, text or self.train, ratio=ratio, settings=settings, **more)
        with swapped(self.model, self.zeroed(outcome.removed, outcome.weights)):
            perplexity = math.exp(heldout_loss(self.model, self.test))
        shown = described(outcome.split.widths, chosen)
        print(f"| {self.name} | {ratio:.0%} | {label} | {perplexity:.3f} | {shown} |", flush=True)
        return outcome.split.widths

    def zeroed(self, removed: Mapping[str, Sequence[int]], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The pruned model by the theorem: structures at zero, refitted weights in place."""
        values: dict[str, torch.Tensor] = {}
        for name, cut in self.groups.cuts(removed).items():
            values[name] = weights.get(name, self.model.get_parameter(name).data).clone()
            for dim, kept in cut.keep.items():
                gone = sorted(set(range(values[name].shape[dim])) - set(kept))
                values[name].index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
        return {**weights, **values}


def described(widths: Mapping[str, int], groups: Groups) -> str:
    """Widths per kind, once where all layers agree."""
    kinds: dict[str, list[int]] = {}
    for name, width in widths.items():
        kinds.setdefault(groups[name].kind, []).append(width)
    return "; ".join(f"{k} {'/'.join(map(str, v if len(set(v)) > 1 else v[:1]))}" for k, v in kinds.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--windows", type=int, default=128, help="calibration windows of 256 tokens")
    args = parser.parse_args()
    disable_progress_bar()
    print(
        f"{args.windows} calibration, {GUARD} valid and {TEST} test windows of {CONTEXT} tokens, seed 0, fp32, "
        f"{platform.machine()} CPU, torch {torch.__version__}\n"
    )
    print("| model | removed | configuration | test perplexity | kept |\n|---|---|---|---:|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for subject in subjects(args.shared, Path(scratch)):
            if not args.only or subject.folder.name in args.only:
                study = Study(subject, args.windows)
                for ratio in subject.ratios:
                    study.run(ratio)


if __name__ == "__main__":
    main()
