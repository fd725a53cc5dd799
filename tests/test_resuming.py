"""Training that was stopped, anywhere and by anything, goes on to what it would have come to, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import lorashear
from lorashear import models
from lorashear.adapters import quiet
from lorashear.cli import TERMINATED, main
from lorashear.disk.output import WORK, unfinished
from lorashear.learning import training
from lorashear.learning.mixture import Mixture
from lorashear.learning.snapshots import Snapshots
from lorashear.learning.teaching import Online
from lorashear.terminal.stopping import deferred
from lorashear_passes.lhspg import Diverged, Lhspg, Schedule
from lorashear_passes.surgery import Settings, units
from test_lhspg import batches
from test_theorem import random_llama

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 9
FORMS = {
    "LoRA": None,
    "decay": (Schedule(1, 2, 3), Settings()),
    "half-space": (Schedule(1, 2, 3, "half-space"), Settings(criterion="lora", compensate=False)),
}


class Killed(Exception):
    """Stands for the end of the process: nothing is done about it."""


def run(form: str, snapshots: Snapshots | None = None, kill: int = 0, number: int = 0) -> tuple[Any, list[Any]]:
    """A model with adapters that drop inputs at random, trained; ``kill`` is the step after which it ends, or a signal comes."""
    torch.manual_seed(1)
    maps = ["q_proj", "o_proj", "down_proj"]
    with quiet():
        model: Any = get_peft_model(random_llama("tied"), LoraConfig(r=2, target_modules=maps, lora_dropout=0.2))
    companion = None
    if settings := FORMS[form]:
        chosen = dict(models.analysed(model).only(("head", "query", "ffn")).items())
        widths = {name: -(-units(group) // 2) for name, group in chosen.items()}
        companion = Lhspg(model, chosen, widths, batches(), *settings)
    steps: list[Any] = []

    def stepped(step: training.Step) -> None:
        steps.append((step.step, step.loss, step.rate))
        if step.step == kill and not number:
            raise Killed
        if step.step == kill:
            os.kill(os.getpid(), number)

    hyper = training.Hyperparameters(STEPS, 1e-2, batch=3)
    text = torch.cat([batch["input_ids"] for batch in batches(4)])
    more: Any = {
        "teacher": Online(random_llama("tied")),
        "companion": companion,
        "snapshots": snapshots,
        "stepped": stepped,
    }
    training.train(model, Mixture.of(text, hyper), **more)
    return model, steps


@cache
def whole(form: str) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """What a run comes to that nothing stops."""
    model, steps = run(form)
    return model.state_dict(), steps


def same(model: Any, form: str) -> bool:
    return all(torch.equal(value, whole(form)[0][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("form", "kill"), [("LoRA", 1), ("LoRA", 5), *product(("decay", "half-space"), (4, 5, 8))])
def test_it_goes_on_to_the_same_bits(form: str, kill: int, tmp_path: Path) -> None:
    """At most the steps since the last snapshot are done again."""
    with pytest.raises(Killed):
        run(form, Snapshots(tmp_path, steps=2), kill)
    model, rest = run(form, Snapshots(tmp_path, steps=2))
    last = (kill - 1) // 2 * 2  # it ended before the snapshot of its own step
    assert rest == whole(form)[1][last:] and same(model, form)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_step_and_its_state(number: signal.Signals, tmp_path: Path) -> None:
    caught = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run("half-space", Snapshots(tmp_path), 5, number)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, caught)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005.safetensors"]
    model, rest = run("half-space", Snapshots(tmp_path))
    assert rest == whole("half-space")[1][5:] and same(model, "half-space")


def test_a_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """But one that comes along with the first is the same: a launcher hands on what its processes got already."""
    clock = [0.0]
    monkeypatch.setattr("lorashear.terminal.stopping.time.monotonic", lambda: clock[0])
    with pytest.raises(KeyboardInterrupt), deferred() as asked:
        for clock[0] in (0.0, 0.5):
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.number == signal.SIGINT
        clock[0] = 1.5
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it waited")


def test_a_signal_that_is_ignored_stops_nothing(tmp_path: Path) -> None:
    """As Ctrl-C is in a program that a shell started in the background; or it is handled by going on."""
    seen: list[int] = []
    for name, handler in {"ignored": signal.SIG_IGN, "noted": lambda number, _: seen.append(number)}.items():
        before = signal.signal(signal.SIGINT, handler)
        try:
            model, steps = run("LoRA", Snapshots(tmp_path / name), 5, signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)
        assert [step for step, *_ in steps] == list(range(1, STEPS + 1)) and same(model, "LoRA")
    assert seen == [signal.SIGINT]


def test_the_last_ones_are_kept_and_the_base_is_not_in_them(tmp_path: Path) -> None:
    model, _ = run("decay", Snapshots(tmp_path, steps=1))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-0000000{n}.safetensors" for n in (8, 9)]
    _, state = Snapshots(tmp_path).last()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = {name for name in state if "lora_" in name}
    assert {name.partition(".")[2] for name in held} == trained
    assert all(name.startswith(("random.", "removed.", "mixture.")) for name in set(state) - held)


def test_one_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    run("LoRA", Snapshots(tmp_path, steps=4))
    for path in sorted(tmp_path.iterdir())[1:]:
        path.write_bytes(path.read_bytes()[:1000])
    (tmp_path / "new").write_bytes(b"\0" * 100)
    assert Snapshots(tmp_path).last()[0] == 8
    model, steps = run("LoRA", Snapshots(tmp_path, steps=4))
    assert [step for step, *_ in steps] == [9] and same(model, "LoRA")


def test_seconds_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("lorashear.learning.snapshots.time.monotonic", lambda: clock[0])
    snapshots, due = Snapshots(tmp_path, seconds=60), []
    for step in range(1, 7):
        clock[0] += 25
        if snapshots.due(step):
            due.append(step)
            snapshots.save(step, {"a": torch.ones(1)})
    assert due == [3, 6]


def test_another_choice_of_structures_ends_it(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run("decay", Snapshots(tmp_path, steps=2), 5)
    path = tmp_path / "step-00000004.safetensors"
    state = load_file(path)
    name = next(name for name, value in state.items() if name.startswith("removed.") and len(value))
    save_file(state | {name: state[name] + 1}, path)
    with pytest.raises(Diverged, match=name.removeprefix("removed.")):
        run("decay", Snapshots(tmp_path, steps=2))


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        lorashear.LorashearError, match="the state of training cannot be written to .*: make room|; make room"
    ):
        run("LoRA", Snapshots(tmp_path / "file" / "states", steps=2))


STAGES = {"after the cut": {}, "LHSPG": {"lhspg": 0.5, "policy": "half-space"}}
SETTINGS: dict[str, Any] = {"windows": 8, "tokens": 3000, "context": 32, "rank": 2, "save_every": "2"}


@pytest.fixture(scope="module", params=STAGES)
def stopped(
    request: pytest.FixtureRequest, folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """A request, and where it was killed when it had trained some steps."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    settings = {**SETTINGS, **STAGES[request.param]}
    script = (
        f"import lorashear; lorashear.compile({str(folder)!r}, 0.3, {str(out)!r}, text={str(text)!r}, **{settings})"
    )
    code, _ = struck(["-c", script], out, signal.SIGKILL)
    assert code == -signal.SIGKILL
    return settings, out


