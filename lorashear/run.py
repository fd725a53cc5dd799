"""One run of `compile`: what it works on and with, for every step of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorashear import evaluate
from lorashear.calibration import Windows, batches
from lorashear.checkpoint import Checkpoint
from lorashear.config import Settings
from lorashear.loading import working_copy
from lorashear.stages import Stages
from lorashear_passes.surgery import Settings as Surgery
from lorashear_passes.walk import Batch


@dataclass(frozen=True)
class Run:
    """``scratch`` is a folder for files that are gone at the end; ``windows`` is None without text."""

    source: Checkpoint
    name: str
    settings: Settings
    stage: Stages
    scratch: Path
    trust_remote_code: bool
    windows: Windows | None = None

    @property
    def criterion(self) -> str:
        """By which structures are ranked."""
        return self.settings.criterion or ("obs" if self.windows is not None else "magnitude")

    @property
    def surgery(self) -> Surgery:
        """How structures are ranked, and the rest refitted."""
        return Surgery(self.criterion, self.settings.compensate, seed=self.settings.seed)

    def model(self, folder: Path | None = None) -> Any:
        """The model in a folder, by default the dense one, to compute with."""
        where = folder or self.source.folder
        return working_copy(where, settings=self.settings, trust_remote_code=self.trust_remote_code)

    def batches(self, model: Any, windows: torch.Tensor) -> list[Batch]:
        """Windows as arguments of the model's forward."""
        return batches(windows, int(model.config.get_text_config().vocab_size), self.settings.device)

    def judged(self, model: Any) -> evaluate.Perplexity | None:
        """Perplexity on the windows that nothing else uses; None where there are none."""
        windows = self.windows
        return evaluate.perplexity(model, windows.evaluation) if windows and len(windows.evaluation) else None
