"""What is asked and answered, out of files and datasets of a hub in the shapes that are common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorashear.errors import LorashearError
from lorashear.text.corpus import given
from lorashear.text.documents import BATCH_ROWS, is_encodable, open_parquet, parsed, reading, text_lines, visible

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
"""The prompts of Stanford Alpaca, as published with it: `PROMPT_DICT` in train.py of github.com/tatsu-lab/stanford_alpaca."""

# What chat templates call who speaks, and ShareGPT beside them.
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
SHAPES = '"messages", "conversations", "prompt" with "completion", or "instruction" with "output" and perhaps "input"'


@dataclass(frozen=True)
class Dialogue:
    """Turns as chat templates take them, {"role": ..., "content": ...}, and where they are from, to name in an error."""

    where: str
    turns: list[dict[str, Any]]
    answers: list[int]
    """Which turns are to be learned: rising, none of them the first; none at all where what is there is empty."""
    plain: tuple[str, str] | None = None
    """Question and answer as text for a model without a chat template; None where there is no such text."""


def read_dialogues(paths: Sequence[str | Path] | str | Path) -> Iterator[Dialogue]:
    """Those of files, folders with files at any depth, and datasets of a hub, read as they are asked for.

    ``.jsonl`` holds one object a line, ``.json`` a list of objects, ``.parquet`` one a row, and so does a dataset (see
    `HubDataset`). An object has one of these shapes:

    - ``messages`` or ``conversations``, a list of turns, each with ``role`` and ``content`` or ``from`` and ``value``:
      every turn of the assistant that answers something is learned;
    - ``prompt`` and ``completion``, each a string or a list of such turns: those of the completion are learned;
    - Alpaca's ``instruction``, ``output`` and perhaps ``input``.

    Raises:
        LorashearError: a file is missing, empty or not what its ending says, the hub does not have a dataset, or an object
            has another shape or no answer; with the line, or whatever the file has in its place.
    """
    files, datasets = given(paths, tuple(READERS), "question-and-answer")
    for path in files:
        found = False
        for where, record in _records(path):
            found = True
            yield _dialogue(record, where)
        if not found:
            raise LorashearError(f"{path} holds no examples; give a file with at least one")
    for dataset in datasets:
        for number, record in enumerate(dataset.records(), start=1):
            yield _dialogue(record, f"{dataset}, row {number}")


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """What a file holds, each with where it is."""
    with reading(path):
        yield from READERS[path.suffix.lower()](path)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.isspace():
            where = f"{path}, line {number}"
            yield where, _whole(parsed(line, where, "write one object a line"), where)


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    if not (text := "".join(text_lines(path))).strip():
        return
    found = parsed(text, str(path), "write a list of objects, or one object a line into a .jsonl file")
    if not isinstance(found, list):
        raise LorashearError(f"{path} is no list of objects; write [{{...}}, {{...}}]")
    for number, record in enumerate(found, start=1):
        where = f"{path}, object {number}"
        yield where, _whole(record, where)


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    with open_parquet(path, None) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _whole(record: Any, where: str) -> Any:
    """The same. Raises LorashearError where a string of it has half a surrogate pair, as only JSON can."""
    if not is_encodable(json.dumps(record, ensure_ascii=False)):
        raise LorashearError(f"{where}: half of a surrogate pair in the text; mend it or drop the example")
    return record


def _dialogue(record: Any, where: str) -> Dialogue:
    """Of one object, which lies ``where``. Raises LorashearError where it has no shape that is known, or no answer."""
    if not isinstance(record, dict):
        raise LorashearError(f"{where}: no object with fields; understood are the fields {SHAPES}")
    # Where objects of several shapes lie in one table, each has the fields of the others too, without a value.
    if (turns := record.get("messages")) is not None or (turns := record.get("conversations")) is not None:
        return _conversation(_turns(turns, where), 1, where)
    if record.get("prompt") is not None and "completion" in record:
        return _completion(record["prompt"], record["completion"], where)
    if record.get("instruction") is not None and "output" in record:
        return _alpaca(record, where)
    named = ", ".join(f'"{name}"' for name, value in record.items() if value is not None)
    raise LorashearError(f"{where}: its fields are {named or 'without a value'}; understood are {SHAPES}")


def _alpaca(record: dict[str, Any], where: str) -> Dialogue:
    instruction = _string(record["instruction"], '"instruction"', where)
    context = record.get("input")
    context = "" if context is None else _string(context, '"input"', where)
    answer = _string(record["output"], '"output"', where)
    question, template = instruction, ALPACA
    if visible(context):
        question, template = f"{instruction}\n\n{context}", ALPACA_WITH_INPUT
    plain = template.format(instruction=instruction, input=context), answer
    return _single(where, question, answer, plain)


def _single(where: str, question: str, answer: str, plain: tuple[str, str]) -> Dialogue:
    """A question and its answer, which may be empty: published data has some like that."""
    answers = [1] if visible(answer) else []
    return Dialogue(where, [_turn("user", question), _turn("assistant", answer)], answers, plain)


def _completion(prompt: Any, completion: Any, where: str) -> Dialogue:
    if isinstance(prompt, list) or isinstance(completion, list):
        asked = _turns(prompt if isinstance(prompt, list) else [_turn("user", prompt)], where)
        told = completion if isinstance(completion, list) else [_turn("assistant", completion)]
        return _conversation(asked + _turns(told, where, len(asked)), max(1, len(asked)), where)
    prompt, completion = _string(prompt, '"prompt"', where), _string(completion, '"completion"', where)
    return _single(where, prompt, completion, (prompt, completion))


def _conversation(turns: list[dict[str, Any]], first: int, where: str) -> Dialogue:
    """Of turns of which those of the assistant are learned from the ``first`` on."""
    answers = [at for at in range(first, len(turns)) if turns[at]["role"] == "assistant"]
    if not answers:
        raise LorashearError(f"{where}: no turn of the assistant answers another; add one or drop the example")
    return Dialogue(where, turns, [at for at in answers if visible(turns[at]["content"])])


def _turns(turns: Any, where: str, before: int = 0) -> list[dict[str, Any]]:
    """Turns as chat templates take them, of a list that has so many ``before`` it."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise LorashearError(f'{where}: no list of turns; write [{{"role": "user", "content": "..."}}, ...]')
    found: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, start=before + 1):
        role = turn["from"] if turn.get("role") is None and "from" in turn else turn.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise LorashearError(f"{where}: turn {number} has the role {role!r}; understood are {', '.join(ROLES)}")
        content = turn["value"] if turn.get("content") is None and "value" in turn else turn.get("content")
        # Its other fields stay: a template may write them too, as some do with reasoning.
        found.append(turn | _turn(ROLES[role], _string(content, f"turn {number}", where)))
    return found


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _string(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise LorashearError(f"{where}: {what} holds no string; mend it or drop the example")
    return value
