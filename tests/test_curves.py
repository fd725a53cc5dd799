"""The picture that a log of training becomes."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

import lorashear
from lorashear.learning.curves import draw
from lorashear.learning.drawing import POINTS, Scale, number, thinned

SVG = "{http://www.w3.org/2000/svg}"
Axis = tuple[float, float]


def log(steps: int, removed: bool = False) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "loss": 1 + 3 * math.exp(-step / steps) + math.sin(7.0 * step) / 9,
            "text": 2 + 4 * math.exp(-3 * step / steps),
            "rate": 3e-4 * (1 - step / (steps + 1)),
            "speed": 1000.0,
            **({"removed": 100 * (3 * step // steps), "parameters": 10**6} if removed else {}),
        }
        for step in range(1, steps + 1)
    ]


def drawn(rows: list[dict[str, float]]) -> ElementTree.Element:
    return ElementTree.fromstring(draw(map(json.dumps, rows)))


def value(said: str) -> float:
    return float(said.replace(",", "").removesuffix("%")) / (100 if said.endswith("%") else 1)


def axis(picture: ElementTree.Element, kind: str) -> Axis:
    """Value at pixel 0 and values a pixel, as a reader finds them from the first and the last label of an axis."""
    along = "x" if kind == "x" else "y"
    ticks = [
        (float(t.get(along, "")), value(t.text or "")) for t in picture.iter(f"{SVG}text") if t.get("class") == kind
    ]
    shift = 0.0 if kind == "x" else 4.0  # a label's baseline lies below its line
    (first, low), (last, high) = ((at - shift, shown) for at, shown in (ticks[0], ticks[-1]))
    slope = (high - low) / (last - first)
    return low - slope * first, slope


def curve(picture: ElementTree.Element, key: str, panel: str) -> list[tuple[float, float]]:
    """The points of a curve, read from the picture by its axes."""
    (line,) = [each for each in picture.iter(f"{SVG}polyline") if each.get("class") == key]
    (x0, dx), (y0, dy) = axis(picture, "x"), axis(picture, f"y {panel}")
    places = [tuple(map(float, place.split(","))) for place in line.get("points", "").split()]
    return [(x0 + dx * x, y0 + dy * y) for x, y in places]


@pytest.mark.parametrize("steps", [2, 7, 78, POINTS])
def test_the_points_are_those_of_the_log(steps: int) -> None:
    rows = log(steps)
    picture = drawn(rows)
    assert not [each for each in picture.iter(f"{SVG}polyline") if each.get("class") == "removed"]
    for key, panel in {"loss": "text", "text": "text", "rate": "rate"}.items():
        found = curve(picture, key, panel)
        reach = max(row[key] for row in rows)
        assert [x for x, _ in found] == pytest.approx([row["step"] for row in rows], abs=2e-4 * steps)
        assert [y for _, y in found] == pytest.approx([row[key] for row in rows], abs=2e-3 * reach)


def test_a_long_log_is_thinned_out() -> None:
    rows = log(12_345)
    found = curve(drawn(rows), "loss", "text")
    assert len(found) == POINTS
    assert [round(found[i][0]) for i in (0, -1)] == pytest.approx([1, 12_345], abs=3)
    by_step = {row["step"]: row["loss"] for row in rows}
    assert all(any(abs(y - by_step.get(round(x) + d, 99)) < 0.02 for d in range(-2, 3)) for x, y in found)
    assert list(thinned([(float(i), 0.0) for i in range(9)], 3)) == [(0, 0), (4, 0), (8, 0)]


def test_what_was_removed_goes_up_in_stairs() -> None:
    rows = log(30, removed=True)
    found = curve(drawn(rows), "removed", "removed")
    want = [(1, 0), (10, 0), (10, 100), (20, 100), (20, 200), (30, 200), (30, 300), (30, 300)]
    assert [part for point in found for part in point] == pytest.approx([p for w in want for p in w], abs=0.6)
    same = drawn([{**row, "removed": 7} for row in rows])
    assert not [each for each in same.iter(f"{SVG}polyline") if each.get("class") == "removed"]


@pytest.mark.parametrize("steps", [1, 2, 7, 78, 600, 12_345, 1_000_000])
def test_labels_are_round_and_stand_apart(steps: int) -> None:
    rows = [
        {**row, "step": float(row["step"]) * max(1, steps // 100)} for row in log(min(steps, 100), removed=steps > 2)
    ]
    picture = drawn(rows)
    texts = [each for each in picture.iter(f"{SVG}text")]
    for kind in ("x", "y text", "y rate"):
        labels = [each for each in texts if each.get("class") == kind]
        assert 1 <= len(labels) <= 12
        for one, other in pairwise(labels):
            apart = abs(float(one.get("x", "")) - float(other.get("x", "")))
            wide = 7.5 * max(len(each.text or "") for each in (one, other))
            assert apart > wide or abs(float(one.get("y", "")) - float(other.get("y", ""))) > 14
        gaps = [value(b.text or "") - value(a.text or "") for a, b in pairwise(labels)]
        for gap in gaps:
            assert gap == pytest.approx(gaps[0]) and f"{gap:.1e}"[0] in "125"
    width, height = (float(picture.get(side, "")) for side in ("width", "height"))
    for line in picture.iter(f"{SVG}polyline"):
        for place in line.get("points", "").split():
            x, y = map(float, place.split(","))
            assert 0 < x < width and 0 < y < height


def test_numbers_as_people_write_them() -> None:
    written = {
        0: "0",
        0.25: "0.25",
        2e-4: "2e-4",
        0.00015: "1.5e-4",
        5e-5: "5e-5",
        0.002: "2e-3",
        1500: "1,500",
        -0.5: "-0.5",
    }
    assert {each: number(each) for each in written} == written
    assert Scale(0.12, 0.47, 0, 1).ticks(4) == [0.2, 0.3, 0.4]


@pytest.mark.parametrize("lhspg", [0.0, 0.5])
def test_a_result_shows_its_curves(folder: Path, text: Path, tmp_path: Path, lhspg: float) -> None:
    settings = {"windows": 8, "tokens": 3000, "context": 32, "rank": 2, "lhspg": lhspg}
    lorashear.compile(folder, 0.3, tmp_path / "out", text=text, **settings)
    own = tmp_path / "out" / "lorashear"
    lines = (own / "training.jsonl").read_text().splitlines()
    assert (own / "training.svg").read_text() == draw(lines)
    card = (tmp_path / "out" / "README.md").read_text()
    what = "learning rate and structures removed" if lhspg else "and learning rate"
    assert f"{what} at each of 12 steps](lorashear/training.svg)" in card
    lorashear.compile(folder, 0.3, tmp_path / "plain", text=text, windows=8, one_shot=True)
    assert "![" not in (tmp_path / "plain" / "README.md").read_text()
    assert not (tmp_path / "plain" / "lorashear" / "training.svg").exists()
