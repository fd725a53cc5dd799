"""Whether the dense model teaches is settled by the memory that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lorashear
from lorashear.config import DISTILL, Training
from lorashear.disk.estimate import Estimate
from lorashear.learning import fitting

pytestmark = pytest.mark.usefixtures("one_thread")


def settled(settings: Training, there: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float | None, list[str]]:
    monkeypatch.setattr(fitting, "available", lambda _: there)
    said: list[str] = []
    found = fitting.settled(settings, lambda _: Estimate(0, 0, 0, 0, memory=3 * 10**9), said.append)
    return found.distill, said


def test_it_teaches_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(Training(tokens=9), 3 * 10**9, monkeypatch) == (DISTILL, [])
    distill, (sentence,) = settled(Training(tokens=9), 2 * 10**9, monkeypatch)
    assert distill == 0.0
    assert sentence.startswith(
        "training beside the dense model takes 3.0 GB of memory, and 2.0 GB are free: the text alone"
    )


@pytest.mark.parametrize("more", [{"distill": 0.3}, {"tokens": None}])
def test_what_is_said_is_not_settled(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(Training(**{"tokens": 9, **more}), 0, monkeypatch) == (more.get("distill"), [])


def test_from_a_file_it_need_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(Training(tokens=9, distill_top_k=8), 0, monkeypatch) == (DISTILL, [])


def test_memory_is_there() -> None:
    assert 10**8 < fitting.available("cpu") < 10**14
    if torch.cuda.is_available():
        assert 0 < fitting.available("cuda") < 10**13


def test_a_run_says_so(folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "available", lambda _: 0)
    said: list[str] = []
    settings: dict[str, Any] = {"text": text, "windows": 4, "context": 32, "rank": 2, "say": said.append}
    first = lorashear.compile(folder, 0.3, tmp_path / "out", tokens=2000, **settings).report
    assert first["training"]["distill"] == 0.0 and any("the text alone is learned from" in line for line in said)
    del settings["windows"]
    again = lorashear.recover(tmp_path / "out", tmp_path / "again", dense=folder, tokens=2000, **settings).report
    assert again["training"]["distill"] == 0.0 and sum("the text alone is learned from" in line for line in said) == 2
