"""docs/errors.md quotes messages as the code has them: one that is reworded or removed fails here, a new one does not."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
VARIES = "…"
ERRORS = {"LorashearError", "Fault", "CaptureError", "SelectionError"}
"""What a user gets to read; the last two are handed on word for word."""
COVERED = (
    "ir/lorashear_ir/groups.py",
    "lorashear/cache.py",
    "lorashear/choosing.py",
    "lorashear/compiler.py",
    "lorashear/config.py",
    "lorashear/disk/checkpoint.py",
    "lorashear/disk/folder.py",
    "lorashear/disk/journal.py",
    "lorashear/disk/lora.py",
    "lorashear/disk/output.py",
    "lorashear/engines/exporter.py",
    "lorashear/engines/gguf_tensors.py",
    "lorashear/engines/gguf_tokenizer.py",
    "lorashear/engines/llama.py",
    "lorashear/engines/onnx_model.py",
    "lorashear/engines/openvino_model.py",
    "lorashear/evaluation/asked.py",
    "lorashear/evaluation/harness.py",
    "lorashear/evaluation/perplexities.py",
    "lorashear/evaluation/reproducing.py",
    "lorashear/evaluation/tasks.py",
    "lorashear/evaluation/texts.py",
    "lorashear/goals.py",
    "lorashear/learning/trackers.py",
    "lorashear/learning/training.py",
    "lorashear/learning/transfer.py",
    "lorashear/loading.py",
    "lorashear/models.py",
    "lorashear/plans.py",
    "lorashear/recipes/reading.py",
    "lorashear/recoverer.py",
    "lorashear/results.py",
    "lorashear/text/calibration.py",
    "lorashear/text/corpus.py",
    "lorashear/text/data.py",
    "lorashear/text/dialogues.py",
    "lorashear/text/documents.py",
    "lorashear/text/instructions.py",
    "lorashear/text/subsets.py",
    "lorashear/verifying.py",
    "passes/lorashear_passes/capture.py",
)
"""Modules of which the page has a message or more."""
LEAST = 90
"""Messages of the code that the page has at least; that it need not have all is why this is a bound and no list."""

QUOTES = re.findall(r"^### `(.+)`$|\*\*`(.+?)`\*\*", PAGE, re.MULTILINE)
QUOTED = [heading or bold for heading, bold in QUOTES]


def template(node: ast.expr) -> str | None:
    """A string as it stands in the source, `VARIES` for what is put in; None of anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else VARIES for part in node.values)
    return None


def strings(node: ast.AST) -> Iterator[str]:
    """All strings below a node but docstrings, and of an f-string the whole alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.Expr) and isinstance(child, ast.Constant):
            continue
        if isinstance(child, ast.expr) and (found := template(child)) is not None:
            yield found
        else:
            yield from strings(child)


def raised(tree: ast.AST) -> Iterator[str]:
    """The messages of our own errors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
            if (found := template(node.args[0])) is not None:
                yield found


@cache
def known() -> str:
    """All strings of the code, zeros between them."""
    return "\0".join(dict.fromkeys(text for tree in trees().values() for text in strings(tree)))


@cache
def trees() -> dict[str, ast.AST]:
    files = sorted(file for floor in ("lorashear", "passes", "ir") for file in (ROOT / floor).rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def says(quote: str, message: str) -> bool:
    """Whether a message, or one of several between zeros, has the literal parts of what is quoted, in their order."""
    return re.search("[^\0]*?".join(map(re.escape, quote.strip(VARIES).split(VARIES))), message) is not None


def test_literal_parts_are_found_in_order() -> None:
    source = ast.parse('"""Doc string."""\nraise LorashearError(f"{name} is {3:.2f}; " "give a number")')
    assert list(strings(source)) == list(raised(source)) == ["… is …; give a number"]
    assert says("… is …; give a number", "… is …; give a number")
    assert says("… is …; give", "… is …; give a number")
    assert not says("… was …; give a number", "… is …; give a number")
    assert not says("give … is", "… is …; give a number")


@pytest.mark.parametrize("quote", QUOTED)
def test_the_code_says_what_the_page_quotes(quote: str) -> None:
    literal = [part for part in quote.split(VARIES) if len(part.split()) > 1]
    assert literal, "nothing of it can be searched for"
    assert says(quote, known()), (
        f"docs/errors.md quotes {quote!r}, and no string of the code has that: a message was reworded or removed"
    )


def test_no_message_is_there_twice() -> None:
    assert not [quote for quote, count in Counter(QUOTED).items() if count > 1]


def test_every_message_has_a_cure() -> None:
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        prose = re.sub(r"```.*?```|^## .*$", "", text, flags=re.MULTILINE | re.DOTALL)
        assert len(prose.split()) >= 5, heading


def test_what_the_page_covers() -> None:
    """Printed is what the page lacks; with `pytest -s`."""
    on, off = Counter[str](), Counter[str]()
    for name, tree in trees().items():
        for message in raised(tree):
            found = any(says(quote, message) for quote in QUOTED)
            (on if found else off)[name] += 1
    print(f"\ndocs/errors.md has {on.total()} of {on.total() + off.total()} messages; those that it lacks by module:")
    for name, count in off.most_common():
        print(f"  {count:3} of {count + on[name]:3}  {name}")
    assert not set(COVERED) - set(on), "the page has no message of these any more"
    assert on.total() >= LEAST
