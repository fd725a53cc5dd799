"""Text by the names that a user gives to its parts: ``NAME=FILE``, or a mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorashear.errors import LorashearError

Source = str | Path
Text = Mapping[str, Source | Sequence[Source]] | Sequence[Source] | Source
"""A file, a folder or a dataset of a hub; several of them; or what each named subset is."""
Sources = dict[str, list[Source]]
"""By subset."""

UNNAMED = "text"
"""What has no name of its own is one subset together."""
INSTRUCTIONS = "instructions"
"""The subset that instruction data is."""


def named(text: Text) -> Sources:
    """The parts of a text by name, in the order given. ``NAME=FILE`` has a name, unless there is a file of that whole name.

    Raises:
        LorashearError: two have one name, or a name is empty or one of ours.
    """
    if isinstance(text, Mapping):
        found = {name: _several(given) for name, given in text.items()}
        for name in found:
            _check(name)
        return found
    found: Sources = {}
    for source in _several(text):
        name, rest = _split(source)
        if name is None:
            found.setdefault(UNNAMED, []).append(source)
            continue
        _check(name)
        if name in found:
            raise LorashearError(
                f"text names two subsets {name}, '{found[name][0]}' and '{rest}': give one another name, or put both into "
                "one folder"
            )
        found[name] = [rest]
    return found


def titles(texts: Sources) -> tuple[str, ...]:
    """What the parts of a text are called in public: a dataset of a hub by its name, a file without its folders."""
    return tuple(
        ("" if name == UNNAMED else f"{name}=") + (Path(source).name if Path(source).exists() else str(source))
        for name, given in texts.items()
        for source in given
    )


def _several(given: Source | Sequence[Source]) -> list[Source]:
    return [given] if isinstance(given, str | Path) else list(given)


def _split(source: Source) -> tuple[str | None, str]:
    """The name of a subset, where there is one, and the rest."""
    spelled = re.fullmatch(r"([^=/\\]*)=(.+)", str(source), re.DOTALL)
    if isinstance(source, Path) or not spelled or Path(source).exists():
        return None, str(source)
    return spelled[1], spelled[2]


def _check(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise LorashearError(
            f"text names a subset '{name}'; a name begins with a letter or digit, and has letters, digits, . _ and -"
        )
    if name in (UNNAMED, INSTRUCTIONS):
        raise LorashearError(f"text names a subset {name}, which is what others are called: give it another name")
