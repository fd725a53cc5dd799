"""The seven tasks: rows of the hub as they are asked, and where items come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from lorashear import LorashearError
from lorashear.evaluation.items import Item
from lorashear.evaluation.tasks import NAMES, TASKS, suite, suites

ARC = {"text": ["in a pan", "in a pot", "in a lake"], "label": ["1", "2", "3"]}
ROWS: dict[str, tuple[dict[str, Any], Item]] = {
    "boolq": (
        {"question": "is ice water", "passage": "Ice -- It is frozen.", "idx": 0, "label": 1},
        Item(
            (
                ("Ice -- It is frozen.\nQuestion: is ice water?\nAnswer:", " no"),
                ("Ice -- It is frozen.\nQuestion: is ice water?\nAnswer:", " yes"),
            ),
            (2, 3),
            1,
        ),
    ),
    "piqa": (
        {"goal": "How to cook?", "sol1": "With heat.", "sol2": "With ice.", "label": 0},
        Item(
            (
                ("Question: How to cook?\nAnswer:", " With heat."),
                ("Question: How to cook?\nAnswer:", " With ice."),
            ),
            (10, 9),
            0,
        ),
    ),
    "hellaswag": (
        {
            "activity_label": "Cooking",
            "ctx_a": "[header] How to cook [title] Heat it. [step] Take  a pan.",
            "ctx_b": "then",
            "endings": ["[substeps] stir it.", " eat it ", "Wait [title] Go.", "Fry."],
            "label": "2",
        },
        Item(
            tuple(
                ("Cooking: How to cook. Heat it. Take a pan. Then", ending)
                for ending in ("  stir it.", " eat it", " Wait. Go.", " Fry.")
            ),
            (9, 6, 9, 4),
            2,
        ),
    ),
    "winogrande": (
        {"sentence": "Ann saw Bo so _ ran off.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        Item((("Ann saw Bo so Ann", " ran off."), ("Ann saw Bo so Bo", " ran off.")), (17, 16), 1),
    ),
    "arc_easy": (
        {"id": "a", "question": "Where do fish live?", "choices": ARC, "answerKey": "3"},
        Item(
            tuple(("Question: Where do fish live?\nAnswer:", f" {text}") for text in ARC["text"]),
            (8, 8, 9),
            2,
        ),
    ),
    "arc_challenge": (
        {"id": "a", "question": "Where to cook?", "choices": {**ARC, "label": ["A", "B", "C"]}, "answerKey": "B"},
        Item(
            tuple(("Question: Where to cook?\nAnswer:", f" {text}") for text in ARC["text"]),
            (8, 8, 9),
            1,
        ),
    ),
    "openbookqa": (
        {
            "id": "a",
            "question_stem": "Fish live",
            "choices": {**ARC, "label": ["A", "B", "C"]},
            "answerKey": " C",
        },
        Item(tuple(("Fish live", f" {text}") for text in ARC["text"]), (8, 8, 9), 2),
    ),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Folders laid out as repositories of datasets, in the place of the hub; and with what each was asked for."""
    import datasets

    asked: dict[str, Any] = {}
    builder = datasets.load_dataset_builder
    for name, (row, _) in ROWS.items():
        folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist([row]), folder / f"{TASKS[name].split}.parquet")

    def load(repository: str, config: str | None = None, revision: str | None = None) -> Any:
        asked.update({repository: (config, revision)})
        name = next(name for name, task in TASKS.items() if (task.repository, task.config) == (repository, config))
        return builder(str(tmp_path / "hub" / name))

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_the_hub_as_it_is_asked(hub: dict[str, Any], name: str) -> None:
    found = suite(name)
    task = TASKS[name]
    assert found.items == (ROWS[name][1],) and found.name == name
    assert hub == {task.repository: (task.config, None)}
    source = {key: found.source[key] for key in ("dataset", "config", "split", "items")}
    assert source == {"dataset": task.repository, "config": task.config, "split": task.split, "items": 1}


def test_a_revision_is_asked_for_and_said(hub: dict[str, Any]) -> None:
    assert suite("piqa", revision="abc").source["revision"] == "abc"
    assert hub == {"baber/piqa": (None, "abc")}


def test_a_dataset_that_has_become_another(hub: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"goal": "a", "sol1": "b", "sol2": "c"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hub" / "piqa" / "validation.parquet")
    with pytest.raises(LorashearError) as caught:
        suite("piqa")
    assert str(caught.value) == (
        "baber/piqa:validation, row 1: no row of piqa as it is known here (KeyError('label')); "
        "give a folder with piqa.jsonl (--items DIR)"
    )


def test_a_gold_answer_that_the_hub_holds_back(hub: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"goal": "a", "sol1": "b", "sol2": "c", "label": -1}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hub" / "piqa" / "validation.parquet")
    with pytest.raises(LorashearError, match='^baber/piqa:validation, row 1: "gold" is -1, and of "choices" there'):
        suite("piqa")


def test_a_hub_that_cannot_be_reached_names_the_folder_to_give() -> None:
    """The tests are offline."""
    with pytest.raises(
        LorashearError, match=r"^allenai/ai2_arc .*; give a folder with arc_easy.jsonl \(--items DIR\)$"
    ):
        suite("arc_easy")


def items_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text(json.dumps({"query": name, "choices": ["a", "b"], "gold": 0}) + "\n")
    return path


def test_a_folder_gives_its_files_as_they_are(tmp_path: Path) -> None:
    for name in NAMES:
        items_file(tmp_path, name)
    found = suites(["paper"], tmp_path)
    assert [one.name for one in found] == list(NAMES)
    assert [one.items[0].options[0] for one in found] == [(name, " a") for name in NAMES]
    assert found[0].source["file"] == str(tmp_path / "boolq.jsonl")
    with pytest.raises(LorashearError, match=r"none/piqa\.jsonl does not exist; give a multiple-choice file$"):
        suite("piqa", tmp_path / "none")


def test_names_files_and_each_once(tmp_path: Path) -> None:
    for name in NAMES:
        items_file(tmp_path, name)
    (tmp_path / "more").mkdir()
    mine = items_file(tmp_path / "more", "mine")
    found = suites(["piqa", mine, "paper", mine], tmp_path)
    assert [one.name for one in found] == ["piqa", "mine", *(name for name in NAMES if name != "piqa")]
    other = items_file(tmp_path, "mine")
    with pytest.raises(LorashearError) as caught:
        suites([mine, other], tmp_path)
    assert str(caught.value) == f"{mine} and {other} are both called mine; give one another name"


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(LorashearError) as caught:
        suites(["boolqq"], tmp_path)
    assert str(caught.value) == (
        "boolqq is no task; there are boolq, piqa, hellaswag, winogrande, arc_easy, arc_challenge, openbookqa, "
        "paper for all, and files in .jsonl"
    )
    with pytest.raises(LorashearError, match=r"^x\.jsonl does not exist; give a multiple-choice file$"):
        suites(["x.jsonl"])


def test_the_shared_items(shared_data: Path) -> None:
    counts = [3270, 1838, 10042, 1267, 2376, 1172, 500]
    assert [len(one.items) for one in suites(["paper"], shared_data / "evals")] == counts
