"""Several processes come to what one comes to, whole or sharded, and none waits for one that is dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lorashear
from lorashear.config import HOW
from lorashear.disk.output import WORK, unfinished
from lorashear.learning.processes import Processes
from several import CASES, trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
LIMIT = 300  # seconds that a run may take before it counts as hung


@contextmanager
def launched(*words: str) -> Iterator[subprocess.Popen[str]]:
    """What torchrun starts two of; everything is put an end to afterwards."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What `several.py` finds in each of two processes."""
    folder = tmp_path_factory.mktemp("several")
    with launched(str(Path(__file__).with_name("several.py")), str(folder)) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_they_come_to_what_one_comes_to(case: tuple[str, str, str], several: list[dict[Any, Any]]) -> None:
    """Three windows a step, so that one process has two of them."""
    want = trained(Processes(), *case)
    close = 1e-5 if case[2] == "float32" else 1e-2
    for got in (found[case] for found in several):
        assert got["removed"] == want["removed"]
        assert bool(want["removed"]) == (case[0] != "LoRA")
        for mine, its in zip(got["steps"], want["steps"], strict=True):
            assert mine == pytest.approx(its, rel=close)
        worst = max((got["weights"][name] - value).abs().max() for name, value in want["weights"].items())
        assert worst < 100 * close  # a gradient near zero may take Adam's first steps another way
        assert all(torch.equal(value, several[0][case]["weights"][name]) for name, value in got["weights"].items())
    held = [found[case]["here"] for found in several]
    if case[1] == "sharded":  # the rows of a tensor may be an odd number
        assert sum(held) == want["here"] and max(held) < 0.6 * want["here"]
    else:
        assert held == [want["here"]] * 2


SETTINGS: dict[str, Any] = {"tokens": 3000, "context": 32, "rank": 2, "save_every": "2"}
FADING: dict[str, Any] = {"lhspg": 0.5, "policy": "half-space"}


def words(folder: Path, text: Path, out: Path, **settings: Any) -> list[str]:
    """The request as the command line has it."""
    found = ["compile", str(folder), "--out", str(out), "--text", str(text)]
    for name, value in {"ratio": 0.3, **SETTINGS, **settings}.items():
        found += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return found


def compiled(folder: Path, text: Path, out: Path, **settings: Any) -> Path:
    """The same request in this process."""
    return lorashear.compile(folder, 0.3, out, text=text, **{**SETTINGS, **settings}).folder


@pytest.mark.parametrize("more", [{}, {"fsdp": True, **FADING}], ids=["whole", "sharded"])
def test_a_dead_one_ends_the_run_and_one_process_goes_on(
    more: dict[str, Any], folder: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    log = unfinished(out) / WORK / "corpora" / "training.jsonl"
    with launched("-m", "lorashear", *words(folder, text, out, **more)) as process:
        while not log.exists() or log.read_bytes().count(b"\n") < 5:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.001)
        os.kill(ranked(process.pid)[1], signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "lorashear: process 0 of 2 has lost another one while" in said
    assert "go on from the last state with --resume" in said
    assert not out.exists() and len(list(log.parent.glob("step-*"))) == 2
    less = {"fsdp": False, "micro_batch": 1, "gradient_checkpointing": True}  # as if memory had run out
    compiled(folder, text, out, resume=True, **{**more, **less})
    assert same(out, compiled(folder, text, tmp_path / "alone", **more))


def test_the_command_line_with_two(folder: Path, text: Path, tmp_path: Path) -> None:
    """The first process tells what there is to tell, once."""
    out = tmp_path / "out"
    with launched("-m", "lorashear", *words(folder, text, out, fsdp=True, gradient_checkpointing=True)) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    assert said.count(f"written to {out}") == 1 and said.count("1 read") == 1
    assert same(out, compiled(folder, text, tmp_path / "alone"))


def test_what_is_wrong_is_said_once(folder: Path, text: Path, tmp_path: Path) -> None:
    """The first process finds out after it has begun, while the other waits."""
    with launched("-m", "lorashear", *words(folder, text, tmp_path / "out", ratio=0.99)) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert said.count("lorashear: ") == 1 and "lorashear: cannot remove 99" in said, said
    assert not list(tmp_path.iterdir())


def test_accelerate_launches_it(folder: Path, text: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--mixed_precision", "bf16"]
    command += ["--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no", "-m", "lorashear"]
    done = subprocess.run(
        [*command, *words(folder, text, tmp_path / "out", tokens=500)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = losses(tmp_path / "out"), losses(compiled(folder, text, tmp_path / "alone", tokens=500))
    assert first != second and first == pytest.approx(second, rel=0.02)  # computed in bfloat16


def test_refusals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        lorashear.LorashearError, match="several processes write into a folder that out names: pass out"
    ):
        lorashear.compile(folder, 0.3, one_shot=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(lorashear.LorashearError, match="the launcher's mixed_precision is fp16; training knows no and"):
        lorashear.compile(folder, 0.3, tmp_path / "out", one_shot=True)


def ranked(launcher: int) -> dict[int, int]:
    """The processes that a launcher has started, by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    if not children.exists():
        pytest.skip("there is no /proc here to find processes in")
    found = {}
    for child in map(int, children.read_text().split()):
        held = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found.update({int(each.partition(b"=")[2]): child for each in held if each.startswith(b"RANK=")})
    return found


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "lorashear" / "training.jsonl").read_text().splitlines()]


def same(first: Path, second: Path) -> bool:
    """Whether two results have one plan, and losses and weights that float errors alone tell apart."""
    plans = [json.loads((each / "lorashear" / "plan.json").read_text()) for each in (first, second)]
    for plan in plans:
        plan["changed"] = sorted(plan["changed"])
        plan["settings"] = {name: value for name, value in plan["settings"].items() if name not in HOW}
    assert plans[0] == plans[1]
    assert losses(first) == pytest.approx(losses(second), rel=1e-4)
    for file in first.rglob("*.safetensors"):
        one, other = load_file(file), load_file(second / file.relative_to(first))
        assert one.keys() == other.keys()
        assert all((value.float() - other[name].float()).abs().max() < 0.05 for name, value in one.items())
    return True
