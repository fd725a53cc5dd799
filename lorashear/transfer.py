"""Knowledge transfer: LHSPG on the dense model, whose structures fade while its adapter trains; then they can be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lorashear import models, training
from lorashear.config import Settings
from lorashear.errors import LorashearError
from lorashear.lora import PREFIX
from lorashear.snapshots import Snapshots
from lorashear.training import Shown
from lorashear_ir.groups import Group, Groups
from lorashear_passes.lhspg import Diverged, Lhspg, Schedule
from lorashear_passes.surgery import Settings as Surgery
from lorashear_passes.walk import Batch


@dataclass(frozen=True)
class Transferred:
    """What has faded, and what the model became."""

    removed: dict[str, list[int]]
    weights: dict[str, torch.Tensor]
    """Base weights that changed, by parameter name, in full shape; the adapter adds to them."""
    record: dict[str, Any]
    """What was done, for the report."""


def transfer(
    model: Any,
    teacher: torch.nn.Module | None,
    widths: Mapping[str, int],
    groups: Groups,
    calibration: Sequence[Batch],
    windows: torch.Tensor,
    settings: Settings,
    surgery: Surgery,
    adapter: Path,
    shown: Shown,
    snapshots: Snapshots | None = None,
) -> Transferred:
    """Train the adapter of the dense model while its groups fade to ``widths``, and save it into the folder ``adapter``.

    Args:
        model: the PeftModel, changed in place: what has faded is zero.
        teacher: another copy of the model, to stay close to.
        widths: units kept, by group.
        groups: of the model without the adapter, which tell how many parameters are left.
        calibration: batches that rank and refit at the start of each period.
        windows: token ids to train on, int64 [windows, length].
        shown: called with what each step did, and the number of steps.
        snapshots: where states go, and an earlier run's are found.

    Raises:
        LorashearError: the adapter does not reach a group, or the loss stops being a number.
    """
    recipe = training.recipe(settings, model, windows)
    schedule = _schedule(settings, recipe.steps)
    chosen = _reached(model, widths)
    lhspg = Lhspg(model, chosen, {PREFIX + name: kept for name, kept in widths.items()}, calibration, schedule, surgery)
    try:
        record = training.adapt(
            model,
            windows,
            recipe,
            adapter,
            shown,
            teacher=teacher,
            companion=lhspg,
            snapshots=snapshots,
            left=lambda: _left(groups, _named(lhspg.gone)),
        )
    except Diverged as error:
        raise LorashearError(
            f"the run that was stopped had chosen other structures of {error} than come out now: leave --resume out"
        ) from error
    weights = {_plain(name): model.get_parameter(name).data for name in lhspg.changed}
    return Transferred(_named(lhspg.removed), weights, record | {"lhspg": asdict(schedule)})


def _schedule(settings: Settings, every: int) -> Schedule:
    """Warm-up and periods, in a share of all steps; those that are left go on at zero."""
    steps = round(settings.lhspg * every)
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
