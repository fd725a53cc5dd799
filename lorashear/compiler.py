"""The product, top to bottom: a model folder in, a smaller ordinary one out."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lorashear import adapters, checkpoint, evaluate, models, prices, recovery, report, results
from lorashear.calibration import GUARD_SHARE, read_windows, window_length
from lorashear.choosing import Choice, choose, replacements
from lorashear.config import Settings
from lorashear.errors import LorashearError
from lorashear.estimate import Estimate
from lorashear.folder import wanted_slice, write_folder, write_json
from lorashear.loading import check_usable, load
from lorashear.output import check_target, output_folder
from lorashear.planning import lower
from lorashear.plans import Plan
from lorashear.run import Run
from lorashear.stages import Progress, Say, Stages
from lorashear.storage import Storage
from lorashear.training import LOG
from lorashear_passes.compose import compose
from lorashear_passes.groups import group


@dataclass(frozen=True)
class CompileResult:
    """What `compile` made: the folder, the plan and the report."""

    folder: Path
    plan: Plan
    report: Mapping[str, Any]

    @cached_property
    def model(self) -> torch.nn.Module:
        """The small model, read from the folder."""
        return load(self.folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the result folder. Raises LorashearError where the target is in use."""
        self.export("safetensors", folder)

    def export(self, format: str, path: str | Path) -> None:
        """As `lorashear.export`."""
        from lorashear.exporting import export

        export(self.folder, format, path)


def compile(
    model: models.Model,
    ratio: float,
    out: str | Path | None = None,
    *,
    text: Sequence[str | Path] | str | Path = (),
    lora: str | Path | None = None,
    tokenizer: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    estimated: Callable[[Estimate], None] | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> CompileResult:
    """Make a model smaller by ``ratio`` of its parameters, or of another ``cost``, and write it to the folder ``out``.

    Args:
        model: a folder, a hub id, or a transformers model or PeftModel (then ``tokenizer`` is needed to use text).
        out: the result folder; a temporary one where it is left out.
        text: .txt, .jsonl or .parquet files to calibrate on; without text structures are ranked by magnitude.
        lora: the folder of a LoRA adapter that belongs to the model. It counts as a part of it, and is what is trained.
        estimated: called, before weights are read, with what the run will take; one that raises ends it there.
        say, progress: called with a line for each stage, and with (stage, done, total).
        settings: see `lorashear.config.Settings`.

    Raises:
        LorashearError: the request or the input is wrong, or the ratio is out of reach.
    """
    wanted = Settings(ratio=ratio, **settings)
    check_usable(wanted)
    texts = [text] if isinstance(text, str | Path) else list(text)
    if not texts and wanted.tokens:
        raise LorashearError("tokens asks for training, which needs text: pass text (--text FILE)")
    if not texts and wanted.criterion not in (None, "magnitude", "random"):
        raise LorashearError(f"criterion is {wanted.criterion}, which needs text: pass text (--text FILE)")
    with tempfile.TemporaryDirectory(prefix="lorashear-") as scratch:
        if isinstance(model, torch.nn.Module):
            folder, name = Path(scratch) / "given", type(model).__name__
            lora = _saved(model, tokenizer, folder) or lora
        else:
            folder = checkpoint.resolve(model, revision)
            name = str(model) if not Path(model).exists() else Path(model).resolve().name
        target = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="lorashear-result-"))
        source = checkpoint.Checkpoint.open(folder)
        check_target(target, source=folder, overwrite=overwrite, bytes_needed=source.bytes)
        own = Path(lora) if lora is not None else None
        run = Run(source, name, wanted, Stages(say, progress), Path(scratch), trust_remote_code, own)
        return _compile(run, target, texts, overwrite, estimated)


def _saved(model: torch.nn.Module, tokenizer: Any, folder: Path) -> Path | None:
    """Write a module given in memory into a folder; the folder of its adapter, where it has one."""
    lora = None
    if adapters.holds(model) and not isinstance(model, PreTrainedModel):
        lora = adapters.save_apart(model, folder, folder.with_name("adapter"))
    elif adapters.holds(model):
        raise LorashearError(
            f"{type(model).__name__} carries adapters that were put on by add_adapter: pass a PeftModel instead"
        )
    elif isinstance(model, PreTrainedModel):
        model.save_pretrained(folder)
    else:
        raise LorashearError(
            f"compile takes a folder, a hub id or a transformers model, and {type(model).__name__} is none"
        )
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return lora


