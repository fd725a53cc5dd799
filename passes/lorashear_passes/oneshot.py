"""Pruning in one shot, without training: split the budget, then prune and refit block by block.

1. *knowledge*: each group is pruned alone, and the held-out loss measured (`knowledge.py`);
2. *split*: which widths (`splits.py`): candidates are pruned on a part of the calibration text and held-out loss chooses;
3. *prune*: a walk over the blocks, each on the outputs of the already pruned ones, ranks, removes and refits (`surgery.py`).

Weights are swapped while this runs and are back when `compress` returns.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from . import splits
from .allocate import GroupsLike
from .knowledge import Knowledge, analysed
from .splits import Budget, Split
from .surgery import Measured, Progress, Settings, Surgeon, units
from .walk import Batch, Walk, heldout_loss

__all__ = ["Outcome", "Settings", "compress"]

TRIAL_WINDOWS = 16
"""Splits are tried on so many calibration windows; only those that come out close are tried again on all."""


@dataclass(frozen=True)
class Outcome:
    """What `compress` found."""

    removed: dict[str, list[int]]
    """Structures to remove per group, rising; only groups that lose some. Queries of removed heads are not listed."""
    weights: dict[str, Tensor] = field(repr=False)
    """Refitted weights by parameter name, in full shape, removed columns zero; empty without compensation."""
    split: Split
    """Units kept per group (queries per KV head), and the splits that were tried."""
    seconds: dict[str, float]
    """Wall time per stage."""
    knowledge: Knowledge | None = None
    """None without held-out text, or where the widths were given."""
    alternative: Split | None = None
    """For a uniform split: the best one with widths per layer, by the same measure."""


def compress(
    model: nn.Module,
    groups: GroupsLike,
    batches: Sequence[Batch] | None,
    *,
    ratio: float,
    heldout: Sequence[Batch] = (),
    per_layer: bool = False,
    multiples: Mapping[str, int] | None = None,
    minimum: Mapping[str, int] | None = None,
    settings: Settings | None = None,
    widths: Mapping[str, int] | None = None,
    unprunable: float | None = None,
    measured: Measured | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Choose what to remove from ``model`` so that ``ratio`` of all parameters goes, and refit what stays.

    ``groups`` are those that may lose structures. ``batches`` are keyword arguments of the model's forward (``input_ids``
    ``[batch, length]``, ``attention_mask`` if padded, ``use_cache=False``), on its device; None: rank by magnitude, equal
    shares, no refit (a random criterion or a function stays what it is). ``heldout``, of the same form, chooses between
    splits; without it shares are equal. ``widths`` gives the split instead (``ratio`` is then not looked at). ``unprunable`` is the share of groups that stay whole
    (`Budget.unprunable`). ``measured`` holds what is known of each group alone and of splits, on this text, and takes what is found.

    The same input gives the same outcome. Raises ``Unreachable`` (see `allocate`), and ``ScoreError`` where a function is the
    criterion and gives no scores.
    """
    settings = settings or Settings()
    progress = progress or (lambda *_: None)
    chosen = {name: groups[name] for name in groups if units(groups[name]) > 1}
    budget = Budget(groups, ratio, per_layer, multiples, minimum, unprunable)
    equal = dict(widths) if widths is not None else budget.widths(splits.equal_shares(chosen))
    seconds: dict[str, float] = {}
    if not batches:
        own = settings.criterion == "random" or callable(settings.criterion)
        criterion = settings.criterion if own else "magnitude"
        surgeon = Surgeon(model, chosen, replace(settings, compensate=False, criterion=criterion))
        return Outcome(surgeon.blind(equal), {}, Split(equal, "equal shares", {}), seconds)
    known = measured if measured is not None else {}
    with _timed(seconds, "walk"):
        surgeon = Surgeon(model, chosen, settings, batches, known)
        walk = surgeon.walk(batches)
    split = Split(equal, "given" if widths is not None else "equal shares", {})
    knowledge, alternative = None, None
    if widths is None and heldout:
        with _timed(seconds, "knowledge"):
            knowledge = analysed(surgeon, walk, lambda: surgeon.walk(heldout), known, progress)
        with _timed(seconds, "split"):
            split, alternative = _split(surgeon, budget, knowledge, walk, heldout, known, progress)
    with _timed(seconds, "prune"), surgeon.pruned(walk, split.widths, progress) as (removed, weights):
        return Outcome(removed, weights, split, seconds, knowledge, alternative)


def _split(
    surgeon: Surgeon,
    budget: Budget,
    knowledge: Knowledge,
    walk: Walk,
    heldout: Sequence[Batch],
    known: Measured,
    progress: Progress,
) -> tuple[Split, Split | None]:
    """The split, and where it is uniform what widths per layer would give; a split that is ``known`` is not tried again."""
    few = _few(walk)
    count = 0

    def measured(on: Walk, widths: dict[str, int]) -> float:
        nonlocal count
        key = _key(on, widths)
        if key not in known:
            with surgeon.pruned(on, widths):
                known[key] = [heldout_loss(surgeon.model, heldout)]
        loss = known[key][0]
        count += 1
        progress("trying splits", count, max(count, splits.TRIALS))
        return loss

    split = splits.uniform(budget, surgeon.chosen, knowledge, partial(measured, few))
    scores = surgeon.scored(few)
    free = splits.per_layer(budget, surgeon.chosen, knowledge, scores, split, partial(measured, few))
    if budget.per_layer:
        return splits.run_off(free, partial(measured, walk)), None
    return splits.run_off(split, partial(measured, walk)), free


def _key(walk: Walk, widths: Mapping[str, int]) -> str:
    """What the loss of a split is known by: how much of the calibration text ranks and refits, and the widths."""
    windows = sum(len(batch["input_ids"]) for batch in walk.batches)
    content = json.dumps(sorted(widths.items()))  # hashed: a line of a deep model's widths is long
    return f"split on  {windows} {hashlib.sha256(content.encode()).hexdigest()}"  # two spaces: see `Measured`


def _few(walk: Walk) -> Walk:
    """The first batches with ``TRIAL_WINDOWS`` windows or a few more."""
    windows = 0
    for number, batch in enumerate(walk.batches, 1):
        windows += len(batch["input_ids"])
        if windows >= TRIAL_WINDOWS:
            return walk.part(number)
    return walk


@contextmanager
def _timed(seconds: dict[str, float], label: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[label] = time.perf_counter() - started