def stages(out: Path) -> list[Path]:
    """The folders of stages of training, in a result that is being made."""
    return [log.parent for log in (unfinished(out) / WORK).glob("*/training.jsonl")]


def steps(stage: Path) -> int:
    return (stage / "training.jsonl").read_bytes().count(b"\n")


def struck(arguments: list[str], out: Path, number: signal.Signals) -> tuple[int, str]:
    """What a Python process returns and says that gets a signal when it has trained five steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, *arguments], env=environment, stderr=subprocess.PIPE, text=True) as process:
        while sum(map(steps, stages(out))) < 5:
            assert process.poll() is None, "it ended before the signal"
            time.sleep(0.001)
        process.send_signal(number)
        _, said = process.communicate()
    assert not out.exists()
    return process.returncode, said


def test_a_killed_run_goes_on_to_the_same_bytes(
    stopped: tuple[dict[str, Any], Path], folder: Path, text: Path, tmp_path: Path
) -> None:
    settings, out = stopped
    with pytest.raises(lorashear.LorashearError, match="holds a run that was stopped: pass --resume to go on with it"):
        lorashear.compile(folder, 0.3, out, text=text, **settings)
    with pytest.raises(
        lorashear.LorashearError, match="is of another request, or the files that it names have changed"
    ):
        lorashear.compile(folder, 0.3, out, text=text, resume=True, **{**settings, "rank": 3})
    said: list[str] = []
    done: list[tuple[str, int]] = []
    result = lorashear.compile(
        folder,
        0.3,
        out,
        text=text,
        resume=True,
        say=said.append,
        progress=lambda what, at, _: done.append((what, at)),
        **settings,
    )
    want = lorashear.compile(folder, 0.3, tmp_path / "out", text=text, **settings)
    assert not list(out.parent.glob(".*"))
    assert {path.name for path in out.rglob("*")} == {path.name for path in (tmp_path / "out").rglob("*")}
    first, second = (load_file(each / "model.safetensors") for each in (out, tmp_path / "out"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert result.plan == want.plan
    assert (
        result.report["perplexity"] == want.report["perplexity"]
        and result.report["training"] == want.report["training"]
    )
    logs = [(each / "lorashear" / "training.jsonl").read_text().splitlines() for each in (out, tmp_path / "out")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    assert next(at for what, at in done if what in ("corpora", "transfer")) > 4  # four steps were on disk
    assert ("prune" in " ".join(said)) == bool(settings.get("lhspg"))  # what was cut is not cut again


@pytest.mark.parametrize("more", ["", " --lhspg 0.5"])
def test_the_command_line_stops_and_goes_on(
    more: str,
    folder: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = f"compile {folder} --ratio 0.3 --out {out} --text {text} --tokens 6000 --context 32 --rank 2{more}".split()
    code, said = struck(["-m", "lorashear", *words], out, signal.SIGTERM)
    assert code == TERMINATED
    assert "lorashear: stopped; nothing was written under the final name; --resume goes on from here" in said
    (stage,) = stages(out)
    assert [path.name for path in stage.glob("step-*")] == [f"step-{steps(stage):08}.safetensors"]
    monkeypatch.setattr("sys.argv", ["lorashear", *words, "--resume"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0 and f"written to {out}" in capsys.readouterr().out
    assert (out / "lorashear" / "training.jsonl").read_text().count("\n") == 23
    assert not unfinished(out).exists()


@pytest.mark.parametrize("every", ["0", "5 minutes", "1.5h", "", "-3"])
def test_times_that_make_no_sense(every: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(lorashear.LorashearError, match="it is a time as 30s, 10m or 1h, or a number of steps"):
        lorashear.compile(folder, 0.3, tmp_path / "out", one_shot=True, save_every=every)


def test_no_place_to_go_on_in(folder: Path) -> None:
    with pytest.raises(lorashear.LorashearError, match="resume goes on in a folder that out names: pass out"):
        lorashear.compile(folder, 0.3, one_shot=True, resume=True)
