"""The verb `view` of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorashear.errors import LorashearError
from lorashear.terminal.options import AsJson, Model, Remote, Revision


def view(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="file to write: .html, or .json, .dot, .graphml")] = None,
    plan: Annotated[Path | None, typer.Option(help="a plan, or the folder of a result: what it removes")] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(help="report.json of compile, recover or eval, or the folder of a result; give it once for each"),
    ] = None,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
    revision: Revision = None,
    trust_remote_code: Remote = False,
) -> None:
    """One page to look at: the graph, node groups, what a plan removes, what was measured."""
    from lorashear.viewer.content import content
    from lorashear.viewer.writing import view

    if out is None and not as_json:
        raise LorashearError("view needs a file to write: pass --out graph.html, or --json to print what it would show")
    asked = {"plan": plan, "reports": report or (), "revision": revision, "trust_remote_code": trust_remote_code}
    if out is not None:
        view(model, out, overwrite=overwrite, **asked)
        print(f"written to {out}")
    else:
        print(json.dumps(content(model, **asked), indent=1, ensure_ascii=False, allow_nan=False))
