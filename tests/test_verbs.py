"""The verbs' help, their examples, what a shell completes, and `lorashear env`."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from lorashear.cli import app
from lorashear.config import COSTS, CRITERIA, KINDS
from lorashear.engines.exporter import TARGETS
from lorashear.terminal import completing, environment
from lorashear.terminal.options import CHOOSE, FILES, LHSPG, OUTPUT, PANELS, REMOVE, SPEED, TASKS, TEXT, TRAINING
from lorashear.terminal.verbs import VERBS
from test_bad_input import run

ROOT = Path(__file__).resolve().parent.parent
COMMANDS: Any = typer.main.get_command(app)
PROTOCOL = """
import sys
from lorashear.cli import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers", "datasets", "peft") if name in sys.modules], file=sys.stderr)
"""


def helped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, *words) == 0
    return capsys.readouterr().out


def test_every_verb_is_listed_in_a_line_and_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = helped(monkeypatch, capsys, "--help")
    assert helped(monkeypatch, capsys) == said
    rows = re.findall(r"^│ (\w+) +(\S.*?) +│$", said, re.MULTILINE)
    assert rows == [(name, verb.line) for name, verb in VERBS.items()]
    assert re.findall(r"^╭─ ([\w, ]+) ─", said, re.MULTILINE)[1:] == list(
        dict.fromkeys(verb.group for verb in VERBS.values())
    )
    assert set(COMMANDS.commands) == set(VERBS), "lorashear/terminal/verbs.py says a line and an example of each"


@pytest.mark.parametrize("name", VERBS)
def test_help_ends_with_an_example_that_can_be_given(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = " ".join(helped(monkeypatch, capsys, name, "--help").split())
    example = VERBS[name].example
    assert said.endswith(f"Example: {example}")
    program, verb, *rest = shlex.split(example)
    assert (program, verb) == ("lorashear", name)
    command: Any = COMMANDS.commands[name]
    if verbs := getattr(command, "commands", None):  # `lorashear recipe show`
        command, rest = verbs[rest[0]], rest[1:]
    with command.make_context(name, rest) as context:
        assert context.params
    with pytest.raises(Exception, match="No such option"):
        command.make_context(name, [*rest, "--no-such-option"])


@pytest.mark.parametrize(("asked", "meant"), [("prune", "compile"), ("train", "recover"), ("compil", "compile")])
def test_a_verb_of_another_tool_is_understood(asked: str, meant: str) -> None:
    with pytest.raises(Exception, match=f"No such command '{asked}'. Did you mean '{meant}'?"):
        COMMANDS.main([asked, "model"], standalone_mode=False)


def test_examples_are_those_of_the_readme() -> None:
    """Which run in its test; those that it does not show are these."""
    shown = {line.partition("#")[0].strip() for line in (ROOT / "README.md").read_text().splitlines()}
    assert [name for name, verb in VERBS.items() if verb.example not in shown] == [
        "recipe",
        "export",
        "trace",
        "env",
    ]


@pytest.mark.parametrize(
    ("verb", "panels"),
    [
        ("compile", [REMOVE, CHOOSE, TEXT, TRAINING, LHSPG, FILES, OUTPUT]),
        ("recover", [TEXT, TRAINING, FILES, OUTPUT]),
        ("eval", [TEXT, TASKS, SPEED, FILES, OUTPUT]),
    ],
)
def test_options_stand_in_groups(
    verb: str, panels: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option but --help is in one; they come in order."""
    said = helped(monkeypatch, capsys, verb, "--help")
    found = re.findall(r"^╭─ ([\w ]+) ─", said, re.MULTILINE)
    assert found == ["Arguments", "Options", *panels]
    rest = said.partition("╭─ Options")[2].partition("╰")[0]
    assert re.findall(r"--[\w-]+", rest) == ["--help"]
    assert set(panels) <= set(PANELS)


