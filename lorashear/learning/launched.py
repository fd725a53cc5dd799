"""What the user's launcher says of this process: how many there are, and which of them it is. No torch here."""

from __future__ import annotations

import os

from lorashear.errors import LorashearError


def count() -> int:
    """How many processes the launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def follower() -> bool:
    """Whether another one runs the program, and tells what there is to tell."""
    return rank() > 0


def precision() -> str:
    """What `accelerate launch --mixed_precision` was given; no without it."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


class Lost(LorashearError):
    """Another process is not there any more."""


class Ended(LorashearError):
    """The first process has failed, and says why itself."""
