"""What is told of a run while it goes on, to people, callbacks and trackers."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lorashear
from lorashear.cli import main
from lorashear.learning.figures import Figures, short
from lorashear.learning.trackers import Trackers
from lorashear.learning.training import Step
from lorashear.terminal.pace import LAST, Pace, clock
from lorashear.terminal.progress import Terminal

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS: dict[str, Any] = {"windows": 8, "tokens": 3000, "context": 32, "rank": 2}
FORMS: dict[str, dict[str, Any]] = {
    "train": {},
    "transfer": {"lhspg": 0.7, "periods": 2, "warm_up": 0.25, "cost": "bytes"},
}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    found = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: found[0])
    return found


def test_time_left_is_that_of_the_steps_that_this_run_did(now: list[float]) -> None:
    pace = Pace()
    assert pace.left(300, 600) is None  # done by an earlier run
    for step in range(301, 311):
        now[0] += 2.0
        assert pace.left(step, 600) == pytest.approx(2.0 * (600 - step))
    now[0] += 500.0  # a machine that slept
    assert pace.left(311, 600) == pytest.approx(2.0 * 289)
    for step in range(312, 312 + LAST):
        now[0] += 3.0
        left = pace.left(step, 600)
    assert left == pytest.approx(3.0 * (600 - step))


def test_units_that_come_many_at_a_time(now: list[float]) -> None:
    pace = Pace()
    assert pace.left(0, 100) is None and pace.left(0, 100) is None
    now[0] += 5
    assert pace.left(50, 100) == pytest.approx(5)
    assert pace.left(100, 100) == 0


def test_short_figures() -> None:
    counts = [0, 999, 1000, 1204, 99_949, 99_960, 999_499, 999_500, 2_261_952, 58_312_345, 70_553_706_496]
    want = ["0", "999", "1.00K", "1.20K", "99.9K", "100K", "999K", "1.00M", "2.26M", "58.3M", "70.6B"]
    assert [short(count) for count in counts] == want
    assert [clock(s) for s in (0.4, 59.6, 192, 3600 * 30 + 61)] == ["0:00:00", "0:01:00", "0:03:12", "30:01:01"]


def step(number: int, loss: float = 3.4117, speed: float = 12_345.0, **more: Any) -> Step:
    return Step(number, loss, loss, 1e-4, speed, **more)


def test_loss_and_speed_are_smoothed() -> None:
    figures = Figures()
    assert figures.line(step(1)) == "loss 3.412  12,345 tokens/s"
    for number in range(2, 12):
        line = figures.line(step(number, 2.0, 1000.0, removed=1204, parameters=58_312_345))
    loss, speed = 2 + 1.4117 * 0.9**10, 1000 + 11_345 * 0.9**10
    assert line == f"loss {loss:.3f}  removed 1,204  parameters 58.3M  {speed:,.0f} tokens/s"


def told(terminal: Terminal, now: list[float], first: int, last: int) -> None:
    """Steps of 1.5 seconds."""
    for number in range(first, last + 1):
        now[0] += 1.5
        terminal.stepped(step(number, removed=1204, parameters=58_312_345))
        terminal.progress("train", number, 600)


def test_lines_where_there_is_no_terminal(now: list[float]) -> None:
    said = io.StringIO()
    with Terminal(Console(file=said, width=40)) as terminal:
        terminal.say("6 train")
        told(terminal, now, 117, 125)
        terminal.say("7 merge")
        terminal.progress("merge", 1, 2)
    facts = "loss 3.412  removed 1,204  parameters 58.3M  12,345 tokens/s"
    assert said.getvalue().splitlines() == [
        "6 train",
        f"  train 117 of 600  {facts}",
        f"  train 121 of 600  {facts}  left 0:11:58",
        f"  train 125 of 600  {facts}  left 0:11:52",
        "7 merge",
        "  merge 1 of 2",
    ]


def test_a_bar_fits_into_80_columns(now: list[float]) -> None:
    said = io.StringIO()
    with Terminal(Console(file=said, force_terminal=True, width=80, color_system=None)) as terminal:
        told(terminal, now, 300, 310)
        shown = Console(file=io.StringIO(), width=80, color_system=None)
        shown.print(terminal._bar.get_renderable())
        bar, figures = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert bar.startswith("train ━━━") and bar.rstrip().endswith("52% left 0:07:15")
        assert figures.strip() == "310 of 600  loss 3.412  removed 1,204  parameters 58.3M  12,345 tokens/s"
        terminal.say("7 merge")
        terminal.progress("merge", 1, 2)
        shown = Console(file=io.StringIO(), width=80, color_system=None)
        shown.print(terminal._bar.get_renderable())
        assert "loss" not in shown.file.getvalue() and "train" not in shown.file.getvalue()  # type: ignore[attr-defined]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: steps and values by name."""
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def log_of(result: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (result / "lorashear" / "training.jsonl").read_text().splitlines()]


