"""Models judged side by side: the way through `lorashear eval`."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lorashear import models as users
from lorashear.config import Training
from lorashear.disk.folder import write_json
from lorashear.disk.output import check_file, output_file
from lorashear.errors import LorashearError
from lorashear.evaluation import harness, speed_figures, table
from lorashear.evaluation.accuracies import OfSuite, average
from lorashear.evaluation.asked import CONTEXT, Asked
from lorashear.evaluation.greedy import check_positions
from lorashear.evaluation.harness_metrics import OfTaskFile
from lorashear.evaluation.measures import Finding, Measure, figure
from lorashear.evaluation.perplexities import OfText
from lorashear.evaluation.subjects import Subject
from lorashear.evaluation.task_files import ENDINGS as TASK_FILES
from lorashear.evaluation.task_files import task_file
from lorashear.evaluation.tasks import ALL, NAMES, suites
from lorashear.evaluation.texts import texts
from lorashear.evaluation.unfinished import Unfinished
from lorashear.evaluation.versions import versions
from lorashear.loading import check_usable
from lorashear.terminal.stages import Progress, Say, Stages
from lorashear.text.subsets import Text

FORMAT = 1
"""Of the report: counts up when a reader of an older one would misunderstand it."""


@dataclass(frozen=True)
class Evaluation:
    """What was found, as the JSON that `lorashear eval` writes (docs/evaluation.md says what is in it)."""

    report: Mapping[str, Any]

    def __str__(self) -> str:
        return table.text(self.report)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the report. Raises LorashearError where a file is there that may not be overwritten."""
        target = Path(path)
        check_file(target, overwrite=overwrite)
        with output_file(target, overwrite=overwrite) as work:
            write_json(work, self.report)


