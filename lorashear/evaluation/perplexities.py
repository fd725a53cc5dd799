"""Perplexity of text, of tokens and of bytes, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from lorashear.errors import LorashearError
from lorashear.evaluation.asked import Asked
from lorashear.evaluation.choices import check_known
from lorashear.evaluation.measures import Finding, Told, known, noise
from lorashear.evaluation.pieces import Pieces
from lorashear.evaluation.subjects import Subject
from lorashear.evaluation.texts import Text, windows
from lorashear.evaluation.uncertainty import paired_ratio_error, ratio_error
from lorashear.likelihood import exponential, window_losses


@dataclass(frozen=True)
class OfText:
    """On one text, in windows as they are asked for, whose context is known."""

    text: Text
    asked: Asked

    @property
    def name(self) -> str:
        """Of the text."""
        return self.text.name

    @property
    def about(self) -> dict[str, Any]:
        """For the report."""
        asked = self.asked
        how = {"context": asked.context, "stride": asked.stride or asked.context, "packed": asked.packed}
        return {
            "kind": "perplexity",
            "name": self.name,
            "data": self.text.origin,
            **how,
            "limit": asked.limit,
            "seed": asked.seed,
        }

    def of(self, subject: Subject, model: nn.Module, progress: Told, pieces: Pieces) -> Finding:
        """Its negative log-likelihood in nats a token, and in bits a byte: that times tokens over bytes of the whole text (Gao et
        al., The Pile, 2020, arXiv 2101.00027, section 3.1), whether or not all of them are in windows.

        The standard error is that of a ratio of sums over windows, as if they had been drawn from many.

        Raises:
            LorashearError: the text is too short for one window, or the model gives no number.
        """
        asked, context = self.asked, self.asked.context or 0
        made = windows(
            self.text,
            subject.reader,
            context,
            stride=asked.stride,
            packed=asked.packed,
            limit=asked.limit,
            seed=asked.seed,
        )
        check_known(made.rows.max().item(), subject.config, self.name)
        for part in made.parts()[len(pieces.found) :]:
            told_of = partial(_counted, progress, part.start, len(made))
            pieces.add([some.tolist() for some in window_losses(model, made.at(part), progress=told_of)])
        total, told = (np.concatenate([piece[which] for piece in pieces.found]) for which in (0, 1))
        nll = float(total.sum() / told.sum())
        if not math.isfinite(nll):
            raise LorashearError(
                f"{subject.name} gives no number as its loss on {self.name}: its weights are not finite"
            )
        error, bits = known(ratio_error(total, told)), made.tokens / self.text.bytes / math.log(2)
        result = {
            "nll": nll,
            "error": error,
            "perplexity": known(exponential(nll)),
            "bits_per_byte": nll * bits,
            "bits_error": None if error is None else error * bits,
            "tokens": int(told.sum()),
            "windows": len(made),
            "sha256": made.digest,
        }
        return Finding(result, {"nll": total.tolist(), "tokens": told.tolist()})

    def difference(self, first: Finding, other: Finding) -> dict[str, Any]:
        """In nats a token, of the same windows, where the models read the same tokens; else in bits a byte. In these the standard error
        is."""
        bits = other.result["bits_per_byte"] - first.result["bits_per_byte"]
        if first.result["sha256"] == other.result["sha256"]:
            counts = first.each["tokens"]
            error = known(paired_ratio_error(other.each["nll"], counts, first.each["nll"], counts))
            nll = other.result["nll"] - first.result["nll"]
            return {"paired": True, "nll": nll, "error": error, "bits_per_byte": bits, "noise": noise(nll, error)}
        errors = [each.result["bits_error"] for each in (first, other)]
        error = None if None in errors else math.hypot(*errors)
        return {"paired": False, "bits_per_byte": bits, "error": error, "noise": noise(bits, error)}


def _counted(progress: Told, before: int, every: int, done: int, _: int) -> None:
    """How far a part of the windows is, as how far all are."""
    progress(before + done, every)