def agree(folder: Path, result: Path) -> None:
    """The tracker has of each step, once, what the log has."""
    names = {
        "loss": "loss",
        "text": "text",
        "rate": "learning_rate",
        "speed": "tokens_per_second",
        "divergence": "divergence",
        "distance": "distance",
        "removed": "structures_removed",
        "parameters": "parameters",
    }
    log, found = log_of(result), scalars(folder)
    rows = {
        f"train/{name}": [(row["step"], row[key]) for row in log if row[key] is not None] for key, name in names.items()
    }
    measured = [(row["step"], row["measured"]) for row in log if row["measured"]]
    for what in ("loss", "degradation", "share"):
        rows[f"{what}/text"] = [(step, each[what]["text"]) for step, each in measured]
    assert set(found) == {name for name, row in rows.items() if row} and len(log) == 12
    for name, points in found.items():
        assert [at for at, _ in points] == [at for at, _ in rows[name]]
        assert [value for _, value in points] == pytest.approx([value for _, value in rows[name]], rel=1e-6)


@pytest.fixture(scope="module", params=FORMS)
def reported(
    request: pytest.FixtureRequest, folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, lorashear.CompileResult, list[Step], list[tuple[str, int, int]]]:
    out = tmp_path_factory.mktemp("reported") / "out"
    steps: list[Step] = []
    shown: list[tuple[str, int, int]] = []
    settings = {**SETTINGS, **FORMS[request.param]}
    result = lorashear.compile(
        folder,
        0.3,
        out,
        text=text,
        report_to=("tensorboard",),
        stepped=steps.append,
        progress=lambda stage, done, total: shown.append((stage, done, total)),
        **settings,
    )
    return request.param, result, steps, shown


def test_tensorboard_has_what_the_log_has(reported: tuple[str, lorashear.CompileResult, list[Step], Any]) -> None:
    _, result, steps, _ = reported
    runs = result.folder.parent / "runs" / "out"
    agree(runs, result.folder)
    assert [asdict(step) for step in steps] == log_of(result.folder)
    assert {path.name for path in result.folder.parent.iterdir()} == {"out", "runs"}
    assert all(path.name.startswith("events.out.tfevents.") for path in runs.iterdir())


def test_callbacks_get_what_they_got(reported: tuple[str, Any, Any, list[tuple[str, int, int]]]) -> None:
    form, _, _, shown = reported
    cut = 8 if form == "transfer" else 0
    wanted = [("transfer", at, cut) for at in range(1, cut + 1)] + [("corpora", at, 12) for at in range(cut + 1, 13)]
    assert [each for each in shown if each[0] in ("transfer", "corpora")] == wanted


def test_structures_and_parameters_are_those_of_a_cut(
    reported: tuple[str, lorashear.CompileResult, Any, Any], folder: Path
) -> None:
    """At the end those of the result, counted on disk; while structures fade, those that are at zero."""
    form, result, *_ = reported
    found = [(row["removed"], row["parameters"]) for row in log_of(result.folder)]
    structures = sum(map(len, result.plan.removed.values()))
    end = (structures, result.report["parameters"]["after"])
    if form == "train":
        assert found == [end] * 12
        return
    schedule = result.report["training"]["lhspg"]
    first, second = schedule["warm_up"] + schedule["length"], schedule["warm_up"] + 2 * schedule["length"]
    assert 0 < first < second < 12
    assert found[: first - 1] == [(0, result.report["parameters"]["before"])] * (first - 1)
    middle = found[first - 1]
    assert 0 < middle[0] < end[0] and found[0][1] > middle[1] > end[1]
    assert found[first - 1 : second - 1] == [middle] * (second - first)
    assert found[second - 1 :] == [end] * (13 - second)


