"""How a recovery is shown: its picture, its part of the model card, and its table for the terminal."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorashear import report
from lorashear.learning import recovery_curves
from lorashear.learning.drawing import GRID, INK, LEFT, POINTS, RIGHT, WIDTH, broken, width
from lorashear.learning.recovery_curves import COLOURS, LEAST, coincident, draw
from test_curves import SVG, axis

THREE = ["code", "stories", "instructions"]
ODD = "<b>&\"'|`_x_* \\ \n\x1b\ud800"
Point = tuple[float, float]


def stage(name: str, subsets: list[str], steps: list[int], last: int, *, dense: bool = True, **more: Any) -> Any:
    """One that measures all three subsets, each of a degradation of its own, and draws from some of them."""
    measured = []
    for at, step in enumerate(steps):
        lost = {subset: max(0.0, 0.9 / (i + 1) - 0.07 * at * (i + 1)) for i, subset in enumerate(THREE)}
        raw = {subset: 1 + math.sin(3 * at + i) ** 2 for i, subset in enumerate(subsets)}
        measured.append(
            {
                "step": step,
                "tokens": 2048 * step,
                "loss": {subset: 1.2 + 0.3 * i + lost[subset] for i, subset in enumerate(THREE)},
                "degradation": lost if dense else None,
                "share": {subset: part / sum(raw.values()) for subset, part in raw.items()},
            }
        )
    return {"name": name, "steps": last, "tokens": 2048 * last, "stopped": "", "measured": measured, **more}


def recovered(*stages: Any, subsets: list[str] = THREE, dense: bool = True) -> dict[str, Any]:
    return {
        "dense": "owner/big" if dense else None,
        "why": "" if dense else "the dense model is gone: all subsets are drawn alike",
        "dense_loss": {subset: 1.2 + 0.3 * i for i, subset in enumerate(subsets)} if dense else None,
        "subsets": subsets,
        "stages": list(stages),
    }


def two_stages(dense: bool = True) -> dict[str, Any]:
    first = stage("corpora", THREE[:2], [0, 12, 24, 36, 40], 40, dense=dense, stopped="no subset gained")
    return recovered(first, stage("instructions", THREE, [0, 12, 24], 30, dense=dense), dense=dense)


def flat(subsets: list[str], lost: float, last: int = 24) -> dict[str, Any]:
    """All subsets are alike, throughout."""
    same = {"loss": dict.fromkeys(subsets, 2.0), "degradation": dict.fromkeys(subsets, lost)}
    share = dict.fromkeys(subsets, 1 / len(subsets))
    measured = [{"step": step, "tokens": step, **same, "share": share} for step in sorted({0, last // 2, last})]
    one = {"name": "corpora", "steps": last, "tokens": last, "stopped": "", "measured": measured}
    return recovered(one, subsets=subsets)


def read(content: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(draw(content))


def places(line: ElementTree.Element) -> list[Point]:
    return [(float(x), float(y)) for x, y in (place.split(",") for place in line.get("points", "").split())]


def lines(picture: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [each for each in picture.iter(f"{SVG}polyline") if each.get("class") == kind]


def curves(picture: ElementTree.Element, kind: str, subset: str) -> list[list[Point]]:
    """The curves of a subset, read from the picture by its axes."""
    (x0, dx), (y0, dy) = axis(picture, "x"), axis(picture, f"y {kind}")
    found = [each for each in lines(picture, kind) if each.findtext(f"{SVG}title") == subset]
    return [[(x0 + dx * x, y0 + dy * y) for x, y in places(each)] for each in found]


def panels(picture: ElementTree.Element) -> list[tuple[float, float]]:
    """Top and bottom of each, from the vertical lines of its grid."""
    grid = [each for each in picture.iter(f"{SVG}line") if each.get("stroke") == GRID]
    upright = [each for each in grid if each.get("x1") == each.get("x2")]
    return sorted({(float(each.get("y1", "")), float(each.get("y2", ""))) for each in upright})


def boxes(picture: ElementTree.Element) -> list[tuple[float, float, float, float]]:
    """What the texts but the axes' numbers take, if their letters are wide."""
    found = []
    for each in picture.iter(f"{SVG}text"):
        if (each.get("class") or "stage") == "stage":
            wide, x, y = width(each.text or ""), float(each.get("x", "")), float(each.get("y", ""))
            left = x - wide * {"start": 0, "middle": 0.5, "end": 1}[each.get("text-anchor", "")]
            found.append((left, y - 10, left + wide, y + 3))
    return found


def flattened(points: list[Point]) -> list[float]:
    return [part for point in points for part in point]


