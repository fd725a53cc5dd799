"""Places in large files where reading can begin: stretches of lines, row groups. No document is in two of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from lorashear.errors import LorashearError
from lorashear.text.documents import open_parquet, parquet_texts, reading, text_field

# Of a stretch; more where there would be too many of them.
STRETCH_BYTES = 1 << 20
MOST_STRETCHES = 1 << 16
# A line is held in memory. No ordinary one is nearly as long.
LINE_BYTES = 64 << 20


class Place(Protocol):
    """A part of a file."""

    @property
    def path(self) -> Path: ...

    def documents(self) -> Generator[str, None, None]:
        """Those that begin here, in their order. Raises LorashearError where the file is not what its ending says."""
        ...


def places(files: Sequence[Path]) -> list[Place]:
    """All places of readable files, file by file.

    Raises:
        LorashearError: a Parquet file cannot be read or has no column "text".
    """
    size = max(STRETCH_BYTES, -(-sum(path.stat().st_size for path in files) // MOST_STRETCHES))
    found: list[Place] = []
    for path in files:
        with reading(path):
            if path.suffix.lower() == ".parquet":
                with open_parquet(path) as file:
                    found += [RowGroup(path, group) for group in range(file.num_row_groups)]
            else:
                kind, bytes_ = Records if path.suffix.lower() == ".jsonl" else Paragraphs, path.stat().st_size
                found += [kind(path, start, min(start + size, bytes_)) for start in range(0, bytes_, size)]
    return found


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a .parquet file, a document a row. It can only be read from its first row on, so little of it is that."""

    path: Path
    group: int

    def documents(self) -> Generator[str, None, None]:
        with open_parquet(self.path) as file:
            yield from parquet_texts(file, self.path, [self.group])


@dataclass(frozen=True, slots=True)
class Records:
    """The lines of a .jsonl file whose first byte is at ``start`` or behind it and before ``end``, a document each."""

    path: Path
    start: int
    end: int

    def documents(self) -> Generator[str, None, None]:
        for at, line in _lines(self.path, self.start):
            if at >= self.end:
                return
            if not line.isspace():
                yield text_field(line, f"{self.path}, at byte {at:,}")


@dataclass(frozen=True, slots=True)
class Paragraphs:
    """The documents of a .txt file, blank lines between them, of the bytes from ``start`` up to ``end``.

    What comes before the first blank line belongs to the stretch before this one, which goes on up to there, as this one goes
    on into the next. But a whole stretch without a blank line is one of its own: nobody can tell where its document began.
    """

    path: Path
    start: int
    end: int

    def documents(self) -> Generator[str, None, None]:
        own: list[str] = []
        beyond: list[str] = []
        begun = not self.start
        for at, line in _lines(self.path, self.start):
            inside = at < self.end
            if at >= 2 * self.end - self.start:  # the next stretch has no blank line
                beyond.clear()
                break
            if not line.isspace():
                (own if inside else beyond).append(line)
                continue
            if begun or not inside:
                yield "".join(own + beyond).removesuffix("\n")
            own, begun = [], True
            if not inside:
                return
        else:
            if not begun and not beyond:  # the end of the file is a blank line too
                return
        yield "".join(own + beyond).removesuffix("\n")


def _lines(path: Path, start: int) -> Iterator[tuple[int, str]]:
    """The lines that begin at a byte or behind it, each with the byte at which it begins."""
    with path.open("rb") as file:
        at = start
        if start:  # it may lie in a line, which began before it
            file.seek(start - 1)
            at += len(_line(file, path)) - 1
        while line := _line(file, path):
            text = line.decode("utf-8" if at else "utf-8-sig")
            yield at, text.replace("\r\n", "\n")
            at += len(line)


def _line(file: BinaryIO, path: Path) -> bytes:
    line = file.readline(LINE_BYTES + 1)
    if b"\0" in line:
        raise LorashearError(f"{path} is a binary file; give UTF-8 text")
    if len(line) > LINE_BYTES:
        raise LorashearError(f"{path} has a line of more than {LINE_BYTES >> 20} MB; break it up")
    return line
