"""The verb `eval` of the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from lorashear.errors import LorashearError
from lorashear.learning import launched
from lorashear.terminal.options import (
    OUTPUT,
    SPEED,
    TASKS,
    TEXT,
    Apart,
    AsJson,
    Device,
    Dtype,
    Quiet,
    Remote,
    Revision,
    Seed,
    words,
)
from lorashear.terminal.progress import Terminal

Text = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FILE",
        help="perplexity of a .txt, .jsonl or .parquet file, a folder of them, or a hub dataset as owner/name[:config[:split]]; "
        "give it once for each",
        rich_help_panel=TEXT,
    ),
]
Tasks = Annotated[
    str,
    typer.Option(
        help="multiple choice: paper for its seven, names of them, .jsonl files, with --harness .yaml files; by commas",
        rich_help_panel=TASKS,
    ),
]


ANEW = ("models", "text", "tasks", "items", "trust_remote_code", "out", "overwrite", "reproduce", "as_json", "quiet")
"""What may be said of a report that is to be reproduced: where things are now, and where the new one goes."""


def eval_(
    given: typer.Context,
    models: Annotated[
        list[str] | None, typer.Argument(help="folders or hub ids; the first is what others are compared with")
    ] = None,
    text: Text = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="tokens a window; by default as many as all models can read, at most 2048", rich_help_panel=TEXT
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="tokens from one window's beginning to the next one's; by default the context", rich_help_panel=TEXT
        ),
    ] = None,
    apart: Apart = False,
    limit: Annotated[
        int | None,
        typer.Option(help="windows of each text, spread over it; first items of each task", rich_help_panel=TEXT),
    ] = None,
    tasks: Tasks = "",
    items: Annotated[
        Path | None,
        typer.Option(help="folder with NAME.jsonl of the tasks that are names; else the hub's", rich_help_panel=TASKS),
    ] = None,
    harness: Annotated[
        bool, typer.Option("--harness", help="run the tasks by lm-evaluation-harness", rich_help_panel=TASKS)
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed", help="speed and memory, of all models by turns", rich_help_panel=SPEED)
    ] = False,
    batches: Annotated[str, typer.Option(help="rows at once for --speed, by commas", rich_help_panel=SPEED)] = "1",
    prompt: Annotated[int, typer.Option(help="tokens that --speed reads at once", rich_help_panel=SPEED)] = 128,
    new_tokens: Annotated[
        int, typer.Option(help="tokens that --speed decodes behind them", rich_help_panel=SPEED)
    ] = 32,
    rounds: Annotated[int, typer.Option(help="of --speed, in which every model runs once", rich_help_panel=SPEED)] = 5,
    warm_up: Annotated[int, typer.Option(help="rounds before them that do not count", rich_help_panel=SPEED)] = 1,
    out: Annotated[
        Path | None, typer.Option(help="file to write the report to, as JSON", rich_help_panel=OUTPUT)
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="put the table into the cards of pruned folders", rich_help_panel=OUTPUT)
    ] = False,
    reproduce: Annotated[
        Path | None,
        typer.Option(
            help="a report: measure the same again, and say whether it comes out the same", rich_help_panel=OUTPUT
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    seed: Seed = 0,
    revision: Revision = None,
    trust_remote_code: Remote = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the report's file", rich_help_panel=OUTPUT)
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Models side by side: perplexity, multiple choice, speed and memory, with differences from the first one.

    Attention crosses from one packed document of a text to the next; with --apart nothing crosses.
    """
    from lorashear.disk.output import check_file
    from lorashear.evaluation import carding
    from lorashear.evaluation.evaluator import evaluate
    from lorashear.evaluation.reproducing import compared, said, verdict

    if launched.follower():
        return
    if out:
        check_file(out, overwrite=overwrite)
    shown: dict[str, Any]
    pruned: list[Path] = []
    with Terminal(quiet=quiet) as terminal:
        if reproduce:
            _check_only(given, ANEW)
            before, again = compared(
                reproduce,
                models or (),
                text=list(text or ()),
                tasks=words(tasks),
                items=items,
                trust_remote_code=trust_remote_code,
                say=terminal.say,
                progress=terminal.progress,
            )
            shown = {"reported": before, "again": again.report}
        else:
            pruned = carding.check(models or ()) if card else []
            again = evaluate(
                models or (),
                text=list(text or ()),
                tasks=words(tasks),
                items=items,
                context=context,
                stride=stride,
                packed=not apart,
                limit=limit,
                harness=harness,
                speed=speed,
                batches=_numbers(batches),
                prompt=prompt,
                new_tokens=new_tokens,
                rounds=rounds,
                warm_up=warm_up,
                device=device,
                dtype=dtype,
                seed=seed,
                revision=revision,
                trust_remote_code=trust_remote_code,
                say=terminal.say,
                progress=terminal.progress,
            )
            shown = dict(again.report)
    if as_json:
        print(json.dumps(shown, indent=2))
    elif reproduce:
        print(said(shown["reported"], shown["again"]))
    else:
        print(again)
    if out:
        again.save(out, overwrite=overwrite)
    if reproduce:
        if wrong := verdict(shown["reported"], shown["again"]):
            print(f"lorashear: {wrong}", file=sys.stderr)
            raise typer.Exit(1)
        return
    carding.write(again, pruned)


def _check_only(given: typer.Context, names: Collection[str]) -> None:
    """Refuse other options: LorashearError."""
    for name in given.params:
        source = given.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in names:
            flag = name.replace("_", "-").removeprefix("as-")
            raise LorashearError(
                f"--reproduce measures what the report says, and --{flag} would change that: leave it out"
            )


def _numbers(given: str) -> tuple[int, ...]:
    """What is between commas."""
    try:
        return tuple(int(word) for word in words(given))
    except ValueError:
        raise LorashearError(f"batches is '{given}'; it is one number of rows, or several by commas, as 1,8") from None
