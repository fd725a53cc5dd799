"""Runs of the training studies: one compile each, and a file that keeps what they gave, so that a study can go on."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

import lorashear
from lorashear.config import BATCH
from lorashear.learning import attaching, hyperparameters, training
from lorashear.learning.mixture import Mixture
from lorashear.likelihood import perplexity
from lorashear.text import data
from subjects import CONTEXT, TEST, Subject

DENSE, ADAPTED = "dense", "dense + LoRA"
"""Rows that prune nothing."""


def as_it_is(_: Trial) -> AbstractContextManager[None]:
    """Nothing that no setting says."""
    return nullcontext()


@dataclass(frozen=True)
class Trial:
    """One run: a row of a table at a learning rate, counted in the default one's, and a seed."""

    subject: Subject
    ratio: float
    row: str
    settings: Mapping[str, Any]
    """Of `lorashear.compile`; ``tokens`` are those to train on, None for none; with ``through`` it is pruned to that ratio
    first, and trained on a third of them."""
    rate: float = 1.0
    seed: int = 0
    within: Callable[[Trial], AbstractContextManager[None]] = field(default=as_it_is, compare=False)
    """What it runs in, where no setting says it."""
    device: str = field(default="cpu", compare=False)

    @property
    def key(self) -> dict[str, Any]:
        """What it is known by in the file of results."""
        about = {"model": self.subject.folder.name, "removed": self.ratio, "row": self.row}
        return {**about, "settings": dict(self.settings), "rate": self.rate, "seed": self.seed}


def run(trial: Trial) -> dict[str, Any]:
    """Its key, perplexities on the valid and the test split, seconds, and what it ran on."""
    started = time.perf_counter()
    subject, packed = trial.subject, not trial.subject.single
    tokenizer = AutoTokenizer.from_pretrained(subject.folder)
    try:
        model = _model(trial, tokenizer, packed)
    except lorashear.LorashearError as error:  # a loss that is no number
        return {**trial.key, "failed": str(error)}
    found = {}
    for split in ("valid", "test"):
        windows = data.windows(tokenizer, data.read_texts([subject.text[split]]), CONTEXT, TEST, packed=packed)
        found[split] = round(perplexity(model, windows).perplexity, 4)
    seconds, on = round(time.perf_counter() - started), machine(trial.device)
    return {**trial.key, **found, "seconds": seconds, "machine": on}


def machine(device: str) -> str:
    kind = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    return f"{kind}, torch {torch.__version__}"


def _model(trial: Trial, tokenizer: Any, packed: bool) -> Any:
    subject, settings = trial.subject, dict(trial.settings)
    dense = lorashear.load(subject.folder).float().to(trial.device)
    rate = trial.rate * hyperparameters.default_rate(dense.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    if trial.row == DENSE:
        return dense
    if trial.row == ADAPTED:
        windows, steps = text(trial, tokenizer, settings["tokens"])
        carrying = attaching.attach(dense, rank=16, seed=trial.seed)
        training.train(
            carrying, Mixture.of(windows, training.Hyperparameters(steps, rate, distill=0.0, seed=trial.seed))
        )
        return carrying
    tokens, through = settings.pop("tokens"), settings.pop("through", None)
    settings |= {"one_shot": tokens is None, "learning_rate": rate, "text": subject.text["train"]}
    settings |= {"seed": trial.seed, "packed": packed, "context": CONTEXT, "device": trial.device, "dtype": "float32"}
    folder, ratio = subject.folder, trial.ratio
    with trial.within(trial), tempfile.TemporaryDirectory() as scratch:
        if through:
            folder = Path(scratch) / "first"
            lorashear.compile(subject.folder, through, folder, tokens=tokens // 3, **settings)
            tokens, ratio = tokens - tokens // 3, 1 - (1 - ratio) / (1 - through)
        return lorashear.compile(folder, ratio, Path(scratch) / "out", tokens=tokens, **settings).model.float()


def text(trial: Trial, tokenizer: Any, tokens: int) -> tuple[torch.Tensor, int]:
    """Windows of the train split, and the steps that read so many tokens of them."""
    packed, documents = not trial.subject.single, data.read_texts([trial.subject.text["train"]])
    windows = data.windows(tokenizer, documents, CONTEXT, -(-tokens // CONTEXT), trial.seed, packed=packed)
    steps = round(tokens * len(windows) / (BATCH * data.tokens_in(windows)))
    if not packed:  # shorter ones, so more of them
        windows = data.windows(tokenizer, documents, CONTEXT, steps * BATCH, trial.seed, packed=packed)
    return windows, steps


def machines(runs: Iterable[Mapping[str, Any]]) -> str:
    """What these ran on."""
    return " and ".join(sorted({run["machine"] for run in runs}))


class Known(Protocol):
    """A run that is known by something."""

    @property
    def key(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Known)


class Results:
    """The runs that were made, in a file that grows by a line a run."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.runs: list[dict[str, Any]] = []
        if file.exists():
            self.runs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def of(self, trial: Known) -> dict[str, Any] | None:
        return next((each for each in self.runs if trial.key.items() <= each.items()), None)

    def make(self, trials: Iterable[T], pool: Any, run: Callable[[T], dict[str, Any]] = run) -> None:
        """Those that are not there yet."""
        missing = [trial for trial in trials if self.of(trial) is None]
        for made in tqdm(pool.imap_unordered(run, missing), total=len(missing), unit="run", disable=not missing):
            self.runs.append(made)
            with self.file.open("a", encoding="utf-8") as file:
                print(json.dumps(made), file=file)


@contextmanager
def workers(jobs: int, scratch: Path) -> Iterator[Any]:
    """Processes of one thread each; what compile keeps goes to the scratch folder, unless the environment says otherwise."""
    os.environ.setdefault("LORASHEAR_CACHE", str(scratch / "cache"))
    with get_context("spawn").Pool(jobs, initializer=_quiet) as pool:
        yield pool


def _quiet() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()
