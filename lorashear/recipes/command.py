"""`lorashear recipe`, and how `lorashear compile` and `recover` take one: the verbs of the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lorashear.recipes import reading
from lorashear.recipes.schema import schema as schema_of
from lorashear.recipes.words import COMPILE, RECOVER, SUBSETS, words
from lorashear.terminal.options import FILES
from lorashear.terminal.verbs import Grouped

recipe = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, help="Settings of compile or recover in a file."
)
SOURCE = {COMPILE: "model", RECOVER: "folder"}
"""What each verb works on."""
NAMED_SUBSETS = "named subsets"
"""Where a recipe's mapping of text lies beside the defaults: no flag can say it."""

Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="a YAML file with these words, or the name of one that ships (lorashear recipe list)",
        rich_help_panel=FILES,
    ),
]
RecipeOfRecover = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="a YAML file with these words and verb: recover, such as lorashear/recipe.yaml of a result of recover",
        rich_help_panel=FILES,
    ),
]


class Repeatable(Grouped):
    """A command whose flags may stand in a recipe; those that are given win."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._verb = self.name or COMPILE
        self._words = {word.parameter: name for name, word in words(self._verb).items()}
        for option in self.params:
            flag = getattr(option, "is_flag", False) and option.name in self._words
            if flag and not option.secondary_opts:  # or what a recipe says could not be taken back
                option.secondary_opts = [f"--no-{self._words[option.name or '']}"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parsed: Mapping[str, Any] = self.make_parser(ctx).parse_args(args=list(args))[0]
        if parsed.get("recipe"):
            given = {self._words[name]: value for name, value in parsed.items() if name in self._words and _said(value)}
            found = reading.read(parsed["recipe"], self._verb).beside(given)
            ctx.default_map = {words(self._verb)[name].parameter: value for name, value in found.items()}
            if isinstance(found.get(SUBSETS), Mapping):
                ctx.default_map[NAMED_SUBSETS] = ctx.default_map.pop(SUBSETS)
        return super().parse_args(ctx, args)


def _said(value: Any) -> bool:
    """Whether it stood on the command line."""
    return value is not None and value not in ((), [])


def texts(context: typer.Context, text: list[str] | None) -> Any:
    """The text of a command line, or the one that its recipe has."""
    return list(text or ()) or (context.default_map or {}).get(NAMED_SUBSETS, [])


@recipe.command("list")
def list_() -> None:
    """The recipes that ship, with what each is."""
    found = reading.shipped()
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:{width}}  {path.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}")


@recipe.command()
def show(name: Annotated[str, typer.Argument(help="one that ships, or a file")]) -> None:
    """A recipe as it stands."""
    print(reading.find(name).read_text(encoding="utf-8"), end="")


@recipe.command()
def validate(file: Annotated[Path, typer.Argument(help="a recipe's file, or the name of one that ships")]) -> None:
    """Check every word and value of a recipe."""
    found = reading.read(file)
    found.check_named()
    left = [name for name in (SOURCE[found.verb], "text", "out") if name not in found.values]
    if found.verb == COMPILE and not any(name in found.values for name in reading.AMOUNT):
        left.insert(0, "ratio")
    if found.verb == COMPILE and not {"tokens", "one-shot"} & {name for name, value in found.values.items() if value}:
        left.append("tokens or one-shot")
    print(f"{file}: {len(found.values)} words, all valid{'; leaves to flags: ' + ', '.join(left) if left else ''}")


@recipe.command()
def schema() -> None:
    """The JSON schema of a recipe, for editors."""
    print(json.dumps(schema_of(), indent=2, ensure_ascii=False))
