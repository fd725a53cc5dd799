"""How a pruned model recovered, drawn from its report: `recovery.svg`.

Two panels, one below the other, share the steps as their x axis, the stages one after another: what each subset of the text
has lost against the dense model, or its loss where there is no dense model, and its share in what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from lorashear.learning import drawing
from lorashear.learning.drawing import FOOT, GAP, HEAD, INK, LEFT, RIGHT, WIDTH, Point, Scale, Stroke

PICTURE = "recovery.svg"
LOST, SHARES = 240, 150  # the heights of the panels
ROW = 18  # of the legend, and of the names of the stages
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind eyes tell apart, but for the yellow, which white paper swallows."""
DASHES = ("", "8 4", "2 3", "10 3 2 3")
"""For when the colours come round again."""
DOTS = 60
"""Measurements of a subset that are marked by a dot each, at most."""
LEAST = 0.05
"""Nats that an axis of degradation reaches at least: less is noise, and shall not look like a mountain."""
BORDER = Stroke("#777777", 1, "4 3")


@dataclass(frozen=True)
class Stage:
    """``first`` and ``last`` are steps of the whole recovery; those of ``measured`` count from the stage's own start."""

    said: str
    first: int
    last: int
    measured: Sequence[Mapping[str, Any]]

    def points(self, key: str, subset: str) -> list[Point]:
        """What was measured of a subset, by steps of the whole recovery."""
        found = [(self.first + each["step"], (each[key] or {}).get(subset)) for each in self.measured]
        return [(step, value) for step, value in found if value is not None]

    def stairs(self, subset: str) -> list[Point]:
        """A subset's share: it stays until the next measurement, or until the stage ends, after which nothing is drawn."""
        points = self.points("share", subset)
        drawn = [point for point in points if point[0] < self.last] or points[:1]
        ends = [*(step for step, _ in drawn[1:]), self.last]
        return [(at, share) for (step, share), end in zip(drawn, ends, strict=False) for at in (step, end)]


@dataclass(frozen=True)
class Curve:
    subset: str
    stroke: Stroke
    points: Sequence[Point]


def keep(content: Mapping[str, Any], folder: Path) -> None:
    """Draw the picture into a folder; ``content`` is what a report calls ``recovery``."""
    (folder / PICTURE).write_text(draw(content), encoding="utf-8")


def draw(content: Mapping[str, Any]) -> str:
    """The picture, as the text of an SVG file; ``content`` is what a report calls ``recovery``."""
    stages = in_turn(content["stages"])
    steps = Scale.of([0, stages[-1].last], LEFT, WIDTH - RIGHT)
    strokes = {subset: _stroke(i) for i, subset in enumerate(content["subsets"])}
    names = xml.Element("g", {"class": "legend"})
    entries = [(subset, replace(stroke, width=2.4)) for subset, stroke in strokes.items()]
    title = ROW + drawing.legend(names, entries, LEFT, ROW) + HEAD
    labels = _labels(stages, steps)
    top = title + ROW * (max((row + 1 for _, _, row, _ in labels), default=0)) + 10
    bottom = top + LOST
    last = bottom + GAP + HEAD + SHARES
    root = drawing.sheet(last + FOOT, f"Recovery, {stages[-1].last:,} steps")
    root.append(names)

    key = "degradation" if any(each["degradation"] for stage in stages for each in stage.measured) else "loss"
    against = "degradation against the dense model" if key == "degradation" else "loss of held-out text"
    drawing.text(root, LEFT, title, f"{against}, nats a token", weight="bold")
    for x, anchor, row, said in labels:
        drawing.text(root, x, title + ROW * (row + 1), said, anchor, kind="stage")
    measured = [
        Curve(subset, stroke, drawing.thinned(_finite(stages, key, subset))) for subset, stroke in strokes.items()
    ]
    values = [value for curve in measured for _, value in curve.points]
    scale = Scale.of([0, LEAST, *values] if key == "degradation" or not values else values, bottom, top, room=0.05)
    _panel(root, key, stages, measured, steps, scale)

    drawing.text(root, LEFT, last - SHARES - 12, "share of what is drawn", weight="bold")
    drawn = [Curve(subset, stroke, stage.stairs(subset)) for stage in stages for subset, stroke in strokes.items()]
    _panel(root, "share", stages, drawn, steps, Scale(0, 1, last, last - SHARES))
    drawing.step_axis(root, steps, last)
    return drawing.written(root)


