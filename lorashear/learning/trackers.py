"""The figures of each step, handed on to the integrations of Hugging Face: TensorBoard, Weights & Biases and others.

The trackers are those of accelerate, without an Accelerator. They open at the first step, so that a run which is refused
before leaves nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lorashear.errors import LorashearError

if TYPE_CHECKING:
    from lorashear.learning.training import Step

ALL = "all"
RUNS = "runs"
"""The folder, beside a result, for what trackers write that are told where to; in it each result has one under its name."""
NAMES = {"rate": "learning_rate", "speed": "tokens_per_second", "removed": "structures_removed"}
"""Of figures that are called something else where there are no units beside them."""

OF_SUBSETS = ("loss", "degradation", "share")
"""What is measured of subsets of the text, now and then."""


def check(names: Collection[str]) -> None:
    """Raises LorashearError where a tracker is unknown, or its package is missing."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    installed = _installed()
    for name in names:
        if name not in (ALL, *LOGGER_TYPE_TO_CLASS):
            raise LorashearError(
                f"report_to names {name}; there are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, and all"
            )
        if name not in (ALL, *installed):
            raise LorashearError(
                f"report_to names {name}, whose package is missing: pip install {name.replace('_', '-')}"
            )
    if not installed:
        raise LorashearError("report_to is all, and no tracker is installed: pip install tensorboard, or another one")


class Trackers:
    """Those that are named, ``"all"`` being those that are installed, for the run that makes the folder ``target``.

    Those that are told where to write, TensorBoard among them, write to ``runs/NAME`` beside it; the others where they are
    used to. Call it with each step. A run that goes on continues its curves in TensorBoard; elsewhere it begins a new run,
    with the steps numbered on.
    """

    def __init__(self, names: Collection[str], target: Path) -> None:
        check(names)
        self._names = _installed() if ALL in names else tuple(dict.fromkeys(names))
        self._target = target.expanduser().resolve()
        self._open: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._open:
            tracker.finish()

    def __call__(self, step: Step) -> None:
        """Hand on the figures of a step, as ``train/loss`` and so on, and of subsets as ``degradation/code``."""
        if self._names and not self._open:
            self._start(step.step)
        figures = asdict(step)
        measured = figures.pop("measured") or {}
        found = {name: value for name, value in figures.items() if name != "step" and value is not None}
        values = {f"train/{NAMES.get(name, name)}": value for name, value in found.items()}
        for what in OF_SUBSETS:
            values |= {f"{what}/{subset}": value for subset, value in (measured.get(what) or {}).items()}
        for tracker in self._open:
            tracker.log(values, step=step.step)

    def _start(self, step: int) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate writes no line to its own log without it
        runs = self._target.parent / RUNS
        for name in self._names:
            kind: Any = LOGGER_TYPE_TO_CLASS[name]
            more = (
                {"purge_step": step} if name == "tensorboard" else {}
            )  # of what is there, steps from here on are void
            tracker = kind(self._target.name, *((runs,) if kind.requires_logging_directory else ()), **more)
            tracker.main_process_only = False  # whoever calls decides
            tracker.start()
            self._open.append(tracker)


def _installed() -> tuple[str, ...]:
    from accelerate.tracking import get_available_trackers

    return tuple(map(str, get_available_trackers()))
