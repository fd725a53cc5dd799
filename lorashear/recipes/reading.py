"""Recipes: the words of a verb in a YAML file, so that a run can be named, kept, shared and repeated."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from lorashear import amounts
from lorashear.errors import LorashearError
from lorashear.recipes.words import (
    AMOUNTS,
    COMPILE,
    LISTS,
    NAMED,
    OF_ONE_CALL,
    SUBSETS,
    VERB,
    VERBS,
    Word,
    flags,
    spelled,
    words,
)
from lorashear.text.subsets import named

SHIPPED = Path(__file__).with_name("shipped")
AMOUNT = ("ratio", "params", "bytes")
GIVES_WAY = {
    "ratio": {"params", "bytes"},
    "params": {"ratio", "bytes", "cost"},
    "bytes": {"ratio", "params", "cost"},
    "tokens": {"one-shot"},
    "one-shot": {"tokens", "lhspg", "instruct", "report-to"},
    "adapter": {"full"},
    "full": {"adapter"},
}
"""What a recipe says and a flag contradicts: the flag wins, although it has another name."""
WHAT = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
EMPTY: tuple[Any, ...] = ((), [], {})
NUMBER = re.compile(r"[-+]?(\d[\d_]*)?\.?\d*([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Recipe:
    """What a file says, by word, as its ``verb`` has it from a command line; ``unnamed`` was given in memory."""

    place: str
    values: Mapping[str, Any]
    unnamed: tuple[str, ...] = ()
    verb: str = COMPILE

    def check_named(self, given: Collection[str] = ()) -> None:
        """Raises LorashearError where something that the recipe cannot name is not ``given``."""
        for name in self.unnamed:
            if name not in given:
                how = {"model": "as the first argument", "criterion": "in Python, or another one (--criterion NAME)"}
                how = how.get(name, f"(--{name} FILE)")
                raise LorashearError(
                    f"{self.place}: {name} was given in memory, so that no recipe can name it: pass {name} {how}"
                )

    def beside(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What it says of all that the words ``given`` do not; those win.

        Raises:
            LorashearError: something was given in memory when the recipe was written, and is not now.
        """
        self.check_named(given)
        gone = set(given).union(*(GIVES_WAY.get(name, set()) for name, value in given.items() if value is not False))
        return {name: value for name, value in self.values.items() if name not in gone}


def shipped() -> dict[str, Path]:
    """The recipes that come with LoRAShear, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def find(recipe: str | Path) -> Path:
    """The file of a recipe: one that ships, by its name, or a path.

    Raises:
        LorashearError: there is none.
    """
    known, path = shipped(), Path(recipe).expanduser()
    if str(recipe) in known:
        return known[str(recipe)]
    if path.is_file():
        return path
    if path.is_dir():
        raise LorashearError(f"the recipe '{recipe}' is a folder; give a YAML file, or one of {', '.join(known)}")
    near = difflib.get_close_matches(str(recipe), known, 1)
    said = f"did you mean {near[0]}?" if near else f"those that ship are {', '.join(known)}"
    raise LorashearError(f"there is no recipe '{recipe}', neither a file nor one that ships; {said}")


def read(recipe: str | Path, verb: str | None = None) -> Recipe:
    """A recipe, checked word by word.

    Args:
        verb: what it must be of.

    Raises:
        LorashearError: it cannot be read, is of another verb, or a word is unknown or has a wrong value.
    """
    path = find(recipe)
    place = f"recipe '{recipe}'"
    entries = list(_entries(path, place))
    own = _verb(entries, place)
    if verb not in (None, own):
        raise LorashearError(f"{place} is one of {own}: pass it to lorashear {own}, or another one to {verb}")
    values: dict[str, Any] = {}
    unnamed: list[str] = []
    for key, value, line in entries:
        if key == VERB:
            continue
        name = spelled(key) if isinstance(key, str) else key
        word = _known(name, key, own, f"{place}, line {line}")
        if name in values or name in unnamed:
            raise LorashearError(f"{place}, line {line}: {name} stands there twice; leave one of them out")
        if value is None and name in NAMED:
            unnamed.append(word.name)
        else:
            values[name] = _value(word, value, f"{place}, line {line}")
    found = Recipe(place, values, tuple(unnamed), own)
    _check(found)
    return found


def arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Words as `lorashear.compile` and `lorashear.recover` have them."""
    found = {name.replace("-", "_"): value for name, value in values.items()}
    if "apart" in found:
        found["packed"] = not found.pop("apart")
    if "shard_size" in found:
        found["shard_bytes"] = amounts.byte_count(found.pop("shard_size"), "shard-size")
    for name in LISTS:
        key = name.replace("-", "_")
        if key in found:
            found[key] = tuple(each.strip() for each in found[key].split(",") if each.strip())
    return found


