"""The product, top to bottom: a model folder in, a smaller ordinary one out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lorashear import adapters, amounts, goals, models, results
from lorashear.choosing import check_function
from lorashear.config import Settings
from lorashear.cutting import prune, read
from lorashear.disk import checkpoint
from lorashear.disk.estimate import Estimate
from lorashear.disk.output import WORK, check_target, check_unfinished, resumable_folder
from lorashear.engines.exporter import check_loads
from lorashear.errors import LorashearError
from lorashear.learning import fitting, launched, trackers
from lorashear.learning.processes import Processes
from lorashear.learning.recovery import recover
from lorashear.learning.training import Step
from lorashear.loading import check_usable, load
from lorashear.plans import Plan
from lorashear.recipes import record
from lorashear.recipes.reading import filled, own_arguments
from lorashear.recipes.words import COMPILE
from lorashear.run import Compilation
from lorashear.terminal.stages import Progress, Say, Stages
from lorashear.text.calibration import GUARD_SHARE, read_windows
from lorashear.text.corpus import check_there
from lorashear.text.subsets import Sources, Text, named, titles
from lorashear_passes.scores import Criterion


@dataclass(frozen=True)
class CompileResult:
    """What `compile` made: the folder, the plan and the report."""

    folder: Path
    plan: Plan
    report: Mapping[str, Any]

    def __repr__(self) -> str:
        before, after = (self.report["parameters"][when] for when in ("before", "after"))
        return f"CompileResult({str(self.folder)!r}, {before:,} → {after:,} parameters, {self.plan.route})"

    @cached_property
    def model(self) -> torch.nn.Module:
        """The small model, read from the folder."""
        return load(self.folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the result folder. Raises LorashearError where the target is in use."""
        self.export("safetensors", folder)

    def export(self, format: str, path: str | Path) -> None:
        """As `lorashear.export`."""
        from lorashear.engines.exporter import export

        export(self.folder, format, path)


