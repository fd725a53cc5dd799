"""report.html of a result: the page of the model that was pruned, its cut, and what the run measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn

from lorashear.viewer.content import shown
from lorashear.viewer.measured import measured
from lorashear.viewer.page import data, page
from lorashear_ir.groups import Groups

PAGE = Path("lorashear") / "report.html"


def write(name: str, twin: nn.Module, groups: Groups, removed: Mapping[str, Collection[int]], folder: Path) -> None:
    """Write the page of a result whose plan and report are in ``folder``; ``twin`` is the dense model without weights."""
    _write(page(shown(name, twin, groups, removed, [folder])), folder)


def renew(before: Path, folder: Path) -> None:
    """Write that of a result that went on to be trained: the dense model need not be there. Nothing where ``before`` has none."""
    if (old := before / PAGE).is_file():
        found = data(old.read_text(encoding="utf-8"))
        _write(page({**found, "measured": measured(None, [folder])}), folder)


def _write(made: str, folder: Path) -> None:
    (folder / PAGE).write_text(made, encoding="utf-8")
