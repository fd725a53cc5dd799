"""What reports say, for a reader: what each group is worth, how training went, what recovered, and evaluations side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorashear import knowledge
from lorashear.errors import LorashearError
from lorashear.learning.drawing import thinned
from lorashear_ir.groups import Groups

Content = dict[str, Any]
CURVES = ("loss", "text", "rate", "removed")


def measured(groups: Groups | None, reports: Iterable[Path]) -> Content:
    """The part ``measured`` of a view.

    Args:
        groups: of the dense model; None where the reports are known to be of it.
        reports: of `compile` or `recover`, or the folders that they made, and of `eval`; what a later one has stands for the same
            of an earlier one.

    Raises:
        LorashearError: a file is no report, or of another model.
    """
    found: Content = {"knowledge": None, "widths": None, "training": None, "recovery": None, "evaluation": None}
    for path in reports:
        file = path / "lorashear" / "report.json" if path.is_dir() else path
        report = _read(file)
        if "figures" in report and "models" in report:
            found["evaluation"] = {
                "models": [{k: m.get(k) for k in ("name", "parameters", "bytes")} for m in report["models"]],
                "figures": report["figures"],
            }
            continue
        if report.get("knowledge"):
            found["knowledge"] = report["knowledge"] if groups is None else knowledge.read(groups, file)
        if "widths" in report:
            if groups is not None:
                _check_widths(groups, report["widths"], file)
            found["widths"] = report["widths"]
        if (log := file.with_name("training.jsonl")).is_file():
            found["training"] = _training(log)
        if report.get("recovery"):
            found["recovery"] = report["recovery"]
    return _finite(found)


def _read(file: Path) -> Content:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LorashearError(f"{file} cannot be read as a report of compile, recover or eval: {error}") from None
    if not isinstance(report, dict) or not (
        {"widths", "recovery"} & set(report) or {"figures", "models"} <= set(report)
    ):
        raise LorashearError(
            f"{file} is no report of compile, recover or eval: pass report.json, or the folder of a result"
        )
    return report


def _check_widths(groups: Groups, widths: Mapping[str, Any], file: Path) -> None:
    for name, width in widths.items():
        if name not in groups or groups[name].axis.size != width["before"]:
            raise LorashearError(
                f"{file} is of another model: it has {name}, which is not in this one as it is there; "
                "pass a report of the model that is shown"
            )


def _training(log: Path) -> Content:
    """The curves of a log, each at 500 points at most."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    curves = {key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in CURVES}
    return {key: [list(point) for point in thinned(points)] for key, points in curves.items() if points}


def _finite(value: Any) -> Any:
    """Numbers that JSON has: what is not finite is null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
