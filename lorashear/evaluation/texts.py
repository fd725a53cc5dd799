"""The text that models are judged on: documents, read once, and each tokenizer's windows of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lorashear.errors import LorashearError
from lorashear.text import data, subsets
from lorashear.text.corpus import Corpus
from lorashear.text.documents import read_texts, whole_text
from lorashear.text.sampling import PIECE_CHARACTERS
from lorashear.text.subsets import Source
from lorashear.text.windows_file import CHARACTERS_PER_TOKEN

WHOLE_BYTES = 16 << 20
"""Of a file that a tokenizer reads at once, which takes some hundred times as much memory."""
TOKENS_AT_ONCE = 64 << 10
"""Of overlapping windows, which are made when they are scored."""


@dataclass(frozen=True)
class Text:
    """``documents`` in order, from ``sources`` as they were given; all of them, or a sample where only some are needed."""

    name: str
    sources: tuple[str, ...]
    documents: tuple[str, ...]

    @cached_property
    def bytes(self) -> int:
        """Of all documents in UTF-8."""
        return sum(len(document.encode()) for document in self.documents)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What was read, for the report: the hash is of the documents, however they lie in files."""
        found = hashlib.sha256()
        for document in self.documents:
            encoded = document.encode()
            found.update(len(encoded).to_bytes(8, "little") + encoded)
        splits = [Path(each).name if Path(each).exists() else _split(each) for each in self.sources]
        return {
            "text": list(self.sources),
            "split": splits,
            "documents": len(self.documents),
            "bytes": self.bytes,
            "sha256": found.hexdigest(),
        }


def _split(dataset: str) -> str:
    """Of a dataset of a hub, as it was given."""
    return dataset.split(":")[2] if dataset.count(":") == 2 else "train"