def completed(line: str) -> tuple[list[str], str]:
    """What bash is told when Tab is pressed at the end of a line, and which heavy packages were imported for it."""
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "ir", "passes"))
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_LORASHEAR_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", PROTOCOL],
        env={**os.environ, "PYTHONPATH": paths, **words},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr.strip()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("lorashear ", list(VERBS)),
        ("lorashear re", ["recipe", "recover"]),
        ("lorashear compile model --per", ["--per-layer", "--periods"]),
        ("lorashear compile model --criterion ", list(CRITERIA)),
        ("lorashear export small --to ", [*TARGETS, "safetensors"]),
    ],
)
def test_what_bash_completes(line: str, wanted: list[str]) -> None:
    assert completed(line) == (wanted, "[]")


@pytest.mark.parametrize(
    ("verb", "option", "given", "wanted"),
    [
        ("compile", "target", "", ["transformers", "llama.cpp", "vllm", "onnx", "mlx"]),
        ("compile", "cost", "", list(COSTS)),
        ("compile", "policy", "h", ["half-space"]),
        ("compile", "prune", "", list(KINDS)),
        ("compile", "prune", "head,", ["head,query", "head,ffn", "head,hidden"]),
        ("compile", "prune", "head,h", ["head,hidden"]),
        *((verb, "adapter", "", ["merge", "keep"]) for verb in ("compile", "recover", "apply")),
        *((verb, "mixture", "", ["dynamic", "static"]) for verb in ("compile", "recover")),
        ("export", "to", "g", ["gguf"]),
    ],
)
def test_values_that_are_completed(verb: str, option: str, given: str, wanted: list[str]) -> None:
    command = COMMANDS.commands[verb]
    (parameter,) = (each for each in command.params if each.name == option)
    context = command.make_context(verb, [], resilient_parsing=True)
    assert [item.value for item in parameter.shell_complete(context, given)] == wanted


def test_a_value_by_commas_stands_once() -> None:
    assert completing.kinds("query,ffn,query") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``--show-completion`` prints it."""
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    assert run(monkeypatch, "--show-completion") == 0
    said = capsys.readouterr()
    assert f"_LORASHEAR_COMPLETE=complete_{shell}" in said.out and said.err == ""


def test_completion_is_installed_for_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "fish")
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: "fish")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(monkeypatch, "--install-completion") == 0
    assert "completion installed in" in capsys.readouterr().out
    written = tmp_path / ".config" / "fish" / "completions" / "lorashear.fish"
    assert "_LORASHEAR_COMPLETE=complete_fish" in written.read_text()


def test_env_says_what_a_bug_report_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORASHEAR_CACHE", str(tmp_path / "cache"))
    assert run(monkeypatch, "env") == 0
    said = capsys.readouterr().out
    found = dict(line.split(" ", 1) for line in said.splitlines())
    assert found["python"].startswith(platform.python_version()) and int(found["cpus"]) >= 1
    assert float(found["memory"].removesuffix(" GB")) > 0.1 and found["devices"].startswith("cpu")
    assert found["cache"] == str(tmp_path / "cache") and not (tmp_path / "cache").exists()
    for name in environment.NEEDED:
        assert found[name] == version(name)
    assert list(found) == [*list(found)[:6], *environment.NEEDED, *environment.OPTIONAL, "cache"]
    assert run(monkeypatch, "env", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert {name: ", ".join(v) if isinstance(v, list) else str(v) for name, v in content.items()} == found


def test_env_where_something_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "OPTIONAL", ("no-such-package",))
    monkeypatch.setitem(sys.modules, "torch", None)
    found = environment.environment()
    assert found["no-such-package"] == "not installed"
    assert found["devices"] == [
        "unknown, because torch fails with ModuleNotFoundError: import of torch halted; None in sys.modules"
    ]
    assert found["torch"] == version("torch")


def test_env_imports_torch_alone() -> None:
    code = "import sys; from lorashear.terminal.environment import environment as e; e(); print(*sys.modules)"
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "ir", "passes"))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "torch" in loaded, done.stderr
    assert not loaded & {"transformers", "peft", "accelerate", "datasets", "onnx", "onnxruntime", "openvino", "lm_eval"}