def filled(recipe: str | Path, verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the function of a verb: those ``given``, and of all others what the recipe says.

    Raises:
        LorashearError: as `read`.
    """
    own = {"packed": "apart", "shard_bytes": "shard-size"}
    said = {own.get(name, spelled(name)): value for name, value in given.items()}
    return {**arguments(read(recipe, verb).beside(said)), **given}


def own_arguments(**arguments: Any) -> dict[str, Any]:
    """Those that are given: not None, not false and not empty, which is what leaving them out comes to."""
    return {
        name: each for name, each in arguments.items() if each is not None and each is not False and each not in EMPTY
    }


def _entries(path: Path, place: str) -> Iterator[tuple[Any, Any, int]]:
    """The keys of a file with their values and lines."""
    text, line = "", 1
    try:
        text = path.read_text(encoding="utf-8-sig")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            found = "is empty" if node is None else f"is a {'list' if isinstance(node, yaml.SequenceNode) else 'value'}"
            raise LorashearError(f"{place} {found}; a recipe is a mapping, such as ratio: 0.2")
        for key, value in node.value:
            line = key.start_mark.line + 1
            yield loader.construct_object(key, deep=True), loader.construct_object(value, deep=True), line
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else line
        raise LorashearError(f"{place}, line {line}: no YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise LorashearError(f"{place}, line {line}: no YAML: a character that it cannot have") from error
    except UnicodeDecodeError as error:
        raise LorashearError(f"{place} is no UTF-8 text; a recipe is a YAML file") from error
    except RecursionError as error:
        raise LorashearError(f"{place} is nested too deeply; a recipe is a mapping, such as ratio: 0.2") from error
    except ValueError as error:  # a date that there is not
        raise LorashearError(f"{place}, line {line}: no YAML: {error}") from error
    except OSError as error:
        raise LorashearError(f"{place} cannot be read: {error.strerror or error}") from error


def _verb(entries: Collection[tuple[Any, Any, int]], place: str) -> str:
    """What a recipe is of, wherever it says so."""
    found = [(value, f"{place}, line {line}") for key, value, line in entries if key == VERB]
    for value, where in found:
        if value not in tuple(VERBS):  # a list has no hash
            raise LorashearError(f"{where}: {VERB} is {_shown(value)}; there are {', '.join(VERBS)}")
    if len(found) > 1:
        raise LorashearError(f"{found[1][1]}: {VERB} stands there twice; leave one of them out")
    return found[0][0] if found else COMPILE


def _known(name: Any, key: Any, verb: str, place: str) -> Word:
    known = words(verb)
    if name in OF_ONE_CALL and name in flags(verb):
        raise LorashearError(f"{place}: {key} is of one call and in no recipe; pass --{name}")
    if isinstance(name, str) and name in known:
        return known[name]
    for other in VERBS:
        if isinstance(name, str) and name in words(other):
            raise LorashearError(
                f"{place}: {key} is a word of {other}, and this recipe is of {verb}; leave it out, or say verb: {other}"
            )
    near = difflib.get_close_matches(str(name), known, 1)
    said = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise LorashearError(f"{place}: no word of a recipe is {key!r}; {said}")


def _value(word: Word, value: Any, place: str) -> Any:
    """A value as the command line would give it."""
    name = word.name
    if name == SUBSETS and isinstance(value, Mapping):
        return {
            _text(word, name, place): each if isinstance(each, str) and each else _several(word, each, place)
            for name, each in value.items()
        }
    if word.several:
        return _several(word, value, place)
    if name in LISTS and isinstance(value, list):
        return ",".join(_text(word, each, place) for each in value)
    if name in AMOUNTS and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if word.type is str:
        return _text(word, value, place)
    if word.type is bool:
        if isinstance(value, bool):
            return value
    elif (number := _number(value)) is not None:
        if word.type is float:
            return float(number)
        if math.isfinite(number) and number == int(number):
            return int(number)
    raise LorashearError(f"{place}: {name} is {_shown(value)}; it is {WHAT[word.type]}")


def _number(value: Any) -> int | float | None:
    """YAML 1.1, as PyYAML reads it, takes 1e-4 for text, since it lacks a point and a sign."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value[-1:].isdigit() and NUMBER.fullmatch(value):
        return float(value)
    return None


def _several(word: Word, value: Any, place: str) -> list[str]:
    found = [_text(word, each, place) for each in (value if isinstance(value, list) else [value])]
    if not found:
        raise LorashearError(f"{place}: {word.name} is an empty list; name a file, or leave the word out")
    return found


def _text(word: Word, value: Any, place: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool):
        raise LorashearError(
            f"{place}: {word.name} is {_shown(value)}, as YAML reads on, off, yes and no too; it is text: put it in quotes"
        )
    if value is None or isinstance(value, str | list | dict):
        raise LorashearError(f"{place}: {word.name} is {_shown(value)}; it is text")
    raise LorashearError(f"{place}: {word.name} is {_shown(value)}; it is text: put it in quotes")


def _shown(value: Any) -> str:
    """A value in a sentence, as YAML has it."""
    if value is None:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else f"{value!r}"[:80]


def _check(recipe: Recipe) -> None:
    """Values that are out of range, or that contradict each other; what a recipe leaves to flags may be missing."""
    try:
        given = arguments(recipe.values)
        for name, read_amount in (("params", amounts.count), ("bytes", amounts.byte_count)):
            if name in given:
                given[name] = read_amount(given[name], name)
        if recipe.verb == COMPILE and not any(name in given for name in AMOUNT):
            given["ratio"] = 0.5
        if recipe.verb == COMPILE and "tokens" not in given and not given.get("one_shot"):
            given |= {"tokens": 1} if given.get("lhspg") else {"one_shot": True}
        kind = VERBS[recipe.verb]
        own = {field.name for field in fields(kind)}
        kind(**{name: value for name, value in given.items() if name in own})
        named(given.get("text", ()))
    except LorashearError as error:
        raise LorashearError(f"{recipe.place}: {error}") from error
