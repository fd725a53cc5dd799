"""Dense models that teach: one that is there, and one whose likeliest next tokens lie in a file, so that it need not be."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorashear import cache
from lorashear.data import PADDING, inputs
from lorashear.errors import Fault, LorashearError
from lorashear.evaluate import batch_size, evaluating
from lorashear.losses import Said
from lorashear.output import NewFile, output_file
from lorashear.stages import Progress

FORMAT = 1
"""Part of what a file is found by: counts up when its content changes."""


class Online:
    """A dense model that is there: it says all that it knows."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, rows: Tensor) -> Said:
        found = self.model(**inputs(rows), output_hidden_states=True)
        stream = tuple(getattr(found, "hidden_states", None) or ())[1:]
        return Said(found.logits[:, :-1].float().log_softmax(-1), None, stream)


@dataclass(frozen=True)
class Kept:
    """A file with what a dense model says of windows of ``length`` tokens: for each token but the last the ``k`` likeliest next
    ones, as int32, and their log-probabilities, as float16: 6 k bytes a token."""

    path: Path
    length: int
    k: int

    @property
    def dtype(self) -> np.dtype:
        """Of a window."""
        shape = (self.length - 1, self.k)
        return np.dtype([("pieces", np.int32, shape), ("likely", np.float16, shape)])


class Remembered:
    """A dense model as a file has it. It says the likeliest next tokens of the windows that the file was made of, and no stream."""

    def __init__(self, kept: Kept, windows: Sequence[Tensor]) -> None:
        self._said = np.memmap(kept.path, kept.dtype, "r")
        self._at = {_known(row): number for number, row in enumerate(_plain(windows))}

    def __call__(self, rows: Tensor) -> Said:
        try:
            said = self._said[[self._at[_known(row)] for row in rows.cpu()]]
        except KeyError:
            raise Fault("a window is trained on that the dense model was not asked of: please report this") from None
        longest = int((rows != PADDING).sum(1).max()) - 1
        pieces, likely = (torch.from_numpy(said[name][:, :longest].copy()) for name in ("pieces", "likely"))
        return Said(likely.float().to(rows.device), pieces.long().to(rows.device))


def remember(dense: Any, windows: Sequence[Tensor], k: int, known_by: str, progress: Progress | None = None) -> Kept:
    """Ask a dense model for the likeliest next tokens of all windows but those with tokens that are only read, once: a file in the
    cache that appears whole or not at all, and is there for who asks again.

    Args:
        dense: gives the model; called only where it has to be asked.
        windows: token ids, [windows, length] each, one length for all.
        k: how many next tokens, at most the vocabulary.
        known_by: what the dense model's weights, and the dtype it computes in, are known by.
        progress: called with ("teach", windows done, windows in all).

    Raises:
        LorashearError: the disk lacks the space.
    """
    length = windows[0].shape[1]
    found = hashlib.sha256(json.dumps([FORMAT, known_by, k, length]).encode())
    for row in _plain(windows):
        found.update(_known(row))
    kept = Kept(cache.folder() / "teacher" / f"{found.hexdigest()}.bin", length, k)
    if not kept.path.exists():
        total = sum(1 for _ in _plain(windows))
        _check_room(kept, total)
        with output_file(kept.path, overwrite=True) as work, NewFile(work) as file:
            done = 0
            for said in _said(dense(), list(_plain(windows)), kept):
                file.write(said.view(np.uint8))
                done += len(said)
                if progress:
                    progress("teach", done, total)
            file.flush()
    return kept


def _said(model: Any, rows: Sequence[Tensor], kept: Kept) -> Iterator[np.ndarray]:
    size = batch_size(kept.length, int(model.config.get_text_config().vocab_size))
    for start in range(0, len(rows), size):
        some = torch.stack([row.long() for row in rows[start : start + size]])
        found = np.zeros(len(some), kept.dtype)
        with evaluating(model) as device:
            likely = model(**inputs(some.to(device))).logits[:, :-1].float().log_softmax(-1)
            most = likely.topk(min(kept.k, likely.shape[-1]), dim=-1)
        shape = most.values.shape
        found["likely"][:, : shape[1], : shape[2]] = most.values.cpu().numpy()
        found["pieces"][:, : shape[1], : shape[2]] = most.indices.cpu().numpy()
        yield found


def _plain(windows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Those windows of which all tokens are told."""
    for each in windows:
        yield from (row for row in each if bool((row >= PADDING).all()))


def _known(row: Tensor) -> bytes:
    """What a window is known by."""
    return hashlib.blake2b(row.long().contiguous().numpy().tobytes(), digest_size=16).digest()


def _check_room(kept: Kept, windows: int) -> None:
    folder, needed = kept.path.parent, windows * kept.dtype.itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise LorashearError(
            f"what the dense model says is kept in '{folder}', which cannot be made ({error.strerror}); set LORASHEAR_CACHE "
            "to another folder"
        ) from None
    if free < needed:
        raise LorashearError(
            f"what the dense model says needs {needed / 1e9:.2f} GB in '{folder}', but only {free / 1e9:.2f} GB are free "
            "there; make room, ask for fewer tokens or a smaller distill_top_k, or set LORASHEAR_CACHE to another folder"
        )
