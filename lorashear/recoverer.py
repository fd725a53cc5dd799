"""The second half of the product by itself: a pruned folder in, the same one with what it lost learned again out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lorashear import models, results
from lorashear.compiler import CompileResult
from lorashear.config import Training
from lorashear.disk import checkpoint
from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.estimate import Estimate
from lorashear.disk.folder import BESIDE
from lorashear.disk.lora import held_in
from lorashear.disk.output import WORK, check_target, check_unfinished, resumable_folder
from lorashear.emission.declared import vocabulary
from lorashear.errors import LorashearError
from lorashear.learning import fitting, trackers
from lorashear.learning.processes import Processes
from lorashear.learning.recovery import ALIKE
from lorashear.learning.recovery import recover as recover_run
from lorashear.learning.training import Step
from lorashear.loading import check_usable
from lorashear.plans import Plan
from lorashear.recipes import record
from lorashear.recipes.reading import filled, own_arguments
from lorashear.recipes.words import RECOVER
from lorashear.run import Run
from lorashear.terminal.stages import Progress, Say, Stages
from lorashear.text.calibration import read_tokenizer, read_windows
from lorashear.text.corpus import check_there
from lorashear.text.data import tokens_in
from lorashear.text.subsets import Source, Text, named, titles

MOST = 10_000_000
"""Tokens to train on where nobody says how many."""


def recover(
    folder: str | Path | None = None,
    out: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    text: Text = (),
    instruct: Sequence[Source] | Source = (),
    tokens: int | None = None,
    dense: str | Path | None = None,
    lora: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
    stepped: Callable[[Step], None] | None = None,
    report_to: Sequence[str] = (),
    **settings: Any,
) -> CompileResult:
    """Train a folder that LoRAShear wrote, through LoRA, and write what it becomes to the folder ``out``.

    First on the text, whose subsets are drawn by what each has lost against the dense model, then on instruction data beside it.

    Args:
        folder: the pruned model; an adapter that lies beside it is what goes on training.
        out: the result folder.
        recipe: the YAML file of a recipe of recover, in the words of its flags. Arguments win, as in `lorashear.compile`.
        text: as of `lorashear.compile`; this or ``instruct`` at least.
        instruct: as of `lorashear.compile`.
        tokens: to train on in all; by default as many as there are, but no more than `MOST`.
        dense: the model that it was pruned from, as a folder or hub id: what has been lost is measured against it, and the loss
            keeps close to it. By default the one that the folder's report names, where that is a hub id; without any, or with
            "none", all subsets are drawn alike, and only the text counts.
        lora: the folder of an adapter that belongs to the dense model, as of `lorashear.compile`.
        revision: of a hub id.
        overwrite: replace ``out`` at the end.
        resume: as of `lorashear.compile`, as are the next four.
        say: called with a line as a stage begins and when it is over.
        progress: called with (stage, done, total).
        stepped: called with what each step of training did.
        report_to: trackers that get the same.
        settings: see `lorashear.config.Training`.

    Raises:
        LorashearError: the request or the input is wrong, or the loss stops being a number.
    """
    if recipe is not None:
        own = {"revision": revision, "trust_remote_code": trust_remote_code, "report_to": report_to, "tokens": tokens}
        said = own_arguments(folder=folder, out=out, text=text, instruct=instruct, dense=dense, lora=lora, **own)
        return recover(
            **filled(recipe, RECOVER, {**said, **settings}),
            overwrite=overwrite,
            resume=resume,
            say=say,
            progress=progress,
            stepped=stepped,
        )
    for name, each in (("folder", folder), ("out", out)):
        if each is None:
            raise LorashearError(f"nothing says which {name}: pass {name}, or a recipe that names one")
    wanted = Training(tokens=MOST if tokens is None else tokens, **settings)
    check_usable(wanted)
    trackers.check(report_to)
    texts, told = named(text), [instruct] if isinstance(instruct, str | Path) else list(instruct)
    check_there(texts)
    if not texts and not told:
        raise LorashearError(
            "recovery needs something to train on: pass text (--text FILE) or instruct (--instruct FILE)"
        )
    pruned, target = Path(folder or ""), Path(out or "")
    processes = Processes(wanted.device)
    if not processes.main:
        processes.follow()
        return CompileResult(target, *results.read(target))
    with processes.leading(), trackers.Trackers(report_to, target) as reported:
        plan, report = results.read(pruned)
        source = Checkpoint.open(pruned)
        check_target(target, source=pruned, overwrite=overwrite, bytes_needed=source.bytes)
        check_unfinished(target, resume=resume)
        found, why = _dense(dense, revision, report, wanted.device, lora)
        if found is not None:
            check_target(target, source=found.folder, overwrite=overwrite, bytes_needed=source.bytes)
            _check_vocabulary(found.folder, pruned, trust_remote_code)
        name = str(dense or report["model"])
        name = (
            Path(name).resolve().name if found and Path(name).exists() else name
        )  # nobody else has this machine's folders
        asked, estimate = wanted, _estimates(source, found, target, trust_remote_code)
        if found and texts:
            wanted = fitting.settled(wanted, estimate, say)
        stages = Stages(say, progress, told=(stepped, reported) if stepped else (reported,))
        own = Path(lora) if lora is not None else None
        given = record.given(
            text,
            instruct,
            folder=folder,
            lora=lora,
            trust_remote_code=trust_remote_code,
            report_to=",".join(report_to),
            **_known_as(found, dense, revision, report),
        )
        run = Run(
            found,
            name,
            wanted,
            stages,
            trust_remote_code,
            own,
            processes=processes,
            why=why,
            texts=titles(texts),
            given=given,
        )
        if why and say:
            say(why)
        with stages("read"):
            source.check_finite()
            config = models.read_config(pruned, trust_remote_code=trust_remote_code)
            windows = read_windows(pruned, config, texts, wanted, stages.progress, told)
            if tokens is None:
                held = sum(tokens_in(subset.training) for subset in windows.every)
                wanted = replace(wanted, tokens=min(MOST, held))
            run = replace(run, windows=windows, settings=wanted)
        with resumable_folder(
            target,
            job=run.job(_known(run, source, plan), asked),
            resume=resume,
            source=pruned,
            overwrite=overwrite,
            bytes_needed=estimate(wanted).room,
        ) as (place, journal):
            run = replace(run, work=place / WORK, saved=partial(journal.note, "training"))
            with stages("evaluate"):
                judged = {"before": run.judged(run.dense()) if found else None, "after": run.judged(run.pruned(pruned))}
            before = {**report, "perplexity": results.perplexities(run, judged)}
            recover_run(run, pruned, place, before)
            record.keep(pruned, place)
            # where nobody has said how many tokens, the same text has the same again
            record.write(place, given, replace(asked, tokens=tokens), results.read(place)[1], RECOVER)
            results.write_card(place)
            shutil.rmtree(run.work, ignore_errors=True)
    return CompileResult(target, *results.read(target))


def _dense(
    dense: str | Path | None, revision: str | None, report: dict[str, Any], device: str, lora: str | Path | None
) -> tuple[Checkpoint | None, str]:
    """The dense model, or why there is none and what is done instead."""
    name, resolved = str(report["model"] if dense is None else dense), revision
    if name == "none":
        return None, f"no dense model is wanted, and {ALIKE}"
    if dense is None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            return None, f"no dense model is given (--dense MODEL), and {ALIKE}"
        if report.get("lora") and lora is None:
            return None, f"{name} is dense only with the adapter that it was pruned with (--lora DIR), and {ALIKE}"
        resolved = revision or report.get("revision")
    try:
        found = Checkpoint.open(checkpoint.resolve(name, resolved))
    except LorashearError as error:
        if dense is not None:
            raise
        return None, f"{name}, the dense model, cannot be had ({error}), and {ALIKE}"
    if dense is None and found.bytes > (there := fitting.available(device)):
        size = f"{found.bytes / 1e9:.1f} GB, {there / 1e9:.1f} GB of memory are free"
        return None, f"{name}, the dense model, has {size}, and {ALIKE}"
    return found, ""


def _known_as(
    found: Checkpoint | None, dense: str | Path | None, revision: str | None, report: dict[str, Any]
) -> dict[str, str | Path | None]:
    """The dense model in a recipe, those too that nobody has named: one of a hub by its commit, and none as none."""
    if found is None:
        return {"dense": "none"}
    if dense is None:
        dense, revision = str(report["model"]), revision or report.get("revision")
    return {"dense": dense, "revision": checkpoint.commit(found.folder) or revision}


def _estimates(
    pruned: Checkpoint, dense: Checkpoint | None, target: Path, trust_remote_code: bool
) -> Callable[[Training], Estimate]:
    """What the work takes, by its settings."""
    small, large = (
        models.twin_of(each.folder, trust_remote_code=trust_remote_code) if each else None for each in (pruned, dense)
    )
    assert small is not None
    weights = sum(parameter.numel() for parameter in large.parameters()) if large else 0

    def estimate(settings: Training) -> Estimate:
        sizes, shares = fitting.sizes(small, settings), fitting.shares(settings)
        return Estimate.of_recover(pruned, sizes, weights, settings, target, shares=shares)

    return estimate


def _check_vocabulary(dense: Path, pruned: Path, trust_remote_code: bool) -> None:
    """Whether two models read and tell the same tokens."""
    ours, theirs = (
        (
            read_tokenizer(folder).get_vocab(),
            vocabulary(models.read_config(folder, trust_remote_code=trust_remote_code)),
        )
        for folder in (pruned, dense)
    )
    if ours != theirs:
        raise LorashearError(
            f"dense names '{dense}', whose tokenizer has other pieces ({theirs[1]:,}) than that of '{pruned}' "
            f"({ours[1]:,}): give the model that it was pruned from"
        )


def _known(run: Run, pruned: Checkpoint, plan: Plan) -> list[str]:
    """What the models and adapters of a run are known by."""
    adapters = [folder for folder in (pruned.folder / BESIDE, run.lora) if folder and folder.is_dir()]
    found = [pruned, *(held_in(folder) for folder in adapters), *([run.source] if run.source else [])]
    return [plan.to_json(), *(each.identity() for each in found)]
