"""The recipe of a result: lorashear/recipe.yaml, which repeats the run that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

import lorashear
from lorashear.config import Settings
from lorashear.recipes.words import LISTS, NAMED, words

RECORD = Path("lorashear") / "recipe.yaml"
HEAD = """# Repeats this run, of lorashear {version}: lorashear compile --recipe recipe.yaml --out DIR
# Paths are as they were given, relative ones from the folder that it ran in.
"""
IN_MEMORY = "was given in memory and has no name: pass it"
FIRST = ("model", "revision", "ratio", "params", "bytes", "text", "instruct", "lora", "tokens", "one-shot", "seed")


def given(model: Any, text: Any, instruct: Any, **more: Any) -> dict[str, Any]:
    """What `lorashear.compile` was given beside its settings, as a recipe has it; None is what no file can name."""
    found = {"model": _named(model), **more}
    for name, each in (("text", text), ("instruct", instruct)):
        if not isinstance(each, Sequence | Mapping) or len(each):
            found[name] = _sources(each)
    return {name: value for name, value in found.items() if value or (value is None and name in NAMED)}


def write(folder: Path, said: Mapping[str, Any], settings: Settings, report: Mapping[str, Any]) -> None:
    """Into a result: what was ``given``, and all settings, those too that the run found itself and ``report`` has."""
    criterion = None if "criterion" in said else report["criterion"]  # no file can name a function
    settings = replace(settings, criterion=criterion, distill=report["settings"]["distill"])
    (folder / RECORD).write_text(content({**said, **_words(settings)}), encoding="utf-8")


def content(values: Mapping[str, Any]) -> str:
    """Words as a file: first what makes the run, then what differs from the defaults, then the defaults."""
    known = words()
    order = [*FIRST, *(name for name in known if name not in FIRST)]
    rest = [name for name in order if name in values and name not in FIRST]
    same = [name for name in rest if values[name] is not None and values[name] == known[name].default]
    lines = [_line(name, values[name]) for name in FIRST if name in values]
    lines += [_line(name, values[name]) for name in rest if name not in same]
    lines += ["# As by default in this version:\n", *(_line(name, values[name]) for name in same)]
    return HEAD.format(version=lorashear.__version__) + "".join(lines)


def _words(settings: Settings) -> dict[str, Any]:
    """Settings in the words of the flags; what is not set is left out."""
    found = {name.replace("_", "-"): value for name, value in asdict(settings).items() if value is not None}
    found["apart"] = not found.pop("packed")
    found["shard-size"] = f"{found.pop('shard-bytes')}"
    for name in LISTS:
        if name in found:
            found[name] = ",".join(found[name])
    if found["shard-size"] == str(Settings.shard_bytes):
        found["shard-size"] = words()["shard-size"].default
    if not found["one-shot"]:
        del found["one-shot"]
    return found


def _line(name: str, value: Any) -> str:
    if value is None:
        return f"{name}: null  # {IN_MEMORY}\n"
    return yaml.safe_dump({name: value}, allow_unicode=True, sort_keys=False, width=1000)


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
