"""docs/options.md, made of the command line itself: every verb, its example, and every option with its default.

python tools/options_page.py            writes docs/options.md; tests/test_site.py fails where it is not what this writes
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.models import ArgumentInfo

from lorashear.cli import app
from lorashear.terminal.options import PANELS
from lorashear.terminal.verbs import VERBS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
WIDTH = 88
HEAD = """# Every option

Made from the command line by `python tools/options_page.py`; `lorashear VERB --help` says the same. The arguments of the functions of
[`lorashear`](api.md) have the same words with `_` for `-`, and the same defaults. A switch that a recipe turns on is turned off by its
`--no-…`. `--debug` before or behind any verb adds the traceback to an error.

Exit code 0: done. 2: the request or the input is wrong, and one sentence on stderr says what, where, and what to do
([error messages](errors.md)). 1: everything else.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The whole document."""
    commands: Any = typer.main.get_command(app)
    parts = [HEAD]
    for name, verb in VERBS.items():
        command = commands.commands[name]
        parts.append(f"## lorashear {name}\n\n{verb.line}\n\n{_block(verb.example)}\n")
        below = getattr(command, "commands", {})
        parts += [f"### lorashear {name} {each}\n\n{_table(below[each], below[each].help)}" for each in below]
        if not below:
            parts.append(_table(command))
    return "\n".join(parts)


def _block(command: str) -> str:
    """A command line as a block of code; what a page would cut off goes on in a second line, from an option on."""
    first, *options = command.split(" --")
    lines = [first]
    for part in options:
        if len(f"{lines[-1]} --{part}") <= WIDTH:
            lines[-1] += f" --{part}"
        else:
            lines.append(f"  --{part}")
    return textwrap.indent(" \\\n".join(lines), "    ")


def _table(command: Any, said: str | None = None) -> str:
    """Every parameter of a verb's function, in the order of its help, read off its signature."""
    hints = get_type_hints(command.callback, include_extras=True)
    found: list[Any] = [
        (parameter, *get_args(hints[parameter.name]))
        for parameter in inspect.signature(command.callback).parameters.values()
        if hasattr(hints[parameter.name], "__metadata__")
    ]
    parts = [said.strip().splitlines()[0] + "\n"] if said else []
    for panel in (None, *PANELS):
        rows = [_row(*each[:3]) for each in found if each[2].rich_help_panel == panel]
        if rows:
            title = f"**{panel}**\n\n" if panel else ""
            parts.append(f"{title}| option | default | meaning |\n|---|---|---|\n{''.join(rows)}")
    return "\n".join(parts)


def _row(parameter: inspect.Parameter, kind: Any, info: Any) -> str:
    # in an Annotated the first name of an option stands where its default would
    names = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
    if isinstance(info, ArgumentInfo):
        shown = parameter.name.rstrip("_").upper()
    else:
        shown = ", ".join(names or [f"--{parameter.name.replace('_', '-')}"])
        shown += "" if kind is bool else f" {info.metavar or _takes(kind)}"
    default = parameter.default
    if default is inspect.Parameter.empty:
        value = "required"
    elif kind is bool:
        value = "on" if default else ""
    else:
        value = "" if default in (None, "") else f"`{default}`"
    return f"| `{shown}` | {value} | {(info.help or '').replace('|', chr(92) + '|')} |\n"


def _takes(kind: Any) -> str:
    """What an option's value is called where it has no name of its own."""
    kinds = get_args(kind) or (kind,)
    return (
        "N" if int in kinds else "X" if float in kinds else "PATH" if Path in kinds or list[Path] in kinds else "WORD"
    )


if __name__ == "__main__":
    main()