@pytest.mark.parametrize("key", ["degradation", "loss"])
def test_the_points_are_what_was_measured(key: str) -> None:
    content = two_stages(dense=key == "degradation")
    picture = read(content)
    assert not lines(picture, "loss" if key == "degradation" else "degradation")
    for subset in THREE:
        first, second = (each["measured"] for each in content["stages"])
        want = [(point["step"], point[key][subset]) for point in first]
        want += [(40 + point["step"], point[key][subset]) for point in second]
        (found,) = curves(picture, key, subset)
        assert flattened(found) == pytest.approx(flattened(want), abs=5e-3)
    assert len(list(picture.iter(f"{SVG}circle"))) == len(
        {(x, y) for each in lines(picture, key) for x, y in places(each)}
    )


def test_shares_are_stairs_until_nothing_is_drawn_any_more() -> None:
    content = two_stages()
    picture = read(content)
    for subset in THREE:
        want = []
        for first, last, each in zip((0, 40), (40, 70), content["stages"], strict=True):
            drawn = [(first + point["step"], point["share"].get(subset)) for point in each["measured"]]
            ends = [step for step, _ in drawn[1:]] + [last]
            steps = [
                (at, share) for (step, share), end in zip(drawn, ends, strict=True) if step < end for at in (step, end)
            ]
            want += [steps] if steps[0][1] is not None else []
        found = curves(picture, "share", subset)
        assert len(found) == len(want) == (1 if subset == "instructions" else 2)
        for one, other in zip(found, want, strict=True):
            assert flattened(one) == pytest.approx(flattened(other), abs=5e-3)
    for line in lines(picture, "share"):
        assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(places(line)))


def test_a_line_with_a_name_says_where_the_second_stage_begins() -> None:
    picture = read(two_stages())
    x0, dx = axis(picture, "x")
    found = [each for each in picture.iter(f"{SVG}line") if each.get("class") == "stage"]
    assert sorted((float(each.get("y1", "")), float(each.get("y2", ""))) for each in found) == panels(picture)
    assert [x0 + dx * float(each.get("x1", "")) for each in found] == pytest.approx([40, 40], abs=0.01)
    names = {each.text: each for each in picture.iter(f"{SVG}text") if each.get("class") == "stage"}
    assert list(names) == ["corpora, stopped early", "instructions"]
    assert names["instructions"].get("x") == found[0].get("x1")
    one = read(recovered(stage("corpora", THREE, [0, 9], 9)))
    assert not [each for each in one.iter() if each.get("class") == "stage"]


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("long", [False, True])
def test_the_legend_names_every_subset_within_the_picture(count: int, long: bool) -> None:
    names = [f"{'owner/Many-WORDS:' * i * long}subset {i}" for i in range(count)]
    picture = read(flat(names, 0.5))
    (legend,) = [each for each in picture.iter(f"{SVG}g") if each.get("class") == "legend"]
    assert "".join(each.text or "" for each in legend.iter(f"{SVG}text")) == "".join(names)
    strokes = [(each.get("stroke"), each.get("stroke-dasharray")) for each in legend.iter(f"{SVG}line")]
    assert len(set(strokes)) == count
    for line, stroke in zip(lines(picture, "degradation"), strokes, strict=True):
        assert (line.get("stroke"), line.get("stroke-dasharray")) == stroke
    assert all(0 < left and right < WIDTH for left, _, right, _ in boxes(picture))
    apart(boxes(picture))
    assert max(float(each.get("y", "")) for each in legend.iter(f"{SVG}text")) < panels(picture)[0][0] - 30


