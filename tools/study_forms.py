"""Which forms of pruning and training help: test perplexity after equal tokens, one model, one ratio, one seed.

    python tools/study_forms.py [--shared ../shared/data] [--model babyllama-105] [--ratio 0.5] [--tokens 300000] [--rate 0.5]

Widths differ per layer in every row. A row changes one thing of the first, one-shot + LoRA: what the loss is, how widths are
found, when structures go, how much is trained. Rows run at --rate and at half of it, in default learning rates, and the
better on the valid split is printed. What `lorashear` has no setting for, because it did not help, is done here:

* widths refined in context: each group one level wider or narrower, the knowledge curves filling up, as long as the held-out
  loss of the model pruned like that falls;
* widths from learned gates: a gate for each of some ten parts of a group, least worth first, under one budget that the gates'
  mean share meets at every step, trained with an adapter on the training text; these tokens are not counted;
* regrowth: LHSPG fades everything that is to go, then gives it back, chooses anew and fades that.

Runs are kept in the file --results, as in study_training.py.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from lorashear.config import BATCH
from lorashear.learning import attaching, hyperparameters, losses, training, transfer
from lorashear.learning.mixture import Mixture
from lorashear.learning.teaching import Online
from lorashear_passes import oneshot
from lorashear_passes.lhspg import Lhspg
from lorashear_passes.saliency import in_rounds
from lorashear_passes.splits import Budget
from lorashear_passes.surgery import Settings, Surgeon, levels, units
from lorashear_passes.walk import heldout_loss
from subjects import CONTEXT, SHARED, TEST, subjects
from trials import DENSE, Results, Trial, as_it_is, machines, text, workers
from within import equal, pruned_to

STEPS = 600  # of training gates
COLD = 0.1  # the last temperature of their sigmoids; the first is 1
GATE_RATE = 0.1  # of a gate whose gradient a weight is the median one
GATE_CLIP = 10.0  # times that, at most: a few vital parts have gradients far above all others
SWEEPS = 2  # through all groups, of refining


@contextmanager
def refined(_: Trial) -> Iterator[None]:
    def widths(model: Any, groups: Any, batches: Any, more: Mapping[str, Any]) -> dict[str, int]:
        found = oneshot.compress(model, groups, batches, **more)
        assert found.knowledge is not None
        chosen = {name: groups[name] for name in groups if units(groups[name]) > 1}
        curves = {name: found.knowledge.curve(group) for name, group in chosen.items()}
        budget = Budget(groups, more["ratio"], per_layer=True)
        surgeon = Surgeon(model, chosen, Settings(), batches)
        walk = surgeon.walk(batches)

        def measured(widths: Mapping[str, int]) -> float:
            with surgeon.pruned(walk, widths):
                return heldout_loss(model, more["heldout"])

        here = dict(found.split.widths)
        least = measured(here)
        for _ in range(SWEEPS):
            for name, group in chosen.items():
                for step in (-levels(group)[0], levels(group)[0]):
                    fixed = {name: here[name] + step}
                    if not 1 <= fixed[name] <= units(group):
                        continue
                    with suppress(ValueError):
                        tried = fixed | budget.widths({n: c for n, c in curves.items() if n != name}, fixed=fixed)
                        if (loss := measured(tried)) < least:
                            here, least = tried, loss
        return here

    with pruned_to(widths):
        yield


@contextmanager
def gated(trial: Trial) -> Iterator[None]:
    def widths(model: Any, groups: Any, batches: Any, more: Mapping[str, Any]) -> dict[str, int]:
        chosen = {name: groups[name] for name in groups if units(groups[name]) > 1}
        surgeon = Surgeon(model, chosen, Settings(), batches)
        scores = surgeon.scored(surgeon.walk(batches))
        parts = {name: _parts(group, scores[name]) for name, group in chosen.items() if group.kind != "query"}
        gates = Gates(parts, {n: chosen[n].parameters for n in parts}, more["ratio"] * groups.count({}))
        tokenizer = AutoTokenizer.from_pretrained(trial.subject.folder)
        windows, _ = text(trial, tokenizer, STEPS * BATCH * CONTEXT)
        gates.train(copy.deepcopy(model), model, surgeon, windows, trial)
        curves = {name: gates.curve(name, units(chosen[name])) for name in parts}
        return {n: units(g) for n, g in chosen.items()} | Budget(groups, more["ratio"], per_layer=True).widths(curves)

    with pruned_to(widths):
        yield


class Gates:
    """One gate for each part of a group, the sigmoid of what is learned over a threshold that meets the budget."""

    def __init__(self, parts: Mapping[str, Sequence[torch.Tensor]], weights: Mapping[str, int], budget: float) -> None:
        self.parts, self.budget = parts, budget
        self.costs = {name: torch.tensor([float(len(p) * weights[name]) for p in own]) for name, own in parts.items()}
        self.scale: float | None = None  # median gradient a weight, over the last steps
        self.learned = {name: torch.zeros(len(own), requires_grad=True) for name, own in parts.items()}

    def values(self, share: float, heat: float) -> dict[str, torch.Tensor]:
        """The gates that remove this share of the budget."""
        with torch.no_grad():
            low, high = -100.0, 100.0
            for _ in range(50):
                middle = (low + high) / 2
                gone = sum(
                    float((self.costs[n] * (1 - ((x - middle) / heat).sigmoid())).sum())
                    for n, x in self.learned.items()
                )
                low, high = (middle, high) if gone < share * self.budget else (low, middle)
            slopes = {n: self.costs[n] * (g := ((x - low) / heat).sigmoid()) * (1 - g) for n, x in self.learned.items()}
            total = sum(float(slope.sum()) for slope in slopes.values())
        # The threshold moves with what is learned, so that a gate only gains what others lose.
        moved = sum((slopes[n] / max(total, 1e-9) * (x - x.detach())).sum() for n, x in self.learned.items())
        return {name: ((x - low - moved) / heat).sigmoid() for name, x in self.learned.items()}

    def train(self, model: Any, dense: Any, surgeon: Surgeon, windows: torch.Tensor, trial: Trial) -> None:
        """With an adapter on ``model``, at text and divergence; the budget is reached in half of the steps."""
        now: dict[str, torch.Tensor] = {}
        carrying = attaching.attach(model, rank=16, seed=trial.seed)
        for path, job in surgeon.jobs.items():
            groups = [(g.name, c) for g, c in zip(job.groups, job.columns, strict=True) if g.name in self.parts]
            carrying.base_model.model.get_submodule(path).register_forward_pre_hook(self._scaled(groups, now))
        hyper = training.Hyperparameters(STEPS, hyperparameters.default_rate(128) * trial.rate, seed=trial.seed)

        def stepped(step: training.Step) -> None:
            self._learn()
            done = step.step / STEPS
            now.update(self.values(min(1.0, 2 * done), COLD**done))

        now.update(self.values(0.0, 1.0))
        training.train(carrying, Mixture.of(windows, hyper), teacher=Online(dense), stepped=stepped)

    def _learn(self) -> None:
        """A step down the gradients, each a weight of its part: on one scale for all, so that what matters more rises faster."""
        slopes = {name: each.grad / self.costs[name] for name, each in self.learned.items() if each.grad is not None}
        scale = torch.cat([slope.abs() for slope in slopes.values()]).median().clamp_min(1e-30)
        self.scale = float(scale) if self.scale is None else 0.9 * self.scale + 0.1 * float(scale)
        with torch.no_grad():
            for name, slope in slopes.items():
                self.learned[name] -= GATE_RATE * (slope / self.scale).clamp(-GATE_CLIP, GATE_CLIP)
                self.learned[name].grad = None

    def curve(self, name: str, count: int) -> list[float]:
        """The damage of removing structures, as their gates say: how far each lies above the least of all, a weight."""
        least = min(float(each.min()) for each in self.learned.values())
        damage: list[float] = []
        for value, cost, part in sorted(
            zip(self.learned[name].tolist(), self.costs[name].tolist(), self.parts[name], strict=True),
            key=lambda each: each[0],
        ):
            damage += [(value - least) * cost / len(part)] * len(part)
        total = [0.0]
        for each in damage[: count * (len(damage) // count) : len(damage) // count]:
            total.append(total[-1] + each)
        return total

    def _scaled(
        self, groups: Sequence[tuple[str, torch.Tensor]], now: Mapping[str, torch.Tensor]
    ) -> Callable[..., Any]:
        def before(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            scale = torch.ones(given[0].shape[-1])
            for name, columns in groups:
                for part, gate in zip(self.parts[name], now[name], strict=True):
                    index = columns[part].flatten()
                    scale = scale.index_put((index,), gate.expand(len(index)))
            return (given[0] * scale,)

        return before


def _parts(group: Any, scores: torch.Tensor) -> list[torch.Tensor]:
    """The structures of a group in about ten parts, those of least score first."""
    order = torch.tensor(in_rounds(scores, group.blocks))
    return list(order.tensor_split(len(levels(group))))


class Regrowing(Lhspg):
    """Every period begins with all structures, and fades as many as are to go at the end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._base = {n: p.data.clone() for n, p in self.model.named_parameters() if not p.requires_grad}

    def _begin(self, period: int) -> None:
        for name, value in self._base.items():
            self.weights.here(name).copy_(value)
        self._dead = []
        super()._begin(period)

    def _width(self, name: str, period: int) -> int:
        return self.widths[name]


