"""`compile` says beforehand what it will take, and takes no more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lorashear.cli import main

CHILD = """
import ctypes, gc, re, sys, threading, time
from pathlib import Path
from lorashear.compiler import compile
model, text, out, tokens = sys.argv[1:]
def private():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
settings = {"text": text, "tokens": int(tokens)} if tokens != "0" else {"text": text, "one_shot": True}
compile(model, 0.05, out + "-first", windows=2, context=8, **settings)  # whatever is imported late, and read once
most, estimates, done = [0], [], []
def watch():
    while not done:
        most[0] = max(most[0], private())
        time.sleep(0.005)
gc.collect()
ctypes.CDLL(None).malloc_trim(0)  # what the first has freed is the system's again, so that the second is seen to take it
start = private()
threading.Thread(target=watch, daemon=True).start()
compile(model, 0.3, out, estimated=estimates.append, windows=16, **settings)
done.append(True)
print(most[0] - start, estimates[0].memory)
"""


@pytest.fixture(scope="module")
def wide(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small LLaMA, wide enough for its memory to be seen beside that of torch."""
    path = tmp_path_factory.mktemp("wide") / "model"
    sizes = {"hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 1, "max_position_embeddings": 64}
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **sizes)).save_pretrained(path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    return path


@pytest.mark.parametrize("tokens", [0, 2000], ids=["one shot", "trained"])
def test_memory_stays_under_the_estimate(wide: Path, text: Path, tmp_path: Path, tokens: int) -> None:
    command = [sys.executable, "-c", CHILD, wide, text, tmp_path / "out", tokens]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, estimated = map(int, done.stdout.split())
    assert taken < estimated < 5 * taken


def test_a_dry_run_reads_no_weights_and_writes_nothing(
    wide: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lorashear.disk.checkpoint.Checkpoint.read", None)
    out = tmp_path / "out"
    command = [
        "compile",
        str(wide),
        "--ratio",
        "0.2",
        "--out",
        str(out),
        "--one-shot",
        "--text",
        str(text),
        "--dry-run",
    ]
    monkeypatch.setattr(sys, "argv", ["lorashear", *command])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 0 and printed.out == ""
    assert (
        re.match(r"reads [\d.]+ [kM]B at most, writes [\d.]+ [kM]B \(", printed.err) and "MB of memory" in printed.err
    )
    assert not out.exists()


@pytest.mark.parametrize("more", [["--micro-batch", "1"], ["--gradient-checkpointing"], ["--distill", "0"]])
def test_what_takes_less_memory_is_known(
    more: list[str],
    shipped: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where training takes most of it."""
    found: list[float] = []
    for words in ([], more):
        command = (
            f"compile {shipped} --ratio 0.2 --out {tmp_path / 'out'} --tokens 1000 --text {text} --dry-run".split()
        )
        monkeypatch.setattr(sys, "argv", ["lorashear", *command, *words])
        with pytest.raises(SystemExit):
            main()
        found.append(float(re.search(r"in ([\d.]+) MB of memory", capsys.readouterr().err)[1]))  # type: ignore[index]
    assert found[1] < found[0]
