"""The same measured again: whether a report's figures come out as they are in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lorashear.disk.checkpoint import json_object
from lorashear.errors import LorashearError
from lorashear.evaluation.asked import Asked
from lorashear.evaluation.evaluator import FORMAT, Evaluation, evaluate
from lorashear.evaluation.subjects import short
from lorashear.report import columns
from lorashear.terminal.stages import Progress, Say

Report = Mapping[str, Any]
NATS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
"""By which a loss may be off, by the dtype that was computed in: other machines, threads and versions add up in another order."""
SHARES = {"float32": 0.002, "float16": 0.01, "bfloat16": 0.01}
"""By which a share of items may be, where two choices are almost as likely."""
OF_DATA = ("text", "tasks", "items")
"""What may lie somewhere else now."""


def compared(
    path: Path,
    models: Sequence[str] = (),
    *,
    text: Sequence[str] = (),
    tasks: Sequence[str] = (),
    items: str | Path | None = None,
    trust_remote_code: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
) -> tuple[Report, Evaluation]:
    """A report that is in a file, and what the same request finds now.

    Args:
        models, text, tasks, items: where they are now, in the order of the report; by default where it says.

    Raises:
        LorashearError: it is no such report, or as `evaluate`.
    """
    report = _read(path)
    known, asked = report["models"], {**report["asked"]}
    if models and len(models) != len(known):
        raise LorashearError(f"'{path}' is of {len(known)} models, and {len(models)} are given: give as many, or none")
    if not models and any(model["in_memory"] for model in known):
        raise LorashearError(f"'{path}' is of a model that was in memory: name the folder where it lies now")
    asked |= {name: given for name, given in zip(OF_DATA, (list(text), list(tasks), items), strict=True) if given}
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in asked.items()}
    again = evaluate(
        list(models or (model["name"] for model in known)),
        revision=None if models else [model["commit"] for model in known],
        trust_remote_code=trust_remote_code,
        say=say,
        progress=progress,
        **settings,
    )
    shapes = [[(each["kind"], len(each["results"])) for each in some["figures"]] for some in (report, again.report)]
    if shapes[0] != shapes[1]:
        raise LorashearError(
            f"'{path}' has other figures than what it asks for gives: it was changed, or made by another version"
        )
    return report, again


def _read(path: Path) -> dict[str, Any]:
    """A report, as far as it is read here. Raises LorashearError where it is none."""
    if not path.is_file():
        raise LorashearError(f"'{path}' is no file; give the report that lorashear eval --out wrote")
    report = json_object(path.read_bytes(), f"'{path}'")
    try:
        whole = report["format"] == FORMAT and set(report["asked"]) == {each.name for each in fields(Asked)}
        whole = whole and bool(report["models"]) and isinstance(report["made_with"], dict)
        for model in report["models"]:
            whole = whole and {"name", "commit", "in_memory", "sha256", "tokenizer", "dtype"} <= set(model)
        for figure in report["figures"]:
            whole = whole and {"kind", "name"} <= set(figure) and len(figure["results"]) == len(report["models"])
            for result in figure["results"]:
                whole = whole and JUDGED[figure["kind"]] <= set(result)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise LorashearError(
            f"'{path}' is no whole report of lorashear eval in format {FORMAT}: give one as it was written"
        )
    return report


JUDGED: Mapping[str, set[str]] = {
    "perplexity": {"nll", "tokens", "sha256"},
    "choices": {"accuracy", "normalised"},
    "average": {"accuracy", "normalised"},
    "harness": {"metrics"},
    "speed": {"decode", "prefill", "time_to_first_token", "peak_bytes", "cache_bytes"},
}
"""What a result is compared by."""


def verdict(before: Report, now: Report) -> str | None:
    """What differs, in a sentence; None where nothing does. Speed and memory are shown, but not judged."""
    wrong = [label for label, *_, same in _figures(before, now) if same is False]
    return f"{len(wrong)} of the figures came out differently: {', '.join(wrong)}" if wrong else None


def said(before: Report, now: Report) -> str:
    """A line for each figure: reported, now, and whether it is the same."""
    rows = [["", "reported", "now", ""]]
    for label, old, new, same in _figures(before, now):
        rows.append([label, _number(old), _number(new), {True: "same", False: "DIFFERS", None: "not judged"}[same]])
    return columns(rows, "<>>")


def _number(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return "–" if value is None else value[:12]
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _figures(before: Report, now: Report) -> Iterator[tuple[str, Any, Any, bool | None]]:
    """Label, value in the report and now, and whether they agree; None where that is not to be expected."""
    for name in dict.fromkeys((*before["made_with"], *now["made_with"])):
        old, new = (str(report["made_with"].get(name)) for report in (before, now))
        if old != new:
            yield name, old, new, None
    names = short([model["name"] for model in before["models"]])
    for name, old, new in zip(names, before["models"], now["models"], strict=True):
        known = old["in_memory"] == new["in_memory"]  # a module is known by other things than a folder
        for what in ("sha256", "tokenizer"):
            label = f"{name}: {'weights' if what == 'sha256' else what}"
            if old[what] is not None or new[what] is not None:
                yield label, old[what], new[what], old[what] == new[what] if known or what == "tokenizer" else None
    for old, new in zip(before["figures"], now["figures"], strict=True):
        if "data" in old:
            known, found = old["data"]["sha256"], new["data"]["sha256"]
            yield f"{old['name']}: data", known, found, known == found
        for name, model, one, two in zip(names, before["models"], old["results"], new["results"], strict=True):
            for what, first, second, same in _values(old["kind"], model["dtype"], one, two):
                yield f"{name}: {old['name']}: {what}", first, second, same


def _values(
    kind: str, dtype: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any, bool | None]]:
    """What, value in the report and now, and whether they agree."""
    nats, share = NATS.get(dtype, max(NATS.values())), SHARES.get(dtype, max(SHARES.values()))
    if kind == "perplexity":
        yield "nats a token", old["nll"], new["nll"], _near(old["nll"], new["nll"], nats)
        for what in ("tokens", "sha256"):
            yield "token ids" if what == "sha256" else what, old[what], new[what], old[what] == new[what]
    elif kind == "harness":
        for name in dict.fromkeys((*old["metrics"], *new["metrics"])):
            first, second = old["metrics"].get(name), new["metrics"].get(name)
            most = share if first is not None and 0 <= first <= 1 else nats * abs(first or 0.0)
            yield name, first, second, _near(first, second, most)
    elif kind == "speed":
        for name in ("decode", "prefill", "time_to_first_token", "peak_bytes"):
            yield name, old[name], new[name], None
        yield "cache_bytes", old["cache_bytes"], new["cache_bytes"], old["cache_bytes"] == new["cache_bytes"]
    else:
        for name in ("accuracy", "normalised"):
            yield name, old[name], new[name], _near(old[name], new[name], share)


def _near(first: Any, second: Any, most: float) -> bool:
    if first is None or second is None:
        return first is second
    return abs(first - second) <= most + 1e-12
