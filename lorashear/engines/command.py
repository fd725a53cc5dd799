"""The verb `export` of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorashear.errors import LorashearError
from lorashear.terminal import completing
from lorashear.terminal.options import AsJson, Quiet
from lorashear.terminal.progress import Terminal


def export(
    folder: Annotated[Path, typer.Argument(help="a result, or any model folder")],
    to: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="one of those that --list shows", autocompletion=completing.formats),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="file or folder to write")] = None,
    dtype: Annotated[str | None, typer.Option(help="of the weights; by default as stored")] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="show which formats can hold it, and why not the others")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is at --out")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """A result in the format of an inference engine."""
    from lorashear.engines.exporter import TARGETS, export, refusals

    if list_:
        if to or out:
            raise LorashearError("--list writes nothing: leave --to and --out out")
        found = refusals(folder)
        if as_json:
            print(json.dumps(found, indent=2))
            return
        width = max(map(len, found))
        for name, reason in found.items():
            print(f"{name:{width}}  {'no, ' + reason if reason else 'yes, for ' + TARGETS[name].engines}")
        return
    if not to or not out:
        raise LorashearError("export needs a format and a place: pass --to and --out, or --list to see the formats")
    with Terminal(quiet=quiet) as terminal:
        said = export(folder, to, out, dtype=dtype, overwrite=overwrite, progress=terminal.progress)
    if as_json:
        print(json.dumps({"to": to, "out": str(out), "note": said}, indent=2))
    else:
        print(f"{said + '; ' if said else ''}written to {out}")
