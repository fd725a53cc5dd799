"""How much to remove: amounts as people write them, and what is left at most instead of a ratio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

import lorashear
from lorashear.amounts import byte_count, count
from lorashear.cli import main
from lorashear.disk.checkpoint import Checkpoint
from lorashear.errors import LorashearError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5_000_000_000), ("1.5 kb", 1500), ("700", 700), ("2T", 2 * 10**12), ("0.5MB", 500_000)]
)
def test_bytes(text: str, size: int) -> None:
    assert byte_count(text, "bytes") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "5GiB", "five"])
def test_what_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(LorashearError, match=f"^shard size is '{text}'; give a number of bytes such as 5GB or 500MB$"):
        byte_count(text, "shard size")


@pytest.mark.parametrize(
    ("given", "size"),
    [("5e9", 5 * 10**9), (5e9, 5 * 10**9), ("1.3B", 1_300_000_000), ("700m", 7 * 10**8), (1200, 1200)],
)
def test_parameters(given: str | float, size: int) -> None:
    assert count(given, "params") == size


@pytest.mark.parametrize("given", ["", "5GB", "-3", 0, "much"])
def test_what_is_no_number_of_parameters(given: Any) -> None:
    with pytest.raises(LorashearError, match="^params is .*; give a number of parameters such as 5e9, 5B or 700M$"):
        count(given, "params")


@pytest.mark.parametrize("per_layer", [False, True])
def test_at_most_so_many_parameters_are_left(per_layer: bool, folder: Path, tmp_path: Path) -> None:
    dense = LlamaForCausalLM.from_pretrained(folder).num_parameters()
    asked = dense * 3 // 4 + 1
    lorashear.compile(folder, out=tmp_path / "small", params=asked, one_shot=True, per_layer=per_layer)
    report = json.loads((tmp_path / "small" / "lorashear" / "report.json").read_text())
    left = report["parameters"]["after"]
    assert left <= asked
    ratio = 1 - asked / dense
    lorashear.compile(folder, ratio, tmp_path / "same", one_shot=True, per_layer=per_layer)
    plans = [json.loads((tmp_path / name / "lorashear" / "plan.json").read_text()) for name in ("small", "same")]
    assert plans[0]["removed"] == plans[1]["removed"] and plans[0]["settings"] == plans[1]["settings"]
    assert report["ratio"]["asked"] == pytest.approx(ratio)


def test_at_most_so_many_bytes_are_left(folder: Path, tmp_path: Path) -> None:
    asked = Checkpoint.open(folder).bytes * 0.8
    lorashear.compile(folder, out=tmp_path / "small", bytes=f"{asked / 1000:.3f}kB", one_shot=True)
    left = Checkpoint.open(tmp_path / "small").bytes
    assert 0.7 * asked < left <= asked
    report = json.loads((tmp_path / "small" / "lorashear" / "report.json").read_text())
    assert report["ratio"]["of"] == "bytes"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "nothing says how much to remove: pass ratio (--ratio 0.2), or what is left, params (--params 5e9)"),
        (["--ratio", "0.2", "--params", "9K"], "ratio and params each say how much to remove: pass one of them"),
        (["--params", "9K", "--bytes", "1MB"], "params and bytes each say how much to remove"),
        (["--params", "1B"], "has 24,736 parameters, and params leaves 1,000,000,000, so that nothing would go"),
        (["--bytes", "1GB"], "bytes, and bytes leaves 1,000,000,000, so that nothing would go: pass fewer"),
        (["--params", "12 apples"], "params is '12 apples'; give a number of parameters such as 5e9, 5B or 700M"),
        (["--params", "9K", "--cost", "flops"], "cost is what a ratio is of, and params is no ratio"),
        (["--params", "5"], "cannot remove 99.98% of the parameters"),
    ],
)
def test_what_is_wrong_is_said(
    given: list[str],
    said: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["lorashear", "compile", str(folder), "--out", str(tmp_path / "small"), "--one-shot", *given]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error.splitlines()[-1], error
    assert not (tmp_path / "small").exists()
