"""`view`: what can be seen of a model as a file, whose ending says in which form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lorashear import graphs, models
from lorashear.disk.output import check_file, output_file
from lorashear.errors import LorashearError
from lorashear.models import Inputs, Model
from lorashear.viewer.content import Removed, content
from lorashear.viewer.page import page


def _json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {".html": page, ".json": _json}


def view(
    model: Model,
    out: str | Path,
    inputs: Inputs | None = None,
    *,
    plan: str | Path | Removed | None = None,
    reports: Iterable[str | Path] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a page on which a model can be looked at: its graph, its node groups, what a plan removes, what was measured.

    Args:
        model: a folder or hub id (its weights are not read), or a module.
        out: the page, FILE.html; or its data alone, FILE.json; or the dependency graph alone, FILE.dot or FILE.graphml.
        inputs: as for `lorashear.trace`.
        plan: a plan's file, the folder of a result, or structures to remove by group.
        reports: files of `compile`, `recover` and `eval`, or folders of results.

    Raises:
        LorashearError: no such model, a plan or report of another one, another ending, or the file exists.
    """
    out = Path(out)
    if out.suffix in graphs.WRITERS:
        if plan is not None or list(reports):
            raise LorashearError(
                f"'{out}' has room for the graph alone: leave plan and report out, or write a page, *.html"
            )
        graphs.check_target(out, overwrite=overwrite)
        found = models.groups(model, inputs, revision=revision, trust_remote_code=trust_remote_code)
        graphs.write(found.graph(), out, overwrite=overwrite)
        return
    if out.suffix not in TEXTS:
        raise LorashearError(
            f"a view is written to {', '.join(f'*{s}' for s in (*TEXTS, *graphs.WRITERS))}, and '{out}' is none"
        )
    check_file(out, overwrite=overwrite)
    seen = content(model, inputs, plan=plan, reports=reports, revision=revision, trust_remote_code=trust_remote_code)
    with output_file(out, overwrite=overwrite) as work:
        work.write_text(TEXTS[out.suffix](seen), encoding="utf-8")
