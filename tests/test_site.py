"""The documentation builds as a site without a warning, and the pages made of the code are those of the code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import lorashear
from tools import build_site, options_page

ROOT = Path(__file__).resolve().parent.parent
FILES = ("docs", "lorashear", "ir", "passes", "zensical.toml")

pytest.importorskip("zensical")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What a site is made of, to be changed."""
    for name in FILES:
        made = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        made(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_it_builds_without_a_warning(copy: Path) -> None:
    assert build_site.build(copy) == ""
    assert (copy / "out/site/index.html").is_file()
    reference = (copy / "out/site/api.html").read_text(encoding="utf-8")
    for name in lorashear.__all__:
        if name not in ("ir", "passes", "Groups"):
            assert f'.{name}"' in reference, f"docs/api.md lacks lorashear.{name}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("docs/text.md", "\n[a](nothing.md)\n", "page does not exist"),
        ("docs/text.md", "\n[a](results.md#nothing)\n", "anchor does not exist"),
        ("docs/more.md", "# More\n", "the navigation of zensical.toml lacks more.md"),
        ("docs/api.md", "\n::: lorashear.nothing\n", "lorashear.nothing could not be found"),
        ("docs/api.md", "\n::: lorashear.wrong.wrong\n", "does not appear in the function signature"),
    ],
)
def test_what_is_wrong_is_said(copy: Path, file: str, text: str, said: str) -> None:
    (copy / "lorashear/wrong.py").write_text(
        'def wrong(a: int) -> None:\n    """W.\n\n    Args:\n        b: c.\n    """\n'
    )
    with (copy / file).open("a", encoding="utf-8") as page:
        page.write(text)
    assert said in build_site.build(copy)


def test_the_page_of_options_is_that_of_the_command_line() -> None:
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.page(), "python tools/options_page.py"
