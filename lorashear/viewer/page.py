"""The page: its built parts and the data in one HTML file, which needs no server and no network."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

BUILT = Path(__file__).parent / "built"
"""What `make page` made of the sources in tools/page."""


def page(found: dict[str, Any]) -> str:
    """The page that shows what `content` found, as text."""
    data = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "title": html.escape(found["model"]["name"]),
        "style": _built("page.css"),
        "data": data.replace("<", "\\u003c"),  # nothing in it ends the element that holds it
        "script": _built("page.js"),
    }
    made = _built("page.html")
    for name, text in parts.items():
        before, _, after = made.partition(f"<!--{name}-->")
        made = before + text + after
    return made


def data(page: str) -> dict[str, Any]:
    """What a page shows, which `page` made."""
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def _built(name: str) -> str:
    return (BUILT / name).read_text(encoding="utf-8")
