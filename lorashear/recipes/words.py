"""The words of a recipe: those of the flags of its verb, read off the command itself."""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from lorashear.config import ADAPTER, COSTS, CRITERIA, KINDS, MIXTURES, POLICIES, Settings, Training
from lorashear.engines.needs import NEEDS

VERB = "verb"
"""The one word that is no flag: what a recipe is of."""
VERBS: dict[str, type[Training]] = {"compile": Settings, "recover": Training}
"""What a recipe can be of, with the settings of each; where it does not say, it is of the first."""
(COMPILE, RECOVER) = VERBS
OF_ONE_CALL = ("recipe", "resume", "overwrite", "dry-run", "json", "quiet")
"""Flags that say how one call goes on, and nothing of what it makes."""
CHOICES = {
    "criterion": CRITERIA,
    "cost": COSTS,
    "mixture": MIXTURES,
    "policy": POLICIES,
    "adapter": ADAPTER,
    "target": tuple(NEEDS),
}
LISTS: dict[str, tuple[str, ...]] = {"prune": KINDS, "report-to": ()}
"""Words whose flag has commas between several, with what each can be; a recipe may have a list."""
AMOUNTS = ("params", "bytes", "shard-size", "save-every")
"""Words whose flag is text with a unit, and may be a number without one."""
SUBSETS = "text"
"""The word that may have a mapping of names to files."""
NAMED = ("model", "text", "instruct", "criterion")
"""Words of what may have been given in memory, where a recipe cannot name it."""


@dataclass(frozen=True)
class Word:
    """One word: what it is called in a file and in Python, its type, and what the command says of it."""

    name: str
    parameter: str
    type: type
    help: str
    default: Any
    several: bool = False
    """Its flag can be given several times."""


def spelled(name: str) -> str:
    """A word as it is written: ``per_layer`` is ``per-layer``."""
    return name.replace("_", "-")


@cache
def words(verb: str) -> dict[str, Word]:
    """All words of a verb by name, in the order in which its function has them."""
    return {name: word for name, word in flags(verb).items() if name not in OF_ONE_CALL}


@cache
def flags(verb: str) -> dict[str, Word]:
    """All arguments and options of a verb."""
    from lorashear import cli  # here: that module has the verbs that need this one

    command = {COMPILE: cli.compile_, RECOVER: cli.recover}[verb]
    hints = get_type_hints(command, include_extras=True)
    found = [
        _word(parameter, hints[parameter.name])
        for parameter in inspect.signature(command).parameters.values()
        if hasattr(hints[parameter.name], "__metadata__")
    ]
    return {word.name: word for word in found}


def _word(parameter: inspect.Parameter, hint: Any) -> Word:
    kind, *told = get_args(hint)
    (info,) = (each for each in told if hasattr(each, "param_decls"))
    # in an Annotated the first name of an option stands where its default would
    given = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
    long = [name for each in given for name in each.split("/") if name.startswith("--")]
    name = long[0].removeprefix("--") if long else spelled(parameter.name)
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    several = get_origin(kind) is list
    kind = str if several or kind is Path else kind
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    return Word(name, parameter.name, kind, info.help or "", default, several)
