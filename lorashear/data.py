"""Text for calibration, training and evaluation: files to documents, documents to windows of token ids.

A document is its boundary token and its own tokens; documents stand one after another and are cut into windows of
equal length without overlap. Nothing is padded, so no attention mask is needed. Or each document is a window of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lorashear.errors import LorashearError

# Text is told from binary by its first bytes, before a whole "line" of a binary file is read into memory.
SNIFF_BYTES = 8192
# Documents that go to the tokenizer in one call: enough to keep its threads busy, few enough to hold as Python lists.
DOCUMENTS_PER_CALL = 256
# No ordinary text has this many characters to a token; `windows` leaves out documents beyond it before tokenising.
CHARACTERS_PER_TOKEN = 16
# What stands after the last token of a window that is a document of its own.
PADDING = -1


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


def pack(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], length: int) -> torch.Tensor:
    """All documents joined and cut into windows of ``length`` tokens; the last, partial one is dropped.

    Each document begins with the BOS token, once, whatever the tokenizer itself would add. A tokenizer without BOS
    marks the boundary with its EOS token instead, and one with neither does not mark it.

    Returns:
        int64 tensor on the CPU, [windows, length].

    Raises:
        LorashearError: the text is too short for one window.
    """
    return _cut(_joined(tokenizer, documents), length)


def windows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    length: int,
    limit: int | None = None,
    seed: int = 0,
    *,
    packed: bool = True,
) -> torch.Tensor:
    """Windows of :func:`pack`, at most ``limit`` of them, spread over the whole text; the same seed picks the same.

    The text falls into ``limit`` equal stretches and each gives one window. From a text far longer than needed a
    random share of the documents is tokenised and the rest left alone.

    Not ``packed``, each is the beginning of another document, with `PADDING` to its right.

    Returns:
        int64 tensor on the CPU, [min(limit, windows in the text), length].

    Raises:
        LorashearError: the text is too short for one window.
    """
    if limit is None and packed:
        return pack(tokenizer, documents, length)
    limit = len(documents) if limit is None else limit
    return windows_and_others(tokenizer, documents, length, limit, 0, seed, packed=packed)[0]


def windows_and_others(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    length: int,
    limit: int,
    others: int,
    seed: int = 0,
    *,
    packed: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`windows`, the same whatever ``others`` is, and at most so many windows of the same text beside them.

    Returns:
        two int64 tensors on the CPU, [at most limit, length] and [at most others, length], that share no token. Not
        ``packed``, the second has so many documents that they hold about as many tokens.

    Raises:
        LorashearError: the text is too short for one window.
    """
    if limit < 1:
        raise LorashearError(f"{limit} windows of text are asked for; ask for 1 or more")
    if not packed:
        return _apart(tokenizer, documents, length, limit, others, seed)
    random = np.random.default_rng(seed)
    share = _share(documents, limit * length * CHARACTERS_PER_TOKEN, random)
    tokens = _joined(tokenizer, [documents[index] for index in share])
    if len(tokens) < limit * length and len(share) < len(documents):  # hardly text, but then nothing may be left out
        share = range(len(documents))
        tokens = _joined(tokenizer, documents)
    every = _cut(tokens, length)
    chosen = torch.arange(len(every))
    if len(every) > limit:
        edges = np.linspace(0, len(every), limit + 1).astype(np.int64)
        chosen = torch.from_numpy(random.integers(edges[:-1], edges[1:]))
    free = torch.ones(len(every), dtype=torch.bool)
    free[chosen] = False
    rest = every[free]
    if len(rest) < others and len(share) < len(documents):
        rest = torch.cat([rest, _beside(tokenizer, documents, share, length, others - len(rest), random)])
    taken = torch.from_numpy(random.permutation(len(rest))[:others]).sort().values
    return every[chosen], rest[taken]


def _beside(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    used: Sequence[int],
    length: int,
    limit: int,
    random: np.random.Generator,
) -> torch.Tensor:
    """Windows of documents that were not used, ``limit`` of them or some more, where there are as many."""
    gone = set(used)
    unused = [document for index, document in enumerate(documents) if index not in gone]
    share = _share(unused, limit * length * CHARACTERS_PER_TOKEN, random)
    tokens = _joined(tokenizer, [unused[index] for index in share])
    return _cut(tokens, length) if len(tokens) >= length else torch.empty(0, length, dtype=torch.int64)


def _share(documents: Sequence[str], characters: int, random: np.random.Generator) -> Sequence[int]:
    """Indices of randomly chosen documents, rising, with at least so many characters in all; or of all of them."""
    chosen: list[int] = []
    for index in random.permutation(len(documents)).tolist():
        if characters <= 0:
            break
        chosen.append(index)
        characters -= len(documents[index])
    return sorted(chosen)


def inputs(rows: torch.Tensor) -> dict[str, Any]:
    """Windows as arguments of a model's forward: with a mask, and no longer than the longest, where some are padded."""
    inside = rows != PADDING
    if bool(inside.all()):
        return {"input_ids": rows, "use_cache": False}
    longest = int(inside.sum(1).max())
    mask = inside[:, :longest]
    return {"input_ids": rows[:, :longest] * mask, "attention_mask": mask.long(), "use_cache": False}


