"""The verbs as `lorashear --help` lists them: in which group, in a line each, and with an example."""

from __future__ import annotations

from typing import Any, NamedTuple

from typer.core import TyperCommand, TyperGroup

from lorashear.terminal.options import PANELS


class Verb(NamedTuple):
    """``line`` fits beside the name into 80 columns; ``example`` is a command line as it stands."""

    group: str
    line: str
    example: str


MAKE, CHECK, LOOK, REPORT = "Prune and train", "Check, compare and hand on", "Look inside", "Ask for help"
MODEL, TEXT = "examples/stdlib-llama-2.8m", "out/demo/text/train.jsonl"
VERBS = {
    "compile": Verb(
        MAKE,
        "A model folder in, a smaller ordinary one out.",
        f"lorashear compile {MODEL} --ratio 0.2 --text {TEXT} --one-shot --out smaller",
    ),
    "recipe": Verb(MAKE, "Settings of compile or recover in a file.", "lorashear recipe show one-shot"),
    "recover": Verb(
        MAKE,
        "Train a pruned folder on text, then on instructions.",
        f"lorashear recover smaller --dense {MODEL} --text {TEXT} --tokens 8000 --out better",
    ),
    "apply": Verb(
        MAKE,
        "Cut a model as a plan says, in little memory.",
        f"lorashear apply smaller/lorashear/plan.json {MODEL} --out sliced",
    ),
    "eval": Verb(
        CHECK,
        "Models side by side: perplexity, tasks, speed, memory.",
        f"lorashear eval {MODEL} smaller --text out/demo/text/test.jsonl --limit 64 --speed",
    ),
    "verify": Verb(
        CHECK,
        "Check a pruned folder against its original and its plan.",
        f"lorashear verify {MODEL} smaller",
    ),
    "export": Verb(
        CHECK,
        "A result in the format of an inference engine.",
        "lorashear export smaller --to gguf --out smaller.gguf",
    ),
    "groups": Verb(
        LOOK,
        "What can only be removed together, and what never.",
        f"lorashear groups {MODEL} --knowledge smaller",
    ),
    "trace": Verb(LOOK, "The typed graph as text.", f"lorashear trace {MODEL} --out graph.txt"),
    "view": Verb(
        LOOK,
        "One page: the graph, its groups, plans and figures.",
        f"lorashear view {MODEL} --plan smaller --report smaller --out graph.html",
    ),
    "env": Verb(REPORT, "Versions and devices, for a bug report.", "lorashear env"),
}


MEANT = {"prune": "compile", "compress": "compile", "train": "recover", "finetune": "recover", "slice": "apply"}
"""What other tools call it. What is only misspelt typer finds by itself."""


class Ordered(TyperGroup):
    """Lists verbs as they stand in `VERBS`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        meant = MEANT.get(args[0]) if args else None
        if meant in self.commands:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{meant}'?")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return [
            *(name for name in VERBS if name in self.commands),
            *(name for name in self.commands if name not in VERBS),
        ]


class Grouped(TyperCommand):
    """Its help has the groups of options in the order of `PANELS`, whichever comes first in the function."""

    def get_params(self, ctx: Any) -> list[Any]:
        def place(param: Any) -> int:
            panel = getattr(param, "rich_help_panel", None)
            return PANELS.index(panel) if panel in PANELS else -1

        return sorted(super().get_params(ctx), key=place)


def about(name: str, kind: type[Grouped] = Grouped) -> dict[str, Any]:
    """What `typer.Typer.command` takes to register a verb."""
    return {"cls": kind, **group(name)}


def group(name: str) -> dict[str, Any]:
    """What `typer.Typer.add_typer` takes to register a verb that has verbs of its own."""
    verb = VERBS[name]
    return {
        "name": name,
        "rich_help_panel": verb.group,
        "short_help": verb.line,
        "epilog": f"Example: {verb.example}",
    }
