"""Knowledge analysis: what is measured, that it can be stopped and goes on, and what is kept and shown of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lorashear
from lorashear import cache
from lorashear.errors import LorashearError
from lorashear.knowledge import Kept, read
from lorashear_passes import splits
from lorashear_passes.knowledge import Knowledge, analysed, crucial, measurements
from lorashear_passes.oneshot import Settings, compress
from lorashear_passes.surgery import Surgeon, levels
from lorashear_passes.walk import heldout_loss, swapped
from test_bad_input import run
from test_oneshot import Groups, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def zeroed(model: torch.nn.Module, groups: Groups, removed: dict[str, list[int]]) -> float:
    """Held-out loss with some structures at zero."""
    _, batches = tiny()
    values = {name: p.data.clone() for name, p in model.named_parameters()}
    for name, structures in removed.items():
        for structure in structures:
            for parameter, dim, indices in groups[name].slices(structure):
                values[parameter].index_fill_(dim, torch.tensor(indices), 0)
    with swapped(model, values):
        return heldout_loss(model, batches)


@pytest.mark.parametrize("chained", [True, False])
def test_each_rise_is_that_of_the_group_at_zero(chained: bool) -> None:
    model, batches = tiny(chained)
    groups = Groups(hidden=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    surgeon = Surgeon(model, groups, Settings(criterion="magnitude", compensate=False), batches)
    walk = surgeon.walk(batches)
    done: list[tuple[int, int]] = []
    found = analysed(surgeon, walk, lambda: surgeon.walk(batches), {}, lambda _, *at: done.append(at))
    assert found.dense == heldout_loss(model, batches)
    total = sum(len(levels(group)) for group in groups.values())  # linear in groups and levels, and told first
    assert done == [(i, total) for i in range(total + 1)] and measurements(surgeon) == total
    for name, group in groups.items():
        for count, rise in zip(levels(group), found.rises[name], strict=True):
            widths = {other: groups[other].size - count * (other == name) for other in groups}
            removed = surgeon.blind(widths)
            assert list(removed) == [name] and len(removed[name]) == count
            assert rise == pytest.approx(zeroed(model, groups, removed) - found.dense, abs=1e-5)
        curve = found.curve(group)
        assert len(curve) == group.size + 1
        assert curve == sorted(curve)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_analysis_that_was_stopped_goes_on(tmp_path: Path) -> None:
    model, batches = tiny()
    surgeon = Surgeon(model, Groups(), Settings())
    walk = surgeon.walk(batches)
    want = analysed(surgeon, walk, lambda: surgeon.walk(batches), {}, lambda *_: None)

    def stop(_: str, at: int, __: int) -> None:
        if at == 10:
            raise KeyboardInterrupt

    path = tmp_path / "analysis.jsonl"
    with pytest.raises(KeyboardInterrupt):
        analysed(surgeon, walk, lambda: surgeon.walk(batches), Kept(path), stop)
    with path.open("a") as file:
        file.write('\n["blocks.1.down 1.ffn", [2.1, 2.')  # cut off
    after: list[int] = []
    got = analysed(surgeon, walk, lambda: surgeon.walk(batches), Kept(path), lambda _, at, __: after.append(at))
    assert got == want
    assert after[:2] == [9, 10]  # 3 + 6 levels were whole
    assert analysed(surgeon, walk, lambda: pytest.fail("nothing is left"), Kept(path), lambda *_: None) == want


def test_what_cannot_be_kept_is_measured_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "analysis.jsonl")
    kept["a"] = [1.0]
    assert dict(kept) == {"a": [1.0]}


def knowledge(worth: list[float]) -> tuple[Knowledge, Groups]:
    """Groups of as many weights, worth so much."""
    one = Groups()["0.head"]
    groups = Groups().only()
    groups.update({f"{i}": type(one)(f"{i}", "head", 3, one.owned) for i in range(len(worth))})
    return Knowledge(1.0, {f"{i}": (each, each, 9.0) for i, each in enumerate(worth)}), groups


def test_the_crucial_groups_come_before_the_knee() -> None:
    assert crucial(*knowledge([0.1, 5.0, 0.2, 4.0, 0.1, 0.15, 0.1])) == ["1", "3"]
    assert crucial(*knowledge([0.1, 0.2, 0.3, 0.4, 0.5])) == []  # a line has no knee
    assert crucial(*knowledge([0.3, 0.3, 0.3])) == []
    assert crucial(*knowledge([0.1, 0.2, 0.3, 0.4, 0.5]), share=0.4) == ["4", "3"]
    assert crucial(*knowledge([0.1, 5.0, 0.2]), share=0.0) == []


@pytest.fixture(scope="module")
def report(folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("knowledge") / "out"
    lorashear.compile(folder, 0.1, out, text=text, one_shot=True, context=32)
    return out


def measured(folder: Path, out: Path, text: Path, **settings: Any) -> tuple[bool, dict[str, Any]]:
    """Whether a run measures any group, and its report."""
    stages: set[str] = set()
    result = lorashear.compile(
        folder, 0.2, out, text=text, one_shot=True, progress=lambda what, *_: stages.add(what), **settings
    )
    assert "trying splits" in stages
    return "measuring levels" in stages, dict(result.report)


def test_another_ratio_measures_no_group_again(report: Path, folder: Path, text: Path, tmp_path: Path) -> None:
    once = json.loads((report / "lorashear" / "report.json").read_text())["knowledge"]
    again, found = measured(folder, tmp_path / "out", text, context=32, prune=("head", "ffn"))
    assert not again
    assert found["knowledge"]["groups"].items() <= once["groups"].items()
    assert {name.rpartition(".")[2] for name in found["knowledge"]["groups"]} == {"head", "ffn"}
    again, _ = measured(folder, tmp_path / "other", text, context=31)
    assert again


def test_the_report_says_what_each_group_is_worth(
    report: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((report / "lorashear" / "report.json").read_text())
    assert set(found["per_layer"]) == {"loss", "loss_per_layer"}
    assert found["per_layer"]["loss_per_layer"] <= found["per_layer"]["loss"]
    assert run(monkeypatch, "groups", folder, "--knowledge", report) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"held-out loss {found['knowledge']['loss']:.3f} nats a token; its rise when")
    assert "50% gone" in lines[1]
    worth = {name: each["worth"] for name, each in found["knowledge"]["groups"].items()}
    assert [line.split()[0] for line in lines[2:]] == sorted(worth, key=lambda name: -worth[name])
    assert run(monkeypatch, "groups", folder, "--knowledge", report / "lorashear" / "report.json", "--json") == 0
    assert json.loads(capsys.readouterr().out) == found["knowledge"]


def test_reports_that_say_nothing_of_this_model(report: Path, folder: Path, shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(LorashearError, match="is of another model: it has .*, which is not in this one as it is there"):
        read(lorashear.groups(shipped), report)
    groups, other = lorashear.groups(folder), tmp_path / "report.json"
    for content, sentence in (
        ("{", "cannot be read as a report of compile"),
        ("[]", "holds no knowledge analysis"),
        ('{"knowledge": null}', "holds no knowledge analysis; compile with text"),
    ):
        other.write_text(content)
        with pytest.raises(LorashearError, match=sentence):
            read(groups, other)


def test_a_share_of_the_groups_stays_whole(folder: Path, text: Path, tmp_path: Path) -> None:
    _, found = measured(folder, tmp_path / "out", text, context=32, per_layer=True, unprunable_ratio=0.5)
    crucial_ones, widths = found["knowledge"]["crucial"], found["widths"]
    assert len(crucial_ones) == 3  # of six
    assert all(widths[name]["before"] == widths[name]["after"] for name in crucial_ones)


@pytest.mark.parametrize(("share", "tried"), [(None, True), (0.0, False)])
def test_by_default_it_is_tried_to_keep_the_groups_before_the_knee(
    monkeypatch: pytest.MonkeyPatch, share: float | None, tried: bool
) -> None:
    """One split among the others, which held-out text may choose."""
    monkeypatch.setattr(splits, "crucial", lambda *given: ["0.ffn"] if given[2] is None else crucial(*given))
    model, batches = tiny()
    split = compress(model, Groups(), batches, ratio=0.2, heldout=batches, per_layer=True, unprunable=share).split
    assert ("knowledge, crucial groups whole" in split.tried) == tried
    assert any(name.startswith("uniform, ") for name in split.tried)
    loss = split.tried.get("knowledge, crucial groups whole", math.inf)
    assert (split.widths["0.ffn"] == 6) or loss >= min(split.tried.values())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"unprunable_ratio": 1.5, "per_layer": True}, "it is a share of groups, 0 or more and under 1"),
        ({"unprunable_ratio": 0.5}, "pass per_layer=True"),
    ],
)
def test_shares_that_make_no_sense(folder: Path, tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LorashearError, match=sentence):
        lorashear.compile(folder, 0.1, tmp_path / "out", one_shot=True, **settings)


def test_analyses_are_kept_where_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORASHEAR_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path
    monkeypatch.delenv("LORASHEAR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "lorashear"
