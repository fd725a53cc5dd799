"""The curves of a run that trained, drawn from its log: `training.jsonl` becomes a picture in SVG, which browsers and model
cards show by themselves.

Panels one below the other share the steps as their x axis: losses, learning rate, and structures removed where that changes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from lorashear.learning import drawing
from lorashear.learning.drawing import FOOT, GAP, HEAD, LEFT, RIGHT, WIDTH, Point, Scale, Stroke

PICTURE = "training.svg"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#8a5a8a"  # told apart by colour-blind eyes too


@dataclass(frozen=True)
class Curve:
    """``key`` is what the log calls it."""

    key: str
    name: str
    colour: str
    stairs: bool = False  # it stays until it jumps


@dataclass(frozen=True)
class Panel:
    title: str
    height: int
    curves: tuple[Curve, ...]
    from_zero: bool = False


LOSSES = Panel("loss in nats", 240, (Curve("text", "of the text alone", ORANGE), Curve("loss", "total", BLUE)))
RATE = Panel("learning rate", 90, (Curve("rate", "learning rate", GREEN),), from_zero=True)
REMOVED = Panel("structures removed", 90, (Curve("removed", "structures removed", PURPLE, True),), from_zero=True)


def keep(log: Path, folder: Path) -> None:
    """Copy a log into a folder, and draw its picture beside it."""
    copy = Path(shutil.copyfile(log, folder / log.name))
    (folder / PICTURE).write_text(draw(copy.read_text(encoding="utf-8").splitlines()), encoding="utf-8")


def draw(lines: Iterable[str]) -> str:
    """The picture, as the text of an SVG file.

    Args:
        lines: of `training.jsonl`, one at least: ``step``, ``loss`` and ``text`` in nats, ``rate``, and ``removed`` where
            that is known.
    """
    rows = [json.loads(line) for line in lines]
    panels = [LOSSES, RATE]
    if len({row.get("removed") for row in rows}) > 1:
        panels.append(REMOVED)
    height = sum(HEAD + panel.height for panel in panels) + GAP * (len(panels) - 1) + FOOT
    root = drawing.sheet(height, f"Training, {rows[-1]['step']:,} steps")
    steps = Scale.of([row["step"] for row in rows], LEFT, WIDTH - RIGHT)
    top = 0.0
    for panel in panels:
        top += HEAD
        _panel(root, panel, rows, steps, top)
        top += panel.height + GAP
    drawing.step_axis(root, steps, top - GAP)
    return drawing.written(root)


def _panel(root: xml.Element, panel: Panel, rows: Sequence[dict[str, Any]], steps: Scale, top: float) -> None:
    """A panel's title, frame, grid and curves, from ``top`` downwards."""
    found = {
        curve: [(row["step"], row[curve.key]) for row in rows if row.get(curve.key) is not None]
        for curve in panel.curves
    }
    values = [value for points in found.values() for _, value in points]
    scale = Scale.of([0, *values] if panel.from_zero else values, top + panel.height, top, room=0.05)
    drawing.text(root, LEFT, top - 12, panel.title, weight="bold")
    drawing.grid(root, steps, scale, panel.curves[0].key, drawing.number)
    for curve, points in found.items():
        shown = _stairs(points) if curve.stairs else drawing.thinned(points)
        _curve(root, curve, [(steps(step), scale(value)) for step, value in shown])
    if len(panel.curves) > 1:
        entries = [(curve.name, Stroke(curve.colour, 3)) for curve in panel.curves[::-1]]
        drawing.legend(root, entries, LEFT + 120, top - 16)


def _curve(root: xml.Element, curve: Curve, points: Sequence[Point]) -> None:
    if len(points) == 1:  # a dash, where there is no line to draw
        points = [(x + move, y) for x, y in points for move in (-3, 3)]
    drawing.curve(root, curve.key, points, Stroke(curve.colour))


def _stairs(points: Sequence[Point]) -> list[Point]:
    """The first and the last point, and two where the value jumps."""
    found = [points[0]]
    for step, value in points[1:]:
        if value != found[-1][1]:
            found += [(step, found[-1][1]), (step, value)]
    return [*found, points[-1]]
