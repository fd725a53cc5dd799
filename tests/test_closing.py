"""What the command line shows of a run and its end: on a terminal, in a file, and when it is to be quiet."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors import safe_open

import lorashear
from lorashear.terminal.closing import Closing, Figure, bar, numbers
from lorashear.terminal.progress import Terminal
from lorashear.terminal.stages import StageLine, Stages
from test_bad_input import run

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parent.parent
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
BOXES = re.compile(r"[\x1b─-▟]")
REPORT: dict[str, Any] = {
    "model": "m",
    "ratio": {"asked": 0.2, "of": "parameters", "reached": 0.2},
    "parameters": {"before": 1000, "after": 800},
    "bytes": {"before": 2000, "after": 1700},
    "perplexity": {"before": 10.0, "pruned": 15.0, "after": 12.5, "data": "some text"},
    "widths": {
        **{f"l.{at}.ffn": {"before": 256, "after": width} for at, width in enumerate((256, 128, 128, 32))},
        "model.hidden": {"before": 64, "after": 32},
    },
}


def terminal(width: int = 80, **more: Any) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, **more)


def shown(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def pairs(said: str) -> dict[str, str]:
    """The lines of a key and a value, as `cut -d' '` reads them."""
    return dict(line.split(" ", 1) for line in said.splitlines() if re.match(r"[a-z_]+ [-+\d.,%]+$", line))


def test_a_stage_that_is_over_leaves_its_number_and_seconds() -> None:
    console = terminal(color_system=None)
    with Terminal(console) as view:
        stages = Stages(view.say, view.progress)
        with stages("read"):
            pass
        with stages("knowledge"):
            stages.progress("knowledge", 1, 3)
            time.sleep(0.11)
            above, below = (line.rstrip() for line in rendered(view))
            assert re.fullmatch(r"2 knowledge  0 s", above) and below.startswith("knowledge ━━━")
        assert "".join(rendered(view)).strip() == ""  # nothing runs
    kept = [found for line in cleaned(shown(console)) if (found := re.fullmatch(r"(\d \w+)  (\d+\.\d) s", line))]
    assert [found[1] for found in kept] == ["1 read", "2 knowledge"]
    assert 0.1 <= float(kept[-1][2]) < 5


def rendered(view: Terminal) -> list[str]:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(view._bar.get_renderable())
    return shown(console).splitlines()


def cleaned(said: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", said)) if line]


def test_a_stage_that_fails_leaves_its_number() -> None:
    console = terminal(color_system=None)
    with pytest.raises(RuntimeError), Terminal(console) as view, Stages(view.say)("slice"):
        raise RuntimeError
    assert "1 slice\n" in shown(console)


def test_a_dumb_terminal_gets_the_lines_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = terminal(color_system=None)
    with Terminal(console) as view, Stages(view.say, view.progress)("slice"):
        view.progress("slice", 1, 2)
    Closing.of(REPORT).show(console)
    assert shown(console).startswith("1 slice\n  slice 1 of 2\n  slice took 0.0 s\nparameters_before 1000\n")


def test_a_stage_is_a_line_to_whoever_listens() -> None:
    said: list[str] = []
    stages = Stages(said.append)
    for _ in range(2):
        with stages("read"):
            pass
    assert said == ["1 read", "1 read  0.0 s", "2 read", "2 read  0.0 s"]
    assert StageLine(3, "knowledge", 1234.56) == "3 knowledge  1,234.6 s"


def test_a_quiet_one_says_nothing() -> None:
    console = terminal()
    with warnings.catch_warnings(record=True) as caught, Terminal(console, quiet=True) as view:
        warnings.simplefilter("default")
        view.say("reads 1 GB")
        with Stages(view.say, view.progress)("read"):
            view.progress("read", 1, 2)
    assert shown(console) == "" and not caught
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Terminal(console, quiet=True):
            warnings.warn("not to be seen", stacklevel=1)
        warnings.warn("to be seen", stacklevel=1)
    assert [str(each.message) for each in caught] == ["to be seen"]


def test_the_table_has_before_after_and_difference() -> None:
    console = terminal(color_system=None)
    Closing.of(REPORT).show(console)
    said = shown(console)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    assert rows == [
        ["parameters", "1,000", "800", "-200 (-20.00 %)"],
        ["bytes", "2,000", "1,700", "-300 (-15.00 %)"],
        ["perplexity", "10.000", "12.500", "+2.500 (+25.00 %)"],
        ["perplexity since pruning", "15.000", "12.500", "-2.500 (-16.67 %)"],
    ]
    assert [word for word in ("before", "after", "difference") if word not in said] == []
    assert [line.rstrip() for line in said.splitlines()[-2:]] == [
        "ffn     █▄▄▁  256 → 256, 128 ×2, 32",
        "hidden  ▄     64 → 32",
    ]
    assert all(len(line) <= 80 for line in said.splitlines())


def test_what_nobody_has_counted_is_a_dash() -> None:
    applied = {**REPORT, "parameters": {"before": None, "after": 800}, "perplexity": None, "widths": {}}
    first = Closing.of({**applied, "bytes": {"before": None, "after": 9}})
    assert first.figures[0].cells() == ["parameters", "–", "800", "–"]
    assert first.plain() == "parameters_after 800\nbytes_after 9"
    assert Figure("x", 0, 1).cells() == ["x", "0", "1", "+1"]


def test_bars_and_numbers_of_widths() -> None:
    assert bar([(8, kept) for kept in range(1, 9)]) == "▁▂▃▄▅▆▇█"
    assert bar([(1000, 999), (1000, 1), (1, 1)]) == "▇▁█"  # the highest where nothing is gone, never empty
    assert numbers([(256, 205)] * 80) == "256 → 205"
    assert numbers([(256, at) for at in range(100, 180)]) == "256 → 100 to 179, 139.5 on average"


@pytest.mark.parametrize("off", ["1", "yes"])
def test_no_color(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal that could: the table is the same, without its colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    said = []
    for _ in range(2):
        console = terminal(color_system="standard")
        Closing.of(REPORT).show(console)
        with Terminal(console) as view:
            view.progress("slice", 1, 2)
        said.append(shown(console))
        monkeypatch.setenv("NO_COLOR", off)
    assert COLOUR.search(said[0]) and not COLOUR.search(said[1])
    assert "parameters" in said[1] and "█▄▄▁" in said[1]


@pytest.fixture(scope="module")
def words(folder: Path, text: Path) -> list[str]:
    return ["compile", str(folder), "--ratio", "0.3", "--text", str(text), "--one-shot", "--context", "32"]


@pytest.fixture(scope="module")
def small(words: list[str], folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("closing") / "small"
    lorashear.compile(folder, 0.3, out, text=text, one_shot=True, context=32)
    return out


def test_lines_that_grep_and_cut_read(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("FORCE_COLOR", "")
    assert run(monkeypatch, *words, "--out", out) == 0
    said = capsys.readouterr()
    assert not BOXES.search(said.out) and not BOXES.search(said.err)
    report, found = json.loads((out / "lorashear" / "report.json").read_text()), pairs(said.out)
    for name in ("parameters", "bytes"):
        assert found[f"{name}_before"] == str(report[name]["before"])
        assert found[f"{name}_after"] == str(report[name]["after"])
        assert int(found[f"{name}_difference"]) == report[name]["after"] - report[name]["before"] < 0
    for when in ("before", "after"):
        assert found[f"perplexity_{when}"] == f"{report['perplexity'][when]:.3f}"
        widths = [width[when] for name, width in report["widths"].items() if name.endswith(".ffn")]
        assert found[f"widths_ffn_{when}"] == ",".join(map(str, widths)) and len(widths) == 2
    assert said.out.splitlines()[-1] == f"written to {out} ({report['route']})"
    assert re.search(r"^1 read$", said.err, re.MULTILINE) and re.search(
        r"^  read took \d+\.\d s$", said.err, re.MULTILINE
    )


def test_quiet_verbs_print_their_result_alone(
    words: list[str],
    small: Path,
    folder: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def quiet(*arguments: object) -> str:
        assert run(monkeypatch, *arguments, "--quiet") == 0
        said = capsys.readouterr()
        assert said.err == ""
        return said.out

    one, two, three, four = (tmp_path / name for name in ("one", "two", "three", "four"))
    route = json.loads((small / "lorashear" / "report.json").read_text())["route"]
    assert quiet(*words, "--out", one) == f"written to {one} ({route})\n"
    estimate = quiet(*words, "--out", tmp_path / "none", "--dry-run")
    assert estimate.startswith("reads ") and estimate.count("\n") == 1 and not (tmp_path / "none").exists()
    assert json.loads(quiet(*words, "--out", tmp_path / "json", "--json"))["parameters"]["after"] > 0
    training = ("--text", text, "--tokens", 600, "--context", 32, "--rank", 2)
    assert quiet("recover", small, "--dense", folder, *training, "--out", two) == f"written to {two} ({route})\n"
    plan = small / "lorashear" / "plan.json"
    assert quiet("apply", plan, folder, "--out", three) == f"written to {three}\n"
    assert quiet("apply", plan, folder, "--out", tmp_path / "none", "--dry-run").startswith("reads ")
    assert quiet("export", small, "--to", "transformers", "--out", four) == f"written to {four}\n"
    (line,) = quiet("verify", folder, small).splitlines()
    assert line.startswith("zeroed and removed compute the same function")
    assert run(monkeypatch, "eval", folder, small, "--text", text, "--context", 32) == 0
    loud = capsys.readouterr()
    assert loud.err and quiet("eval", folder, small, "--text", text, "--context", 32) == loud.out


def test_quiet_does_not_hide_what_is_wrong(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "verify", tmp_path, small, "--quiet") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("lorashear: ") and said.err.count("\n") == 1


def test_apply_counts_what_lies_on_disk(
    small: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, "apply", small / "lorashear" / "plan.json", folder, "--out", out) == 0
    found = pairs(capsys.readouterr().out)
    for where, when in ((folder, "before"), (out, "after")):
        with safe_open(where / "model.safetensors", "pt") as file:
            counted = sum(file.get_tensor(name).numel() for name in file.keys())
        assert (found[f"parameters_{when}"], found[f"bytes_{when}"]) == (str(counted), str(2 * counted))  # bfloat16


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["colours", "NO_COLOR"])
def test_on_a_real_terminal(environment: dict[str, str], small: Path, folder: Path, tmp_path: Path) -> None:
    """The bar and the table; in colours, unless these are not wanted."""
    ours, theirs = pty.openpty()
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "ir", "passes"))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lorashear",
            "apply",
            small / "lorashear" / "plan.json",
            folder,
            "--out",
            tmp_path / "o",
        ],
        env={**plain, "PYTHONPATH": paths, "TERM": "xterm", "COLUMNS": "80", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # Linux says so when the other side is closed
        while some := os.read(ours, 65536):
            said += some
    os.close(ours)
    assert process.wait() == 0
    text = said.decode()
    assert "━" in text and re.search(r"│ parameters +│", text) and "difference" in text
    assert bool(COLOUR.search(text)) == (not environment)
    assert "parameters_after" not in text
