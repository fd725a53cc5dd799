"""Items of multiple choice: lines of JSON to options, one of which is right."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from lorashear.errors import LorashearError
from lorashear.text.documents import check_readable, is_encodable, parsed, reading, text_lines

ENDINGS = (".jsonl",)
KIND = "multiple-choice"
# The fields that tell the shapes of a row apart.
BY_CHOICE, BY_CONTEXT, PAIR = ("query", "choices"), ("context_options", "continuation"), ("good", "bad")
SHAPES = '"query" with "choices" and "gold", "context_options" with "continuation" and "gold", or "good" with "bad"'


@dataclass(frozen=True)
class Item:
    """``options``: a context and its continuation for each choice, as they stand in the text, one behind the other.

    ``lengths``: characters of each choice as it was written, of at least 1, which length normalisation divides by; where
    the choice is between contexts, theirs. ``gold``: the right one, counted from 0.
    """

    options: tuple[tuple[str, str], ...]
    lengths: tuple[int, ...]
    gold: int


@dataclass(frozen=True)
class Suite:
    """``items``: at least one. ``source``: where they are from, how many they are ("items") and their "sha256"; plain JSON."""

    name: str
    items: tuple[Item, ...]
    source: dict[str, Any]

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return sum(1 / len(item.options) for item in self.items) / len(self.items)

    @property
    def chance_error(self) -> float:
        """Its standard error: items are guessed apart from each other."""
        shares = [1 / len(item.options) for item in self.items]
        return math.sqrt(sum(share * (1 - share) for share in shares)) / len(self.items)


def read(path: str | Path) -> Suite:
    """The items of a .jsonl file, called as the file is without its ending.

    A row has ``query`` (which may be empty), ``choices`` and ``gold``; or ``context_options``, ``continuation`` and
    ``gold``; or ``good`` and ``bad``, which are compared as they are. Context and continuation are joined by one space,
    unless the context is empty or ends in white space. Other fields are left alone.

    Raises:
        LorashearError: the file is missing, not UTF-8, or without items; or a row is no such item, or of another shape than
            the rows before it.
    """
    path = Path(path)
    check_readable(path, ENDINGS, KIND)
    with reading(path):
        return gathered(path.stem, _records(path), str(path), {"file": str(path), "split": path.name})


def gathered(name: str, records: Iterable[tuple[str, Any]], whole: str, source: dict[str, Any]) -> Suite:
    """A suite of rows as `read` takes them, each with where it lies; ``whole`` is what errors call all of them.

    Raises:
        LorashearError: as `read`.
    """
    items: list[Item] = []
    before: tuple[str, str] | None = None
    for where, record in records:
        shape = _shape(record, where)
        if before and shape != before:
            found, earlier = (" with ".join(f'"{field}"' for field in fields) for fields in (shape, before))
            raise LorashearError(
                f"{where}: an item of {found} behind items of {earlier}; put it into a file of its own"
            )
        before = shape
        items.append(_item(shape, record, where))
    if not items:
        raise LorashearError(f"{whole} holds no items; give at least one")
    known = json.dumps([astuple(item) for item in items])
    digest = hashlib.sha256(known.encode()).hexdigest()
    return Suite(name, tuple(items), {**source, "items": len(items), "sha256": digest})


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.isspace():
            where = f"{path}, line {number}"
            yield where, parsed(line, where, "write one object a line")


def _shape(record: Any, where: str) -> tuple[str, str]:
    """The fields that say what a row is."""
    if not isinstance(record, dict):
        raise LorashearError(f"{where}: no object with fields; understood are the fields {SHAPES}")
    for shape in (BY_CHOICE, BY_CONTEXT, PAIR):
        if all(field in record for field in shape):
            return shape
    fields = ", ".join(f'"{field}"' for field in record) or "none"
    raise LorashearError(f"{where}: its fields are {fields}; understood are {SHAPES}")


def _item(shape: tuple[str, str], record: dict[str, Any], where: str) -> Item:
    if shape == PAIR:
        pair = [_visible(record[field], f'"{field}"', where) for field in PAIR]
        return Item(tuple(("", text) for text in pair), tuple(map(len, pair)), 0)
    if shape == BY_CHOICE:
        field, choices = "choices", _texts(record["choices"], "choices", where)
        query = _text(record["query"], '"query"', where)
        if query.isspace():
            raise LorashearError(f'{where}: "query" is white space alone; leave it empty or drop the item')
        options = [_joined(query, choice) for choice in choices]
    else:
        field, choices = "context_options", _texts(record["context_options"], "context_options", where)
        continuation = _visible(record["continuation"], '"continuation"', where)
        if len({choice[-1].isspace() for choice in choices}) > 1:
            # Joined differently, one of them would have the likelier continuation for its space alone.
            raise LorashearError(
                f'{where}: some of "context_options" end in white space and others do not; end all alike'
            )
        options = [_joined(choice, continuation) for choice in choices]
    return Item(tuple(options), tuple(map(len, choices)), _gold(record, field, len(choices), where))


def _gold(record: dict[str, Any], field: str, count: int, where: str) -> int:
    gold = record.get("gold")
    right = f'the number of the right one of "{field}", counted from 0'
    if gold is None:
        raise LorashearError(f'{where}: no gold answer; give "gold", {right}')
    if isinstance(gold, bool) or not isinstance(gold, int):
        raise LorashearError(f'{where}: "gold" is {gold!r}; give {right}')
    if not 0 <= gold < count:
        raise LorashearError(f'{where}: "gold" is {gold}, and of "{field}" there are {count}; give {right}')
    return gold


def _texts(found: Any, field: str, where: str) -> list[str]:
    """Two texts or more to choose from."""
    if not isinstance(found, list):
        raise LorashearError(f'{where}: "{field}" is no list; write ["...", "..."]')
    if len(found) < 2:
        raise LorashearError(f'{where}: "{field}" has {len(found)}, which leaves nothing to choose; give two or more')
    return [_visible(text, f'number {number} of "{field}"', where) for number, text in enumerate(found, start=1)]


def _visible(found: Any, what: str, where: str) -> str:
    text = _text(found, what, where)
    if not text.strip():
        raise LorashearError(f"{where}: {what} is empty; mend it or drop the item")
    return text


def _text(found: Any, what: str, where: str) -> str:
    if not isinstance(found, str):
        raise LorashearError(f"{where}: {what} is no string; mend it or drop the item")
    if not is_encodable(found):
        raise LorashearError(f"{where}: {what} has half of a surrogate pair; mend it or drop the item")
    return found


def _joined(context: str, continuation: str) -> tuple[str, str]:
    """The space between the two belongs to the continuation, as a token of most vocabularies begins with it."""
    space = " " if context and not context[-1].isspace() else ""
    return context, space + continuation
