"""Files of text to documents, one after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from lorashear.errors import LorashearError

# Text is told from binary by its first bytes, before a whole "line" of a binary file is read into memory.
SNIFF_BYTES = 8192
# Of a Parquet file at once: rows whose texts are held, and bytes of its pages.
BATCH_ROWS = 256
BUFFER_BYTES = 1 << 20


def read_texts(paths: Sequence[str | Path], limit: int | None = None) -> list[str]:
    """The documents of the files, in the order given: at most ``limit`` of them, and no more is read than that takes.

    ``.txt`` holds documents separated by blank lines, ``.jsonl`` one object a line with the text in the field
    ``text``, ``.parquet`` the texts in the column ``text``. Documents without a visible character are left out.

    Raises:
        LorashearError: a file is missing, a folder, not readable, without text, or not what its ending says.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found: list[str] = []
    for path in map(Path, paths):
        if limit is not None and len(found) >= limit:
            break
        before = len(found)
        found.extend(islice(_documents(path), None if limit is None else limit - before))
        if len(found) == before:
            raise LorashearError(f"{path} holds no text; give a file with at least one document")
    return found


def whole_text(path: Path) -> str:
    """A .txt file as one document, as it is.

    Raises:
        LorashearError: it cannot be read, or holds no text.
    """
    check_readable(path, [".txt"])
    with reading(path):
        text = "".join(text_lines(path))
    if "\0" in text:
        raise LorashearError(f"{path} is a binary file; give UTF-8 text")
    if not visible(text):
        raise LorashearError(f"{path} holds no text; give a file with at least one document")
    return text


def check_readable(path: Path, endings: Collection[str] | None = None, kind: str = "text") -> None:
    """Raises LorashearError where a path is no file of a kind by its name; that of text where no ``endings`` are given."""
    endings = endings or READERS
    if not path.exists():
        raise LorashearError(f"{path} does not exist; give a {kind} file")
    if path.is_dir():
        raise LorashearError(f"{path} is a folder; name the {kind} files in it")
    if path.suffix.lower() not in endings:
        raise LorashearError(f"{path} has an unknown ending; {kind} files end in {', '.join(endings)}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What reading a file comes to, as a LorashearError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise LorashearError(f"{path} is not UTF-8 text ({error.reason}); convert it first") from None
    except OSError as error:
        raise LorashearError(f"{path} cannot be read: {error.strerror or error}") from None


def _documents(path: Path) -> Iterator[str]:
    """The documents of one file, read as they are asked for."""
    check_readable(path)
    with reading(path):
        yield from (document for document in READERS[path.suffix.lower()](path) if visible(document))


def visible(document: str) -> bool:
    """Whether a document has a character that is not white space."""
    return bool(document) and not document.isspace()


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file of UTF-8, read as they are asked for. Raises LorashearError where it is binary."""
    with path.open("rb") as file:
        if b"\0" in file.read(SNIFF_BYTES):
            raise LorashearError(f"{path} is a binary file; give UTF-8 text")
    with path.open(encoding="utf-8-sig") as file:  # -sig: some editors begin the file with a byte order mark
        yield from file


def _read_txt(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for line in text_lines(path):
        if "\0" in line:
            raise LorashearError(f"{path} is a binary file; give UTF-8 text")
        if not line.isspace():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).removesuffix("\n")
            paragraph = []
    yield "".join(paragraph).removesuffix("\n")


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.isspace():
            yield text_field(line, f"{path}, line {number}")


def text_field(line: str, where: str) -> str:
    """The text of a line of JSON, which lies ``where``. Raises LorashearError where it has none."""
    record = parsed(line, where, "write one object a line")
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise LorashearError(f'{where}: no field "text" with a string; write {{"text": "..."}}')
    text: str = record["text"]
    if not is_encodable(text):
        raise LorashearError(f"{where}: half of a surrogate pair in the text; mend or drop the line")
    return text


def parsed(text: str, where: str, advice: str) -> Any:
    """What JSON says, which lies ``where``. Raises LorashearError where it is none, with the line if there are several."""
    text = text.rstrip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "a value that cannot be read"
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} in line {error.lineno}" if "\n" in text else error.msg
        raise LorashearError(f"{where}: not JSON ({reason}); {advice}") from None


def is_encodable(text: str) -> bool:
    """JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def open_parquet(path: Path, column: str | None = "text") -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` with such a column. Raises LorashearError where it is none, or stops being one."""
    import pyarrow  # here: half a second that no other command pays
    import pyarrow.parquet

    try:
        # Read in pieces: a row group may be as large as the file, and as a whole be too much for memory.
        with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES) as file:
            if column and column not in file.schema_arrow.names:
                raise LorashearError(f'{path} has no column "{column}"; it has {", ".join(file.schema_arrow.names)}')
            yield file
    except pyarrow.ArrowException as error:
        raise LorashearError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def parquet_texts(file: Any, path: Path, groups: Sequence[int] | None = None) -> Iterator[str]:
    """The column "text" of some row groups of an open file, or of all; an empty text where a row has none."""
    for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=["text"]):
        for text in batch.column(0).to_pylist():
            if text is not None and not isinstance(text, str):
                raise LorashearError(f'{path}: the column "text" does not hold strings')
            yield text or ""


def _read_parquet(path: Path) -> Iterator[str]:
    with open_parquet(path) as file:
        yield from parquet_texts(file, path)


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
