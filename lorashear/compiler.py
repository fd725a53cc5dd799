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

from lorashear import checkpoint, evaluate, knowledge, models, recovery, report
from lorashear.calibration import GUARD_SHARE, Windows, batches, read_windows, window_length
from lorashear.config import Settings
from lorashear.errors import LorashearError
from lorashear.estimate import Estimate
from lorashear.folder import wanted_slice, write_folder, write_json
from lorashear.loading import check_usable, load, working_copy
from lorashear.output import check_target, output_folder
from lorashear.planning import lower
from lorashear.plans import Plan
from lorashear.pruning import cut_tensor
from lorashear.stages import Progress, Say, Stages
from lorashear.storage import Storage
from lorashear.stored import take
from lorashear_ir.groups import Groups
from lorashear_passes.allocate import Unreachable
from lorashear_passes.compose import compose
from lorashear_passes.groups import group
from lorashear_passes.knowledge import Measured
from lorashear_passes.oneshot import Outcome, compress
from lorashear_passes.surgery import Settings as Surgery


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
    tokenizer: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    estimated: Callable[[Estimate], None] | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> CompileResult:
    """Make a model smaller by ``ratio`` of its parameters and write it to the folder ``out``.

    Args:
        model: a folder, a hub id, or a transformers model (then ``tokenizer`` is needed to use text).
        out: the result folder; a temporary one where it is left out.
        text: .txt, .jsonl or .parquet files to calibrate on; without text structures are ranked by magnitude.
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
            folder, name = _saved(model, tokenizer, Path(scratch)), type(model).__name__
        else:
            folder = checkpoint.resolve(model, revision)
            name = str(model) if not Path(model).exists() else Path(model).resolve().name
        target = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="lorashear-result-"))
        source = checkpoint.Checkpoint.open(folder)
        check_target(target, source=folder, overwrite=overwrite, bytes_needed=source.bytes)
        stages = Stages(say, progress)
        return _compile(source, name, target, wanted, texts, trust_remote_code, overwrite, stages, estimated)


def _saved(model: torch.nn.Module, tokenizer: Any, folder: Path) -> Path:
    """A module given in memory, as a folder."""
    if not isinstance(model, PreTrainedModel):
        raise LorashearError(
            f"compile takes a folder, a hub id or a transformers model, and {type(model).__name__} is none"
        )
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def _compile(
    source: checkpoint.Checkpoint,
    name: str,
    target: Path,
    settings: Settings,
    texts: list[str | Path],
    trust_remote_code: bool,
    overwrite: bool,
    stage: Stages,
    estimated: Callable[[Estimate], None] | None,
) -> CompileResult:
    config = models.read_config(source.folder, trust_remote_code=trust_remote_code)
    twin = models.build_twin(config, trust_remote_code=trust_remote_code)
    if estimated:
        estimated(_estimate(source, twin, settings, bool(texts), target))
    with stage("read"):
        storage = Storage.of(source, twin)
        storage.check(source, twin)
        source.check_finite()
        contents = source.contents()
        windows = read_windows(source.folder, config, texts, settings) if texts else None
    with stage("capture"):
        graph = models.captured(twin)
        stage.made("capture", lambda: str(graph))
    with stage("infer"):
        typed = models.typed(graph)
        stage.made("infer", lambda: str(compose(typed)))
    with stage("group"):
        groups = models.expressible(group(typed), config, twin)
        stage.made("groups", lambda: report.table(groups))
    criterion = _criterion(settings, windows)
    with stage("prune"):
        reloaded = partial(working_copy, settings=settings, trust_remote_code=trust_remote_code)
        scratch = reloaded(source.folder)
        perplexity = {"before": _judged(scratch, windows)}
        known = knowledge.kept(source, contents, windows, settings, criterion) if windows else {}
        outcome = _outcome(scratch, groups, windows, settings, criterion, known, stage)
        teacher = scratch if settings.tokens and settings.distill else None
        del scratch
    with stage("plan"):
        recorded = {
            **asdict(settings),
            "prune": list(settings.prune),
            "criterion": criterion,
            "text": windows is not None,
        }
        plan = lower(source, twin, groups, outcome.removed, recorded)
        replace = _replacements(source, storage, groups, plan, outcome)
        changed = {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in replace.items()}
        plan = replaced(plan, changed=changed, contents=contents)
        stage.made("plan", plan.to_json)
    room = source.bytes * (2 if settings.tokens else 1)
    with output_folder(target, source=source.folder, overwrite=overwrite, bytes_needed=room) as folder:
        pruned, trained = folder / "pruned" if settings.tokens else folder, None
        with stage("slice"):
            wanted = wanted_slice(plan, source, replace=replace)
            pruned.mkdir(exist_ok=True)
            write_folder(plan, wanted, pruned, progress=partial(stage.progress, "slice"))
        if windows is not None and settings.tokens:
            with stage("train"):
                adapter = pruned / "adapter"
                perplexity["pruned"] = _judged(reloaded(pruned), windows)
                trained = recovery.recover(
                    reloaded(pruned), teacher, windows.training, settings, adapter, partial(stage.progress, "train")
                )
            with stage("merge" if settings.adapter == "merge" else "keep"):
                plan = recovery.write(plan, pruned, adapter, settings, folder, partial(stage.progress, "merge"))
                shutil.rmtree(pruned)
        with stage("evaluate"):
            perplexity["after"] = _judged(reloaded(folder), windows) if windows else None
        content = _report(
            source, storage, name, folder, settings, groups, outcome, plan, stage, perplexity, windows, trained
        )
        _finish(folder, plan, content)
    return CompileResult(target, plan, content)


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


def _judged(model: torch.nn.Module, windows: Windows | None) -> evaluate.Perplexity | None:
    """Perplexity on the windows that neither calibrated nor chose; None where there are none."""
    return evaluate.perplexity(model, windows.evaluation) if windows is not None and len(windows.evaluation) else None


def _criterion(settings: Settings, windows: Windows | None) -> str:
    return settings.criterion or ("obs" if windows is not None else "magnitude")


def _outcome(
    model: torch.nn.Module,
    groups: Groups,
    windows: Windows | None,
    settings: Settings,
    criterion: str,
    known: Measured,
    stage: Stages,
) -> Outcome:
    chosen = groups.only(settings.prune)
    if not chosen:
        raise LorashearError(f"the model has no prunable group of the kinds {', '.join(settings.prune)}")
    vocabulary = int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr]
    calibration, guard = (
        (batches(part, vocabulary, settings.device) for part in (windows.calibration, windows.guard))
        if windows is not None
        else (None, [])
    )
    try:
        return compress(
            model,
            chosen,
            calibration,
            ratio=settings.ratio,
            heldout=guard,
            per_layer=settings.per_layer,
            round_to=settings.round_to,
            settings=Surgery(criterion=criterion, compensate=settings.compensate, seed=settings.seed),
            unprunable=settings.unprunable_ratio,
            measured=known,
            progress=stage.progress,
        )
    except Unreachable as error:
        raise LorashearError(str(error)) from error


def _replacements(
    source: checkpoint.Checkpoint, storage: Storage, groups: Groups, plan: Plan, outcome: Outcome
) -> dict[str, np.ndarray]:
    """The refitted weights as they will be stored, by their names on disk."""
    result: dict[str, np.ndarray] = {}
    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
    for name, part in storage.parts.items():
        parameter = groups.tied.get(part.parameter, part.parameter)
        if parameter not in outcome.weights or name not in source.tensors or plan.names.get(name, name) is None:
            continue
        weight = take(part, outcome.weights[parameter].detach().cpu())
        small = cut_tensor(weight, plan.tensors[name]) if name in plan.tensors else weight
        small = small.to(dtypes[source.tensors[name].dtype]).contiguous()
        result[name] = (
            small.view(torch.int16).numpy().view(np.uint16) if small.dtype is torch.bfloat16 else small.numpy()
        )
    return result


def _report(
    source: checkpoint.Checkpoint,
    storage: Storage,
    name: str,
    folder: Path,
    settings: Settings,
    groups: Groups,
    outcome: Outcome,
    plan: Plan,
    stage: Stages,
    judged: Mapping[str, evaluate.Perplexity | None],
    windows: Windows | None,
    trained: Mapping[str, Any] | None,
) -> dict[str, Any]:
    small = checkpoint.Checkpoint.open(folder)
    counts = [_count(source, storage, groups, {}), _count(small, storage, groups, plan.names)]
    perplexity = None
    found = {name: each for name, each in judged.items() if each is not None}
    if found and windows is not None:
        tokens = found["before"].tokens
        what = f"{tokens:,} tokens of the given text that nothing else used, context {windows.context}"
        perplexity = {**{name: each.perplexity for name, each in found.items()}, "tokens": tokens, "data": what}
    return {
        "model": name,
        "ratio": {"asked": settings.ratio, "reached": 1 - counts[1] / counts[0]},
        "parameters": {"before": counts[0], "after": counts[1]},
        "bytes": {"before": source.bytes, "after": small.bytes},
        "widths": report.layer_widths(groups, outcome.removed),
        "route": plan.route,
        "criterion": plan.settings["criterion"],
        "compensated": sorted(plan.changed),
        "perplexity": perplexity,
        "training": trained,
        "split": {"chosen": outcome.split.name, "tried": dict(outcome.split.tried)},
        "per_layer": _alternative(outcome),
        "knowledge": knowledge.content(outcome.knowledge, groups, settings) if outcome.knowledge else None,
        "note": "" if windows is not None else "no text was given: ranked without data, not compensated",
        "seconds": {**stage.seconds, **{f"prune: {name}": round(s, 4) for name, s in outcome.seconds.items()}},
        "peak_bytes": stage.peak_bytes,
        "device": settings.device,
        "settings": asdict(settings),
    }


def _alternative(outcome: Outcome) -> dict[str, Any] | None:
    """What a uniform result would have kept if widths could differ per layer; None where that is not known."""
    free = outcome.alternative
    if free is None or outcome.split.name not in outcome.split.tried:
        return None
    return {"loss": outcome.split.tried[outcome.split.name], "loss_per_layer": free.tried[free.name]}


def _count(found: checkpoint.Checkpoint, storage: Storage, groups: Groups, names: Mapping[str, str | None]) -> int:
    """Parameters as they lie on disk, tied ones once; ``names`` has those of a result that are other ones."""
    sizes: dict[tuple[Any, ...], int] = {}
    for name, part in storage.parts.items():
        parameter, info = (
            groups.tied.get(part.parameter, part.parameter),
            found.tensors.get(names.get(name, name) or ""),
        )
        if parameter in groups.tensors and info is not None:
            first = tuple(place.indices[0] for place in part.places)
            sizes[parameter, first] = int(np.prod(info.shape, dtype=np.int64))
    return sum(sizes.values())


def _finish(folder: Path, plan: Plan, content: dict[str, Any]) -> None:
    (folder / "README.md").write_text(report.card(content, plan.route), encoding="utf-8")
    write_json(folder / "lorashear" / "report.json", content)
