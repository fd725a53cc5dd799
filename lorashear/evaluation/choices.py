"""Multiple choice by log-likelihood: what a model takes to be the likeliest continuation.

Conventions are those of EleutherAI's lm-evaluation-harness, so that the figures are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from lorashear.emission import declared
from lorashear.errors import LorashearError
from lorashear.evaluation.items import Item, Suite
from lorashear.evaluation.pieces import Pieces
from lorashear.evaluation.uncertainty import mean_error
from lorashear.likelihood import LOGIT_BYTES, TOKENS_PER_BATCH, evaluating
from lorashear.text.data import DOCUMENTS_PER_CALL

# What is taken for the number of tokens that a model takes where neither its config nor the tokenizer says it.
DEFAULT_POSITIONS = 2048
# A tokenizer's way to say that it knows of no limit.
NO_LIMIT = int(1e30)

# Tokens that are read, and those that are to be told behind them.
Encoded = tuple[list[int], list[int]]
# What is computed for one sequence: which options it answers, and their last token with those before it.
Wanted = list[tuple[int, list[int]]]


@dataclass(frozen=True, eq=False)
class Choices:
    """``correct`` and ``normalised``: bool, [items], whether the gold option is the first with the largest log-likelihood,
    and the first with the largest a character. ``loglikelihoods``: nats of each option of each item, summed over its tokens.
    ``tokens``: how many were told in all. ``truncated``: options whose beginning did not fit the model's positions.
    """

    correct: np.ndarray
    normalised: np.ndarray
    loglikelihoods: tuple[tuple[float, ...], ...]
    tokens: int
    truncated: int

    @property
    def accuracy(self) -> float:
        """The share of items that are correct."""
        return float(self.correct.mean())

    @property
    def accuracy_error(self) -> float:
        """Its standard error; not a number for one item."""
        return mean_error(self.correct)

    @property
    def accuracy_norm(self) -> float:
        """The share of items that are correct with log-likelihoods a character."""
        return float(self.normalised.mean())

    @property
    def accuracy_norm_error(self) -> float:
        """Its standard error; not a number for one item."""
        return mean_error(self.normalised)


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    pieces: Pieces | None = None,
) -> Choices:
    """How a causal language model answers the first ``limit`` items of a suite, or all.

    An option is encoded as one text, with the special tokens that the tokenizer puts around one, and what goes beyond the
    tokens of its context is scored. White space at the end of a context belongs to the continuation. An empty context is
    the BOS token, or EOS where there is none. What is longer than the model's positions loses its beginning.

    The model stays on its device and in its dtype; log-likelihoods are computed in fp32 and added up in fp64.
    ``progress`` is called with the options that are done, and those there are; what is in ``pieces`` is not computed again.

    Raises:
        LorashearError: ``limit`` is below 1; or an option has no token to read or to tell, or more to tell than the model
            has positions.
    """
    items, most = suite.items[:limit], positions(model, tokenizer)
    encoded = check(model, tokenizer, suite, limit)
    pieces = pieces or Pieces()
    values: dict[int, float] = {index: value for piece in pieces.found for index, value in piece}
    with evaluating(model) as device:
        left = {
            tokens: wanted
            for tokens, wanted in _sequences(encoded, most).items()
            if any(index not in values for index, _ in wanted)
        }
        for batch in _batches(left, declared.vocabulary(model.config)):
            pieces.add(_scored(model, batch, device))
            values.update(pieces.found[-1])
            if progress:
                progress(len(values), len(encoded))
    found = np.array([values[index] for index in range(len(encoded))], np.float64)
    check_finite(found, suite.name)
    counts = [len(item.options) for item in items]
    each = np.split(found, np.cumsum(counts)[:-1])
    return Choices(
        # argmax gives the first of equals
        correct=np.array([values.argmax() == item.gold for values, item in zip(each, items, strict=True)]),
        normalised=np.array(
            [(values / np.array(item.lengths)).argmax() == item.gold for values, item in zip(each, items, strict=True)]
        ),
        loglikelihoods=tuple(tuple(values.tolist()) for values in each),
        tokens=sum(len(told) for _, told in encoded),
        truncated=sum(len(read) + len(told) > most + 1 for read, told in encoded),
    )


def check(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, suite: Suite, limit: int | None = None
) -> list[Encoded]:
    """Every option of the first ``limit`` items, in order, as the tokens of its context and of its continuation.

    Raises:
        LorashearError: as `score`.
    """
    if limit is not None and limit < 1:
        raise LorashearError(f"limit is {limit}; ask for 1 item or more")
    items, most = suite.items[:limit], positions(model, tokenizer)
    encoded = list(_encoded(tokenizer, items, suite.name))
    places = ((number, option) for number, item in enumerate(items, 1) for option in range(1, len(item.options) + 1))
    for (read, told), (number, option) in zip(encoded, places, strict=True):
        where = f"{suite.name}, item {number}, option {option}"
        if not read or not told:
            part = "continuation" if read else "context"
            raise LorashearError(f"{where}: the tokenizer makes no token of its {part}; mend it or drop the item")
        if len(told) > most:
            raise LorashearError(
                f"{where}: its continuation has {len(told):,} tokens and the model {most:,} positions; "
                "drop the item or take a model with more"
            )
    check_known(max((max(read + told) for read, told in encoded), default=0), model.config, suite.name)
    return encoded


def check_known(largest: float, config: Any, name: str) -> None:
    """Refuse a token id that a model has no row for, as where a tokenizer was given more tokens than its model: LorashearError."""
    pieces = declared.vocabulary(config)
    if largest >= pieces:
        raise LorashearError(
            f"{name} has the token id {largest:,}, and the model's ids end at {pieces - 1:,}: give the tokenizer that it was made with"
        )


def check_finite(likelihoods: np.ndarray, name: str) -> None:
    """Refuse what no choice can be made by: LorashearError where a log-likelihood is not a number."""
    if np.isnan(likelihoods).any():
        raise LorashearError(
            f"the model gives no number as the likelihood of choices of {name}: its weights are not finite"
        )


def positions(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a model reads at most: what its config says, or else its tokenizer, or else 2,048."""
    said = declared.positions(model.config)
    if said is not None:
        return said
    return DEFAULT_POSITIONS if tokenizer.model_max_length >= NO_LIMIT else int(tokenizer.model_max_length)


