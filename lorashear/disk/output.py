"""A result appears whole or not at all: work goes to a hidden folder or file beside it, renamed at the end."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from lorashear.disk.journal import Journal
from lorashear.errors import LorashearError

WORK = "unfinished"
"""In a result that is being made: a folder that is not thrown away unasked when the run is stopped."""


def check_target(target: Path, *, source: Path | None, overwrite: bool, bytes_needed: int) -> None:
    """Whether a result of `bytes_needed` can be written to `target`; for asking early, before hours of work.

    Raises LorashearError if the target is a file, holds something and may not be overwritten, lies in `source` or
    around it, holds the current folder, cannot be written, or if the disk lacks the space.
    """
    target = target.expanduser().resolve()
    if source is not None and _nested(target, source.expanduser().resolve()):
        raise LorashearError(
            f"the output folder '{target}' and the model '{source}' are the same or lie one in the other; "
            "choose another output folder"
        )
    _refuse_occupied(target, overwrite)
    if Path.cwd().is_relative_to(target):
        raise LorashearError(f"the output folder '{target}' is or holds the current folder; choose another one")
    nearest = next(folder for folder in target.parents if folder.exists())
    if not nearest.is_dir():
        raise LorashearError(f"no output folder can be made at '{target}': '{nearest}' is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise LorashearError(f"no output folder can be made at '{target}': '{nearest}' is not writable")
    if (free := shutil.disk_usage(nearest).free) < bytes_needed:
        raise LorashearError(
            f"the output at '{target}' needs {bytes_needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there; "
            "make room or choose another disk"
        )


@contextmanager
def output_folder(target: Path, *, source: Path | None, overwrite: bool, bytes_needed: int) -> Iterator[Path]:
    """Yields a fresh hidden folder on the target's disk, which becomes `target` when the block ends well.

    On any exception, also Ctrl-C, the hidden folder goes, an old target stays or comes back, and so do missing
    parents. Raises LorashearError as `check_target` does, before the block runs.
    """
    check_target(target, source=source, overwrite=overwrite, bytes_needed=bytes_needed)
    target = target.expanduser().resolve()
    missing = [folder for folder in target.parents if not folder.exists()]
    work = _hidden_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
        yield work
        old = _swap_in(work, target, overwrite)
    except BaseException:
        _give_up(work, missing)
        raise
    _landed(target, old)


@contextmanager
def resumable_folder(
    target: Path, *, job: str, resume: bool, source: Path, overwrite: bool, bytes_needed: int
) -> Iterator[tuple[Path, Journal]]:
    """As `output_folder`, but what is worth going on with stays when the block is stopped, and ``resume`` goes on.

    Yields the hidden folder, whose name follows from the target's, and the journal of what is in it already. ``job``
    identifies all that decides the bytes. Raises LorashearError, also if an unfinished result is of another job, or if
    another process is writing it; without ``resume`` also where it holds the folder `WORK`, which is worth hours.
    """
    target = target.expanduser().resolve()
    work = unfinished(target)
    held = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())  # used again, or removed
    check_target(target, source=source, overwrite=overwrite, bytes_needed=max(0, bytes_needed - held))
    missing = [folder for folder in target.parents if not folder.exists()]
    notes = work.with_name(f"{work.name}.json")
    work.mkdir(parents=True, exist_ok=True)
    with _alone_in(work):
        _refuse_to_lose(work, resume)
        if resume and notes.exists():
            journal = Journal.resume(notes, job)
        else:
            for left in work.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            journal = Journal.begin(notes, job)
        try:
            yield work, journal
            old = _swap_in(work, target, overwrite)
        except BaseException:
            if not journal.positions:
                journal.close()
                _give_up(work, missing)
            raise
        journal.close()
    _landed(target, old)


def check_unfinished(target: Path, *, resume: bool) -> None:
    """Whether a result can be begun, or gone on with; for asking early.

    Raises LorashearError if another process is writing it, or if it was stopped and is worth going on with.
    """
    work = unfinished(target.expanduser().resolve())
    if work.is_dir():
        with _alone_in(work):
            _refuse_to_lose(work, resume)


def _refuse_to_lose(work: Path, resume: bool) -> None:
    if not resume and (work / WORK).exists():
        raise LorashearError(
            f"'{work}' holds a run that was stopped: pass --resume to go on with it, or delete that folder to begin again"
        )


def unfinished(target: Path) -> Path:
    """Where a result that can be gone on with is until it is whole."""
    return target.parent / f".{target.name}.lorashear"


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder so that no second process writes into it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LorashearError(f"another process is writing into '{folder}'; wait for it") from error
        yield
    finally:
        os.close(descriptor)


class NewFile:
    """A file that is being written, with the permissions that the umask leaves; from ``position`` on if some is there."""

    def __init__(self, path: Path, position: int = 0) -> None:
        self.path, self.position = path, position

    def __enter__(self) -> Self:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        if os.fstat(self._descriptor).st_size < self.position:
            os.close(self._descriptor)
            raise LorashearError(
                f"'{self.path}' is shorter than was noted when it was written: leave --resume out to start again"
            )
        os.ftruncate(self._descriptor, self.position)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def write(self, block: np.ndarray | bytes) -> None:
        """Append. Raises LorashearError where the disk takes no more."""
        left = memoryview(block) if isinstance(block, bytes) else _bytes_of(block)
        try:
            while left:  # one system call may write less than asked
                written = os.pwrite(self._descriptor, left, self.position)
                left, self.position = left[written:], self.position + written
        except OSError as error:
            raise LorashearError(
                f"'{self.path}' cannot be written: {error.strerror}; make room, or choose another disk"
            ) from error

    def flush(self) -> None:
        """To the disk itself. Raises LorashearError where it refuses."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise LorashearError(f"'{self.path}' cannot be written: {error.strerror}") from error