@contextmanager
def regrowing(_: Trial) -> Iterator[None]:
    with mock.patch.object(transfer, "Lhspg", Regrowing):
        yield


@contextmanager
def no_stream(_: Trial) -> Iterator[None]:
    with mock.patch.object(losses, "STREAM", 0.0):
        yield


@contextmanager
def lasting(_: Trial) -> Iterator[None]:
    total = losses.Losses.total
    with mock.patch.object(losses.Losses, "total", lambda self, distill, done: total(self, distill, 0.0)):
        yield


FORMS: dict[str, dict[str, Any]] = {
    "equal shares in every layer, one-shot + LoRA": {"within": equal, "per_layer": False},
    "equal widths in every layer": {"per_layer": False},
    "one-shot + LoRA": {},
    "text alone": {"distill": 0.0},
    "the dense model: half of the loss": {"distill": 0.5},
    "the dense model alone": {"distill": 1.0},
    "its next tokens alone, not its stream": {"within": no_stream},
    "its stream as much to the end": {"within": lasting},
    "widths refined in context": {"within": refined},
    "widths from learned gates": {"within": gated},
    "in two steps, the first to 30 % in a third of the tokens": {"through": 0.3},
    "LHSPG: a ramp in 5 % of the steps": {"lhspg": 0.05},
    "LHSPG: a ramp in 20 %": {"lhspg": 0.2},
    "LHSPG: a ramp in 20 %, without the refit": {"lhspg": 0.2, "compensate": False},
    "LHSPG: half-space in 20 %": {"lhspg": 0.2, "policy": "half-space"},
    "LHSPG: a warm-up of 30 %, a ramp in 5 %": {"lhspg": 0.35, "warm_up": 6 / 7},
    "LHSPG: a warm-up of 10 %, three periods to 50 %": {"lhspg": 0.5, "warm_up": 0.2, "periods": 3},
    "LHSPG: two ramps of 20 %, with regrowth between": {"lhspg": 0.4, "periods": 2, "within": regrowing},
    "a fifth of the tokens, rank 4": {"scarce": True},
    "a fifth of the tokens, rank 4, LHSPG: a ramp in 20 %": {"scarce": True, "lhspg": 0.2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--model", default="babyllama-105")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument("--results", type=Path, default=Path("form-runs.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what is there, and run nothing")
    args = parser.parse_args()
    disable_progress_bar()
    results = Results(args.results)
    with tempfile.TemporaryDirectory() as scratch, suppress(KeyboardInterrupt):
        subject = next(s for s in subjects(args.shared, Path(scratch)) if s.folder.name == args.model)
        rows: dict[str, list[Trial]] = {DENSE: [Trial(subject, args.ratio, DENSE, {"tokens": None})]}
        for label, more in FORMS.items():
            settings = {"tokens": args.tokens, "per_layer": True, **more}
            within = settings.pop("within", as_it_is)
            if settings.pop("scarce", False):
                settings |= {"tokens": args.tokens // 5, "rank": 4}
            rows[label] = [
                Trial(subject, args.ratio, label, settings, rate, within=within) for rate in (args.rate, args.rate / 2)
            ]
        if not args.table:
            with workers(args.jobs, Path(scratch)) as pool:
                results.make([trial for trials in rows.values() for trial in trials], pool)
        shown = [run for trials in rows.values() for trial in trials if (run := results.of(trial))]
        print(
            f"{args.model}, {args.ratio:.0%} of all parameters removed, widths per layer; {args.tokens:,} tokens in windows "
            f"of {CONTEXT}, {TEST} valid and {TEST} test windows, fp32, {machines(shown)}, seed 0\n"
        )
        print("| configuration | learning rate | test perplexity |\n|---|---:|---:|")
        for label, trials in rows.items():
            done = [
                (run["valid"], trial.rate, run["test"])
                for trial in trials
                if (run := results.of(trial)) and "test" in run
            ]
            if done:
                _, rate, test = min(done)
                print(f"| {label} | {f'{rate:g} ×' if label != DENSE else ''} | {test:.3f} |")


if __name__ == "__main__":
    main()
