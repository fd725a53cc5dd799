"""The recipes of a result: lorashear/recipe.yaml, which repeats the run that made it, and one for each run before that.

A folder that was compiled and then recovered has recipe-1.yaml (compile) and recipe.yaml (recover), and so on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

import lorashear
from lorashear.config import Training
from lorashear.recipes.words import COMPILE, LISTS, NAMED, VERB, spelled, words

RECORD = Path("lorashear") / "recipe.yaml"
HEAD = """# Repeats this run, of lorashear {version}: lorashear {verb} --recipe FILE --out DIR
# Paths are as they were given, relative ones from the folder that it ran in.
"""
IN_MEMORY = "was given in memory and has no name: pass it"
DEFAULTS = "# As by default in this version:\n"
FIRST = (
    "model",
    "folder",
    "dense",
    "revision",
    "ratio",
    "params",
    "bytes",
    "text",
    "instruct",
    "lora",
    "tokens",
    "one-shot",
    "seed",
)


def given(text: Any, instruct: Any, **more: Any) -> dict[str, Any]:
    """What a verb was given beside its settings, as a recipe has it; None is what no file can name."""
    found = {spelled(name): each if isinstance(each, bool) else _named(each) for name, each in more.items()}
    for name, each in (("text", text), ("instruct", instruct)):
        if not isinstance(each, Sequence | Mapping) or len(each):
            found[name] = _sources(each)
    return {name: value for name, value in found.items() if value or (value is None and name in NAMED)}


def write(folder: Path, said: Mapping[str, Any], settings: Training, report: Mapping[str, Any], verb: str) -> None:
    """Into a result: what was ``given``, and all settings, those too that the run found itself and ``report`` has."""
    settings = replace(settings, distill=report["settings"]["distill"])
    found = {**said, **_words(settings, verb)}
    if verb == COMPILE:  # no file can name a function
        found["criterion"] = None if "criterion" in said else report["criterion"]
    (folder / RECORD).write_text(content(found, verb), encoding="utf-8")


def keep(before: Path, folder: Path) -> None:
    """The recipes of the result ``before``, which a run goes on from, into the ``folder`` of what it made, numbered."""
    for number, path in enumerate(steps(before), 1):
        shutil.copyfile(path, folder / _earlier(number))


def steps(folder: Path) -> list[Path]:
    """The recipes of a result, the last one last; none where `lorashear.apply` wrote it."""
    found, number = [], 1
    while (path := folder / _earlier(number)).is_file():
        found.append(path)
        number += 1
    return [*found, folder / RECORD] if (folder / RECORD).is_file() else found


def essential(recipe: str) -> str:
    """A recipe that was written here, to be shown: without what is as by default, and without the folders of this machine."""
    said = yaml.safe_load(recipe.partition(DEFAULTS)[0])
    return "".join(_line(name, _public(value)) for name, value in said.items())


def content(values: Mapping[str, Any], verb: str) -> str:
    """Words as a file: first what makes the run, then what differs from the defaults, then the defaults."""
    known = words(verb)
    order = [*FIRST, *(name for name in known if name not in FIRST)]
    rest = [name for name in order if name in values and name not in FIRST]
    same = [name for name in rest if values[name] is not None and values[name] == known[name].default]
    lines = [] if verb == COMPILE else [_line(VERB, verb)]
    lines += [_line(name, values[name]) for name in FIRST if name in values]
    lines += [_line(name, values[name]) for name in rest if name not in same]
    lines += [DEFAULTS, *(_line(name, values[name]) for name in same)]
    return HEAD.format(version=lorashear.__version__, verb=verb) + "".join(lines)


def _earlier(number: int) -> Path:
    return RECORD.with_name(f"recipe-{number}.yaml")


def _words(settings: Training, verb: str) -> dict[str, Any]:
    """Settings in the words of the flags; what is not set is left out."""
    found = {name.replace("_", "-"): value for name, value in asdict(settings).items() if value is not None}
    found["apart"] = not found.pop("packed")
    found["shard-size"] = f"{found.pop('shard-bytes')}"
    for name in LISTS:
        if name in found:
            found[name] = ",".join(found[name])
    if found["shard-size"] == str(Training.shard_bytes):
        found["shard-size"] = words(verb)["shard-size"].default
    if not found.get("one-shot"):
        found.pop("one-shot", None)
    return found


def _line(name: str, value: Any) -> str:
    if value is None:
        return f"{name}: null  # {IN_MEMORY}\n"
    return yaml.safe_dump({name: value}, allow_unicode=True, sort_keys=False, width=1000)


def _public(value: Any) -> Any:
    """A value without the folders that an absolute path leads through."""
    if isinstance(value, Mapping):
        return {name: _public(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_public(each) for each in value]
    return (
        Path(value).name if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()) else value
    )


def _named(value: Any) -> str | None:
    return str(value) if isinstance(value, str | Path) else None


def _sources(value: Any) -> Any:
    """Files and datasets by name; None where one of them is something else."""
    if isinstance(value, Mapping):
        found = {str(name): _sources(each) for name, each in value.items()}
        return None if None in found.values() else found
    if isinstance(value, str | Path) or not isinstance(value, Sequence):
        return _named(value)
    several = [_named(each) for each in value]
    return None if None in several else several