def compile(
    model: models.Model | None = None,
    ratio: float | None = None,
    out: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    text: Text = (),
    instruct: Sequence[str | Path] | str | Path = (),
    lora: str | Path | None = None,
    tokenizer: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    estimated: Callable[[Estimate], None] | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    stepped: Callable[[Step], None] | None = None,
    report_to: Sequence[str] = (),
    criterion: str | Criterion | None = None,
    **settings: Any,
) -> CompileResult:
    """Make a model smaller by ``ratio`` of its parameters, or of another ``cost``, and write it to the folder ``out``.

    ``params`` or ``bytes`` in place of ``ratio`` say how many parameters, or bytes of tensors, are left at most: 5e9, "5B", "8GB".

    Args:
        model: a folder, a hub id, or a transformers model or PeftModel (then ``tokenizer`` is needed to use text).
        out: the result folder; a temporary one where it is left out.
        recipe: the YAML file of a recipe, or the name of one that ships (`lorashear recipe list`), in the words of the flags.
            Arguments win: a setting that is named at all, and of the others one that is not its default.
        text: to calibrate and train on: .txt, .jsonl or .parquet files, folders of such files, or datasets of a hub, as
            owner/name, owner/name:config or owner/name:config:split; without text structures are ranked by magnitude. With
            names, as NAME=FILE or in a mapping, they are subsets, of which training draws those that have lost most.
        instruct: instruction data for the last part of the training (see `lorashear.text.instructions`), as such files or datasets.
        lora: the folder of a LoRA adapter that belongs to the model. It counts as a part of it, and is what is trained.
        resume: go on with what an earlier run of the same request left when it was stopped in training.
        estimated: called, before weights are read, with what the run will take; one that raises ends it there.
        say: called with a line as a stage begins and when it is over.
        progress: called with (stage, done, total).
        stepped: called with what each step of training did (`lorashear.learning.training.Step`), before ``progress`` is.
        report_to: trackers that get the same: "tensorboard" and others that accelerate knows, or "all" that are installed.
            TensorBoard's files go to ``runs`` beside the result (see `lorashear.learning.trackers`).
        criterion: which structures go first, one of `lorashear.config.CRITERIA`, or a function of the dense model, the groups,
            batches of the text and the seed, that gives scores by the name of each group (`lorashear_passes.scores.Criterion`).
        settings: see `lorashear.config.Settings`.

    Raises:
        LorashearError: the request or the input is wrong, or the ratio is out of reach.
    """
    if recipe is not None:
        own = {
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "report_to": report_to,
            "criterion": criterion,
        }
        said = own_arguments(model=model, ratio=ratio, out=out, text=text, instruct=instruct, lora=lora, **own)
        return compile(
            **filled(recipe, COMPILE, {**said, **settings}),
            tokenizer=tokenizer,
            overwrite=overwrite,
            resume=resume,
            estimated=estimated,
            say=say,
            progress=progress,
            stepped=stepped,
        )
    if model is None:
        raise LorashearError("nothing says which model: pass model, or a recipe that names one")
    for name, read_amount in (("params", amounts.count), ("bytes", amounts.byte_count)):
        if settings.get(name) is not None:
            settings[name] = read_amount(settings[name], name)
    function = criterion if callable(criterion) else None
    wanted = Settings(ratio=ratio, criterion=None if callable(criterion) else criterion, **settings)
    if function is not None:
        check_function(function, wanted)
    check_usable(wanted)
    trackers.check(report_to)
    if report_to and wanted.one_shot:
        raise LorashearError("report_to hands on the steps of training, and one_shot has none: leave one of them out")
    texts = named(text)
    check_there(texts)
    told = [instruct] if isinstance(instruct, str | Path) else list(instruct)
    if not texts and wanted.tokens:
        raise LorashearError("tokens asks for training, which needs text: pass text (--text FILE)")
    if not texts and wanted.criterion not in (None, "magnitude", "random"):
        raise LorashearError(f"criterion is {wanted.criterion}, which needs text: pass text (--text FILE)")
    if told and not wanted.tokens:
        raise LorashearError("instruct is what to train on at last, and there is no tokens (--tokens N)")
    processes = Processes(wanted.device)
    if processes.size > 1 and out is None:
        raise LorashearError("several processes write into a folder that out names: pass out (--out DIR)")
    if not processes.main:
        processes.follow()
        return CompileResult(Path(out or ""), *results.read(Path(out or "")))
    with processes.leading(), tempfile.TemporaryDirectory(prefix="lorashear-") as scratch:
        beside = None if lora is None else str(lora)
        if isinstance(model, torch.nn.Module):
            folder, name = Path(scratch) / "given", type(model).__name__
            lora = _saved(model, tokenizer, folder) or lora
        else:
            folder = checkpoint.resolve(model, revision)
            name = str(model) if not Path(model).exists() else Path(model).resolve().name
        if out is None and resume:
            raise LorashearError("resume goes on in a folder that out names: pass out (--out DIR)")
        target = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="lorashear-result-"))
        source = checkpoint.Checkpoint.open(folder)
        if wanted.target:
            check_loads(source, wanted.target, wanted.tensor_parallel)
        check_target(target, source=folder, overwrite=overwrite, bytes_needed=source.bytes)
        check_unfinished(target, resume=resume)
        own = Path(lora) if lora is not None else None
        with trackers.Trackers(report_to, target) as reported:
            stages = Stages(say, progress, told=(stepped, reported) if stepped else (reported,))
            given = record.given(
                text,
                instruct,
                model=model,
                revision=checkpoint.commit(folder) or revision,
                lora=beside,
                trust_remote_code=trust_remote_code,
                report_to=",".join(report_to),
                **({} if function is None else {"criterion": None}),
            )
            run = Compilation(
                source,
                name,
                wanted,
                stages,
                trust_remote_code,
                own,
                processes=processes,
                revision=revision,
                given=given,
                function=function,
            )
            return _compile(run, target, texts, told, overwrite, resume, estimated)


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
    run: Compilation,
    target: Path,
    texts: Sources,
    instruct: list[str | Path],
    overwrite: bool,
    resume: bool,
    estimated: Callable[[Estimate], None] | None,
) -> CompileResult:
    source, stage = run.source, run.stage
    config = models.read_config(source.folder, trust_remote_code=run.trust_remote_code)
    twin = models.build_twin(config, trust_remote_code=run.trust_remote_code)
    wanted = run.settings
    run = replaced(run, settings=goals.settled(run.settings, source, twin))
    settings = fitting.settled(run.settings, lambda each: _estimate(source, twin, each, bool(texts), target), stage.say)
    asked, run = run.settings, replaced(run, settings=settings)
    estimate = _estimate(source, twin, settings, bool(texts), target)
    if estimated:
        estimated(estimate)
    with stage("read"):
        given = read(source, twin, run.lora)
        windows = read_windows(source.folder, config, texts, settings, stage.progress, instruct) if texts else None
        run = replaced(run, windows=windows, texts=titles(texts))
    with resumable_folder(
        target,
        job=run.job([source.digest(), given.all_contents, *([run.criterion] if run.function else [])], asked),
        resume=resume,
        source=source.folder,
        overwrite=overwrite,
        bytes_needed=estimate.room,
    ) as (folder, journal):
        run = replaced(run, work=folder / WORK, saved=partial(journal.note, "training"))
        pruned = run.work / "pruned" if run.recovers else folder
        try:
            if not journal.position("pruned"):
                prune(run, twin, given, pruned)
                journal.note("pruned", 1)
            if run.recovers and not journal.position("result"):
                recover(run, pruned, folder, results.read(pruned)[1])
                journal.note("result", 1)
        except BaseException as error:
            wrong = isinstance(error, LorashearError) and not isinstance(error, launched.Lost)
            if wrong and not journal.position("training"):
                journal.positions.clear()  # another try would come to the same
            raise
        record.write(folder, run.given, wanted, results.read(folder)[1], COMPILE)
        results.write_card(folder)
        shutil.rmtree(run.work, ignore_errors=True)
    return CompileResult(target, *results.read(target))


def _estimate(
    source: checkpoint.Checkpoint, twin: PreTrainedModel, settings: Settings, text: bool, target: Path
) -> Estimate:
    sizes = fitting.sizes(twin, settings)
    windows = settings.windows + -(-settings.windows // GUARD_SHARE)
    tokens = windows * sizes.length if text else 0
    return Estimate.of_compile(source, sizes, settings, target, tokens=tokens, shares=fitting.shares(settings))
