"""`view`: the page, one HTML file that needs no server and no network."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorashear.models import Inputs, Model
from lorashear.output import check_file, output_file
from lorashear.viewer.content import Removed, content

BUILT = Path(__file__).parent / "built"
"""What `make page` made of the sources in ``web``."""


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
        out: the HTML file.
        inputs: as for `lorashear.trace`.
        plan: a plan's file, the folder of a result, or structures to remove by group.
        reports: files of `compile`, `recover` and `eval`, or folders of results.

    Raises:
        LorashearError: no such model, a plan or report of another one, or the file exists.
    """
    check_file(Path(out), overwrite=overwrite)
    found = content(model, inputs, plan=plan, reports=reports, revision=revision, trust_remote_code=trust_remote_code)
    write(found, Path(out), overwrite=overwrite)


def write(found: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Write the page of what `content` found."""
    with output_file(out, overwrite=overwrite) as work:
        work.write_text(page(found), encoding="utf-8")


def page(found: dict[str, Any]) -> str:
    """The page as text. What is in the data cannot end the element that holds it."""
    data = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(found["model"]["name"]),
        "style": (BUILT / "page.css").read_text(encoding="utf-8"),
        "data": data,
        "script": (BUILT / "page.js").read_text(encoding="utf-8"),
    }
    shell = (BUILT / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        before, mark, after = shell.partition(f"<!--{name}-->")
        assert mark, f"the page has no place for {name}"
        shell = before + text + after
    return shell
