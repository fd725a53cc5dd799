"""Questions and answers to windows of token ids: the answers are learned, all else is only read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lorashear.errors import LorashearError
from lorashear.text.data import DOCUMENTS_PER_CALL, READ, padded
from lorashear.text.dialogues import Dialogue, read_dialogues

DATE = "26 Jul 2024"
"""For templates that write a day: the one that LLaMA 3's own fall back on, and not today's, or a run could not go on tomorrow."""


@dataclass(frozen=True, eq=False)
class Instructions:
    """Examples as token ids, and what became of those that are longer than a window."""

    rows: torch.Tensor
    """int64 on the CPU, [windows, length], as `data.inputs` and `data.wanted` take them: a token n of an answer as it is, one
    that is only read as `data.READ` - n, and `data.PADDING` behind the last."""
    examples: int
    """How many were read: a window each, but see `instruction_windows` for templates that rewrite what was said."""
    left_out: int
    """Those of which no window has a token of an answer: it is empty, or the question alone fills the window."""
    cut: int
    """Those of the others whose end does not fit."""


def instruction_windows(
    tokenizer: PreTrainedTokenizerBase, paths: Sequence[str | Path] | str | Path, length: int
) -> Instructions:
    """Windows of ``length`` tokens, an example each, of what is given (see `read_dialogues` for what it may be).

    A tokenizer with a chat template writes every example with it, Alpaca's input two lines below its instruction in the
    turn of the user; its special tokens are those that the template writes. To learn of a turn of the assistant is what
    follows the prompt that asks for it, the mark of its end included. Where the template writes what was said before
    differently once the dialogue has gone on, as without the reasoning, the turns from there on are another window: each
    answer is learned behind what the model reads when it is to give it.

    Without a chat template, Alpaca's fields become the prompts that Stanford Alpaca was trained with (`dialogues.ALPACA`),
    and ``prompt`` and ``completion`` stay as they are. Before them is the token that `data.pack` puts before a document,
    behind them EOS, where the tokenizer has it.

    Raises:
        LorashearError: as `read_dialogues`; a conversation, but no chat template; a template that refuses an example or
            does not continue its own prompt; or no example has a token of an answer within ``length``.
    """
    if length < 2:
        raise LorashearError(f"a context of {length} tokens leaves nothing to predict; give 2 or more")
    rows: list[np.ndarray] = []
    examples = left_out = cut = 0
    source = read_dialogues(paths)
    while some := list(islice(source, DOCUMENTS_PER_CALL)):
        for runs in _token_runs(tokenizer, some):
            kept = [run[:length] for run in runs if (run[1:length] >= 0).any()]
            examples += 1
            left_out += not kept
            cut += bool(kept) and any(len(run) > length for run in runs)
            rows += kept
    if not rows:
        raise LorashearError(
            f"none of the {examples:,} examples has a token of its answer within a context of {length:,} tokens; "
            "give a larger context or shorter questions"
        )
    return Instructions(padded(rows, length), examples, left_out, cut)


def _token_runs(tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Dialogue]) -> Iterator[list[np.ndarray]]:
    """The windows of each dialogue, uncut."""
    templated = bool(tokenizer.chat_template)
    write = _templated if templated else _plain
    written = [list(write(tokenizer, one)) if one.answers else [] for one in dialogues]
    ids = iter(_ids(tokenizer, [window for windows in written for window in windows]))
    for windows in written:
        runs = [next(ids) for _ in windows]
        yield [_joined(run if templated else _bounded(tokenizer, run)) for run in runs]


def _plain(_: PreTrainedTokenizerBase, dialogue: Dialogue) -> Iterator[list[str]]:
    if dialogue.plain is None:
        raise LorashearError(
            f"{dialogue.where}: a conversation, but the tokenizer has no chat template to write it with; "
            'give a tokenizer that has one, or data with the fields "instruction" and "output"'
        )
    yield list(dialogue.plain)


def _templated(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue) -> Iterator[list[str]]:
    """A window as texts that are read and learned by turns; several where the template rewrites what it wrote before."""
    window: list[str] = []
    for at in dialogue.answers:
        prompt = _rendered(tokenizer, dialogue, at, add_generation_prompt=True)
        whole = _rendered(tokenizer, dialogue, at + 1)
        if not whole.startswith(prompt) or whole == prompt:
            raise LorashearError(
                f"{dialogue.where}: the tokenizer's chat template does not write turn {at + 1} behind the prompt that asks "
                "for it, so that it cannot be told what is to be learned; give a template that continues its prompt"
            )
        before = "".join(window)
        if not prompt.startswith(before):
            yield window
            window, before = [], ""
        window += [prompt[len(before) :], whole[len(prompt) :]]
    yield window


def _rendered(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue, turns: int, **how: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(dialogue.turns[:turns], tokenize=False, date_string=DATE, **how))
    except Exception as error:  # a template is a program that came with the tokenizer
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LorashearError(f"{dialogue.where}: the tokenizer's chat template refuses it: {reason}") from error


def _ids(tokenizer: PreTrainedTokenizerBase, windows: Sequence[list[str]]) -> Iterator[list[list[int]]]:
    """Token ids of each text of each window, apart: to give an answer, a model is given the tokens of the prompt alone."""
    alone = iter(_tokens(tokenizer, [text for window in windows for text in window]))
    joined = iter(_tokens(tokenizer, [before + text for window in windows for before, text in pairwise(window)]))
    for window in windows:
        each = [next(alone) for _ in window]
        yield each[:1] + [_behind(before, next(joined), text) for before, text in pairwise(each)]


def _behind(before: list[int], joined: list[int], text: list[int]) -> list[int]:
    """A text's tokens behind those of the one before it, as they are where the two are tokenised as one.

    Some tokenizers begin whatever they are given with a space, which is none of the answer's. But where a token reaches
    over the boundary, no model would come to tell it.
    """
    return joined[len(before) :] if joined[: len(before)] == before else text


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # verbose=False: one longer than the model's context is no reason for a warning, it will be cut.
    return tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]


def _bounded(tokenizer: PreTrainedTokenizerBase, run: list[list[int]]) -> list[list[int]]:
    """A question and its answer with the token of a document's boundary before them and EOS behind, each once."""
    question, answer = run
    bos: Any = tokenizer.bos_token_id
    eos: Any = tokenizer.eos_token_id
    boundary = eos if bos is None else bos
    if boundary is not None and question[:1] != [boundary]:
        question = [boundary, *question]
    if eos is not None and answer[-1:] != [eos]:
        answer = [*answer, eos]
    return [question, answer]


def _joined(run: list[list[int]]) -> np.ndarray:
    """Tokens that are read and learned by turns, as they stand in a window: int64, one dimension."""
    parts = [np.asarray(ids, np.int64) for ids in run]
    return np.concatenate([part if at % 2 else READ - part for at, part in enumerate(parts)])
