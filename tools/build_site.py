"""The documentation as a site: docs/*.md and the docstrings that docs/api.md names, built by zensical into out/site.

    python tools/build_site.py

A broken link or anchor, a document that the navigation lacks, or a docstring that does not fit its function ends it with exit
code 1, after all of them are said.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCSTRINGS = re.compile(r"^(griffe|mkdocstrings|mkdocs_autorefs): ", re.MULTILINE)
"""What is said of docstrings, which zensical's own --strict does not count."""


def main() -> None:
    wrong = build(ROOT)
    print(wrong or ROOT / "out" / "site" / "index.html")
    sys.exit(1 if wrong else 0)


def build(root: Path) -> str:
    """Build the site of a repository; what is wrong with it, or nothing."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=root, capture_output=True, text=True)
    said = re.sub(r"\x1b\[[0-9;]*m", "", built.stdout + built.stderr)
    left = {path.name for path in (root / "docs").glob("*.md")} - set(_pages(_nav(root)))
    lacking = f"the navigation of zensical.toml lacks {', '.join(sorted(left))}\n" if left else ""
    return lacking + (said if built.returncode or DOCSTRINGS.search(said) else "")


def _nav(root: Path) -> object:
    return tomllib.loads((root / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]


def _pages(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for each in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _pages(each)


if __name__ == "__main__":
    main()
