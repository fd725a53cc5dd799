"""Items of multiple choice: what a row becomes, and a sentence for each that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorashear import LorashearError
from lorashear.evaluation.items import Item, Suite, read


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(tmp_path: Path, row: dict[str, Any]) -> Item:
    (item,) = read(write(tmp_path / "a.jsonl", row)).items
    return item


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("Q: a?", (("Q: a?", " yes"), ("Q: a?", " no way"))),
        ("Q: a?\n", (("Q: a?\n", "yes"), ("Q: a?\n", "no way"))),
        ("Q: a? ", (("Q: a? ", "yes"), ("Q: a? ", "no way"))),
        ("", (("", "yes"), ("", "no way"))),
    ],
)
def test_a_query_and_its_choices(tmp_path: Path, query: str, options: Any) -> None:
    found = only(tmp_path, {"id": 7, "query": query, "choices": ["yes", "no way"], "gold": 1})
    assert found == Item(options, (3, 6), 1)


def test_a_choice_of_contexts_has_their_lengths(tmp_path: Path) -> None:
    found = only(tmp_path, {"context_options": ["Ann so Ann", "Ann so Bo"], "continuation": "ran.", "gold": 0})
    assert found == Item((("Ann so Ann", " ran."), ("Ann so Bo", " ran.")), (10, 9), 0)


def test_a_minimal_pair_has_no_context_and_the_first_is_right(tmp_path: Path) -> None:
    assert only(tmp_path, {"good": "He runs.", "bad": "He run."}) == Item(
        (("", "He runs."), ("", "He run.")), (8, 7), 0
    )


def test_lengths_are_characters_as_written(tmp_path: Path) -> None:
    assert only(tmp_path, {"query": "q", "choices": [" é", "漢字 "], "gold": 0}).lengths == (2, 3)


def test_a_suite_knows_its_name_chance_and_source(tmp_path: Path) -> None:
    rows = [{"query": "q", "choices": ["a", "b"], "gold": 0}, {"query": "q", "choices": list("abcd"), "gold": 3}]
    path = write(tmp_path / "mine.jsonl", *rows)
    found = read(path)
    assert (found.name, found.chance) == ("mine", (1 / 2 + 1 / 4) / 2)
    assert found.source["file"] == str(path) and found.source["items"] == 2
    json.dumps(found.source)


def test_the_digest_is_of_the_items_alone(tmp_path: Path) -> None:
    row = {"query": "q", "choices": ["a", "b"], "gold": 0}

    def digest(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return read(tmp_path / name).source["sha256"]

    first = digest("a.jsonl", json.dumps(row) + "\n")
    assert len(first) == 64
    assert first == digest("b.jsonl", "\ufeff\n" + json.dumps({"id": 1, **row}))
    assert first != digest("c.jsonl", json.dumps({**row, "gold": 1}))


SHAPES = 'understood are "query" with "choices" and "gold", "context_options" with "continuation" and "gold", or "good" with "bad"'
FIELDS = SHAPES.replace("are", "are the fields", 1)
GOOD = '{"query": "q", "choices": ["a", "b"], "gold": 0}\n'
RIGHT = 'the number of the right one of "choices", counted from 0'


def row(**fields: Any) -> str:
    return json.dumps({"query": "q", "choices": ["a", "b"], "gold": 0} | fields)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("\n \n", "{path} holds no items; give at least one"),
        (b'{"query": "caf\xe9"}', "{path} is not UTF-8 text (invalid continuation byte); convert it first"),
        (GOOD.encode("utf-16"), "{path} is a binary file; give UTF-8 text"),
        (GOOD + '\n{"query": \n', "{path}, line 3: not JSON (Expecting value); write one object a line"),
        (GOOD + '["a"]', "{path}, line 2: no object with fields; " + FIELDS),
        ('{"question": "q", "gold": 0}', '{path}, line 1: its fields are "question", "gold"; ' + SHAPES),
        ("{}", "{path}, line 1: its fields are none; " + SHAPES),
        (
            '{"query": "q", "choices": ["a", "b"]}',
            f'{{path}}, line 1: no gold answer; give "gold", {RIGHT}',
        ),
        (row(gold=None), f'{{path}}, line 1: no gold answer; give "gold", {RIGHT}'),
        (row(gold=True), f'{{path}}, line 1: "gold" is True; give {RIGHT}'),
        (row(gold="A"), f"{{path}}, line 1: \"gold\" is 'A'; give {RIGHT}"),
        (row(gold=1.0), f'{{path}}, line 1: "gold" is 1.0; give {RIGHT}'),
        (row(gold=2), f'{{path}}, line 1: "gold" is 2, and of "choices" there are 2; give {RIGHT}'),
        (row(gold=-1), f'{{path}}, line 1: "gold" is -1, and of "choices" there are 2; give {RIGHT}'),
        (
            row(choices=["a"]),
            '{path}, line 1: "choices" has 1, which leaves nothing to choose; give two or more',
        ),
        (row(choices="ab"), '{path}, line 1: "choices" is no list; write ["...", "..."]'),
        (row(choices=["a", " "]), '{path}, line 1: number 2 of "choices" is empty; mend it or drop the item'),
        (row(choices=["a", 2]), '{path}, line 1: number 2 of "choices" is no string; mend it or drop the item'),
        (row(query=None), '{path}, line 1: "query" is no string; mend it or drop the item'),
        (row(query="\n"), '{path}, line 1: "query" is white space alone; leave it empty or drop the item'),
        (row(query="\ud800"), '{path}, line 1: "query" has half of a surrogate pair; mend it or drop the item'),
        (
            '{"context_options": ["a", "b"], "continuation": " ", "gold": 0}',
            '{path}, line 1: "continuation" is empty; mend it or drop the item',
        ),
        (
            '{"context_options": ["a", "b\\n"], "continuation": "c", "gold": 0}',
            '{path}, line 1: some of "context_options" end in white space and others do not; end all alike',
        ),
        ('{"good": "a", "bad": ""}', '{path}, line 1: "bad" is empty; mend it or drop the item'),
        (
            GOOD + '{"good": "a", "bad": "b"}',
            '{path}, line 2: an item of "good" with "bad" behind items of "query" with "choices"; '
            "put it into a file of its own",
        ),
    ],
)
def test_a_sentence_for_each(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LorashearError) as caught:
        read(path)
    assert str(caught.value) == sentence.format(path=path)


def test_no_such_file_a_folder_and_another_ending(tmp_path: Path) -> None:
    with pytest.raises(LorashearError, match=r"b\.jsonl does not exist; give a multiple-choice file$"):
        read(tmp_path / "b.jsonl")
    with pytest.raises(LorashearError, match="is a folder; name the multiple-choice files in it$"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text(GOOD)
    with pytest.raises(LorashearError, match=r"a\.txt has an unknown ending; multiple-choice files end in \.jsonl$"):
        read(tmp_path / "a.txt")


def test_every_shared_file_is_read_whole(shared_data: Path) -> None:
    counts = {"blimp": 6800, "tinystories_cloze": 800, "arc_challenge": 1172, "winogrande": 1267, "openbookqa": 500}
    found: dict[str, Suite] = {name: read(shared_data / "evals" / f"{name}.jsonl") for name in counts}
    assert {name: len(suite.items) for name, suite in found.items()} == counts
    assert found["blimp"].chance == found["winogrande"].chance == 0.5
    with pytest.raises(LorashearError, match='line 1: its fields are "id", "context", "continuation"; understood are'):
        read(shared_data / "evals" / "lambada.jsonl")
