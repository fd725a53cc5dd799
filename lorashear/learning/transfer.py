"""Knowledge transfer: LHSPG on the dense model, whose structures fade while its adapter trains; then they can be cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from lorashear import models
from lorashear.config import Settings
from lorashear.disk.lora import PREFIX
from lorashear.errors import LorashearError
from lorashear.learning import budget, hyperparameters, training
from lorashear.learning.mixture import Mixture
from lorashear.learning.sharding import SharedWeights, full
from lorashear.learning.teaching import Online
from lorashear.run import Compilation
from lorashear_ir.groups import Group, Groups
from lorashear_passes.lhspg import Diverged, Lhspg, Schedule

STAGE = "transfer"
TRANSFER = 2  # the number of its order of windows, beside those of the stages of recovery


@dataclass(frozen=True)
class Transferred:
    """What has faded, and what the model became."""

    removed: dict[str, list[int]]
    weights: dict[str, torch.Tensor]
    """Base weights that changed, by parameter name, in full shape; the adapter adds to them."""
    record: dict[str, Any]
    """What was done, for the report."""


def transfer(
    run: Compilation, widths: Mapping[str, int], dense: Any = None, groups: Groups | None = None
) -> Transferred:
    """Train the adapter of the dense model while its groups fade to ``widths``, and save it into the run's folder for work.

    Args:
        widths: units kept, by group.
        dense: the dense model where it lies here already: the one to stay close to.
        groups: of the dense model, to tell with each step how many parameters are left.

    Raises:
        LorashearError: the adapter does not reach a group, or the loss stops being a number.
    """
    settings, windows = run.settings, run.windows
    assert windows is not None
    model = learner(run)
    steps, every = budget.transferred(settings, windows), budget.on_text(settings, windows)
    hyper = replace(hyperparameters.of(settings, model, steps), schedule=every)
    schedule = _schedule(settings, steps)
    mixture = Mixture(budget.unwatched(windows.subsets), hyper, stage=TRANSFER)
    chosen = _reached(model, widths)
    calibration = run.batches(model, windows.calibration)
    weights = SharedWeights(run.sharded(model), run.processes, partial(learner, run))
    kept = {PREFIX + name: width for name, width in widths.items()}
    lhspg = Lhspg(model, chosen, kept, calibration, schedule, run.surgery, weights)
    try:
        record = training.adapt(
            model,
            mixture,
            run.place(STAGE),
            partial(run.stage.stepped, STAGE),
            teacher=Online(run.sharded(run.dense() if dense is None else dense)) if settings.distill else None,
            companion=lhspg,
            snapshots=run.snapshots(STAGE),
            processes=run.processes,
            left=(lambda: _left(groups, _named(lhspg.gone))) if groups is not None else None,
        )
    except Diverged as error:
        raise LorashearError(
            f"the run that was stopped had chosen other structures of {error} than come out now: leave --resume out"
        ) from error
    changed = {_plain(name): full(model.get_parameter(name).detach()) for name in sorted(lhspg.changed)}
    return Transferred(_named(lhspg.removed), changed, record | {"lhspg": asdict(schedule)})


def learner(run: Compilation) -> Any:
    """The dense model with the adapter that is trained."""
    return run.learner(run.source.folder, run.lora)


def _schedule(settings: Settings, steps: int) -> Schedule:
    """Warm-up and periods; steps that are left go on at zero."""
    warm_up = round(settings.warm_up * steps)
    length = (steps - warm_up) // settings.periods
    if length < 1:
        raise LorashearError(
            f"tokens is {settings.tokens}, of which LHSPG gets {steps} steps, too few for a warm-up of {warm_up} and "
            f"{settings.periods} periods: give more tokens, or fewer periods"
        )
    return Schedule(warm_up, settings.periods, length, settings.policy)


def _reached(carrying: torch.nn.Module, widths: Mapping[str, int]) -> dict[str, Group]:
    """The groups as the model has them with its adapters, by their names there."""
    found = models.analysed(carrying)
    chosen = {PREFIX + name: found[PREFIX + name] for name in widths}
    if not any(".lora_" in name for group in chosen.values() for name, _ in group.slots):
        raise LorashearError(f"no adapter reaches {next(iter(widths))} or any other group that is to be pruned")
    return chosen


def _named(removed: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Structures by their groups' names in the model without adapters."""
    return {name.removeprefix(PREFIX): indices for name, indices in removed.items()}


def _left(groups: Groups, gone: Mapping[str, list[int]]) -> tuple[int, int]:
    """Structures gone, and parameters left."""
    return sum(map(len, gone.values())), groups.parameters(groups.widths(gone))


def _plain(name: str) -> str:
    """A weight's name in the model without adapters."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")
