"""What was found out by trying, kept for the same question: plan, apply and verify ask the same about one model.

A question holds all that its answer goes by, as values: two models of the same config and program get one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from transformers import PreTrainedConfig

Answer = TypeVar("Answer")


class Remembered(Generic[Answer]):
    """The latest answers; an error is none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: dict[Hashable, Answer] = {}

    def get(self, question: Hashable, find: Callable[[], Answer]) -> Answer:
        """The answer; what ``find`` finds where the question is new. It is not a copy."""
        answer = self._answers.pop(question) if question in self._answers else find()
        self._answers[question] = answer  # in the order of use
        if len(self._answers) > self._most:
            del self._answers[next(iter(self._answers))]
        return answer


def content(config: PreTrainedConfig) -> tuple[type, str]:
    """The class of a config and all its fields."""
    return type(config), repr(config.to_dict())
