"""What training learns from: the text, and beside it the dense model's next tokens and its residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lorashear.data import inputs, wanted

STREAM = 10.0
"""Weight of the distance beside the divergence, when training begins; it fades with the square of what is left."""


@dataclass(frozen=True)
class Losses:
    """Means over all tokens of the windows that tell a next one. ``text`` is the cross-entropy and ``divergence`` KL(dense ‖ model)
    of the next token, in nats; ``distance`` is that of the residual stream, ‖h − H‖² / ‖H‖² where H is the dense model's, a
    mean over the layers as well."""

    text: Tensor
    divergence: Tensor | None = None
    distance: Tensor | None = None

    def total(self, distill: float, done: float) -> Tensor:
        """What is made smaller when this share of the steps is ``done``: the dense model has the share ``distill`` of it.

        Its stream leads at first. At the end the next token alone counts: what has too little room left for all of the
        dense model's stream does better along another one.
        """
        if self.divergence is None:
            return self.text
        dense = self.divergence
        if self.distance is not None:
            dense = dense + STREAM * (1 - done) ** 2 * self.distance
        return torch.lerp(self.text, dense, distill)


def losses(model: torch.nn.Module, teacher: torch.nn.Module | None, rows: Tensor) -> Losses:
    """Of windows of token ids, int64 [windows, length], padded by `data.PADDING`.

    Without a teacher, the dense model, only that of the text; and no distance where the streams have other shapes.
    """
    given = inputs(rows)
    targets = wanted(rows)
    ours = model(**given, output_hidden_states=teacher is not None)
    logits = ours.logits[:, :-1].float()
    text = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    if teacher is None:
        return Losses(text)
    with torch.no_grad():
        theirs = teacher(**given, output_hidden_states=True)
        likely = theirs.logits[:, :-1].float().log_softmax(-1)
    divergence = functional.kl_div(logits.log_softmax(-1), likely, reduction="none", log_target=True)
    told = targets >= 0
    mine, dense = (getattr(output, "hidden_states", None) or () for output in (ours, theirs))
    return Losses(text, divergence.sum(-1)[told].mean(), _distance(mine[1:], dense[1:], told))


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
