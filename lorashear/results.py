"""What a run says of itself when it is done: the content of report.json, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lorashear import card, knowledge
from lorashear.choosing import Choice
from lorashear.disk.checkpoint import Checkpoint, json_object
from lorashear.disk.folder import write_json
from lorashear.disk.storage import Storage
from lorashear.errors import LorashearError
from lorashear.likelihood import Perplexity
from lorashear.plans import Plan
from lorashear.report import CARD_FILE, layer_widths
from lorashear.run import Compilation, Run
from lorashear_ir.groups import Groups
from lorashear_passes.oneshot import Outcome

REPORT = Path("lorashear") / "report.json"
OF_A_STAGE = ("name", "measured", "stopped", "before", "schedule")
"""What is told of each stage of training, and not of all together."""


def content(
    run: Compilation,
    storage: Storage,
    groups: Groups,
    counted: Groups,
    choice: Choice,
    plan: Plan,
    folder: Path,
    judged: Mapping[str, Perplexity | None],
) -> dict[str, Any]:
    """The report of a run that pruned, into ``folder``; ``counted`` has the prices of what the ratio is of."""
    source, settings, windows, outcome = run.source, run.settings, run.windows, choice.outcome
    small = Checkpoint.open(folder)
    counts = [_count(storage.source, storage, groups, {}), _count(small, storage, groups, plan.names)]
    left = counts[1] / counts[0]
    if settings.cost != "parameters":
        left = counted.count(groups.widths(outcome.removed)) / counted.count()
    return {
        "model": run.name,
        "revision": run.revision,
        "inherited": card.inherited(source.folder),
        "text": list(run.texts),
        "lora": run.lora is not None,
        "ratio": {"asked": settings.ratio, "of": settings.cost, "reached": 1 - left},
        "parameters": {"before": counts[0], "after": counts[1]},
        "bytes": {"before": source.bytes, "after": small.bytes},
        "widths": layer_widths(groups, outcome.removed),
        "route": plan.route,
        "criterion": plan.settings["criterion"],
        "compensated": settings.compensate and windows is not None,
        "changed": sorted(plan.changed),
        "perplexity": perplexities(run, judged),
        "training": choice.record,
        "split": {"chosen": outcome.split.name, "tried": dict(outcome.split.tried)},
        "per_layer": _alternative(outcome),
        "knowledge": knowledge.content(outcome.knowledge, groups, settings) if outcome.knowledge else None,
        "note": "" if windows is not None else "no text was given: ranked without data, not compensated",
        "seconds": {**run.stage.seconds, **{f"prune: {name}": round(s, 4) for name, s in outcome.seconds.items()}},
        "peak_bytes": run.stage.peak_bytes,
        "device": settings.device,
        "settings": asdict(settings),
    }


def perplexities(run: Run, judged: Mapping[str, Perplexity | None]) -> dict[str, Any] | None:
    """What models were judged to be worth, by name, and on what; None without text."""
    found = {name: each for name, each in judged.items() if each is not None}
    if not found or run.windows is None:
        return None
    tokens = next(iter(found.values())).tokens
    way = "packed documents, attention crosses their boundaries" if run.settings.packed else "a document each"
    what = f"{tokens:,} tokens of the given text that nothing else used, context {run.windows.context}, {way}"
    return {**{name: each.perplexity for name, each in found.items()}, "tokens": tokens, "data": what}


def recovered(
    before: Mapping[str, Any], run: Run, plan: Plan, record: Mapping[str, Any], after: Perplexity | None
) -> dict[str, Any]:
    """The report of a run that trained a pruned result, whose own report was ``before``."""
    perplexity = before["perplexity"]
    if perplexity and after:
        perplexity = {**perplexity, "pruned": perplexity["after"], "after": after.perplexity}
    done = [before["training"] or {}, *record["stages"]]
    told = [done[0], *record["stages"][::-1]]  # what is said of all is what the first stage of this run had
    how = {name: value for each in told for name, value in each.items() if name not in OF_A_STAGE}
    training = {**how, **{name: sum(each.get(name, 0) for each in done) for name in ("steps", "tokens")}}
    return {
        **before,
        "text": list(dict.fromkeys([*(before.get("text") or ()), *run.texts])),
        "changed": sorted(plan.changed),
        "perplexity": perplexity,
        "training": training,
        "recovery": record,
        "seconds": {**before["seconds"], **run.stage.seconds},
        "peak_bytes": {**before["peak_bytes"], **run.stage.peak_bytes},
        "settings": {**before["settings"], **asdict(run.settings)},
    }


def write(content: Mapping[str, Any], folder: Path) -> None:
    """The report of a result."""
    write_json(folder / REPORT, content)


def write_card(folder: Path) -> None:
    """The card of a result that has all else: it shows what the report and the recipes say."""
    plan, content = read(folder)
    (folder / CARD_FILE).write_text(card.card(content, plan, folder), encoding="utf-8")


def read(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan and the report of a result; where `apply` wrote it, a report of what is known.

    Raises:
        LorashearError: it is no folder that LoRAShear wrote.
    """
    path = folder / REPORT
    if not path.with_name("plan.json").is_file():
        raise LorashearError(f"'{folder}' is no folder that LoRAShear wrote: it lacks lorashear/plan.json")
    plan = Plan.load(path.with_name("plan.json"))
    return plan, json_object(path.read_bytes(), f"'{path}'") if path.is_file() else _sliced(plan, folder)


def _sliced(plan: Plan, folder: Path) -> dict[str, Any]:
    """Of a plain slice, whose dense model is not there to be counted."""
    small = Checkpoint.open(folder)
    counts = {"before": None, "after": sum(int(np.prod(info.shape, dtype=np.int64)) for info in small.tensors.values())}
    return {
        "model": folder.resolve().name,
        "ratio": None,
        "parameters": counts,
        "bytes": {"before": None, "after": small.bytes},
        "widths": {},
        "route": plan.route,
        "criterion": plan.settings.get("criterion"),
        "compensated": False,
        "changed": sorted(plan.changed),
        "perplexity": None,
        "training": None,
        "per_layer": None,
        "note": "",
        "seconds": {},
        "peak_bytes": {},
        "settings": dict(plan.settings),
    }


def _alternative(outcome: Outcome) -> dict[str, Any] | None:
    """What a uniform result would have kept if widths could differ per layer; None where that is not known."""
    free = outcome.alternative
    if free is None or outcome.split.name not in outcome.split.tried:
        return None
    return {"loss": outcome.split.tried[outcome.split.name], "loss_per_layer": free.tried[free.name]}


def _count(found: Checkpoint, storage: Storage, groups: Groups, names: Mapping[str, str | None]) -> int:
    """Parameters as they lie on disk, tied ones once; ``names`` has those of a result that are other ones."""
    sizes: dict[tuple[Any, ...], int] = {}
    for name, part in storage.parts.items():
        parameter, info = (
            groups.tied.get(part.parameter, part.parameter),
            found.tensors.get(names.get(name, name) or ""),
        )
        if parameter in groups.tensors and info is not None:
            first = tuple(place.indices[0] for place in part.places)
            sizes[parameter, first] = int(np.prod(info.shape, dtype=np.int64))
    return sum(sizes.values())