def _encoded(tokenizer: PreTrainedTokenizerBase, items: Iterable[Item], name: str) -> Iterator[Encoded]:
    """Every option of every item, in order."""
    split = [_moved(*option) for item in items for option in item.options]
    bos: Any = tokenizer.bos_token_id
    prefix: Any = tokenizer.eos_token_id if bos is None else bos
    if prefix is None and not all(context for context, _ in split):
        raise LorashearError(
            f"{name} has items without a context, and the tokenizer neither a BOS nor an EOS token to put there; "
            "give a tokenizer that has one"
        )
    start: list[int] = [] if prefix is None else [prefix]
    # A text that begins with the token in letters does not get it twice.
    written = None if prefix is None else str(tokenizer.decode(prefix))
    alone = _ids(tokenizer, (told for context, told in split if not context), lambda _: False)
    texts = (text for context, told in split if context for text in (context, context + told))
    ids = _ids(tokenizer, texts, lambda text: written is None or not text.startswith(written))
    for context, told in split:
        if context:
            read = ids[context]
            yield read, ids[context + told][len(read) :]
        elif alone[told][:1] == start:
            yield start, alone[told][1:]
        else:
            yield start, alone[told]


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of a context goes to the continuation, whose first token it is a part of."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], special: Callable[[str], bool]
) -> Mapping[str, list[int]]:
    """Token ids of each text, encoded once however often it comes, with special tokens where ``special`` says so."""
    found: dict[str, list[int]] = dict.fromkeys(texts, [])
    for add in (True, False):
        some = [text for text in found if special(text) is add]
        for start in range(0, len(some), DOCUMENTS_PER_CALL):
            part = some[start : start + DOCUMENTS_PER_CALL]
            # verbose=False: one longer than the model's context is no reason for a warning, it will be cut.
            rows = tokenizer(
                part, add_special_tokens=add, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )["input_ids"]
            found.update(zip(part, rows, strict=True))
    return found


def _sequences(encoded: list[Encoded], most: int) -> dict[tuple[int, ...], Wanted]:
    """What goes through the model, the longest first, each once: options that differ in their last token share one."""
    found: dict[tuple[int, ...], Wanted] = {}
    for index, (read, told) in enumerate(encoded):
        found.setdefault(tuple((read + told)[-(most + 1) : -1]), []).append((index, told))
    return dict(sorted(found.items(), key=lambda pair: (-len(pair[0]), pair[0])))


Batch = list[tuple[tuple[int, ...], Wanted]]


def _batches(sequences: Mapping[tuple[int, ...], Wanted], vocabulary: int) -> Iterator[Batch]:
    """As many sequences at a time as keep the logits that are wanted, and the tokens, few enough."""
    batch: Batch = []
    width = kept = 0
    for tokens, wanted in sequences.items():
        width = width or len(tokens)
        kept = max(kept, _kept(width, tokens, wanted))
        rows = len(batch) + 1
        if batch and (rows * width > TOKENS_PER_BATCH or rows * kept * vocabulary * 4 > LOGIT_BYTES):
            yield batch
            batch, width = [], len(tokens)
            kept = _kept(width, tokens, wanted)
        batch.append((tokens, wanted))
    if batch:
        yield batch


def _kept(width: int, tokens: tuple[int, ...], wanted: Wanted) -> int:
    """How many positions from the end of a batch's width back to the first whose logits a sequence needs."""
    return width - len(tokens) + max(len(told) for _, told in wanted)


def _scored(model: Any, batch: Batch, device: torch.device) -> list[tuple[int, float]]:
    """Log-likelihoods of the options of a batch, in nats."""
    width = len(batch[0][0])
    ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens, _ in batch], device=device)
    given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if len(batch[-1][0]) < width:
        lengths = torch.tensor([len(tokens) for tokens, _ in batch], device=device)
        given["attention_mask"] = (torch.arange(width, device=device) < lengths[:, None]).long()
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        given["logits_to_keep"] = max(_kept(width, *row) for row in batch)
    logits: torch.Tensor = model(**given).logits
    left_out = width - logits.shape[1]
    indices: list[int] = []
    sums: list[torch.Tensor] = []
    for row, (tokens, wanted) in zip(logits, batch, strict=True):
        end = len(tokens) - left_out
        for index, told in wanted:
            targets = torch.tensor(told, device=device)
            losses = functional.cross_entropy(row[end - len(told) : end].float(), targets, reduction="none")
            indices.append(index)
            sums.append(-losses.double().sum())
    return list(zip(indices, torch.stack(sums).tolist(), strict=True))