def _compile(
    run: Run,
    target: Path,
    texts: list[str | Path],
    overwrite: bool,
    estimated: Callable[[Estimate], None] | None,
) -> CompileResult:
    source, settings, stage = run.source, run.settings, run.stage
    config = models.read_config(source.folder, trust_remote_code=run.trust_remote_code)
    twin = models.build_twin(config, trust_remote_code=run.trust_remote_code)
    if estimated:
        estimated(_estimate(source, twin, settings, bool(texts), target))
    with stage("read"):
        storage = Storage.of(source, twin)
        storage.check(twin)
        source.check_finite()
        contents = source.contents()
        given = recovery.opened(run.lora, source, twin) if run.lora else None
        if given:
            given.check_mergeable()
        run = replaced(run, windows=read_windows(source.folder, config, texts, settings) if texts else None)
    with stage("capture"):
        graph = models.captured(twin)
        stage.made("capture", lambda: str(graph))
    with stage("infer"):
        typed = models.typed(graph)
        stage.made("infer", lambda: str(compose(typed)))
    with stage("group"):
        groups = models.expressible(group(typed), config, twin)
        stage.made("groups", lambda: report.table(groups))
    counted = prices.priced(groups, settings, storage)
    dense = run.dense()
    judged = {"before": run.judged(dense)}
    choice = choose(run, counted, dense, contents + (given.contents() if given else ""))
    after_cut = settings.tokens is not None and choice.record is None  # else what was trained is cut
    teacher = dense if after_cut and settings.distill else None
    del dense
    with stage("plan"):
        plan = lower(source, twin, groups, choice.outcome.removed, _recorded(run))
        less = given if choice.record is None else None  # LHSPG's weights never had it
        replace = replacements(storage, groups, plan, choice.outcome, less)
        changed = {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in replace.items()}
        plan = replaced(plan, changed=changed, contents=contents)
        stage.made("plan", plan.to_json)
    room = source.bytes * (2 if after_cut else 1)
    with output_folder(target, source=source.folder, overwrite=overwrite, bytes_needed=room) as folder:
        pruned, trained = folder / "pruned" if after_cut else folder, choice.record
        with stage("slice"):
            pruned.mkdir(exist_ok=True)
            merge = settings.adapter == "merge" and not after_cut
            plan = _sliced(run, plan, choice, replace, twin, pruned, merge=merge)
        if after_cut and run.windows is not None:
            with stage("train"):
                small = run.learner(pruned)
                judged["pruned"] = run.judged(small)
                shown = partial(stage.progress, "train")
                adapter = run.scratch / "adapter"
                trained = recovery.recover(small, teacher, run.windows.training, settings, adapter, shown)
                del small
            with stage("merge" if settings.adapter == "merge" else "keep"):
                plan = recovery.write(plan, pruned, adapter, settings, folder, partial(stage.progress, "merge"))
                shutil.rmtree(pruned)
        with stage("evaluate"):
            judged["after"] = run.judged(run.pruned(folder)) if run.windows else None
        content = results.content(run, storage, groups, counted, choice, plan, folder, judged, trained)
        (folder / "README.md").write_text(report.card(content, plan.route), encoding="utf-8")
        write_json(folder / "lorashear" / "report.json", content)
    return CompileResult(target, plan, content)


def _sliced(
    run: Run,
    plan: Plan,
    choice: Choice,
    replace: Mapping[str, np.ndarray],
    twin: PreTrainedModel,
    folder: Path,
    *,
    merge: bool,
) -> Plan:
    """Write what the plan makes of the source, and of what stands beside it; the plan with all hashes."""
    trained = recovery.opened(choice.adapter, run.source, twin) if choice.adapter else None
    most = run.settings.shard_bytes
    wanted = wanted_slice(plan, run.source, replace=replace, shard_bytes=most, merged=trained if merge else None)
    kept = None if merge else trained
    write_folder(plan, wanted, folder, kept=kept, progress=partial(run.stage.progress, "slice"))
    if trained is None or choice.adapter is None:
        return plan
    if choice.record is not None:
        shutil.copyfile(choice.adapter / LOG, folder / "lorashear" / LOG)
    left = {name: plan.names.get(name, name) for name in trained.adapted}
    return recovery.noted(plan, folder, {n: new for n, new in left.items() if new is not None}) if merge else plan


def _recorded(run: Run) -> dict[str, Any]:
    """The settings for the plan."""
    settings = {**asdict(run.settings), "prune": list(run.settings.prune)}
    return {**settings, "criterion": run.criterion, "text": run.windows is not None}


def _estimate(
    source: checkpoint.Checkpoint, twin: PreTrainedModel, settings: Settings, text: bool, target: Path
) -> Estimate:
    windows = settings.windows + -(-settings.windows // GUARD_SHARE)
    table: Any = twin.get_input_embeddings()
    vocabulary, hidden = map(int, table.weight.shape)
    length = window_length(twin.config, settings)
    shapes = [tuple(p.shape) for p in twin.parameters()]
    return Estimate.of_compile(
        source,
        shapes,
        settings,
        target,
        tokens=windows * length if text else 0,
        batch=evaluate.batch_size(length, vocabulary) * length,
        length=length,
        hidden=hidden,
        vocabulary=vocabulary,
    )
