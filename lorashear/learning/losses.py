"""What training learns from: the text, and beside it the dense model's next tokens and its residual stream.

Instruction data, whose windows have tokens that are only read, is learned from its own text alone: the dense model was not
tuned to it. Windows of plain text are learned from the dense model as well. A batch may hold both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lorashear.learning.teaching import Said, Teacher
from lorashear.text.data import READ, inputs, wanted

STREAM = 10.0
"""Weight of the distance beside the divergence, when training begins; it fades with the square of what is left."""
REST = 1e-6
"""The least probability of all tokens together that are none of the likeliest: float32 tells 1 - p no closer."""


@dataclass(frozen=True)
class Losses:
    """Means over all tokens of the windows that tell a next one, to which windows that the dense model says nothing of add
    zero, but for ``text``. So the losses of a batch are those of its parts, each weighed by how many tokens it tells.

    ``text`` is the cross-entropy and ``divergence`` KL(dense ‖ model) of the next token, in nats; ``distance`` is that of the
    residual stream, ‖h − H‖² / ‖H‖² where H is the dense model's, a mean over the layers as well. ``taught`` is the share
    in ``text`` of the windows that the dense model speaks of.
    """

    text: Tensor
    taught: Tensor | None = None
    divergence: Tensor | None = None
    distance: Tensor | None = None

    def total(self, distill: float, done: float) -> Tensor:
        """What is made smaller when this share of the steps is ``done``: of the windows that it speaks of, the dense model
        has the share ``distill``; of the others the text is all.

        Its stream leads at first. At the end the next token alone counts: what has too little room left for all of the
        dense model's stream does better along another one.
        """
        if self.taught is None or self.divergence is None:
            return self.text
        dense = self.divergence
        if self.distance is not None:
            dense = dense + STREAM * (1 - done) ** 2 * self.distance
        return self.text - self.taught + torch.lerp(self.taught, dense, distill)


def losses(model: torch.nn.Module, teacher: Teacher | None, rows: Tensor) -> Losses:
    """Of windows of token ids, int64 [windows, length], padded by `data.PADDING`.

    Without a teacher, only that of the text; and no distance where it does not say the streams, or they have other shapes.
    """
    targets = wanted(rows)
    told = targets >= 0
    plain = (rows > READ).all(1)
    said = teacher(rows[plain]) if teacher else None
    ours = model(**inputs(rows), output_hidden_states=said is not None and bool(said.streams))
    mine = ours.logits[:, :-1][told].float().log_softmax(-1)
    count = max(1, len(mine))
    text = -mine.gather(-1, targets[told][:, None]).squeeze(-1)
    if said is None:
        return Losses(text.sum() / count)
    taught = plain[:, None].expand_as(told)[told]
    divergence = _divergence(mine if bool(taught.all()) else mine[taught], said)
    streams = (getattr(ours, "hidden_states", None) or ())[1:]
    distance = _distance(streams, said.streams, told & plain[:, None])
    return Losses(
        text.sum() / count,
        text[taught].sum() / count,
        divergence.sum() / count,
        None if distance is None else distance / count,
    )


def _divergence(mine: Tensor, said: Said) -> Tensor:
    """KL(dense ‖ model) of each token, from the model's log-probabilities [tokens, vocabulary].

    Where only the likeliest tokens are known, all others count as one. To group what can happen makes no divergence larger
    (the data-processing inequality; Cover and Thomas, Elements of Information Theory, 2.8): it is a lower bound, and the
    closer, the less is left to the others.
    """
    dense = said.likely
    if said.ids is not None:
        mine = _with_rest(mine.gather(-1, said.ids))
        dense = _with_rest(dense).log_softmax(-1)  # rounded ones do not add up to one
    return functional.kl_div(mine, dense, reduction="none", log_target=True).sum(-1)


def _with_rest(likely: Tensor) -> Tensor:
    """Log-probabilities [tokens, k], and behind them that of all other tokens together, log(1 - p)."""
    together = likely.logsumexp(-1, keepdim=True).clamp_max(-REST)
    return torch.cat([likely, (-together.expm1()).log()], -1)


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor], taught: Tensor) -> Tensor | None:
    """The sum over the tokens that are ``taught``, [windows, length - 1]: of what lies behind every layer, ours as [windows,
    length, hidden] and theirs as [tokens, hidden]."""
    windows, length = taught.shape
    if not theirs or [each.shape for each in ours] != [(windows, length + 1, each.shape[-1]) for each in theirs]:
        return None
    parts: list[Tensor] = []
    for stream, dense in zip(ours, theirs, strict=True):
        mine, dense = stream[:, :-1][taught].float(), dense.float()
        parts.append(((mine - dense).square().sum(-1) / dense.square().sum(-1).clamp_min(1e-12)).sum())
    return torch.stack(parts).mean()
