"""A table with a line for each family: a family on every core, each for a limited time."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

LIMIT = 600  # CPU seconds for a family


class TooLong(BaseException):
    """The time for a family is over. No Exception, since the analysis tries things that may fail."""


def printed(header: str, row: Callable[[str], str], tested: Sequence[str], description: str | None) -> None:
    """Print a table of the families that the command line asks for, ``tested`` ones by default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("families", nargs="*", help="model types of transformers; the tested ones by default")
    parser.add_argument("--all", action="store_true", help="every causal language model that transformers has")
    options = parser.parse_args()
    named = [name for name in tested if not options.families or name in options.families]
    extra = [*options.families, *(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if options.all else ())]
    print(header)
    with multiprocessing.get_context("spawn").Pool(initializer=_quiet) as pool:
        for line in pool.imap(row, dict.fromkeys((*named, *extra))):
            print(line, flush=True)


@contextmanager
def limited() -> Iterator[None]:
    """Raises TooLong in the block after `LIMIT` CPU seconds."""
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def sentence(error: BaseException) -> str:
    """What kind of error it is, and its first line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:400]}"


def _too_long(*_: object) -> None:
    raise TooLong(f"takes more than {LIMIT} CPU seconds")


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
