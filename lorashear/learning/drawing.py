"""What the pictures of a run are drawn with: scales, panels, curves and legends, as SVG, which browsers and model cards show
by themselves.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as xml

POINTS = 500
"""Of a curve at most: more than that no screen shows apart."""
WIDTH, LEFT, RIGHT = 760, 76, 28  # of the picture and its margins, in pixels
HEAD, GAP, FOOT = 34, 22, 46  # above a panel, between two, and below the last
LETTER = 7.5  # what a usual letter takes at most, near enough: its width only the reader's machine knows
WIDE = "MWmw@%&+<=>~"
GRID, INK, PAPER = "#dcdcdc", "#333333", "#ffffff"  # a paper of its own, so that it reads on a dark page too
Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` at pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, room: float = 0.0) -> Scale:
        """One that has room, as a share, beyond the values, but none below zero."""
        low, high = min(values), max(values)
        if low == high:
            high = low + 1
        over = room * (high - low)
        return cls(max(low - over, 0.0) if low >= 0 else low - over, high + over, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, spaces: int) -> list[float]:
        """Round numbers in reach, with so many spaces between them at most: multiples of 1, 2 or 5 times a power of ten."""
        least = (self.high - self.low) / spaces
        power = 10.0 ** math.floor(math.log10(least))
        step = next(each * power for each in (1, 2, 5, 10, 20) if each * power >= least)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]

    def whole_ticks(self) -> list[float]:
        """Those of an axis that counts steps."""
        return [tick for tick in self.ticks(8) if tick == round(tick)]


@dataclass(frozen=True)
class Stroke:
    colour: str
    width: float = 1.6
    dash: str = ""  # lengths drawn and left out in turn; "": drawn throughout


def sheet(height: float, title: str) -> xml.Element:
    """An empty picture."""
    root = xml.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", width=f"{WIDTH}", height=f"{height}"
    )
    root.attrib |= {"role": "img", "font-family": "Helvetica, Arial, sans-serif", "font-size": "12", "fill": INK}
    xml.SubElement(root, "title").text = legible(title)
    xml.SubElement(root, "rect", width="100%", height="100%", fill=PAPER)
    return root


def written(root: xml.Element) -> str:
    """The picture, as the text of an SVG file."""
    xml.indent(root)
    return xml.tostring(root, encoding="unicode") + "\n"


def grid(root: xml.Element, steps: Scale, values: Scale, kind: str, write: Callable[[float], str]) -> None:
    """The lines of a panel, which lies where its scales say, and the numbers of its y axis; ``kind`` marks those."""
    for tick in values.ticks(round(values.start - values.end) // 22):
        line(root, LEFT, values(tick), WIDTH - RIGHT, values(tick))
        text(root, LEFT - 8, values(tick) + 4, write(tick), anchor="end", kind=f"y {kind}")
    for tick in steps.whole_ticks():
        line(root, steps(tick), values.end, steps(tick), values.start)


def step_axis(root: xml.Element, steps: Scale, bottom: float) -> None:
    """The numbers of the x axis, and what they count."""
    for tick in steps.whole_ticks():
        text(root, steps(tick), bottom + 18, number(tick), anchor="middle", kind="x")
    text(root, (LEFT + WIDTH - RIGHT) / 2, bottom + 37, "step", anchor="middle")


def curve(root: xml.Element, kind: str, points: Sequence[Point], stroke: Stroke) -> xml.Element:
    places = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    ends = {"stroke-linejoin": "round", "stroke-linecap": "butt" if stroke.dash else "round"}
    said = {"class": kind, "points": places, "fill": "none", **_attributes(stroke), **ends}
    return xml.SubElement(root, "polyline", said)


def line(
    root: xml.Element, x1: float, y1: float, x2: float, y2: float, stroke: Stroke | None = None, kind: str = ""
) -> None:
    """Without a stroke one of the grid."""
    ends = {name: f"{value:.2f}" for name, value in {"x1": x1, "y1": y1, "x2": x2, "y2": y2}.items()}
    said = {**ends, **_attributes(stroke or Stroke(GRID, 1)), **({"class": kind} if kind else {})}
    xml.SubElement(root, "line", said)


def text(
    root: xml.Element, x: float, y: float, said: str, anchor: str = "start", weight: str = "normal", kind: str = ""
) -> None:
    place = {"x": f"{x:.2f}", "y": f"{y:.2f}", "text-anchor": anchor, "font-weight": weight}
    xml.SubElement(root, "text", {**place, **({"class": kind} if kind else {})}).text = legible(said)


def legend(root: xml.Element, entries: Sequence[tuple[str, Stroke]], left: float, y: float) -> float:
    """Names behind samples of their strokes, as many beside one another as surely have room; too long a name is broken.

    Returns:
        The height of the lines after the first.
    """
    at, first = left, y
    for name, stroke in entries:
        pieces = broken(name, WIDTH - RIGHT - left - 28)
        room = 28 + max(map(width, pieces))
        if at > left and at + room > WIDTH - RIGHT:
            at, y = left, y + 18
        line(root, at, y, at + 22, y, stroke)
        for i, piece in enumerate(pieces):
            text(root, at + 28, y + 18 * i + 4, piece)
        y += 18 * (len(pieces) - 1)
        at += room + 20
    return y - first


def width(said: str) -> float:
    """What a text takes at most, near enough."""
    return LETTER * sum(map(_letters, said))


def broken(said: str, room: float) -> list[str]:
    """A text as lines, each within the room."""
    lines = [""]
    for letter in said:
        if width(lines[-1] + letter) > room:
            lines.append("")
        lines[-1] += letter
    return lines


def legible(said: str) -> str:
    """A name as it can be shown: what no screen prints, and XML may not hold, gives way to a mark."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in said)


def thinned(points: Sequence[Point], most: int = POINTS) -> Sequence[Point]:
    """At most so many of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def number(value: float) -> str:
    """As a person writes it: ``1,500``, ``0.25``, ``2e-4``."""
    if value and abs(value) < 1e-2:
        mantissa, _, power = f"{value:.3g}".partition("e")
        if not power:
            mantissa, _, power = f"{value:.2e}".partition("e")
            mantissa = f"{float(mantissa):g}"
        return f"{mantissa}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _letters(letter: str) -> float:
    """How many usual letters one is as wide as."""
    if unicodedata.east_asian_width(letter) in "WF":
        return 2
    if letter in WIDE or not letter.isascii():
        return 1.6
    return 1.3 if letter.isupper() else 1


def _attributes(stroke: Stroke) -> dict[str, str]:
    dashed = {"stroke-dasharray": stroke.dash} if stroke.dash else {}
    return {"stroke": stroke.colour, "stroke-width": f"{stroke.width:g}", **dashed}
