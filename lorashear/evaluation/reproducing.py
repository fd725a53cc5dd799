"""The same measured again: whether a report's figures come out as they are in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorashear.checkpoint import json_object
from lorashear.errors import LorashearError
from lorashear.evaluation.evaluator import FORMAT, Evaluation, evaluate
from lorashear.report import columns
from lorashear.stages import Progress, Say

Report = Mapping[str, Any]
NATS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
"""By which a loss may be off, by the dtype that was computed in: other machines, threads and versions add up in another order."""
ITEMS = 2
"""By which of them a share may be off, where two choices are almost as likely."""


def compared(
    path: Path,
    models: Sequence[str] | None = None,
    *,
    trust_remote_code: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
) -> tuple[Report, Evaluation]:
    """A report that is in a file, and what the same request finds now.

    Args:
        models: where they are now, in the order of the report; by default where it says.

    Raises:
        LorashearError: it is no such report, models or data are other ones than it was made of, or as `evaluate`.
    """
    report = json_object(path.read_bytes(), f"'{path}'") if path.is_file() else None
    if report is None:
        raise LorashearError(f"'{path}' is no file; give the report that lorashear eval --out wrote")
    if report.get("format") != FORMAT or "figures" not in report:
        raise LorashearError(f"'{path}' is no report of lorashear eval in format {FORMAT}")
    known = report["models"]
    if models is not None and len(models) != len(known):
        raise LorashearError(f"'{path}' is of {len(known)} models, and {len(models)} are given: give as many, or none")
    revisions = {model["revision"] for model in known}
    again = evaluate(
        list(models or (model["name"] for model in known)),
        revision=revisions.pop() if len(revisions) == 1 else None,
        trust_remote_code=trust_remote_code,
        say=say,
        progress=progress,
        **_spelled(report["asked"]),
    )
    return report, again


def _spelled(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they were, in JSON's types."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}


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
    for old, new in zip(before["models"], now["models"], strict=True):
        yield f"{old['name']}: weights", old["sha256"], new["sha256"], old["sha256"] == new["sha256"]
    for old, new in zip(before["figures"], now["figures"], strict=True):
        if "data" in old:
            known, found = old["data"]["sha256"], new["data"]["sha256"]
            yield f"{old['name']}: data", known, found, known == found
        for model, one, two in zip(before["models"], old["results"], new["results"], strict=True):
            for what, first, second, most in _values(old, model, one, two):
                same = None if most is None else abs(first - second) <= most
                yield f"{model['name']}: {old['name']}: {what}", first, second, same


def _values(
    figure: Mapping[str, Any], model: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any, float | None]]:
    """What, value in the report and now, and by how much they may differ."""
    nats = NATS.get(model["dtype"], max(NATS.values()))
    if figure["kind"] == "perplexity":
        yield "nats a token", old["nll"], new["nll"], nats
        yield "tokens", old["tokens"], new["tokens"], 0
    elif figure["kind"] == "harness":
        for name, value in old["metrics"].items():
            yield name, value, new["metrics"][name], nats * max(1.0, abs(value))
    elif figure["kind"] == "speed":
        for name in ("decode", "prefill", "time_to_first_token", "peak_bytes"):
            yield name, old[name], new[name], None
        if old["cache_bytes"] is not None:
            yield "cache_bytes", old["cache_bytes"], new["cache_bytes"], 0
    else:
        items = figure["items"] if "items" in figure else None
        for name in ("accuracy", "normalised"):
            yield name, old[name], new[name], ITEMS / items + 1e-9 if items else None
