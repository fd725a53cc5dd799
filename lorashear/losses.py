"""What training learns from: the text, and beside it what the dense model says: its next tokens and its residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lorashear.data import PADDING, inputs, wanted

STREAM = 10.0
"""Weight of the distance beside the divergence, when training begins; it fades with the square of what is left."""
LEAST = -40.0
"""Log-probability below which nothing is told apart in float32."""


@dataclass(frozen=True)
class Said:
    """What a dense model says of windows: log-probabilities of next tokens, [windows, length - 1, pieces], of all of its
    vocabulary, or of the ``pieces`` with these numbers; and its residual stream behind every layer, where that is known."""

    likely: Tensor
    pieces: Tensor | None = None
    stream: Sequence[Tensor] = ()


class Teacher(Protocol):
    """A dense model to stay close to."""

    def __call__(self, rows: Tensor) -> Said:
        """Of windows of token ids, int64 [windows, length], padded by `data.PADDING`, as long as the longest of them."""
        ...


@dataclass(frozen=True)
class Losses:
    """Of windows, means over all tokens that are told. ``text`` is the cross-entropy and ``divergence`` KL(dense ‖ model) of the
    next token, in nats; ``distance`` is that of the residual stream, ‖h − H‖² / ‖H‖² where H is the dense model's, a mean over
    the layers as well. Windows with tokens that are only read learn from the text alone: they count as zero in the last two, and
    ``taught`` is the part of ``text`` that the other ones have.

    So those of a batch are the sums of those of its parts, each by its share of the tokens.
    """

    text: Tensor
    divergence: Tensor | None = None
    distance: Tensor | None = None
    taught: Tensor | None = None

    def total(self, distill: float, done: float) -> Tensor:
        """What is made smaller when this share of the steps is ``done``: the dense model has the share ``distill`` of it.

        Its stream leads at first. At the end the next token alone counts: what has too little room left for all of the
        dense model's stream does better along another one.
        """
        if self.divergence is None or self.taught is None:
            return self.text
        dense = self.divergence
        if self.distance is not None:
            dense = dense + STREAM * (1 - done) ** 2 * self.distance
        return self.text + distill * (dense - self.taught)


def losses(model: torch.nn.Module, teacher: Teacher | None, rows: Tensor) -> Losses:
    """Of windows of token ids, int64 [windows, length], padded by `data.PADDING`.

    Without a teacher, or where it has nothing to say, only that of the text; and no distance where the streams have other
    shapes.
    """
    taught = (rows >= PADDING).all(1)
    asked = teacher if bool(taught.any()) else None
    targets = wanted(rows)
    ours = model(**inputs(rows), output_hidden_states=asked is not None)
    logits = ours.logits[:, :-1].float()
    nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    every = (targets >= 0).sum()
    text = nll.sum() / every
    if asked is None:
        return Losses(text)
    with torch.no_grad():
        said = asked(rows[taught])
    told = targets[taught][:, : said.likely.shape[1]] >= 0
    share = told.sum() / every
    mine = logits[taught][:, : said.likely.shape[1]][told]
    each = _divergence(mine, said.likely[told], None if said.pieces is None else said.pieces[told])
    streams = [hidden[taught][:, : told.shape[1] + 1] for hidden in getattr(ours, "hidden_states", None) or ()]
    distance = _distance(streams[1:], said.stream, told)
    return Losses(
        text,
        each.mean() * share,
        None if distance is None else distance * share,
        nll[taught].sum() / every,
    )


def _divergence(logits: Tensor, likely: Tensor, pieces: Tensor | None) -> Tensor:
    """KL(dense ‖ model) of each token, in nats, from logits [tokens, vocabulary].

    Where some pieces alone are known, all others count as one, so that it is a lower bound: what is known of two distributions
    does not come to differ more by looking at less of it.
    """
    if pieces is None:
        return functional.kl_div(logits.log_softmax(-1), likely, reduction="none", log_target=True).sum(-1)
    whole = logits.logsumexp(-1, keepdim=True)
    mine = logits.gather(-1, pieces) - whole
    others = (logits.scatter(-1, pieces, -torch.inf).logsumexp(-1) - whole[:, 0]).clamp_min(LEAST)
    rest = (1 - likely.exp().sum(-1)).clamp_min(0)
    return (likely.exp() * (likely - mine)).sum(-1) + rest * (rest.clamp_min(1e-30).log() - others)


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor], told: Tensor) -> Tensor | None:
    """Of what lies behind every layer, [windows, length, hidden] each."""
    shapes = [each.shape for each in ours]
    if not shapes or shapes != [each.shape for each in theirs] or shapes[0][:-1] != (len(told), told.shape[1] + 1):
        return None
    parts: list[Tensor] = []
    for mine, dense in zip(ours, theirs, strict=True):
        mine, dense = mine[:, :-1][told].float(), dense[:, :-1][told].float()
        parts.append(((mine - dense).square().sum(-1) / dense.square().sum(-1).clamp_min(1e-12)).mean())
    return torch.stack(parts).mean()