def _bytes_of(block: np.ndarray) -> memoryview:
    return np.ascontiguousarray(block).reshape(-1).view(np.uint8).data


def check_file(target: Path, *, overwrite: bool) -> None:
    """Whether a file can be written to `target`; for asking early.

    Raises LorashearError if it exists and may not be overwritten, or if no file can be made there.
    """
    target = target.expanduser().resolve()
    if target.is_dir():
        raise LorashearError(f"the output '{target}' is a folder; choose a file")
    if target.exists() and not overwrite:
        raise LorashearError(f"the output file '{target}' exists; choose another one or pass --overwrite")
    if not target.parent.is_dir():
        raise LorashearError(f"no output file can be made at '{target}': '{target.parent}' is no folder")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise LorashearError(f"no output file can be made at '{target}': '{target.parent}' is not writable")


@contextmanager
def output_file(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a hidden path on the target's disk; the file written there becomes `target` when the block ends well.

    Raises LorashearError as `check_file` does, before the block runs.
    """
    check_file(target, overwrite=overwrite)
    target = target.expanduser().resolve()
    work = _hidden_beside(target)
    try:
        yield work
        check_file(target, overwrite=overwrite)  # it may have been made meanwhile
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)
    _flush(target.parent)


def _give_up(work: Path, missing: list[Path]) -> None:
    """Leaves nothing: neither the hidden folder nor the parents that were made for it."""
    shutil.rmtree(work, ignore_errors=True)
    with suppress(OSError):  # not ours to remove if something else moved in meanwhile
        for folder in missing:
            folder.rmdir()


def _landed(target: Path, old: Path | None) -> None:
    _flush(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
        if old.exists():
            warnings.warn(f"'{target}' is written, but the folder it replaced is still at '{old}'", stacklevel=4)


def _swap_in(work: Path, target: Path, overwrite: bool) -> Path | None:
    """Renames `work` to `target`; returns where an old target that held something now lies."""
    _refuse_occupied(target, overwrite)  # it may have been filled meanwhile
    _flush(work)
    old = None
    try:
        if _holds_something(target):
            old = _hidden_beside(target)
            target.rename(old)
        work.rename(target)  # replaces an empty folder
    except BaseException:
        if old is not None and old.exists() and not target.exists():
            old.rename(target)
        raise
    return old


def _refuse_occupied(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise LorashearError(f"the output '{target}' is a file; choose a folder")
    if _holds_something(target) and not overwrite:
        raise LorashearError(f"the output folder '{target}' is not empty; choose another one or pass --overwrite")


def _holds_something(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _nested(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _hidden_beside(target: Path) -> Path:
    return target.parent / f".lorashear-{secrets.token_hex(6)}"


def _flush(folder: Path) -> None:
    """Makes the names in a folder outlast a power cut, where the filesystem can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
