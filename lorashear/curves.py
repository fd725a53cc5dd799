"""The curves of a run that trained, drawn from its log: `training.jsonl` becomes a picture in SVG, which browsers and model
cards show by themselves.

Panels one below the other share the steps as their x axis: losses, learning rate, and structures removed where that changes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

PICTURE = "training.svg"
POINTS = 500
"""Of a curve at most: more than that no screen shows apart."""
WIDTH, LEFT, RIGHT = 760, 76, 28  # of the picture and its margins, in pixels
HEAD, GAP, FOOT = 34, 22, 46  # above a panel, between two, and below the last
GRID, INK, PAPER = "#dcdcdc", "#333333", "#ffffff"  # a paper of its own, so that it reads on a dark page too
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#8a5a8a"  # told apart by colour-blind eyes too
Point = tuple[float, float]


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


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` at pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, spaces: int) -> list[float]:
        """Round numbers in reach, with so many spaces between them at most: multiples of 1, 2 or 5 times a power of ten."""
        least = (self.high - self.low) / spaces
        power = 10.0 ** math.floor(math.log10(least))
        step = next(each * power for each in (1, 2, 5, 10, 20) if each * power >= least)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


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
    root = xml.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", width=f"{WIDTH}", height=f"{height}"
    )
    root.attrib |= {"role": "img", "font-family": "Helvetica, Arial, sans-serif", "font-size": "12", "fill": INK}
    xml.SubElement(root, "title").text = f"Training, {rows[-1]['step']:,} steps"
    xml.SubElement(root, "rect", width="100%", height="100%", fill=PAPER)
    steps = _scale([row["step"] for row in rows], LEFT, WIDTH - RIGHT)
    top = 0.0
    for panel in panels:
        top += HEAD
        _panel(root, panel, rows, steps, top)
        top += panel.height + GAP
    _steps(root, steps, top - GAP)
    xml.indent(root)
    return xml.tostring(root, encoding="unicode") + "\n"


def _panel(root: xml.Element, panel: Panel, rows: Sequence[dict[str, Any]], steps: Scale, top: float) -> None:
    """A panel's title, frame, grid and curves, from ``top`` downwards."""
    bottom = top + panel.height
    found = {
        curve: [(row["step"], row[curve.key]) for row in rows if row.get(curve.key) is not None]
        for curve in panel.curves
    }
    values = [value for points in found.values() for _, value in points]
    scale = _scale([0, *values] if panel.from_zero else values, bottom, top, room=0.05)
    _text(root, LEFT, top - 12, panel.title, weight="bold")
    for tick in scale.ticks(panel.height // 22):
        _line(root, LEFT, scale(tick), WIDTH - RIGHT, scale(tick))
        _text(root, LEFT - 8, scale(tick) + 4, number(tick), anchor="end", kind=f"y {panel.curves[0].key}")
    for tick in _whole(steps):
        _line(root, steps(tick), top, steps(tick), bottom)
    for curve, points in found.items():
        shown = _stairs(points) if curve.stairs else thinned(points)
        _curve(root, curve, [(steps(step), scale(value)) for step, value in shown])
    if len(panel.curves) > 1:
        _legend(root, panel.curves[::-1], top - 16)


def _curve(root: xml.Element, curve: Curve, points: Sequence[Point]) -> None:
    if len(points) == 1:  # a dash, where there is no line to draw
        points = [(x + move, y) for x, y in points for move in (-3, 3)]
    places = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    style = {"stroke": curve.colour, "stroke-width": "1.6", "stroke-linejoin": "round", "stroke-linecap": "round"}
    xml.SubElement(root, "polyline", {"class": curve.key, "points": places, "fill": "none", **style})


def _legend(root: xml.Element, curves: Sequence[Curve], y: float) -> None:
    """Beside the title. Letters are of a width that only the reader's machine knows: the room after a name gives way."""
    at = LEFT + 120.0
    for curve in curves:
        _line(root, at, y, at + 22, y, colour=curve.colour, width=3)
        _text(root, at + 28, y + 4, curve.name)
        at += 28 + 7.5 * len(curve.name) + 20


def _steps(root: xml.Element, steps: Scale, bottom: float) -> None:
    """The numbers of the x axis, and what they count."""
    for tick in _whole(steps):
        _text(root, steps(tick), bottom + 18, number(tick), anchor="middle", kind="x")
    _text(root, (LEFT + WIDTH - RIGHT) / 2, bottom + 37, "step", anchor="middle")


def _whole(steps: Scale) -> list[float]:
    return [tick for tick in steps.ticks(8) if tick == round(tick)]


def _scale(values: Sequence[float], start: float, end: float, room: float = 0.0) -> Scale:
    """One that has room, as a share, beyond the values, but none below zero."""
    low, high = min(values), max(values)
    if low == high:
        high = low + 1
    over = room * (high - low)
    return Scale(max(low - over, 0.0) if low >= 0 else low - over, high + over, start, end)


def thinned(points: Sequence[Point], most: int = POINTS) -> Sequence[Point]:
    """At most so many of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _stairs(points: Sequence[Point]) -> list[Point]:
    """The first and the last point, and two where the value jumps."""
    found = [points[0]]
    for step, value in points[1:]:
        if value != found[-1][1]:
            found += [(step, found[-1][1]), (step, value)]
    return [*found, points[-1]]


def number(value: float) -> str:
    """As a person writes it: ``1,500``, ``0.25``, ``2e-4``."""
    if value and abs(value) < 1e-2:
        mantissa, _, power = f"{value:.3g}".partition("e")
        if not power:
            mantissa, _, power = f"{value:.2e}".partition("e")
            mantissa = f"{float(mantissa):g}"
        return f"{mantissa}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _line(
    root: xml.Element, x1: float, y1: float, x2: float, y2: float, colour: str = GRID, width: float = 1.0
) -> None:
    ends = {name: f"{value:.2f}" for name, value in {"x1": x1, "y1": y1, "x2": x2, "y2": y2}.items()}
    xml.SubElement(root, "line", {**ends, "stroke": colour, "stroke-width": f"{width:g}"})


def _text(
    root: xml.Element, x: float, y: float, said: str, anchor: str = "start", weight: str = "normal", kind: str = ""
) -> None:
    place = {"x": f"{x:.2f}", "y": f"{y:.2f}", "text-anchor": anchor, "font-weight": weight}
    xml.SubElement(root, "text", {**place, **({"class": kind} if kind else {})}).text = said