def in_turn(content: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """The stages one after another."""
    found, first = list[Stage](), 0
    for each in content:
        last = first + max([each["steps"], *(point["step"] for point in each["measured"])])
        said = f"{each['name']}, stopped early" if each["stopped"] else each["name"]
        found.append(Stage(said, first, last, each["measured"]))
        first = last
    return found


def _finite(stages: Sequence[Stage], key: str, subset: str) -> list[Point]:
    """What has a place on a screen of what was measured."""
    return [point for stage in stages for point in stage.points(key, subset) if math.isfinite(point[1])]


def _stroke(i: int) -> Stroke:
    turn, colour = divmod(i, len(COLOURS))
    return Stroke(COLOURS[colour], dash=DASHES[turn % len(DASHES)])


def _labels(stages: Sequence[Stage], steps: Scale) -> list[tuple[float, str, int, str]]:
    """Names of two stages or more, behind their first step or else as far right as can be, in the first row with room.

    Returns:
        x, anchor, row and name of each.
    """
    found, ends = list[tuple[float, str, int, str]](), list[float]()
    for stage in stages if len(stages) > 1 else ():
        left, room = steps(stage.first), drawing.width(stage.said)
        fits = left + room <= WIDTH - RIGHT
        left = left if fits else WIDTH - RIGHT - room
        row = next((i for i, end in enumerate(ends) if end + 12 <= left), len(ends))
        ends[row : row + 1] = [left + room]
        found.append((left, "start", row, stage.said) if fits else (WIDTH - RIGHT, "end", row, stage.said))
    return found


def _panel(
    root: xml.Element, kind: str, stages: Sequence[Stage], curves: Sequence[Curve], steps: Scale, values: Scale
) -> None:
    """Grid, a line where a stage follows another one, and curves that say their subset where a mouse rests on them."""
    drawing.grid(root, steps, values, kind, "{:.0%}".format if kind == "share" else drawing.number)
    for x in (steps(stage.first) for stage in stages[1:]):
        drawing.line(root, x, values.end, x, values.start, BORDER, kind="stage")
    placed = [[(steps(step), values(value)) for step, value in curve.points] for curve in curves]
    for curve, points in zip(curves, placed, strict=True):
        if points:
            line = drawing.curve(root, kind, points, curve.stroke)
            xml.SubElement(line, "title").text = drawing.legible(curve.subset)
    for owners, piece in coincident(placed):
        _alternate(root, [curves[i].stroke for i in owners], piece)
    dotted = [len(points) <= DOTS if kind != "share" else len(set(points)) == 1 for points in placed]
    _dots(root, [(curve, points) for curve, points, dots in zip(curves, placed, dotted, strict=True) if dots])


def _dots(root: xml.Element, curves: Sequence[tuple[Curve, Sequence[Point]]]) -> None:
    """A dot at each point; where curves share one, it is of no curve's colour."""
    marked: dict[Point, list[Curve]] = {}
    for curve, points in curves:
        for point in dict.fromkeys(map(_snapped, points)):
            marked.setdefault(point, []).append(curve)
    for (x, y), found in marked.items():
        colour = found[0].stroke.colour if len(found) == 1 else INK
        xml.SubElement(root, "circle", cx=f"{x:.2f}", cy=f"{y:.2f}", r="2.4", fill=colour)


def _alternate(root: xml.Element, strokes: Sequence[Stroke], points: Sequence[Point]) -> None:
    """On a piece that several curves share, and that shows only the last of them, a dash of each of the others in turn."""
    length = sum(math.dist(*ends) for ends in pairwise(points))
    dash = max(2.0, min(8.0, length / len(strokes)))
    for i, stroke in enumerate(strokes[:-1]):
        pattern = f"{dash:.2f} {dash * (len(strokes) - 1):.2f}"
        piece = drawing.curve(root, "shared", points, replace(stroke, dash=pattern))
        piece.set("stroke-dashoffset", f"{-dash * i:.2f}")


def coincident(curves: Sequence[Sequence[Point]]) -> list[tuple[tuple[int, ...], list[Point]]]:
    """The pieces that two curves or more have in common, and which ones those are; half a pixel sets them apart."""
    owners: dict[tuple[Point, Point], list[int]] = {}
    for i, points in enumerate(curves):
        for start, end in dict.fromkeys(pairwise(map(_snapped, points))):
            if start != end:
                owners.setdefault((start, end), []).append(i)
    pieces: dict[tuple[int, ...], list[list[Point]]] = {}
    for (start, end), found in owners.items():
        if len(found) > 1:
            known = pieces.setdefault(tuple(found), [])
            if known and known[-1][-1] == start:
                known[-1].append(end)
            else:
                known.append([start, end])
    return [(found, piece) for found, known in pieces.items() for piece in known]


def _snapped(point: Point) -> Point:
    return round(2 * point[0]) / 2, round(2 * point[1]) / 2
