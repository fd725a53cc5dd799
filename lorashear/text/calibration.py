"""A user's text, dealt out: windows to calibrate on, that choose between splits, that judge the result, to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from lorashear import likelihood
from lorashear.config import Settings, Training
from lorashear.emission.declared import positions
from lorashear.errors import LorashearError
from lorashear.terminal.stages import Progress
from lorashear.text import data
from lorashear.text.corpus import Corpus
from lorashear.text.instructions import instruction_windows
from lorashear.text.subsets import INSTRUCTIONS, Source, Sources
from lorashear.text.windows_file import Mapped, sampled_windows
from lorashear_passes.walk import Batch

EVALUATION_TOKENS = 32_768
HELD_OUT = 16
"""Windows of each subset, at least, where there is enough: what it has lost is measured on them."""
GUARD_SHARE = 4  # one window chooses between splits for each four that are calibrated on
BATCH_WINDOWS = 16  # no larger, so that a trial can take a few of them


@dataclass(frozen=True)
class Subset:
    """Windows of one part of the text, int64 [windows, context], `data.PADDING` behind the last of a document that is a window
    of its own: those to train on, and others to see how well that went. Of a large corpus those to train on are narrower
    integers and lie on disk (see `sampled_windows`); `data.inputs` makes batches of either."""

    name: str
    training: torch.Tensor
    heldout: torch.Tensor
    mapped: Mapped | None = None
    """Where those to train on lie, if they do."""

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which maps what lies on disk itself."""
        if self.mapped:
            return _mapped, (self.name, self.heldout, self.mapped)
        return Subset, (self.name, self.training, self.heldout)


def _mapped(name: str, heldout: torch.Tensor, mapped: Mapped) -> Subset:
    return Subset(name, mapped.rows(), heldout, mapped)


@dataclass(frozen=True)
class Windows:
    """Token ids, as those of a `Subset`; no window is in two of them, but that those held out of the subsets are ``guard`` as
    well. All but ``calibration`` may be empty."""

    calibration: torch.Tensor
    guard: torch.Tensor
    evaluation: torch.Tensor
    subsets: tuple[Subset, ...]
    instructions: Subset | None = None
    """Of a question and its answers each, of which only those are told."""
    examples: Mapping[str, int] | None = None
    """Of instructions: how many were read, and of them left out or cut."""

    @property
    def context(self) -> int:
        return self.evaluation.shape[1]

    @property
    def every(self) -> tuple[Subset, ...]:
        """Of text and of instructions."""
        return (*self.subsets, self.instructions) if self.instructions else self.subsets

    def digest(self) -> str:
        """A hash of all of them."""
        found = hashlib.sha256()
        kept = [(subset.name, part) for subset in self.every for part in (subset.training, subset.heldout)]
        for name, part in [("", self.calibration), ("", self.guard), ("", self.evaluation), *kept]:
            found.update(f"{name} {tuple(part.shape)}".encode())
            for rows in part.split(data.ROWS_AT_ONCE):  # they may be more than memory takes
                found.update(rows.long().contiguous().numpy().tobytes())
        return found.hexdigest()


