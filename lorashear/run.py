"""One run of `compile` or `recover`: what it works on and with, for every step of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch

from lorashear import adapters, likelihood
from lorashear.config import HOW, Settings, Training
from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.folder import BESIDE
from lorashear.emission.declared import vocabulary
from lorashear.learning import attaching, budget, sharding
from lorashear.learning.processes import Processes
from lorashear.learning.snapshots import Snapshots
from lorashear.loading import working_copy
from lorashear.terminal.stages import Stages
from lorashear.text.calibration import Windows, batches
from lorashear_passes.scores import Criterion, named
from lorashear_passes.surgery import Settings as Surgery
from lorashear_passes.walk import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """``source`` is the dense model, None where that is not there, and ``name`` what it is called; ``lora`` is the folder of an
    adapter that belongs to it; ``windows`` is None without text; ``work`` is a folder for what is gone at the end, and goes on
    from where it was if the run is stopped."""

    source: Checkpoint | None
    name: str
    settings: Training
    stage: Stages
    trust_remote_code: bool
    lora: Path | None = None
    windows: Windows | None = None
    work: Path = Path()
    saved: Callable[[int], None] | None = None
    """Called when a state of training is on disk, with its step."""
    processes: Processes = field(default_factory=Processes)
    why: str = ""
    """There is no dense model, and what is done instead."""
    texts: tuple[str, ...] = ()
    """What the text is called, without the folders of this machine."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What was given beside the settings, for the recipe that repeats it."""

    def together(self, function: Callable[..., T], *arguments: Any, **here: Any) -> T:
        """Call a function of a run in all processes at once, each with its own `Run`; what it gives here.

        ``here`` are arguments that this process alone has.
        """
        told = replace(self, stage=Stages(), saved=None, processes=Processes())
        self.processes.tell(_called, (function, told, arguments))
        return function(self, *arguments, **here)

    def job(self, known: Sequence[str], asked: Training) -> str:
        """A hash of all that decides the result: what its models and adapters are known by, the text, and what was asked for."""
        text = [self.windows.digest()] if self.windows else []
        settings = {name: value for name, value in asdict(asked).items() if name not in HOW}
        return sha256("\0".join([*known, *text, json.dumps(settings)]).encode()).hexdigest()

    def place(self, stage: str) -> Path:
        """The folder of a stage of training: its states, its log, its adapter."""
        return self.work / stage

    def snapshots(self, stage: str) -> Snapshots:
        """States of a stage of training."""
        steps, seconds = self.settings.saved_every
        return Snapshots(self.place(stage), steps, seconds, self.saved)

    def dense(self) -> Any | None:
        """The dense model, to compute with; an adapter that belongs to it is merged."""
        if self.source is None:
            return None
        base, lora = self._base(self.source.folder), self.lora
        return adapters.merged(adapters.carrying(base, lora)) if lora else base

    def pruned(self, folder: Path) -> Any:
        """A result, to compute with; an adapter that lies beside it is put on."""
        base, lora = self._base(folder), folder / BESIDE
        return adapters.carrying(base, lora) if lora.is_dir() else base

    def learner(self, folder: Path, lora: Path | None) -> Any:
        """A model with an adapter to train: the one that belongs to it, where there is one, or a fresh one."""
        base = self._base(folder)
        if lora and lora.is_dir():
            found: Any = adapters.carrying(base, lora, trainable=True)
        else:
            found = attaching.attach(base, rank=self.settings.rank, seed=self.settings.seed)
        if self.settings.gradient_checkpointing:
            attaching.checkpoint_activations(found)
        return found

    def whole(self, folder: Path) -> Any:
        """A model all of whose weights are trained, in float32: in less, small steps of an optimizer would be lost."""
        found = self.pruned(folder)
        found = (adapters.merged(found) if (folder / BESIDE).is_dir() else found).float().requires_grad_(True)
        if self.settings.gradient_checkpointing:
            attaching.checkpoint_activations(found)
        return found

    def sharded(self, model: Any) -> Any:
        """The model itself, of which each process has kept its rows where that is asked for."""
        if self.processes.size > 1 and sharding.wanted(self.settings.fsdp):
            sharding.shard(model, self.processes)
        return model

    def _base(self, folder: Path) -> Any:
        return working_copy(folder, settings=self.settings, trust_remote_code=self.trust_remote_code)

    def batches(self, model: Any, windows: torch.Tensor) -> list[Batch]:
        """Windows as arguments of the model's forward."""
        return batches(windows, vocabulary(model.config), self.settings.device)

    def judged(self, model: Any) -> likelihood.Perplexity | None:
        """Perplexity on the windows that nothing else uses; None where there are none."""
        windows = self.windows
        return likelihood.perplexity(model, windows.evaluation) if windows and len(windows.evaluation) else None


@dataclass(frozen=True)
class Compilation(Run):
    """Of `compile`, whose dense model is always there."""

    source: Checkpoint
    settings: Settings
    revision: str | None = None
    """Of a hub id, as asked for."""
    function: Criterion | None = None
    """The criterion where it is a function; the process that ranks is the only one that has it."""

    def together(self, function: Callable[..., T], *arguments: Any, **here: Any) -> T:
        return super(Compilation, replace(self, function=None)).together(function, *arguments, **here)

    @property
    def recovers(self) -> bool:
        """Whether it is the pruned model that is trained, at last."""
        settings, windows = self.settings, self.windows
        return settings.tokens is not None and windows is not None and bool(budget.stages(settings, windows))

    @property
    def criterion(self) -> str:
        """By which structures are ranked."""
        if self.function is not None:
            return named(self.function)
        return self.settings.criterion or ("obs" if self.windows is not None else "magnitude")

    @property
    def surgery(self) -> Surgery:
        """How structures are ranked, and the rest refitted."""
        return Surgery(self.function or self.criterion, self.settings.compensate, seed=self.settings.seed)


def _called(processes: Processes, function: Callable[..., Any], run: Run, arguments: tuple[Any, ...]) -> None:
    """What `Run.together` does in the other processes."""
    function(replace(run, processes=processes), *arguments)
