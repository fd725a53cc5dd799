"""What SECURITY.md says of input that is not trusted."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

import lorashear
from lorashear import LorashearError
from lorashear.recipes import reading
from test_bad_input import pickled

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lorashear", "passes", "ir")


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_no_pickle_is_read(model: Path) -> None:
    pickled(model)
    for call in (
        lambda: lorashear.load(model),
        lambda: lorashear.prune(model, {"model.layers.0.mlp.ffn": [0]}),
        lambda: lorashear.compile(model, 0.2, one_shot=True),
    ):
        with pytest.raises(LorashearError, match="pickle only, which can run code and is never loaded"):
            call()


def test_no_code_of_a_model_is_run_unasked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on the terminal where it is not told; here whoever answers says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ran = tmp_path / "ran"
    (model / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"}}
    (model / "config.json").write_text(json.dumps(config))
    for call in (lorashear.load, lorashear.groups, lambda given: lorashear.prune(given, {})):
        with pytest.raises((LorashearError, ValueError)):
            call(model)
    assert not ran.exists()


def test_a_recipe_makes_no_objects(tmp_path: Path) -> None:
    ran, recipe = tmp_path / "ran", tmp_path / "recipe.yaml"
    recipe.write_text(f"ratio: !!python/object/apply:os.mkdir ['{ran}']\n")
    with pytest.raises(LorashearError, match="no YAML"):
        reading.read(recipe)
    assert not ran.exists()


def test_the_code_has_no_other_way_to_run_what_it_reads() -> None:
    """`processes` tells the other processes of the same run what to call; `task_files` is what --harness asks for."""
    found: set[tuple[str, str]] = set()
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            imported = {each.name for each in node.names} if isinstance(node, ast.Import) else set[str]()
            imported |= {str(node.module)} if isinstance(node, ast.ImportFrom) else set()
            bad = imported & {"pickle", "marshal", "shelve", "dill", "joblib"}
            if called in ("exec", "eval", "torch.load", "torch.save", "np.load", "np.save", "yaml.load", "os.system"):
                bad.add(called)
            if called.endswith((".unsafe_load", ".full_load")) or "allow_pickle" in called:
                bad.add(called)
            found |= {(file.relative_to(ROOT).as_posix(), what) for what in bad}
    assert found == {
        ("lorashear/learning/processes.py", "pickle"),
        ("lorashear/evaluation/task_files.py", "exec"),
        ("lorashear/evaluation/task_files.py", "yaml.load"),  # with a loader that is a SafeLoader
    }


def test_the_page_puts_names_in_as_text() -> None:
    sources = [*(ROOT / "tools/page/src").glob("*.js"), ROOT / "lorashear/viewer/built/page.js"]
    assert len(sources) > 1
    for source in sources:
        text = source.read_text(encoding="utf-8")
        assert not [way for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write") if way in text]