def evaluate(
    models: Sequence[users.Model] | users.Model,
    *,
    text: Text = (),
    tasks: Sequence[str | Path] | str | Path = (),
    items: str | Path | None = None,
    tokenizer: Any = None,
    revision: str | Sequence[str | None] | None = None,
    trust_remote_code: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Evaluation:
    """Judge models by text, by tasks, and by what they cost to run; all but the first are compared with it.

    Args:
        models: folders, hub ids, or transformers models in memory, which stay as and where they are (then ``tokenizer`` is needed).
            An adapter that lies beside a result is put on.
        text: .txt, .jsonl or .parquet files, folders of such files, or datasets of a hub; each is judged by itself, under its name
            where it is given as NAME=FILE or in a mapping.
        tasks: "paper" for its seven, names of them, .jsonl files with items, or, by the harness, its .yaml files.
        tokenizer: of models in memory; a folder has its own.
        revision: of hub ids; or for each model one or None.
        say: called with a line for each step.
        progress: called with (what, done, total).
        settings: see `lorashear.evaluation.asked.Asked`.

    Raises:
        LorashearError: the request or the input is wrong.
    """
    given = [models] if isinstance(models, str | Path | nn.Module) else list(models)
    if not given:
        raise LorashearError("no model is given: pass one or more")
    revisions = [revision] * len(given) if revision is None or isinstance(revision, str) else list(revision)
    if len(revisions) != len(given):
        raise LorashearError(
            f"revision has {len(revisions)} for {len(given)} models: give one, or one or None for each"
        )
    if tokenizer is not None and not any(isinstance(each, nn.Module) for each in given):
        raise LorashearError(
            "tokenizer is of a model in memory, and all are folders, which have their own: leave it out"
        )
    asked = Asked(
        text=_spelled(text),
        tasks=tuple(map(str, [tasks] if isinstance(tasks, str | Path) else tasks)),
        items=None if items is None else str(items),
        **settings,
    )
    numbers = Training(device=asked.device, dtype=asked.dtype, seed=asked.seed)
    check_usable(numbers)
    stages = Stages(say, progress)
    with stages("read"):
        subjects = [
            Subject.of(each, tokenizer=tokenizer, revision=of_it, trust_remote_code=trust_remote_code)
            for each, of_it in zip(given, revisions, strict=True)
        ]
        resolved = replace(asked, context=_context(asked, subjects)) if asked.text else asked
        measures = _measures(resolved)
        _check(resolved, subjects, measures)
        made_with = versions(
            asked.device, *(["datasets"] if asked.tasks else []), *(["lm_eval"] if asked.harness else [])
        )
        kept = Unfinished([made_with, asked.device, asked.dtype])
    about, found, loaded = [], [], list[nn.Module]()
    for subject in subjects:
        with stages(f"{'judge' if measures else 'load'} {subject.name}"):
            model = subject.loaded(numbers)
            about.append(subject.about(model, bool(measures)))
            found.append(_findings(subject, model, measures, kept, stages.progress))
            if asked.speed:  # which needs all of them at once
                loaded.append(model)
            del model
            gc.collect()
    figures = [figure(measure, several) for measure, several in zip(measures, zip(*found, strict=True), strict=True)]
    choices = [each for each in figures if each["kind"] == "choices"]
    figures += [average(choices)] if len(choices) > 1 else []
    if asked.speed:
        with stages("speed"):
            figures += speed_figures.figures(subjects, loaded, resolved, stages.progress)
    kept.done()
    return Evaluation(
        {"format": FORMAT, "asked": asdict(resolved), "made_with": made_with, "models": about, "figures": figures}
    )


def _spelled(text: Text) -> Any:
    """As it can be written down."""
    if isinstance(text, Mapping):
        return {
            name: [str(each)] if isinstance(each, str | Path) else list(map(str, each)) for name, each in text.items()
        }
    return [str(text)] if isinstance(text, str | Path) else list(map(str, text))


def _context(asked: Asked, subjects: Sequence[Subject]) -> int:
    """Tokens of a window. Raises LorashearError where a model cannot read as many."""
    shortest = min((each for each in subjects if each.positions), key=lambda each: each.positions or 0, default=None)
    most = shortest.positions if shortest and shortest.positions else CONTEXT
    if asked.context is None:
        return min(CONTEXT, most)
    if shortest and asked.context > most:
        raise LorashearError(
            f"context is {asked.context:,}, and the positions of {shortest.name} end at {most:,}: pass a smaller one (--context)"
        )
    return asked.context


def _measures(asked: Asked) -> list[Measure]:
    """All that is measured of one model after another."""
    found: list[Measure] = []
    if asked.text:
        read = texts(asked.text, asked.context or 0, asked.limit, asked.seed, packed=asked.packed)
        found += [OfText(each, asked) for each in read]
    files = [name for name in asked.tasks if Path(name).suffix.lower() in TASK_FILES]
    if files and not asked.harness:
        raise LorashearError(f"{files[0]} is a task of lm-evaluation-harness: let that run it (--harness)")
    named = [name for name in asked.tasks if name not in files]
    if asked.items and not any(name in (ALL, *NAMES) for name in named):
        raise LorashearError(
            f"items is where tasks that are names have theirs, and none of {', '.join(asked.tasks)} is one: leave items out"
        )
    for suite in suites(named, asked.items):
        found.append(OfSuite(replace(suite, items=suite.items[: asked.limit]), asked))
    return [*found, *(OfTaskFile(task_file(file), asked) for file in dict.fromkeys(files))]


def _check(asked: Asked, subjects: Sequence[Subject], measures: Sequence[Measure]) -> None:
    """Refuse early what would be refused after hours of work: LorashearError."""
    names = [measure.name for measure in measures]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LorashearError(f"two texts or tasks are called {twice}: give one of them another name")
    for subject in subjects:
        if measures:
            _ = subject.reader
        if asked.speed:
            check_positions(subject.name, subject.config, asked.prompt, asked.new_tokens)
    if asked.harness:
        harness.check_installed()


def _findings(
    subject: Subject, model: nn.Module, measures: Sequence[Measure], kept: Unfinished, progress: Progress
) -> list[Finding]:
    """Of one model, in the order of the measures."""
    return [
        kept.finding(subject, measure, partial(measure.of, subject, model, partial(progress, measure.name)))
        for measure in measures
    ]
