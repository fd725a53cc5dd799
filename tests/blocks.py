"""The code blocks of a document, and how they are run: as a reader would, one after another, from the root of the repository."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from lorashear.cli import main

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```\s*?$", re.MULTILINE | re.DOTALL
)
STANDS_IN = {
    r"--tokens 10_000_000\b": "--tokens 20_000",
    r"--limit 64\b": "--limit 8",
    r"--speed\b(?!.*--rounds)": "--speed --rounds 2 --new-tokens 8",
    **({} if torch.cuda.is_available() else {r"--device cuda\b": "--device cpu"}),
}
"""What a page says of a large model, a card and careful measurements, and what is done here."""
REFUSED = "# exit code 2"
SHELL = set("|<>&;$`*?~")  # what only a shell understands
NUMBER = re.compile(r"[-+−]?\d[\d,.]*(e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a Markdown document, in order, without the indent of a list that they stand in."""
    found = []
    for match in FENCE.finditer(document):
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        found.append(Block(match["language"], text, document.count("\n", 0, match.start()) + 1))
    return found


def commands(text: str) -> list[tuple[str, int]]:
    """The commands of a shell block with the exit code that each must have; a backslash joins lines."""
    found = []
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        command = re.sub(r"(^|\s)#.*", "", line).strip()
        if command:
            found.append((command, 2 if REFUSED in line else 0))
    return found


def masked(line: str) -> str:
    """A line without its figures, the lengths of its rules and bars, and the width of its columns."""
    line = re.sub(r"[─━═-]{2,}", "-", re.sub(r"[▁▂▃▄▅▆▇█]+", "█", line))
    return re.sub(r"\s+", " ", NUMBER.sub("#", line)).strip()


def missing(expected: str, printed: str) -> str | None:
    """The first line of what a document shows that was not printed, in order; a line ``...`` stands for any others, and ``…`` at
    the end of one for the rest of it."""
    lines = iter([masked(line) for line in printed.splitlines()])
    for line in expected.splitlines():
        if line.strip() in ("", "...", "…"):
            continue
        wanted, begun = masked(line.removesuffix("…")), line.endswith("…")
        # an iterator: what follows is looked for behind it
        if not any(each == wanted or (begun and each.startswith(wanted)) for each in lines):
            return line
    return None


class Reader:
    """Runs the blocks of one document in a folder that looks like the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = ModuleType("document")
        sys.modules["document"] = self.module  # dataclasses look their module up
        tools = folder / ".tools"
        tools.mkdir(exist_ok=True)
        for name, call in {"lorashear": "-m lorashear", "python": ""}.items():
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
            (tools / name).chmod(0o755)
        roots = os.pathsep.join(str(ROOT / part) for part in ("", "ir", "passes"))
        self.environment = {**os.environ, "PYTHONPATH": roots, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}

    def read(self, document: str) -> None:
        """Raises AssertionError where a block does not do what the document says."""
        printed, where = "", 0
        for block in blocks(document):
            where = block.line
            if block.language == "python":
                printed = self.python(block.text, where)
            elif block.language == "sh":
                printed = "".join(self.command(each, code, where) for each, code in commands(block.text))
            elif block.language == "text":
                line = missing(block.text, printed)
                assert line is None, f"line {where}: {line!r} is not in\n{printed}"
            elif block.language == "yaml":
                (self.folder / "recipe.yaml").write_text(block.text)
                self.command("lorashear recipe validate recipe.yaml", 0, where)
            elif block.language == "json":
                json.loads(block.text)
            else:
                assert block.language in ("", "diff", "mermaid"), f"line {where}: nothing runs {block.language}"

    def python(self, code: str, line: int) -> str:
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            exec(compile("\n" * line + code, "document", "exec"), self.module.__dict__)
        return out.getvalue()

    def command(self, command: str, code: int, line: int) -> str:
        for said, done in STANDS_IN.items():
            command = re.sub(said, done, command)
        words = shlex.split(command)
        if words[0] == "make":
            targets = re.findall(r"^([.a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(words[1:]) <= set(targets), f"line {line}: {command}"
            return ""
        if words[:2] == ["python", "examples/stdlib_text.py"]:  # it was run before, and has more than is read here
            assert (self.folder / words[2]).is_dir(), f"line {line}: {command}"
            return ""
        if words[:2] == ["pip", "install"] or words[0] in ("source", "git", "cd"):
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            asked = re.findall(r"(?:lorashear|\.)\[([\w,]+)\]", command)
            assert {name for each in asked for name in each.split(",")} <= set(extras), f"line {line}: {command}"
            return ""
        if words[0] == "lorashear" and not SHELL & set(command):
            return self.verb(words, code, line)
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == code, f"line {line}: {command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def verb(self, words: list[str], code: int, line: int) -> str:
        """In this process, which has imported everything."""
        out, before = io.StringIO(), sys.argv
        sys.argv = words
        try:
            with redirect_stdout(out), redirect_stderr(out):
                main()
        except SystemExit as done:
            assert done.code == code, f"line {line}: {shlex.join(words)}\n{out.getvalue()}"
        finally:
            sys.argv = before
        return out.getvalue()