def tokens_in(rows: torch.Tensor) -> int:
    """How many tokens windows hold."""
    return int((rows != PADDING).sum())


def _apart(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int, limit: int, others: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of one document each."""
    order: list[int] = np.random.default_rng(seed).permutation(len(documents)).tolist()
    chosen = _padded(tokenizer, [documents[index] for index in sorted(order[:limit])], length)
    rest = [torch.empty(0, length, dtype=torch.int64)]
    wanted = others * length
    for start in range(limit, len(order), DOCUMENTS_PER_CALL):
        if wanted <= 0:
            break
        some = _padded(tokenizer, [documents[index] for index in order[start : start + DOCUMENTS_PER_CALL]], length)
        held = (some != PADDING).sum(1).cumsum(0)
        rest.append(some[held - (some != PADDING).sum(1) < wanted])
        wanted -= tokens_in(rest[-1])
    if not len(chosen):
        raise LorashearError(f"none of the first {min(limit, len(documents)):,} documents has two tokens")
    return chosen, torch.cat(rest)


def _padded(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int) -> torch.Tensor:
    """The beginning of each document, [documents, length]; those of less than two tokens are left out."""
    runs = list(_runs(tokenizer, documents))
    rows = np.full((len(runs), length), PADDING, np.int64)
    for row, run in zip(rows, runs, strict=True):
        row[: len(run)] = run[:length]
    return torch.from_numpy(rows[[len(run) > 1 for run in runs]] if runs else rows)


def _joined(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> np.ndarray:
    """Token ids of all documents, boundaries included: int64, one dimension."""
    return np.concatenate([np.empty(0, np.int64), *_runs(tokenizer, documents)])


def _runs(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of each document behind its boundary: int64, one dimension."""
    bos: Any = tokenizer.bos_token_id
    boundary: Any = tokenizer.eos_token_id if bos is None else bos
    source = iter(documents)
    while some := list(islice(source, DOCUMENTS_PER_CALL)):
        # verbose=False: a document longer than the model's context is no reason for a warning, it will be cut.
        rows: list[list[int]] = tokenizer(
            some, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )["input_ids"]
        for row in rows:
            if boundary is not None and row[:1] != [boundary]:
                row.insert(0, boundary)
            yield np.asarray(row, np.int64)


def _cut(tokens: np.ndarray, length: int) -> torch.Tensor:
    """Non-overlapping windows [windows, length] of tokens [n], the partial last one dropped."""
    if length < 2:
        raise LorashearError(f"a context of {length} tokens leaves nothing to predict; give 2 or more")
    count = len(tokens) // length
    if not count:
        raise LorashearError(f"the text has {len(tokens):,} tokens, one context needs {length:,}; give more text")
    return torch.from_numpy(tokens[: count * length].reshape(count, length))


def _documents(path: Path) -> Iterator[str]:
    """The documents of one file, read as they are asked for."""
    read = READERS.get(path.suffix.lower())
    if not path.exists():
        raise LorashearError(f"{path} does not exist; give a text file")
    if path.is_dir():
        raise LorashearError(f"{path} is a folder; name the text files in it")
    if read is None:
        raise LorashearError(f"{path} has an unknown ending; text files end in {', '.join(READERS)}")
    try:
        yield from (document for document in read(path) if document and not document.isspace())
    except UnicodeDecodeError as error:
        raise LorashearError(f"{path} is not UTF-8 text ({error.reason}); convert it first") from None
    except OSError as error:
        raise LorashearError(f"{path} cannot be read: {error.strerror or error}") from None


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        if b"\0" in file.read(SNIFF_BYTES):
            raise LorashearError(f"{path} is a binary file; give UTF-8 text")
    with path.open(encoding="utf-8-sig") as file:  # -sig: some editors begin the file with a byte order mark
        yield from file


def _read_txt(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for line in _lines(path):
        if "\0" in line:
            raise LorashearError(f"{path} is a binary file; give UTF-8 text")
        if not line.isspace():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).removesuffix("\n")
            paragraph = []
    yield "".join(paragraph).removesuffix("\n")


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if line.isspace():
            continue
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "a value that cannot be read"
            raise LorashearError(f"{path}, line {number}: not JSON ({reason}); write one object a line") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise LorashearError(f'{path}, line {number}: no field "text" with a string; write {{"text": "..."}}')
        text: str = record["text"]
        if not _is_encodable(text):
            raise LorashearError(f"{path}, line {number}: half of a surrogate pair in the text; mend or drop the line")
        yield text


def _is_encodable(text: str) -> bool:
    """JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LorashearError(f"{path} needs pyarrow: pip install 'lorashear[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise LorashearError(f'{path} has no column "text"; it has {", ".join(file.schema_arrow.names)}')
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    if text is not None and not isinstance(text, str):
                        raise LorashearError(f'{path}: the column "text" does not hold strings')
                    yield text or ""
    except pyarrow.ArrowException as error:
        raise LorashearError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
