"""A report as one table: models side by side, with differences from the first, in text and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorashear.evaluation.accuracies import KINDS
from lorashear.evaluation.measures import NOISE
from lorashear.evaluation.subjects import short
from lorashear.report import columns

Report = Mapping[str, Any]
NOISY, CHANCE = "≈", "°"
LEGEND = {
    NOISY: f"{NOISY} within noise: less than {NOISE} standard errors of the difference; of speed, half of the rounds lie around 1",
    CHANCE: f"{CHANCE} at chance level: no more than {NOISE} of its standard errors above guessing",
}
DASH = "–"


@dataclass(frozen=True)
class Row:
    """A cell for each model, and how each differs from the first, which has no difference."""

    label: str
    values: Sequence[str]
    differences: Sequence[str]


def text(report: Report) -> str:
    """For a terminal: the table, and below it what was measured on what."""
    head, *_ = lines = _cells(report)
    width = max(len(line[-1]) for line in lines)
    aligned = [[*line[:-1], line[-1].rjust(width)] for line in lines]
    return "\n".join([columns(aligned, "<" + ">" * (len(head) - 2)), "", *notes(report)])


def markdown(report: Report) -> str:
    """For a model card."""
    head, *lines = _cells(report)
    ruled = ["---", *("---:" for _ in head[1:])]
    marked = [[cell.replace("|", r"\|") for cell in line] for line in (head, ruled, *lines)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in marked), "", *(f"* {note}" for note in notes(report))])


def _cells(report: Report) -> list[list[str]]:
    """A head, and a line for each row."""
    first, *others = names(report)
    head = ["", first, *(cell for name in others for cell in (name, "difference"))]
    lines = [head]
    for row in rows(report):
        pairs = zip(row.values[1:], row.differences[1:], strict=True)
        lines.append([row.label, row.values[0], *(cell for pair in pairs for cell in pair)])
    return lines


def names(report: Report) -> list[str]:
    """Of the models."""
    return short([model["name"] for model in report["models"]])


def rows(report: Report) -> list[Row]:
    """All of the table."""
    found = [_sizes(report, "parameters", lambda n: f"{n:,}"), _sizes(report, "bytes", lambda n: f"{n / 1e6:,.1f} MB")]
    for figure in report["figures"]:
        found += MADE[figure["kind"]](figure)
    return [row for row in found if row is not None]


def _sizes(report: Report, what: str, said: Callable[[int], str]) -> Row | None:
    counts = [model[what] for model in report["models"]]
    if None in counts:
        return None
    return Row(what, [said(count) for count in counts], [f"{_percent(count / counts[0] - 1)}" for count in counts])


def _perplexity(figure: Mapping[str, Any]) -> list[Row]:
    name, results, differences = figure["name"], figure["results"], figure["differences"]
    values = [_perplexed(result["perplexity"], result["error"]) for result in results]
    bits = [_off(f"{r['bits_per_byte']:.3f}", r["bits_error"], "{:.3f}".format) for r in results]
    grown, more = [], []
    for d in differences:
        known = d is not None and d["paired"]
        grown.append(_changed(_percent(_grown(d["nll"])), d, partial(_points, d["nll"])) if known and d else DASH)
        bits_off = {**d, "error": None} if known and d else d
        more.append(_changed(f"{d['bits_per_byte']:+.3f}", bits_off or {}, "{:.3f}".format) if d else DASH)
    return [Row(f"{name}: perplexity", values, grown), Row(f"{name}: bits a byte", bits, more)]


def _choices(figure: Mapping[str, Any]) -> list[Row]:
    found = []
    for kind, what in zip(KINDS, ("accuracy", "accuracy, by length"), strict=True):
        values = []
        for result in figure["results"]:
            said = _off(f"{100 * result[kind]:.1f}", result[f"{kind}_error"], lambda e: f"{100 * e:.1f}")
            values.append(f"{said} %{' ' + CHANCE if result[f'{kind}_at_chance'] else ''}")
        differences = [
            DASH
            if d is None
            else _changed(
                f"{100 * d[kind]:+.1f}",
                {"error": d[f"{kind}_error"], "noise": d[f"{kind}_noise"]},
                lambda e: f"{100 * e:.1f}",
            )
            for d in figure["differences"]
        ]
        found.append(Row(f"{figure['name']}: {what}", values, differences))
    return found


def _harness(figure: Mapping[str, Any]) -> list[Row]:
    found = []
    for metric in figure["results"][0]["metrics"]:
        values = [
            _off(f"{r['metrics'][metric]:.4f}", r["errors"].get(metric), "{:.4f}".format) for r in figure["results"]
        ]
        differences = [
            DASH
            if d is None
            else _changed(
                f"{d['metrics'][metric]:+.4f}",
                {"error": d["errors"][metric], "noise": d["noise"][metric]},
                "{:.4f}".format,
            )
            for d in figure["differences"]
        ]
        found.append(Row(f"{figure['name']}: {metric}", values, differences))
    return found


def _speed(figure: Mapping[str, Any]) -> list[Row]:
    results, name = figure["results"], figure["name"]
    rows = [
        ("decode, tokens/s", "decode", "decode_noise", "{:,.1f}".format),
        ("prefill, tokens/s", "prefill", "prefill_noise", "{:,.0f}".format),
        ("time to first token", "time_to_first_token", "prefill_noise", lambda seconds: f"{1000 * seconds:,.1f} ms"),
        ("KV cache", "cache_bytes", None, _size),
        ("peak memory", "peak_bytes", None, _size),
    ]
    found = []
    for what, key, noisy, said in rows:
        values = [DASH if r[key] is None else said(r[key]) for r in results]
        ratios = []
        for d in figure["differences"]:
            mark = f" {NOISY}" if d and noisy and d[noisy] else ""
            ratios.append(DASH if d is None or d[key] is None else f"{d[key]:.2f}×{mark}")
        found.append(Row(f"{name}: {what}", values, ratios))
    return found


def _size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def _off(said: str, error: float | None, spelled: Callable[[float], str]) -> str:
    """A figure with its standard error, where that is known."""
    return said if error is None else f"{said} ±{spelled(error)}"


def _changed(said: str, difference: Mapping[str, Any], spelled: Callable[[float], str]) -> str:
    """A difference with its standard error, marked where it is noise."""
    return f"{_off(said, difference['error'], spelled)}{' ' + NOISY if difference['noise'] else ''}"


def _perplexed(value: float | None, error: float | None) -> str:
    if value is None or value >= 1e6:
        return "over 10^300" if value is None else f"{value:.3g}"
    return _off(f"{value:,.3f}", error, lambda e: f"{value * e:.3f}")


def _points(nats: float, error: float) -> str:
    """The standard error of a perplexity that is larger by such a factor, in percent of the first one."""
    return f"{100 * math.exp(min(nats, 700.0)) * error:.1f}"


def _grown(nats: float) -> float:
    """By what share a perplexity is larger whose logarithm is so much larger."""
    return math.expm1(min(nats, 700.0))


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %" if abs(share) < 1e4 else f"{100 * share:+.2e} %"


def notes(report: Report) -> list[str]:
    """What was measured on what, a line each, and what the marks mean."""
    found = [_described(figure) for figure in report["figures"] if figure["kind"] in DESCRIBED]
    shown = "".join(cell for row in rows(report) for cell in (*row.values, *row.differences))
    made = report["made_with"]
    apart = [each["name"] for each in report["figures"] for d in each["differences"] if d and d.get("paired") is False]
    unpaired = f", but for {', '.join(dict.fromkeys(apart))}, where tokenizers differ" if apart else ""
    packages = ", ".join(
        f"{name} {made[name]}" for name in ("lorashear", "torch", "transformers", "lm_eval") if name in made
    )
    hashes = ", ".join(
        f"{name} {m['sha256'][:12]} ({m['dtype']})" for name, m in zip(names(report), report["models"], strict=True)
    )
    return [
        *(line for line in found if line),
        f"models: {hashes}",
        f"{packages}, Python {made['python']}, {made['machine']}, {made['device']}, {made['threads']} threads; seed {report['asked']['seed']}",
        "± is a standard error; differences are of the same items and windows" + unpaired,
        *(said for mark, said in LEGEND.items() if mark in shown),
    ]


def _described(figure: Mapping[str, Any]) -> str:
    return DESCRIBED[figure["kind"]](figure)


def _of_text(figure: Mapping[str, Any]) -> str:
    data, tokens = figure["data"], sorted({result["tokens"] for result in figure["results"]})
    way = f"stride {figure['stride']}" if figure["packed"] else "a document each"
    counted = " or ".join(f"{count:,}" for count in tokens)
    return f"{figure['name']}: {counted} tokens, context {figure['context']}, {way}, {data['documents']:,} documents, sha256 {data['sha256'][:12]}"


def _of_suite(figure: Mapping[str, Any]) -> str:
    source = figure["data"]
    where = Path(source["file"]).name if "file" in source else source["dataset"]
    cut = max((result.get("truncated") or 0 for result in figure["results"]), default=0)
    short = f", {cut:,} choices cut to what the model can read" if cut else ""
    return f"{figure['name']}: {figure['items']:,} items of {where}, chance {100 * figure['chance']:.0f} %, sha256 {source['sha256'][:12]}, by {figure['by']}{short}"


def _of_task_file(figure: Mapping[str, Any]) -> str:
    return f"{figure['name']}: {Path(figure['data']['file']).name} by lm_eval, sha256 {figure['data']['sha256'][:12]}"


def _of_runs(figure: Mapping[str, Any]) -> str:
    said = (
        f"{figure['name']}: {figure['prompt']:,} tokens read and {figure['tokens']:,} told in each row, medians of "
        f"{figure['rounds']} rounds in which every model ran once, after {figure['warm_up']} that did not count"
    )
    spreads = [result["spread"] for result in figure["results"] if result["spread"] is not None]
    if spreads:
        said += f"; the middle half of a model's decoding rounds is as wide as {100 * max(spreads):.0f} % of their median, at most"
    explained = [each["explained"] for each in figure["differences"] if each]
    return " ".join([f"{said}.", *explained])


MADE: Mapping[str, Callable[[Mapping[str, Any]], list[Row]]] = {
    "perplexity": _perplexity,
    "choices": _choices,
    "average": _choices,
    "harness": _harness,
    "speed": _speed,
}
DESCRIBED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "perplexity": _of_text,
    "choices": _of_suite,
    "harness": _of_task_file,
    "speed": _of_runs,
}