@dataclass(frozen=True)
class Windows:
    """What a tokenizer makes of a text: ``rows``, int64 [windows, context], of which the first ``read`` tokens are only read where a
    window is not the first one; ``tokens`` are those of all documents that something stands before: what a context without end would
    score."""

    rows: torch.Tensor
    first: torch.Tensor
    """Whether a window begins where the text does, [windows]."""
    read: int
    tokens: int

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self) -> list[slice]:
        """Some windows at a time."""
        some = max(1, TOKENS_AT_ONCE // self.rows.shape[1])
        return [slice(start, start + some) for start in range(0, len(self), some)]

    def at(self, part: slice) -> torch.Tensor:
        """Windows as `lorashear.text.data.inputs` and `wanted` take them."""
        rows = self.rows[part].clone()
        only_read = rows[:, : self.read]
        rows[:, : self.read] = torch.where(self.first[part, None], only_read, data.READ - only_read)
        return rows

    @cached_property
    def digest(self) -> str:
        """The same for models that read the same tokens."""
        found = hashlib.sha256(f"{tuple(self.rows.shape)} {self.read} {self.first.tolist()}".encode())
        for part in self.parts():
            found.update(self.rows[part].contiguous().numpy().tobytes())
        return found.hexdigest()


def texts(
    given: Mapping[str, Source | Sequence[Source]] | Sequence[Source] | Source,
    context: int,
    limit: int | None,
    seed: int,
    *,
    packed: bool = True,
) -> list[Text]:
    """Every text that is given, each by itself: under its name, or that of its file.

    ``packed``, a .txt file of 16 MB or less is one document, as the literature has it; else its documents are between blank lines, as in
    training.

    Text of 256 MB or less is read whole, where no ``limit`` of windows is set; of more, and of a hub's datasets, so many documents,
    drawn by the seed, as fill that many windows.

    Raises:
        LorashearError: it cannot be read, holds nothing, or is too large to be read whole.
    """
    found: list[Text] = []
    for name, sources in _named(given).items():
        corpus = Corpus.of(sources)
        wanted = (limit or 0) * context
        if corpus.fits:
            documents = _read(corpus, packed)
            if limit is not None:
                random = np.random.default_rng(seed)
                some = (
                    data.drawn(documents, wanted * data.CHARACTERS_PER_TOKEN, random)
                    if packed
                    else _few(documents, limit, random)
                )
                documents = [documents[index] for index in some]
        elif limit is None:
            raise LorashearError(
                f"{', '.join(map(str, sources))} is too large to be evaluated whole: say how many windows (--limit N)"
            )
        else:
            documents = _sampled(corpus, wanted * CHARACTERS_PER_TOKEN if packed else None, limit, seed)
        found.append(Text(name, tuple(map(str, sources)), tuple(documents)))
    return found


def _few(documents: Sequence[str], limit: int, random: np.random.Generator) -> list[int]:
    """So many of the documents, or all, in order."""
    return sorted(random.permutation(len(documents))[:limit].tolist())


def _sampled(corpus: Corpus, characters: int | None, limit: int, seed: int) -> list[str]:
    """Documents from all over a corpus: with so many characters or some more, where there are as many, or ``limit`` documents."""
    found: list[str] = []
    with closing(corpus.sample(seed).calls(characters or limit * PIECE_CHARACTERS)) as calls:
        for document in chain.from_iterable(calls):
            found.append(document)
            if characters is not None:
                characters -= len(document)
            if len(found) >= limit if characters is None else characters <= 0:
                break
    return found


def _read(corpus: Corpus, packed: bool) -> list[str]:
    """All documents of files, in order."""
    found: list[str] = []
    for file in corpus.files:
        whole = packed and file.suffix.lower() == ".txt" and file.stat().st_size <= WHOLE_BYTES
        found += [whole_text(file)] if whole else read_texts([file])
    return found


def _named(given: Mapping[str, Source | Sequence[Source]] | Sequence[Source] | Source) -> dict[str, list[Source]]:
    """As `subsets.named`, but each without a name is a text by itself."""
    found = subsets.named(given)
    alone = found.pop(subsets.UNNAMED, [])
    for source in alone:
        short = Path(source).name or str(source)
        name = str(source) if short in found or sum(Path(each).name == short for each in alone) > 1 else short
        if name in found:
            raise LorashearError(f"text names '{source}' twice: leave one of them out")
        found[name] = [source]
    return found


def windows(
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    *,
    stride: int | None = None,
    packed: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> Windows:
    """Windows of ``context`` tokens.

    Packed, documents stand on end, each behind its boundary token (see `lorashear.text.data`); a window begins every ``stride``
    tokens, by default every ``context``, and every token that no window before it has scored counts; what does not fill the last
    window is left out. Not packed, each is the beginning of another document. Of more than ``limit`` so many are taken, spread
    over the text, drawn by the seed.

    Raises:
        LorashearError: the text is too short for one window.
    """
    random = np.random.default_rng(seed)
    runs = list(data.token_runs(tokenizer, text.documents))
    tokens = sum(map(len, runs))
    stride = stride or context
    if packed:
        joined = torch.from_numpy(np.concatenate(runs)) if runs else torch.empty(0, dtype=torch.int64)
        if tokens < context:
            raise LorashearError(
                f"the text {text.name} has {tokens:,} tokens, one context needs {context:,}; give more text, or a smaller "
                "context (--context)"
            )
        rows = joined.unfold(0, context, stride)
    else:
        rows = data.padded(runs, min(context, max(map(len, runs), default=0)))
        if not len(rows):
            raise LorashearError(f"the text {text.name} has no document of two tokens or more; give more text")
    chosen = torch.arange(len(rows))
    if limit is not None and len(rows) > limit:
        edges = np.linspace(0, len(rows), limit + 1).astype(np.int64)
        chosen = torch.from_numpy(random.integers(edges[:-1], edges[1:]))
        rows = rows[chosen]
    first = chosen == 0 if packed else torch.ones(len(rows), dtype=torch.bool)
    return Windows(rows, first, context - stride if packed else 0, tokens - (1 if packed else len(runs)))
