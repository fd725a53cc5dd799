"""A checkpoint becomes a pruned result: analysed, chosen from, planned, sliced, judged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from lorashear import models, prices, report, results
from lorashear.choosing import Choice, choose, replacements
from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.folder import wanted_slice, write_folder
from lorashear.disk.lora import Adapter
from lorashear.disk.storage import Storage
from lorashear.learning import curves, recovery
from lorashear.learning.training import LOG
from lorashear.planning import lower
from lorashear.plans import Plan
from lorashear.run import Compilation
from lorashear.viewer import result
from lorashear_passes.compose import compose
from lorashear_passes.groups import group


@dataclass(frozen=True)
class Given:
    """What was given, looked through: how it is stored, and what its weights and its adapter's are known by."""

    storage: Storage
    contents: str
    adapter: Adapter | None

    @property
    def all_contents(self) -> str:
        return self.contents + (self.adapter.held.identity() if self.adapter else "")


def read(source: Checkpoint, twin: PreTrainedModel, lora: Path | None) -> Given:
    """Raises LorashearError where the stored tensors are not the class's, a weight is no number, or the adapter is odd."""
    storage = Storage.of(source, twin)
    storage.check(twin)
    source.check_finite()
    contents = source.contents()
    adapter = recovery.opened(lora, source, twin) if lora else None
    if adapter:
        adapter.check_mergeable()
    return Given(storage, contents, adapter)


def prune(run: Compilation, twin: PreTrainedModel, given: Given, folder: Path) -> None:
    """Write what a run makes without training after the cut, with its plan, report and card, into ``folder``.

    Raises:
        LorashearError: nothing can be pruned, the ratio is out of reach, or LHSPG's training fails.
    """
    source, settings, stage, storage = run.source, run.settings, run.stage, given.storage
    with stage("capture"):
        graph = models.captured(twin)
        stage.made("capture", lambda: str(graph))
    with stage("infer"):
        typed = models.typed(graph)
        stage.made("infer", lambda: str(compose(typed)))
    with stage("group"):
        groups = models.expressible(group(typed), twin.config, twin)
        stage.made("groups", lambda: report.table(groups))
    counted = prices.priced(groups, settings, storage)
    dense = run.dense()
    judged = {"before": run.judged(dense)}
    choice = choose(run, counted, dense, given.all_contents)
    del dense
    with stage("plan"):
        plan = lower(source, twin, groups, choice.outcome.removed, _recorded(run))
        less = given.adapter if choice.record is None else None  # LHSPG's weights never had it
        replace = replacements(storage, groups, plan, choice.outcome, less)
        changed = {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in replace.items()}
        plan = replaced(plan, changed=changed, contents=given.contents)
        stage.made("plan", plan.to_json)
    with stage("slice"):
        folder.mkdir(parents=True, exist_ok=True)
        plan = _sliced(run, plan, choice, replace, twin, folder)
    with stage("evaluate"):
        judged["after"] = run.judged(run.pruned(folder)) if run.windows else None
    with stage("report"):
        results.write(results.content(run, storage, groups, counted, choice, plan, folder, judged), folder)
        try:
            result.write(run.name, twin, groups, plan.removed, folder)
        except Exception as error:  # hours of work are worth more than a page to look at
            if stage.say:
                stage.say(f"lorashear/report.html was not made: {error}")


def _sliced(
    run: Compilation, plan: Plan, choice: Choice, replace: Mapping[str, np.ndarray], twin: PreTrainedModel, folder: Path
) -> Plan:
    """Write what the plan makes of the source, and of what stands beside it; the plan with all hashes."""
    trained = recovery.opened(choice.adapter, run.source, twin) if choice.adapter else None
    merge = run.settings.adapter == "merge" and not run.recovers
    most = run.settings.shard_bytes
    wanted = wanted_slice(plan, run.source, replace=replace, shard_bytes=most, merged=trained if merge else None)
    kept = None if merge else trained
    write_folder(plan, wanted, folder, kept=kept, progress=partial(run.stage.progress, "slice"))
    if trained is None or choice.adapter is None:
        return plan
    if choice.record is not None:
        curves.keep(choice.adapter / LOG, folder / "lorashear")
    left = {name: plan.names.get(name, name) for name in trained.adapted}
    return recovery.noted(plan, folder, {n: new for n, new in left.items() if new is not None}) if merge else plan


def _recorded(run: Compilation) -> dict[str, Any]:
    """The settings for the plan."""
    settings = {**asdict(run.settings), "prune": list(run.settings.prune)}
    return {**settings, "criterion": run.criterion, "text": run.windows is not None}
