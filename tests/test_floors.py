"""The four floors: ir <- passes <- lorashear <- tools, examples, tests. Imports go downwards only."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"lorashear": ROOT, "lorashear_ir": ROOT / "ir", "lorashear_passes": ROOT / "passes"}
TOP_FLOOR = {"tools", "examples", "tests", "stdlib_text", *(path.stem for path in (ROOT / "tools").glob("*.py"))}
FILE_MODULES = {"os", "io", "pathlib", "shutil", "tempfile", "glob", "mmap", "safetensors", "huggingface_hub"}
FILE_CALLS = {
    *("open", "safe_open", "load_file", "save_file", "fromfile", "tofile", "memmap"),
    *("read_text", "read_bytes", "write_text", "write_bytes", "from_pretrained", "save_pretrained"),
}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every absolute import, those inside functions and TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module.partition(".")[0]


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and last name of every call: ``open(...)`` and ``path.open(...)`` are both ``open``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.lineno, node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.lineno, node.func.attr


def offences(source: str, modules: set[str], functions: set[str]) -> list[str]:
    tree = ast.parse(source)
    found = [(line, f"imports {name}") for line, name in imports(tree) if name in modules]
    found += [(line, f"calls {name}") for line, name in calls(tree) if name in functions]
    return [f"line {line} {what}" for line, what in sorted(found)]


FLOORS = {
    "ir": (
        {"lorashear", "lorashear_passes", "torch", "transformers", "peft", "numpy"} | FILE_MODULES | TOP_FLOOR,
        FILE_CALLS,
    ),
    "passes": ({"lorashear"} | (FILE_MODULES - {"os"}) | TOP_FLOOR, FILE_CALLS),  # os.path has string functions
    "lorashear": (TOP_FLOOR, set[str]()),
}


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_downwards(floor: str) -> None:
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    found = [f"{path.relative_to(ROOT)} {o}" for path in files for o in offences(path.read_text(), *FLOORS[floor])]
    assert found == []


def test_an_offence_would_be_seen() -> None:
    source = "def f(p):\n    import torch.nn\n    from lorashear import x\n    return p.open(), open(p), re.sub()\n"
    assert offences(source, *FLOORS["ir"]) == [
        "line 2 imports torch",
        "line 3 imports lorashear",
        "line 4 calls open",
        "line 4 calls open",
    ]
    assert offences("from . import graph\nfrom lorashear_ir import text\nimport ast\n", *FLOORS["ir"]) == []


def test_the_modelling_file_stands_alone() -> None:
    """It is copied into result folders and loaded where LoRAShear is not installed."""
    tree = ast.parse((ROOT / "lorashear" / "modeling_lorashear.py").read_text())
    assert {name for _, name in imports(tree)} <= {"copy", "sys", "torch", "transformers"}
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def test_three_packages_with_these_names_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    built = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert built == ["lorashear", "ir/lorashear_ir", "passes/lorashear_passes"]
    assert project["tool"]["pytest"]["ini_options"]["pythonpath"] == project["tool"]["hatch"]["build"]["dev-mode-dirs"]
    for name, parent in PACKAGES.items():
        assert (parent / name / "__init__.py").is_file()
    for parent in ("ir", "passes"):
        packages = [path.name for path in (ROOT / parent).iterdir() if path.is_dir() and path.name != "__pycache__"]
        assert packages == [f"lorashear_{parent}"]
        assert not (ROOT / parent / "__init__.py").exists()


def test_the_lower_floors_are_attributes_of_lorashear() -> None:
    import lorashear
    import lorashear_ir
    import lorashear_passes

    assert lorashear.ir is lorashear_ir
    assert lorashear.passes is lorashear_passes