def apart(found: list[tuple[float, float, float, float]]) -> None:
    for i, (left, top, right, bottom) in enumerate(found):
        for other in found[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


@pytest.mark.parametrize("lasts", [(1, 600), (600, 1), (300, 300), (0, 9), (9, 0), (0, 0)])
@pytest.mark.parametrize("stopped", ["", "no subset gained"])
def test_names_of_stages_stand_apart(lasts: tuple[int, int], stopped: str) -> None:
    stages = [
        stage(name, THREE, [0], last, stopped=stopped)
        for name, last in zip(("corpora", "instructions"), lasts, strict=True)
    ]
    found = boxes(read(recovered(*stages)))
    assert all(0 < left and right < WIDTH for left, _, right, _ in found)
    apart(found)


def test_what_lies_on_one_another_shows_all_its_colours() -> None:
    picture = read(flat(THREE, 0.0))
    for kind in ("degradation", "share"):
        (height,) = {y for each in lines(picture, kind) for _, y in places(each)}
        shared = [each for each in lines(picture, "shared") if {y for _, y in places(each)} == {height}]
        assert [each.get("stroke") for each in shared] == list(COLOURS[:2])  # the third lies above, drawn throughout
        dashes = [list(map(float, each.get("stroke-dasharray", "").split())) for each in shared]
        assert all(2 * dash == gap for dash, gap in dashes)
        assert [float(each.get("stroke-dashoffset", "")) for each in shared] == [0, -dashes[0][0]]
        assert places(shared[0])[0][0] == places(lines(picture, kind)[0])[0][0]
        assert places(shared[0])[-1][0] == places(lines(picture, kind)[0])[-1][0]
    assert {each.get("fill") for each in picture.iter(f"{SVG}circle")} == {INK}
    one, other = [(0.0, 0.0), (9.0, 1.0), (20.0, 5.0), (30.0, 5.0)], [(0.0, 1.0), (9.0, 1.0), (20.0, 5.0), (30.0, 5.1)]
    assert coincident([one, other]) == [((0, 1), one[1:])]
    assert coincident([one, [(x, y + 1) for x, y in one]]) == []


def test_nothing_lost_is_no_mountain() -> None:
    lost = flat(THREE, 1e-9)
    top, bottom = panels(read(lost))[0]
    assert all(bottom - y < 1 for each in lines(read(lost), "degradation") for _, y in places(each))
    y0, dy = axis(read(lost), "y degradation")
    assert y0 + dy * top >= LEAST


def test_what_was_not_measured_is_left_out() -> None:
    content = two_stages()
    content["subsets"] = [*THREE, "never"]
    content["stages"][0]["measured"][1]["degradation"]["code"] = math.nan
    content["stages"][0]["measured"][2]["degradation"]["code"] = math.inf
    picture = read(content)
    (found,) = curves(picture, "degradation", "code")
    assert [step for step, _ in found] == pytest.approx([0, 36, 40, 40, 52, 64], abs=0.01)
    assert not curves(picture, "degradation", "never") + curves(picture, "share", "never")


def test_a_single_measurement_is_a_dot() -> None:
    picture = read(recovered(stage("corpora", THREE, [0], 0)))
    dots = [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in picture.iter(f"{SVG}circle")]
    where = [places(each)[0] for kind in ("degradation", "share") for each in lines(picture, kind)]
    assert flattened(dots) == pytest.approx(flattened(where), abs=0.26)
    assert len(dots) == 6


def test_long_ones_are_thinned_out_but_the_stairs_are_not() -> None:
    picture = read(recovered(stage("corpora", THREE, list(range(1200)), 1200)))
    assert {len(places(each)) for each in lines(picture, "degradation")} == {POINTS}
    assert not list(picture.iter(f"{SVG}circle"))
    assert all(a[0] == b[0] or a[1] == b[1] for each in lines(picture, "share") for a, b in pairwise(places(each)))


def test_a_folder_gets_the_picture_whatever_the_names(tmp_path: Path) -> None:
    content = flat([ODD, "other"], 0.5)
    recovery_curves.keep(content, tmp_path)
    picture = ElementTree.parse(tmp_path / "recovery.svg").getroot()
    assert "<b>&\"'|`_x_* \\ \ufffd\ufffd\ufffd" in [each.text for each in picture.iter(f"{SVG}text")]
    assert len(lines(picture, "degradation")) == 2


names = st.lists(st.text(min_size=1, max_size=90), min_size=1, max_size=12, unique=True)
nats = st.floats(0, 20) | st.sampled_from([0.0, 1e-12, math.nan, math.inf])


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    subsets, dense, stages = draw(names), draw(st.booleans()), []
    for name in draw(st.sampled_from([["corpora"], ["corpora", "instructions"]])):
        drawn = draw(st.lists(st.sampled_from(subsets), min_size=1, unique=True))
        measured = []
        for step in sorted(draw(st.sets(st.integers(0, 900), min_size=1, max_size=6))):
            lost = {subset: draw(nats) for subset in subsets}
            parts = {subset: draw(st.floats(0, 1)) + 1e-9 for subset in drawn}
            share = {subset: part / sum(parts.values()) for subset, part in parts.items()}
            degradation = lost if dense else None
            measured.append({"step": step, "tokens": step, "loss": lost, "degradation": degradation, "share": share})
        last = measured[-1]["step"] + draw(st.integers(0, 9))
        stages.append({"name": name, "steps": last, "tokens": last, "stopped": "", "measured": measured})
    return recovered(*stages, subsets=subsets, dense=dense)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(contents())
def test_nothing_lies_outside_its_panel(content: dict[str, Any]) -> None:
    picture = read(content)
    (top, bottom), (low, floor) = panels(picture)
    spans = {"degradation": (top, bottom), "loss": (top, bottom), "share": (low, floor), "shared": (top, floor)}
    for kind, (above, below) in spans.items():
        for each in lines(picture, kind):
            assert all(LEFT <= x <= WIDTH - RIGHT and above - 0.01 <= y <= below + 0.01 for x, y in places(each))
    for each in picture.iter(f"{SVG}circle"):
        assert LEFT <= float(each.get("cx", "")) <= WIDTH - RIGHT and top <= float(each.get("cy", "")) <= floor
    assert all(0 < left and right < WIDTH for left, _, right, _ in boxes(picture))
    apart(boxes(picture))
    assert floor < float(picture.get("height", ""))
    assert report.recovery_table(content).count("\n") == len(content["subsets"])


def test_a_text_is_broken_where_there_is_no_room() -> None:
    assert broken("abcdef", 3 * 7.5) == ["abc", "def"]
    assert broken("", 10) == [""]
    assert width("日本") > width("WW") > width("AA") > width("aa") == 15


WIDTHS = {"layers.0.mlp": {"before": 48, "after": 32}}
PLAIN = {
    "model": "owner/big",
    "parameters": {"before": 1000, "after": 800},
    "bytes": {"before": 4000, "after": 3200},
    "widths": WIDTHS,
    "criterion": "taylor",
    "compensated": False,
    "training": None,
    "settings": {"adapter": "merge"},
}
TRAINED = {"rank": 8, "tokens": 409_600, "rate": 1e-4, "distill": 0.5, "steps": 200}


def numbers(content: dict[str, Any]) -> list[list[str]]:
    """What a row must say of each subset, from the measurements."""
    first, last = content["stages"][0]["measured"][0], content["stages"][-1]["measured"][-1]
    rows = []
    for subset in content["subsets"]:
        row = [f"{each['loss'][subset]:.3f}" for each in (first, last)]
        if content["dense"]:
            before, after = (each["degradation"][subset] for each in (first, last))
            row = [f"{content['dense_loss'][subset]:.3f}", *row, f"{before:.3f} → {after:.3f}"]
        for each in content["stages"]:
            drawn = [point["share"] for point in each["measured"] if point["step"] < each["steps"]][-1]
            row.append(f"{drawn[subset]:.1%}" if subset in drawn else "–")
        rows.append([subset, *row])
    return rows


def cells(card: str) -> list[list[str]]:
    """The rows of the last table of a card."""
    rows = [line for line in card.split("## Recovery")[1].splitlines() if line.startswith("|")]
    return [re.split(r" (?<!\\)\| ", row[2:-2]) for row in rows]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("stages", [1, 2])
def test_the_card_and_the_table_hold_the_numbers(dense: bool, stages: int) -> None:
    content = two_stages(dense)
    content["stages"] = content["stages"][:stages]
    card = report.card({**PLAIN, "training": TRAINED, "recovery": content}, "own")
    head, rule, *rows = cells(card)
    nats = ["dense", "before", "after", "degradation"] if dense else ["before", "after"]
    shares = ["last share in corpora", "last share in instructions"] if stages == 2 else ["last share"]
    assert head == ["subset", *nats, *shares] and rule == ["---", *["---:"] * (len(head) - 1)]
    assert rows == numbers(content)
    table = [re.split(r"  +", line) for line in report.recovery_table(content).splitlines()]
    assert table == [head, *rows]
    said = "Trained in 1 stage: corpora, 40 steps on 81,920 tokens (stopped early: no subset gained)"
    if stages == 2:
        said = said.replace("1 stage", "2 stages") + "; then instructions, 30 steps on 61,440 tokens"
    assert report.recovery_stages(content) == f"{said}."
    assert f"\n## Recovery\n\n{said}. " in card
    what, steps = "Degradation" if dense else "Loss", 40 if stages == 1 else 70
    assert (
        f"![{what} of each subset, and its share of what is drawn, over {steps} steps](lorashear/recovery.svg)" in card
    )
    assert ("`owner/big`; the shares" in card) == dense
    assert ("The dense model is gone: all subsets are drawn alike." in card) == (not dense)


def test_a_card_without_a_recovery_is_as_ever() -> None:
    for trained in (None, TRAINED):
        plain = report.card({**PLAIN, "training": trained}, "own")
        assert "ecover" not in plain and plain == report.card({**PLAIN, "training": trained, "recovery": None}, "own")
    assert report.card({**PLAIN, "training": TRAINED, "recovery": two_stages()}, "own").startswith(plain)
    assert "No training followed." in report.card(PLAIN, "own")


def test_names_do_not_break_a_table() -> None:
    content = flat(["a|b", "_x_", "a_b", "<i>", ODD], 0.5)
    card = report.card({**PLAIN, "recovery": content}, "own")
    assert [row[0] for row in cells(card)[2:]][:4] == ["a\\|b", "\\_x\\_", "a_b", "\\<i\\>"]
    assert len({len(row) for row in cells(card)}) == 1
    assert len(report.recovery_table(content).splitlines()) == 6
