"""What goes, and what the weights that stay become: in one shot, and then, where it is asked for, by LHSPG."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorashear import knowledge
from lorashear.config import CRITERIA, Settings
from lorashear.disk.lora import Adapter
from lorashear.disk.storage import Storage
from lorashear.disk.stored import as_stored, take
from lorashear.errors import LorashearError
from lorashear.learning import fitting, transfer
from lorashear.plans import Plan
from lorashear.pruning import cut_tensor
from lorashear.run import Compilation
from lorashear_ir.groups import Groups
from lorashear_passes.allocate import Unreachable
from lorashear_passes.oneshot import Outcome, compress
from lorashear_passes.scores import Criterion, ScoreError, named


@dataclass(frozen=True)
class Choice:
    """What was chosen, and how LHSPG trained, for the report."""

    outcome: Outcome
    adapter: Path | None = None
    """What stands beside the dense model's weights before they are cut: what was trained, or what belongs to it."""
    record: dict[str, Any] | None = None


def check_function(criterion: Criterion, settings: Settings) -> None:
    """Whether structures can be ranked by a function.

    Raises:
        LorashearError: it has no name to be recorded by, or that of a criterion that there is, or the settings rule it out.
    """
    name = named(criterion)
    if not name.isidentifier():
        raise LorashearError(
            f"criterion is a function called {name}, and results are known by its name: write it as a def"
        )
    if name in CRITERIA:
        raise LorashearError(
            f"criterion is a function called {name}, as a criterion of LoRAShear is: call it otherwise"
        )
    if settings.lhspg:
        raise LorashearError(
            f"criterion is the function {name}, which ranks the dense model once, and lhspg ranks again while it trains: leave one out"
        )


def choose(run: Compilation, groups: Groups, dense: Any, contents: str) -> Choice:
    """Rank and remove, by the settings of the run.

    Args:
        groups: with the prices that the ratio is counted in.
        dense: the model.
        contents: what its weights are known by, and an adapter's that belongs to it.

    Raises:
        LorashearError: nothing can be pruned, the ratio is out of reach, or training fails.
    """
    settings, windows = run.settings, run.windows
    with run.stage("prune"):
        outcome = _one_shot(run, groups, dense, contents)
    if not settings.lhspg or windows is None:
        return Choice(outcome, run.lora)
    run = replace(run, settings=fitting.kept(run.work, settings))
    with run.stage(transfer.STAGE):
        moved = run.together(transfer.transfer, outcome.split.widths, dense=dense, groups=groups)
    return Choice(
        replace(outcome, removed=moved.removed, weights=moved.weights), run.place(transfer.STAGE), moved.record
    )


def _one_shot(run: Compilation, groups: Groups, model: Any, contents: str) -> Outcome:
    settings, windows = run.settings, run.windows
    chosen = groups.only(settings.prune)
    if not chosen:
        raise LorashearError(
            f"the model has no prunable group of the kinds {', '.join(settings.prune)}: "
            "pass other kinds (--prune); lorashear groups lists all, and says why some may not go"
        )
    # What a function gave is not kept: the next one of its name may be another one.
    keeps = run.function is None
    known = knowledge.kept(run.source, contents, windows, settings, run.criterion) if windows and keeps else {}
    try:
        return compress(
            model,
            chosen,
            run.batches(model, windows.calibration) if windows else None,
            ratio=settings.share,
            heldout=run.batches(model, windows.guard) if windows else [],
            per_layer=settings.per_layer,
            multiples=settings.multiples,
            settings=run.surgery,
            unprunable=settings.unprunable_ratio,
            measured=known,
            progress=run.stage.progress,
        )
    except ScoreError as error:
        raise LorashearError(str(error)) from error
    except Unreachable as error:
        raise LorashearError(
            f"cannot remove {error.ratio:.2%} of the {settings.cost}: {error.largest:.2%} at most, since {error.limit}; "
            "ask for less, or let more kinds go (--prune)"
        ) from error


def replacements(
    storage: Storage, groups: Groups, plan: Plan, outcome: Outcome, less: Adapter | None = None
) -> dict[str, np.ndarray]:
    """The refitted weights as they will be stored, by their names on disk.

    ``less`` is an adapter that was merged into them and will be added again.
    """
    result: dict[str, np.ndarray] = {}
    source = storage.source
    for name, part in storage.parts.items():
        parameter = groups.tied.get(part.parameter, part.parameter)
        if parameter not in outcome.weights or name not in source.tensors or plan.names.get(name, name) is None:
            continue
        weight = take(part, outcome.weights[parameter].detach().cpu())
        if less is not None and name in less.adapted:
            weight = weight - torch.from_numpy(less.added(name, *map(np.arange, weight.shape)))
        small = cut_tensor(weight, plan.tensors[name]) if name in plan.tensors else weight
        result[name] = as_stored(small, source.tensors[name].dtype)
    return result
