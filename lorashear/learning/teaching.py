"""What the dense model says of windows of text: asked for while training goes on, or computed once and kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lorashear import cache
from lorashear.disk.output import NewFile, output_file
from lorashear.emission.declared import vocabulary
from lorashear.errors import Fault
from lorashear.likelihood import batch_size, evaluating
from lorashear.terminal.stages import Progress
from lorashear.text.data import PADDING, READ, ROWS_AT_ONCE, inputs, wanted

FORMAT = 1
"""Of the file, and part of what it is found by: counts up when another one comes out."""
HEADER = np.dtype([("format", "<i8"), ("windows", "<i8"), ("k", "<i8"), ("id_bytes", "<i8")])
KEY = np.dtype("S16")
START = np.dtype("<i8")


@dataclass(frozen=True)
class Said:
    """Of all tokens of some windows that tell a next one (see `data.wanted`), in their order."""

    likely: Tensor
    """float32 [tokens, vocabulary]: log-probabilities of the next token, in nats; of the ``ids`` alone, [tokens, k], where
    there are some."""
    ids: Tensor | None = None
    """int64 [tokens, k]: the likeliest next tokens."""
    streams: Sequence[Tensor] = ()
    """The residual stream behind every layer, [tokens, hidden]; none where it is not known."""


class Teacher(Protocol):
    def __call__(self, rows: Tensor) -> Said:
        """Of windows of plain text as `data` has them, int64 [windows, length], on the device of the model that learns.

        In training every process asks once for each of its parts of a step, maybe about no window.
        """
        ...


NOTHING = torch.full((1, 2), READ)
"""A window that tells no token."""


@dataclass(frozen=True)
class Online:
    """A dense model, which says all that it knows when it is asked."""

    model: Any

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Said:
        # About no window the model is asked all the same: where its weights are sharded, the others gather them as well.
        rows = rows if len(rows) else NOTHING.to(rows.device)
        given, told = inputs(rows), wanted(rows) >= 0
        output = self.model(**given, output_hidden_states=True)
        likely = output.logits[:, :-1][told].float().log_softmax(-1)
        hidden: Sequence[Tensor] = getattr(output, "hidden_states", None) or ()
        streams = list(hidden[1:])
        if any(stream.shape[:-1] != given["input_ids"].shape for stream in streams):
            streams = []
        del output, hidden  # so that each layer's goes when its copy is there
        for layer, stream in enumerate(streams):
            streams[layer] = stream[:, :-1][told]
        return Said(likely, streams=streams)


@dataclass(frozen=True)
class Remembered:
    """The likeliest next tokens in a file that `remember` has made, mapped into memory; pickled as its path.

    The file's numbers are little-endian. It has: a `HEADER`; `KEY` [windows], rising, the first 16 bytes of each window's
    hash; `START` [windows], where the tokens of each begin; and a record for each token that tells a next one, which is
    k ids, of 2 bytes each (unsigned) if the vocabulary has at most 65,536 pieces, else 4, the likeliest first, and k
    log-probabilities in nats as float16: 4k or 6k bytes a token, and 24 a window.
    """

    path: Path

    def __call__(self, rows: Tensor) -> Said:
        """
        Raises:
            Fault: a window is not in the file.
        """
        keys = _keys(rows)
        places = np.searchsorted(self._keys, keys)
        for row, (key, place) in enumerate(zip(keys, places, strict=True)):
            if place == len(self._keys) or self._keys[place] != key:
                raise Fault(
                    f"window {row} of {len(rows)} is none of the {len(self._keys):,} of which '{self.path}' tells what the "
                    "dense model says of them; this is a fault of LoRAShear, please report it"
                )
        starts, counts = self._starts[places], _told(rows)
        parts = [self._records[at : at + count] for at, count in zip(starts.tolist(), counts.tolist(), strict=True)]
        found = np.concatenate([self._records[:0], *parts])
        ids, likely = (torch.from_numpy(found[name].astype(kind)) for name, kind in (("ids", "i8"), ("likely", "f4")))
        return Said(likely.to(rows.device), ids.to(rows.device))

    def __reduce__(self) -> Any:
        return Remembered, (self.path,)

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self.path, np.uint8, "r")

    @cached_property
    def _header(self) -> Any:
        return self._bytes[: HEADER.itemsize].view(HEADER)[0]

    @cached_property
    def _keys(self) -> np.ndarray:
        return self._bytes[HEADER.itemsize :][: self._header["windows"] * KEY.itemsize].view(KEY)

    @cached_property
    def _starts(self) -> np.ndarray:
        begin = HEADER.itemsize + self._keys.nbytes
        return self._bytes[begin:][: self._header["windows"] * START.itemsize].view(START)

    @cached_property
    def _records(self) -> np.ndarray:
        begin = HEADER.itemsize + self._keys.nbytes + self._starts.nbytes
        return self._bytes[begin:].view(_record(int(self._header["k"]), int(self._header["id_bytes"])))


def remember(
    dense: Callable[[], Any],
    windows: Sequence[Tensor],
    k: int,
    known_by: str,
    dtype: str,
    progress: Progress | None = None,
) -> Remembered:
    """What a dense model says of windows of text: the ``k`` likeliest next tokens, or all where there are fewer.

    They are computed once. The file in the cache, ``teacher/HASH.topk``, appears whole or not at all, and its name is a hash
    of all that decides them, in which the order of the windows does not count.

    Args:
        dense: gives the model, on its device; called only where the file is not there yet.
        windows: token ids [windows, length] each, int64 or narrower ones mapped from disk, padded by `data.PADDING`. Those
            with tokens that are only read are left out: nobody asks about them.
        known_by: the content of the dense model, as a hash.
        dtype: what it computes in, by any name.
        progress: called with ("remember", windows done, windows in all).

    Raises:
        LorashearError: the disk lacks the space, or no folder can be made.
    """
    listed = [(_keys(some), _told(some)) for some in _plain(windows)]
    every = np.concatenate([np.empty(0, KEY), *(keys for keys, _ in listed)])
    keys, first = np.unique(every, return_index=True)
    asked = json.dumps([FORMAT, known_by, dtype, k]).encode()
    path = cache.folder() / "teacher" / f"{hashlib.sha256(asked + keys.tobytes()).hexdigest()}.topk"
    if not path.exists():
        model = dense()
        pieces = vocabulary(model.config)
        id_bytes = 2 if pieces <= 1 << 16 else 4
        k = min(k, pieces)
        fresh = np.zeros(len(every), bool)
        fresh[first] = True
        counts = np.concatenate([np.empty(0, START), *(counts for _, counts in listed)]) * fresh
        header = np.array([(FORMAT, len(keys), k, id_bytes)], HEADER)
        blocks = [header, keys, (counts.cumsum() - counts)[first].astype(START)]
        records = _records(model, windows, fresh, _record(k, id_bytes), progress)
        needed = sum(block.nbytes for block in blocks) + int(counts.sum()) * _record(k, id_bytes).itemsize
        _write(path, blocks, records, needed)
    return Remembered(path)


def _records(
    model: Any, windows: Sequence[Tensor], fresh: np.ndarray, record: np.dtype, progress: Progress | None
) -> Iterator[np.ndarray]:
    """Of those windows of plain text that are ``fresh``, one after another."""
    pieces = vocabulary(model.config)
    done, total, at = 0, int(fresh.sum()), 0
    for some in _plain(windows):
        chosen = some[torch.from_numpy(fresh[at : at + len(some)])]
        at += len(some)
        for rows in chosen.split(batch_size(some.shape[1], pieces)):
            if len(rows):
                yield _asked(model, rows, record)
                done += len(rows)
                if progress:
                    progress("remember", done, total)


def _asked(model: Any, rows: Tensor, record: np.dtype) -> np.ndarray:
    with evaluating(model) as device:
        rows = rows.to(device)
        logits = model(**inputs(rows)).logits[:, :-1][wanted(rows) >= 0].float()
        values, ids = logits.topk(record["ids"].shape[0])
        likely = values - logits.logsumexp(-1, keepdim=True)
        likely = likely.clamp_min(
            torch.finfo(torch.float16).min
        )  # an impossible token has -inf, and 0 · inf is no number
        found = np.empty(len(ids), record)
        found["ids"], found["likely"] = ids.cpu().numpy(), likely.cpu().numpy()
    return found


def _write(path: Path, blocks: list[np.ndarray], records: Iterator[np.ndarray], needed: int) -> None:
    """A file of so many bytes, which appears when it is whole."""
    cache.check_room(
        path.parent, needed, "what the dense model says", "ask for fewer of its likeliest tokens (--distill-top-k)"
    )
    with output_file(path, overwrite=True) as work, NewFile(work) as file:
        for block in blocks:
            file.write(block)
        for some in records:
            file.write(some)
        file.flush()


def _record(k: int, id_bytes: int) -> np.dtype:
    """A token's."""
    return np.dtype([("ids", f"<u{id_bytes}", (k,)), ("likely", "<f2", (k,))])


def _plain(windows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Those windows of which no token is only read, int64 [some, length], few at a time."""
    for each in windows:
        for some in each.split(ROWS_AT_ONCE):
            yield some[(some > READ).all(1)].long()


def _keys(rows: Tensor) -> np.ndarray:
    """What windows are found by: a hash of their int64 token ids, without padding."""
    held = [row[row != PADDING] for row in rows.cpu().numpy().astype("<i8")]
    return np.array([hashlib.sha256(row.tobytes()).digest()[: KEY.itemsize] for row in held], KEY)


def _told(rows: Tensor) -> np.ndarray:
    """How many tokens of each window of plain text are told by those before them."""
    return ((rows != PADDING).sum(1) - 1).cpu().numpy()
