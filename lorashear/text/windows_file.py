"""Windows of a large corpus: token ids in a file, mapped into memory, kept for the next run that asks for the same."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lorashear import cache
from lorashear.disk.output import NewFile, output_file
from lorashear.errors import LorashearError
from lorashear.terminal.stages import Progress
from lorashear.text.corpus import Corpus
from lorashear.text.data import padded, token_runs
from lorashear.text.sampling import Sample

FORMAT = 1
"""Part of what kept windows are found by: counts up when other ones come out."""
# Of ordinary text, to know over how many places it can be spread before it is tokenised. No more depends on it.
CHARACTERS_PER_TOKEN = 5
# Of a file: a token is a byte of text or more, and text is hardly compressed to less than a quarter.
MOST_TOKENS_PER_BYTE = 4


@dataclass(frozen=True)
class Mapped:
    """Windows of ``length`` tokens in a file, from the one with the number ``first`` on."""

    path: Path
    dtype: np.dtype
    length: int
    first: int

    def rows(self) -> torch.Tensor:
        """A tensor [windows, length] not to be written to, of which memory holds what is being read."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it must not be written to
            return torch.from_numpy(np.memmap(self.path, self.dtype, "r").reshape(-1, self.length))[self.first :]


def sampled_windows(
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    length: int,
    limit: int,
    others: int,
    seed: int = 0,
    *,
    packed: bool = True,
    progress: Progress | None = None,
) -> tuple[torch.Tensor, Mapped]:
    """What `data.windows_and_others` gives, of documents from all over a corpus that memory does not hold.

    Reading stops when there are enough. One thread reads and decodes while the tokenizer works, in threads of its own if it
    is a fast one; a slow one, in Python, takes one core. Token ids go to a file in the cache, which appears whole or not at
    all: of 2 bytes each if every piece of the vocabulary has a number below 32,768, else 4. Its name is a hash of the corpus
    (`Corpus.digest`), the tokenizer and all that decides the windows: who asks again gets them at once.

    Args:
        progress: called with ("tokenise", windows done, windows asked for).

    Returns:
        int64 [at most limit, length], in memory, and where int16 or int32 [at most others, length] lie. They share no document, or no piece of a long one (see `sampling`). Not packed, the second has so
        many documents that they hold at least as many tokens as ``others`` full windows, where the corpus has as many.

    Raises:
        LorashearError: the corpus is too short for one window or cannot be read, or the disk lacks the space.
    """
    if length < 2:
        raise LorashearError(f"a context of {length} tokens leaves nothing to predict; give 2 or more")
    if limit < 1:
        raise LorashearError(f"{limit} windows of text are asked for; ask for 1 or more")
    dtype = _dtype(tokenizer)
    asked = [FORMAT, corpus.digest(), tokenizer_content(tokenizer), length, limit, others, seed, packed]
    path = cache.folder() / "windows" / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}.{dtype.name}"
    if not path.exists():
        rows = _rows(tokenizer, corpus.sample(seed), length, limit, others, packed)
        tokens = length * (limit + others)
        if not corpus.datasets:  # of which nobody knows how large they are
            tokens = min(tokens, MOST_TOKENS_PER_BYTE * corpus.bytes)
        _write(path, _told(rows, limit + others, progress), dtype, tokens)
    return Mapped(path, dtype, length, 0).rows()[:limit].long(), Mapped(path, dtype, length, limit)


def _joined(tokenizer: PreTrainedTokenizerBase, sample: Sample, length: int, count: int) -> Iterator[np.ndarray]:
    """Documents on end: ``count`` windows, less where the corpus ends."""
    rest = np.empty(0, np.int64)
    with closing(sample.calls(count * length * CHARACTERS_PER_TOKEN)) as calls:
        for documents in calls:
            runs = list(token_runs(tokenizer, documents))
            used = _enough([len(run) for run in runs], count * length - len(rest))
            sample.put_back(documents[used:])
            tokens = np.concatenate([rest, *runs[:used]])
            whole = min(len(tokens) // length, count)
            yield tokens[: whole * length].reshape(whole, length)
            rest, count = tokens[whole * length :], count - whole
            if not count:
                return


def _apart(
    tokenizer: PreTrainedTokenizerBase, sample: Sample, length: int, count: int, full: bool
) -> Iterator[np.ndarray]:
    """A document each: ``count`` of them or, ``full``, as many as hold the tokens of so many windows without padding."""
    left = count * length if full else count
    with closing(sample.calls(count * length * CHARACTERS_PER_TOKEN)) as calls:
        for documents in calls:
            runs = list(token_runs(tokenizer, documents))
            worth = [(min(len(run), length) if full else 1) if len(run) > 1 else 0 for run in runs]
            used = _enough(worth, left)
            sample.put_back(documents[used:])
            yield padded(runs[:used], length).numpy()
            left -= sum(worth[:used])
            if left <= 0:
                return


def _enough(worth: Sequence[int], wanted: int) -> int:
    """How many of the first are worth as much as is wanted; all of them where they are not."""
    return min(int(np.searchsorted(np.cumsum(worth), wanted)) + 1, len(worth))


def _rows(
    tokenizer: PreTrainedTokenizerBase, sample: Sample, length: int, limit: int, others: int, packed: bool
) -> Iterator[np.ndarray]:
    """int64 [some, length]: first ``limit`` windows in all, then ``others`` of other documents.

    Raises:
        LorashearError: there is none at all.
    """

    def cut(count: int, full: bool) -> Iterator[np.ndarray]:
        return _joined(tokenizer, sample, length, count) if packed else _apart(tokenizer, sample, length, count, full)

    found = 0
    for some in cut(limit, False):
        found += len(some)
        yield some
    if not found:
        raise LorashearError(f"the text does not fill one context of {length:,} tokens; give more text")
    if others:
        yield from cut(others, True)


def _told(rows: Iterator[np.ndarray], total: int, progress: Progress | None) -> Iterator[np.ndarray]:
    """The same, and how far they are."""
    done = 0
    for some in rows:
        yield some
        done += len(some)
        if progress:
            progress("tokenise", min(done, total), total)


def _write(path: Path, rows: Iterator[np.ndarray], dtype: np.dtype, tokens: int) -> None:
    """Write windows, which hold at most about so many tokens, into a file that appears when it is whole."""
    cache.check_room(path.parent, tokens * dtype.itemsize, "the text, as token ids,", "ask for fewer tokens")
    with output_file(path, overwrite=True) as work, NewFile(work) as file:
        for some in rows:
            file.write(some.astype(dtype))
        file.flush()


def _dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """The narrowest signed type that PyTorch computes with and every piece's number fits in; PADDING is negative."""
    return np.dtype(np.int16 if max(tokenizer.get_vocab().values()) <= np.iinfo(np.int16).max else np.int32)


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that a tokenizer is, which is what it saves."""
    found = hashlib.sha256()
    with TemporaryDirectory(prefix="lorashear-") as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
