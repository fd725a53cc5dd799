"""A user's text, dealt out: windows to calibrate on, that choose between splits, that judge the result, to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from lorashear import data, evaluate
from lorashear.config import Settings
from lorashear.corpus import Corpus
from lorashear.errors import LorashearError
from lorashear.stages import Progress
from lorashear.windows_file import Mapped, sampled_windows
from lorashear_passes.walk import Batch

EVALUATION_TOKENS = 32_768
GUARD_SHARE = 4  # one window chooses between splits for each four that are calibrated on
BATCH_WINDOWS = 16  # no larger, so that a trial can take a few of them


@dataclass(frozen=True)
class Windows:
    """Token ids, int64 [windows, context], `data.PADDING` behind the last of a document that is a window of its own; no
    window is in two of them, and all but ``calibration`` may be empty. Of a large corpus those to train on are narrower
    integers and lie on disk (see `sampled_windows`); `data.inputs` makes batches of either."""

    calibration: torch.Tensor
    guard: torch.Tensor
    evaluation: torch.Tensor
    training: torch.Tensor
    mapped: Mapped | None = None
    """Where those to train on lie, if they do."""

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which maps what lies on disk itself."""
        parts = self.calibration, self.guard, self.evaluation
        return (_mapped, (*parts, self.mapped)) if self.mapped else (Windows, (*parts, self.training))

    @property
    def context(self) -> int:
        return self.calibration.shape[1]


def _mapped(calibration: torch.Tensor, guard: torch.Tensor, evaluation: torch.Tensor, mapped: Mapped) -> Windows:
    return Windows(calibration, guard, evaluation, mapped.rows(), mapped)


def read_windows(
    folder: Path,
    config: PreTrainedConfig,
    texts: Sequence[str | Path],
    settings: Settings,
    progress: Progress | None = None,
) -> Windows:
    """Windows of the texts (see `Corpus.of`), dealt out at random by the seed; where the text is short each use gets its
    share of it, and training half. What is not trained on does not depend on whether there is training, unless the text is
    short.

    Raises:
        LorashearError: no text, no tokenizer, less than one window, or a context that the model does not have.
    """
    corpus = Corpus.of(texts)
    documents = corpus.read() if corpus.fits else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise LorashearError(f"no tokenizer can be read from '{folder}', and text needs one: {error}") from error
    length = window_length(config, settings)
    guard = -(-settings.windows // GUARD_SHARE)
    evaluation = -(-EVALUATION_TOKENS // (length - 1))
    wanted = settings.windows + guard + evaluation
    training = -(-(settings.tokens or 0) // length)
    request: Any = (length, wanted, training, settings.seed)
    mapped = None
    if documents is not None:
        found, others = data.windows_and_others(tokenizer, documents, *request, packed=settings.packed)
    else:
        found, mapped = sampled_windows(tokenizer, corpus, *request, packed=settings.packed, progress=progress)
        others = mapped.rows()
        if len(others):  # a few that are in memory as well would bring all of them there
            training = min(training, len(others))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(settings.seed))
    every = len(found) + len(others)
    fixed = min(len(found), every - min(training, every // 2))
    first = max(1, round(fixed * settings.windows / wanted))
    second = first + max(1, round(fixed * guard / wanted))  # nothing can be chosen without
    parts = (order[:first], order[first:second], order[second:fixed], order[fixed:])
    calibration, guarding, evaluation, spare = (found[part.sort().values] for part in parts)
    if settings.tokens and not len(others) + len(spare):
        raise LorashearError(
            f"the text has one window of {length} tokens, and none is left to train on; give more text"
        )
    if mapped and len(others):
        return Windows(calibration, guarding, evaluation, others, mapped)
    return Windows(calibration, guarding, evaluation, torch.cat([others, spare]))


def window_length(config: PreTrainedConfig, settings: Settings) -> int:
    """Tokens in a window. Raises LorashearError where the model does not have as many positions."""
    most = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 512)
    length = settings.context or min(most, 512)
    if length > most:
        raise LorashearError(f"context is {length}, but the model's positions end at {most}")
    return length


def batches(windows: torch.Tensor, vocabulary: int, device: str) -> list[Batch]:
    """Windows as the arguments of a model's forward."""
    size = min(evaluate.batch_size(windows.shape[1], vocabulary), BATCH_WINDOWS)
    return [data.inputs(rows.to(device)) for rows in windows.split(size) if len(rows)]