def test_a_run_that_goes_on_goes_on_in_its_curves(folder: Path, text: Path, tmp_path: Path) -> None:
    """Steps that are done again count once; a later run of the same name takes their place."""
    out, request = tmp_path / "out", {**SETTINGS, "save_every": "2", "report_to": ["tensorboard"]}

    def stopping(stage: str, done: int, _: int) -> None:
        if (stage, done) == ("corpora", 5):
            raise Killed

    with pytest.raises(Killed):
        lorashear.compile(folder, 0.3, out, text=text, progress=stopping, **request)
    assert [at for at, _ in scalars(tmp_path / "runs" / "out")["train/loss"]] == [1, 2, 3, 4, 5]
    lorashear.compile(folder, 0.3, out, text=text, resume=True, **request)
    agree(tmp_path / "runs" / "out", out)
    assert len(list((tmp_path / "runs" / "out").iterdir())) == 2
    lorashear.compile(folder, 0.3, out, text=text, overwrite=True, **{**request, "seed": 1, "report_to": ["all"]})
    agree(tmp_path / "runs" / "out", out)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("names", "installed", "sentence"),
    [
        (
            ["tensorbord"],
            ["tensorboard"],
            "report_to names tensorbord; there are aim, .*, tensorboard, .*, wandb, and all",
        ),
        (
            ["tensorboard", "comet_ml"],
            ["tensorboard"],
            "names comet_ml, whose package is missing: pip install comet-ml",
        ),
        (["all"], [], "report_to is all, and no tracker is installed: pip install tensorboard"),
    ],
)
def test_trackers_that_are_not_there(
    names: list[str], installed: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the model is looked for."""
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: installed)
    with pytest.raises(lorashear.LorashearError, match=sentence):
        lorashear.compile(tmp_path / "no model", 0.3, tmp_path / "out", report_to=names, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_run_without_training_has_no_steps(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(lorashear.LorashearError, match="one_shot has none: leave one of them out"):
        lorashear.compile(folder, 0.3, tmp_path / "out", one_shot=True, report_to=["tensorboard"])
    assert not list(tmp_path.iterdir())


def test_every_tracker_is_started_once_and_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that wants no folder; at the first step, on whatever process calls, and when a step fails too."""
    seen: list[Any] = []

    class Plain(accelerate.tracking.GeneralTracker):
        name = "plain"
        requires_logging_directory = False
        tracker = None

        def __init__(self, run_name: str) -> None:
            super().__init__()
            seen.append(run_name)

        def start(self) -> None:
            seen.append(("start", self.main_process_only))

        def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
            seen.append((step, values))

        def finish(self) -> None:
            seen.append("finish")

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "plain", Plain)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["plain"])
    with Trackers(["all"], tmp_path / "name"):
        assert seen == []
    with pytest.raises(Killed), Trackers(["plain", "plain"], tmp_path / "name") as trackers:
        trackers(step(3))
        trackers(step(4, removed=2))
        raise Killed
    some = {
        "train/loss": 3.4117,
        "train/text": 3.4117,
        "train/learning_rate": 1e-4,
        "train/tokens_per_second": 12_345.0,
    }
    assert seen == ["name", ("start", False), (3, some), (4, {**some, "train/structures_removed": 2}), "finish"]


def test_the_command_line_says_the_same(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"compile {folder} --ratio 0.3 --out {tmp_path / 'out'} --text {text} --tokens 3000 --context 32 --rank 2"
    monkeypatch.setattr("sys.argv", ["lorashear", *words.split(), "--report-to", "tensorboard, tensorboard"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    agree(tmp_path / "runs" / "out", tmp_path / "out")
    first = log_of(tmp_path / "out")[0]
    facts = f"loss {first['loss']:.3f}  removed {first['removed']}  parameters {short(first['parameters'])}"
    lost = f"text +{first['measured']['degradation']['text']:.2f}"
    assert f"  corpora 1 of 12  {facts}  {first['speed']:,.0f} tokens/s  {lost}\n" in capsys.readouterr().err