def read_windows(
    folder: Path,
    config: PreTrainedConfig,
    texts: Sources,
    settings: Training,
    progress: Progress | None = None,
    instruct: Sequence[Source] = (),
) -> Windows:
    """Windows of the texts (see `Corpus.of`), dealt out at random by the seed; where a subset is short each use gets its
    share of it, and training half. What is not trained on does not depend on whether there is training, unless the text is
    short. All subsets are calibrated and judged on alike; nothing is calibrated where only training is asked for.

    Raises:
        LorashearError: no text, no tokenizer, less than one window, or a context that the model does not have.
    """
    corpora = {name: Corpus.of(sources) for name, sources in texts.items()}  # all are looked at before one is read
    tokenizer = read_tokenizer(folder)
    length, count = window_length(config, settings), max(1, len(corpora))
    calibrated = settings.windows if isinstance(settings, Settings) else 0
    guard = -(-calibrated // GUARD_SHARE) or HELD_OUT
    evaluation = -(-EVALUATION_TOKENS // (length - 1))
    wanted = (
        -(-calibrated // count),
        max(-(-guard // count), min(guard, HELD_OUT)),
        -(-evaluation // count),
    )
    parts: list[list[torch.Tensor]] = []
    subsets: list[Subset] = []
    for name, corpus in corpora.items():
        with _said_of(name, among=count):
            dealt, training, mapped = _dealt(tokenizer, corpus, length, wanted, settings, progress)
        parts.append(dealt)
        subsets.append(Subset(name, training, dealt[1], mapped))
    none = torch.empty(0, length, dtype=torch.int64)
    every = [torch.cat([none, *(dealt[use] for dealt in parts)]) for use in range(len(wanted))]
    if not instruct:
        return Windows(*every, subsets=tuple(subsets))
    found = instruction_windows(tokenizer, instruct, length)
    counts = {"examples": found.examples, "left_out": found.left_out, "cut": found.cut}
    return Windows(*every, subsets=tuple(subsets), instructions=held_out(found.rows, settings.seed), examples=counts)


@contextmanager
def _said_of(name: str, among: int) -> Iterator[None]:
    """What is wrong is said of the subset, where there are several."""
    try:
        yield
    except LorashearError as error:
        raise LorashearError(f"{name}: {error}") if among > 1 else error from error


def read_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Raises LorashearError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise LorashearError(
            f"no tokenizer can be read from '{folder}', and text needs one (transformers says: {said})"
        ) from error


def _dealt(
    tokenizer: Any,
    corpus: Corpus,
    length: int,
    wanted: Sequence[int],
    settings: Training,
    progress: Progress | None,
) -> tuple[list[torch.Tensor], torch.Tensor, Mapped | None]:
    """As many windows as each use wants, those to train on, and where these lie, if they do."""
    training = -(-(settings.tokens or 0) // length)
    request: Any = (length, sum(wanted), training, settings.seed)
    mapped = None
    if corpus.fits:
        found, others = data.windows_and_others(tokenizer, corpus.read(), *request, packed=settings.packed)
    else:
        found, mapped = sampled_windows(tokenizer, corpus, *request, packed=settings.packed, progress=progress)
        others = mapped.rows()
        if len(others):  # a few that are in memory as well would bring all of them there
            training = min(training, len(others))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(settings.seed))
    every = len(found) + len(others)
    fixed = min(len(found), every - min(training, every // 2))
    ends = [0]
    for use in wanted[:-1]:  # nothing can be chosen without; the last one gets what is left
        ends.append(ends[-1] + (max(1, round(fixed * use / sum(wanted))) if use else 0))
    ends.append(max(fixed, ends[-1]))
    dealt = [found[order[first:last].sort().values] for first, last in pairwise(ends)]
    spare = found[order[ends[-1] :].sort().values]
    if settings.tokens and not len(others) + len(spare):
        raise LorashearError(
            f"the text has {'one window' if every == 1 else f'{every:,} windows'} of {length} tokens, and none is left to train on; give more text"
        )
    if mapped and len(others):
        return dealt, others, mapped
    return dealt, torch.cat([others, spare]), None


def held_out(rows: torch.Tensor, seed: int) -> Subset:
    """Instructions, some of them not to be trained on."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    out = min(HELD_OUT, len(rows) // 2)
    if not out:
        raise LorashearError("the instruction data has one example, and none is left to train on: give more")
    return Subset(INSTRUCTIONS, rows[order[out:]], rows[order[:out]])


def window_length(config: PreTrainedConfig, settings: Training) -> int:
    """Tokens in a window. Raises LorashearError where the model does not have as many positions."""
    most = positions(config) or 512
    length = settings.context or min(most, 512)
    if length > most:
        raise LorashearError(
            f"context is {length}, but the model's positions end at {most}: pass a smaller one (--context)"
        )
    return length


def batches(windows: torch.Tensor, vocabulary: int, device: str) -> list[Batch]:
    """Windows as the arguments of a model's forward."""
    size = min(likelihood.batch_size(windows.shape[1], vocabulary), BATCH_WINDOWS)
    return [data.inputs(rows.to(device)) for rows in windows.split(size) if len(rows)]
