"""A result appears whole or not at all, and what cannot be done is said before any work."""

import os
import shutil
from pathlib import Path

import pytest

from lorashear.disk.output import check_target, output_folder
from lorashear.errors import LorashearError


def tree(folder: Path) -> dict[str, str | None]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


def write(target: Path, *, overwrite: bool = False, text: str = "new") -> None:
    with output_folder(target, source=None, overwrite=overwrite, bytes_needed=1) as work:
        assert work.parent == target.parent
        assert work.name.startswith(".")
        (work / "config.json").write_text(text)


def make_old(target: Path) -> None:
    target.mkdir()
    (target / "old").write_text("old")


def test_lands_whole_with_parents_and_umask(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    before = os.umask(0o027)
    try:
        write(target)
    finally:
        os.umask(before)
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/out": None, "a/b/out/config.json": "new"}
    assert target.stat().st_mode & 0o777 == 0o750


def test_replaces_an_empty_folder_and_with_overwrite_a_full_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    write(target)
    write(target, overwrite=True, text="newer")
    assert tree(tmp_path) == {"out": None, "out/config.json": "newer"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [True, False])
def test_an_exception_leaves_everything_as_found(tmp_path: Path, error: type[BaseException], old: bool) -> None:
    target = tmp_path / "out" if old else tmp_path / "a" / "b" / "out"
    if old:
        make_old(target)
    before = tree(tmp_path)

    def half_way() -> None:
        with output_folder(target, source=None, overwrite=True, bytes_needed=1) as work:
            (work / "half").write_text("x")
            raise error

    with pytest.raises(error):
        half_way()
    assert tree(tmp_path) == before


def test_the_old_folder_comes_back_if_the_new_one_cannot_land(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    make_old(target)
    before = tree(tmp_path)
    rename = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if (self / "config.json").exists():
            raise OSError("disk on fire")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk on fire"):
        write(target, overwrite=True)
    assert tree(tmp_path) == before


def test_filled_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with (
        pytest.raises(LorashearError, match="not empty"),
        output_folder(target, source=None, overwrite=False, bytes_needed=1),
    ):
        make_old(target)
    assert tree(tmp_path) == {"out": None, "out/old": "old"}


def test_an_old_folder_that_will_not_go_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    make_old(target)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.warns(UserWarning, match="is written, but the folder it replaced is still at"):
        write(target, overwrite=True)
    assert (target / "config.json").read_text() == "new"


def refused(target: Path, words: str, source: Path | None = None, overwrite: bool = False, needed: int = 1) -> None:
    with pytest.raises(LorashearError, match=words):
        check_target(target, source=source, overwrite=overwrite, bytes_needed=needed)
    with (
        pytest.raises(LorashearError, match=words),
        output_folder(target, source=source, overwrite=overwrite, bytes_needed=needed),
    ):
        pytest.fail("the work began")


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, full, file = tmp_path / "model", tmp_path / "full", tmp_path / "file"
    model.mkdir()
    make_old(full)
    file.touch()
    (tmp_path / "link").symlink_to(model)
    before = tree(tmp_path)
    refused(file, "is a file; choose a folder", overwrite=True)
    refused(file / "a" / "b", "'.*file' is a file")
    refused(full, "is not empty; choose another one or pass --overwrite")
    for target in (model, model / "out", tmp_path, tmp_path / "link", tmp_path / "link" / "out"):
        refused(target, "are the same or lie one in the other", source=model, overwrite=True)
    refused(full, "are the same", source=full, overwrite=True)
    refused(tmp_path / "out", r"needs 1000000000.00 GB, but only \d+\.\d\d GB are free", needed=10**18)
    monkeypatch.chdir(full)
    refused(Path(), "is or holds the current folder", overwrite=True)
    refused(tmp_path, "is or holds the current folder", overwrite=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    refused(tmp_path / "a" / "out", f"'{tmp_path}' is not writable")
    assert tree(tmp_path) == before


def test_check_target_accepts_and_makes_nothing(tmp_path: Path) -> None:
    make_old(tmp_path / "full")
    check_target(tmp_path / "full", source=tmp_path / "model", overwrite=True, bytes_needed=1)
    check_target(tmp_path / "a" / "out", source=tmp_path / "model", overwrite=False, bytes_needed=1)
    assert tree(tmp_path) == {"full": None, "full/old": "old"}
