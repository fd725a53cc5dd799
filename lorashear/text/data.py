"""Text for calibration, training and evaluation: documents to windows of token ids.

A document is its boundary token and its own tokens; documents stand one after another and are cut into windows of
equal length without overlap. Nothing is padded and no attention mask is made: attention crosses from a document to the
next within a window. Or each document is a window of its own, where nothing crosses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lorashear.errors import LorashearError
from lorashear.text.documents import read_texts as read_texts

# Documents that go to the tokenizer in one call: enough to keep its threads busy, few enough to hold as Python lists.
DOCUMENTS_PER_CALL = 256
# No ordinary text has this many characters to a token; `windows` leaves out documents beyond it before tokenising.
CHARACTERS_PER_TOKEN = 16
# What stands after the last token of a window that is a document of its own.
PADDING = -1
# A token n that is only read, as those of a question, stands in a window as READ - n: nothing is learned from telling it.
READ = -2
# Of windows that may lie on disk.
ROWS_AT_ONCE = 4096


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
    share = drawn(documents, limit * length * CHARACTERS_PER_TOKEN, random)
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
    share = drawn(unused, limit * length * CHARACTERS_PER_TOKEN, random)
    tokens = _joined(tokenizer, [unused[index] for index in share])
    return _cut(tokens, length) if len(tokens) >= length else torch.empty(0, length, dtype=torch.int64)


def drawn(documents: Sequence[str], characters: int, random: np.random.Generator) -> Sequence[int]:
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
    rows = _trimmed(rows)
    mask = rows != PADDING
    given: dict[str, Any] = {"input_ids": torch.where(rows <= READ, READ - rows, rows) * mask, "use_cache": False}
    return given if bool(mask.all()) else given | {"attention_mask": mask.long()}


def wanted(rows: torch.Tensor) -> torch.Tensor:
    """The token that each but the last of a window, as `inputs` has them, is to tell; -100 where none counts."""
    following = _trimmed(rows)[:, 1:]
    return following.masked_fill(following < 0, -100)


def _trimmed(rows: torch.Tensor) -> torch.Tensor:
    """Windows no longer than the longest; they may be of narrower integers, where there are many (see `windows_file`)."""
    return rows[:, : int((rows != PADDING).sum(1).max())].long()


def told(rows: torch.Tensor) -> int:
    """How many tokens of windows are told by those before them."""
    return sum(int((some[:, 1:] >= 0).sum()) for some in rows.split(ROWS_AT_ONCE))


def tokens_in(rows: torch.Tensor) -> int:
    """How many tokens windows hold, those too that are only read; counted in parts: they may be more than memory takes."""
    return sum(int((some != PADDING).sum()) for some in rows.split(ROWS_AT_ONCE))


def _apart(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int, limit: int, others: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of one document each."""
    order: list[int] = np.random.default_rng(seed).permutation(len(documents)).tolist()
    chosen = padded(list(token_runs(tokenizer, [documents[index] for index in sorted(order[:limit])])), length)
    rest = [torch.empty(0, length, dtype=torch.int64)]
    wanted = others * length
    for start in range(limit, len(order), DOCUMENTS_PER_CALL):
        if wanted <= 0:
            break
        next_ones = [documents[index] for index in order[start : start + DOCUMENTS_PER_CALL]]
        some = padded(list(token_runs(tokenizer, next_ones)), length)
        held = (some != PADDING).sum(1).cumsum(0)
        rest.append(some[held - (some != PADDING).sum(1) < wanted])
        wanted -= tokens_in(rest[-1])
    if not len(chosen):
        raise LorashearError(f"none of the first {min(limit, len(documents)):,} documents has two tokens")
    return chosen, torch.cat(rest)


def padded(runs: Sequence[np.ndarray], length: int) -> torch.Tensor:
    """The beginning of each document's token ids, [documents, length]; those of less than two tokens are left out."""
    rows = np.full((len(runs), length), PADDING, np.int64)
    for row, run in zip(rows, runs, strict=True):
        row[: len(run)] = run[:length]
    return torch.from_numpy(rows[[len(run) > 1 for run in runs]] if runs else rows)


def _joined(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> np.ndarray:
    """Token ids of all documents, boundaries included: int64, one dimension."""
    return np.concatenate([np.empty(0, np.int64), *token_runs(tokenizer, documents)])


def token_runs(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> Iterator[np.ndarray]:
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
