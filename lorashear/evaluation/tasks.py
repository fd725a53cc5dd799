"""The seven tasks that LoRAShear's paper reports, as items: where they are from, and how a row of each is asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorashear.errors import LorashearError
from lorashear.evaluation.items import ENDINGS, Suite, gathered, read
from lorashear.text.hub import HubDataset

ALL = "paper"
"""What all seven are called together."""

Row = dict[str, Any]


def _boolq(row: Row) -> Row:
    query = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return {"query": query, "choices": ["no", "yes"], "gold": row["label"]}


def _piqa(row: Row) -> Row:
    return _asked(row["goal"], [row["sol1"], row["sol2"]], row["label"])


def _hellaswag(row: Row) -> Row:
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"query": _plain(query), "choices": [_plain(ending) for ending in row["endings"]], "gold": int(row["label"])}


def _winogrande(row: Row) -> Row:
    """What is before the gap, filled in one way or the other, and what stands behind it to be told."""
    before, after = row["sentence"].split("_", 1)
    contexts = [before + row["option1"], before + row["option2"]]
    return {"context_options": contexts, "continuation": after.strip(), "gold": ["1", "2"].index(row["answer"])}


def _arc(row: Row) -> Row:
    choices = row["choices"]
    return _asked(row["question"], choices["text"], choices["label"].index(row["answerKey"]))


def _openbookqa(row: Row) -> Row:
    choices = row["choices"]
    gold = choices["label"].index(row["answerKey"].strip())
    return {"query": row["question_stem"], "choices": choices["text"], "gold": gold}


def _asked(question: str, choices: list[str], gold: int) -> Row:
    return {"query": f"Question: {question}\nAnswer:", "choices": choices, "gold": gold}


def _plain(text: str) -> str:
    """Without the marks in brackets that the part of HellaSwag from WikiHow has; a title's becomes the end of a sentence."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


@dataclass(frozen=True)
class Task:
    """Of the hub, and how a row there becomes one as `items.read` takes it, in the wording of lm-evaluation-harness."""

    repository: str
    config: str | None
    split: str
    row: Callable[[Row], Row]


TASKS = {
    "boolq": Task("aps/super_glue", "boolq", "validation", _boolq),
    "piqa": Task("baber/piqa", None, "validation", _piqa),
    "hellaswag": Task("Rowan/hellaswag", None, "validation", _hellaswag),
    "winogrande": Task("allenai/winogrande", "winogrande_xl", "validation", _winogrande),
    "arc_easy": Task("allenai/ai2_arc", "ARC-Easy", "test", _arc),
    "arc_challenge": Task("allenai/ai2_arc", "ARC-Challenge", "test", _arc),
    "openbookqa": Task("allenai/openbookqa", "main", "test", _openbookqa),
}
NAMES = tuple(TASKS)


def suites(names: Sequence[str | Path], folder: str | Path | None = None) -> list[Suite]:
    """What each of ``names`` says: one of `NAMES`, `ALL` of them, or a .jsonl file as `items.read` takes it; each once.

    ``folder`` is where the items of the seven lie, as in `suite`.

    Raises:
        LorashearError: a name is none of these, two files are called alike, or as `suite` and `read`.
    """
    asked = [one for name in names for one in (NAMES if str(name) == ALL else (name,))]
    found: dict[str, tuple[str, Suite]] = {}
    for name in dict.fromkeys(map(str, asked)):
        one = suite(name, folder) if name in TASKS else _of_file(name)
        if one.name in found:
            raise LorashearError(f"{found[one.name][0]} and {name} are both called {one.name}; give one another name")
        found[one.name] = name, one
    return [one for _, one in found.values()]


def suite(name: str, folder: str | Path | None = None, revision: str | None = None) -> Suite:
    """One of `NAMES`: of the file NAME.jsonl in a folder, as it is; or else of the hub, at a ``revision`` or its newest.

    Raises:
        LorashearError: no such task, the file is missing or as `items.read` refuses it, or the hub does not have it.
    """
    if name not in TASKS:
        raise LorashearError(f"{name} is no task; there are {', '.join(NAMES)}, {ALL} for all, and files in .jsonl")
    if folder is not None:
        return read(Path(folder) / f"{name}.jsonl")
    task = TASKS[name]
    dataset = HubDataset(task.repository, task.config, task.split, revision)
    records = list(_records(name, dataset, task))
    return gathered(name, records, str(dataset), _source(dataset))


def _of_file(name: str) -> Suite:
    path = Path(name)
    if path.exists() or path.suffix in ENDINGS or len(path.parts) > 1:
        return read(path)
    return suite(name)


def _records(name: str, dataset: HubDataset, task: Task) -> Iterator[tuple[str, Row]]:
    try:
        for number, row in enumerate(dataset.records(), start=1):
            where = f"{dataset}, row {number}"
            try:
                yield where, task.row(row)
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise LorashearError(f"{where}: no row of {name} as it is known here ({error!r})") from error
    except LorashearError as error:
        raise LorashearError(f"{str(error).rstrip('.')}; give a folder with {name}.jsonl (--items DIR)") from error


def _source(dataset: HubDataset) -> dict[str, Any]:
    """``revision`` is the commit that was read, where the hub says."""
    _, origins = dataset.content
    commits = [origin[1] for origin in origins if len(origin) == 2]
    revision = commits[0] if commits else dataset.revision
    return {
        "dataset": dataset.repository,
        "config": dataset.config,
        "split": dataset.split,
        "revision": revision,
    }
