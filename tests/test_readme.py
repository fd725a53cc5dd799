"""What the README shows runs as it stands, from the root of the repository after `make demo` wrote the text."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lorashear.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = 4
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository to a relative path; of the text as much as training and calibration need."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    run(folder, sys.executable, "examples/stdlib_text.py", "out/demo/text")
    train = folder / "out/demo/text/train.jsonl"
    train.write_text("".join(train.read_text(encoding="utf-8").splitlines(keepends=True)[:DOCUMENTS]), encoding="utf-8")
    return folder


def run(folder: Path, *command: str) -> str:
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "ir", "passes"))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_opens_with_a_sentence_the_two_commands_and_the_table() -> None:
    blocks = README.split("\n\n")
    assert blocks[0].endswith(".")
    assert "\n" not in blocks[0]
    assert re.findall(r"^make (\w+)", blocks[1], re.MULTILINE) == ["demo", "test"]
    assert README.index("| dense") < README.index("```python")


@pytest.mark.slow
def test_the_python_and_the_commands_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, since what the first finds out about each group serves the second; in this process, which has
    imported everything."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    assert len([line for line in code[1].splitlines() if line]) == 6
    monkeypatch.chdir(place)
    exec(compile(code[1].replace('"smaller"', '"from-python"'), "README.md", "exec"), {})
    assert "('model.layers.0.self_attn.q_proj.weight', 0, [0, 1," in capsys.readouterr().out
    assert (place / "from-python" / "lorashear" / "plan.json").exists()
    lines = [line.partition("#")[0] for line in README.splitlines() if line.startswith("lorashear ")]
    assert [line.split()[1] for line in lines] == [
        "compile",
        "compile",
        "recover",
        "eval",
        "verify",
        "groups",
        "groups",
        "trace",
        "view",
        "apply",
    ]
    for line in lines:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        with pytest.raises(SystemExit) as done:
            main()
        assert done.value.code == 0, line
        assert capsys.readouterr().out, line
