"""EleutherAI's lm-evaluation-harness on a model in memory: on items as they are scored here, and on a user's own tasks."""

from __future__ import annotations

import copy
import importlib
import io
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from lorashear.errors import LorashearError
from lorashear.evaluation import choices
from lorashear.evaluation.choices import check_finite
from lorashear.evaluation.items import Item, Suite
from lorashear.evaluation.task_files import task_config
from lorashear.likelihood import evaluating
from lorashear.seeding import seeded

INSTALL = "pip install 'lorashear[eval]'"
# Of examples in the prompt, where a task asks for some; the harness's own.
SEED = 1234
# Draws for the error of a metric that has no formula.
BOOTSTRAPS = 1000
Progress = Callable[[int, int], None]

MEAN = {"aggregation": "mean", "higher_is_better": True}


@dataclass(frozen=True, eq=False)
class HarnessChoices:
    """As `choices.Choices`, as the harness says it: ``correct`` and ``normalised`` are bool, [items], ``loglikelihoods``
    nats of each option of each item; an error is not a number for one item."""

    accuracy: float
    accuracy_error: float
    accuracy_norm: float
    accuracy_norm_error: float
    correct: np.ndarray
    normalised: np.ndarray
    loglikelihoods: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class HarnessTask:
    """A user's task: ``metrics`` and their standard ``errors`` by the metric's name, "name,filter" where the task has
    filters; not a number where there is no error. ``items``: values of each item, float64 [items], of metrics that have
    one for each, which two models can be compared by."""

    name: str
    metrics: dict[str, float]
    errors: dict[str, float]
    items: dict[str, np.ndarray]


def check_installed() -> None:
    """Raises LorashearError, with how to install it, where the harness is not there."""
    try:
        with _quiet():
            for name in ("api.task", "evaluator", "models.huggingface"):
                importlib.import_module(f"lm_eval.{name}")
    except ImportError as error:
        raise LorashearError(f"lm-evaluation-harness is not there ({error}); {INSTALL}") from error


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    suites: Sequence[Suite],
    *,
    limit: int | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> dict[str, HarnessChoices]:
    """What the harness makes of suites, by their names: it reads the same items, of their first ``limit`` each.

    Args:
        model: a transformers model; it stays on its device and in its dtype, log-likelihoods are computed in fp32.
        batch: sequences a forward pass; the logits of all of their positions are in memory twice.
        progress: called with the requests that are done, and those there are.

    Raises:
        LorashearError: the harness is not installed, or as `choices.score`.
    """
    for suite in suites:
        choices.check(model, tokenizer, suite, limit)
    with TemporaryDirectory(prefix="lorashear-") as folder:
        configs = {suite.name: _config(suite, Path(folder) / str(at)) for at, suite in enumerate(suites)}
        found = _evaluated(model, tokenizer, configs, Path(folder), limit, batch, progress)
    return {name: _choices(name, found["results"][name], found["samples"][name]) for name in configs}


def run(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    paths: Sequence[str | Path],
    *,
    limit: int | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> dict[str, HarnessTask]:
    """Task files of a user's own, by the names of the tasks in them (see `task_config` for what they may say), with
    arguments as `score` has them.

    Raises:
        LorashearError: as `task_config`, two tasks have one name, the harness is not installed or refuses a task, or
            ``limit`` is below 1.
    """
    found: dict[str, HarnessTask] = {}
    origins: dict[str, str | Path] = {}
    configs: dict[str, dict[str, Any]] = {}
    for path in paths:
        config = task_config(path)
        name = config["task"]
        if name in configs:
            raise LorashearError(f"{origins[name]} and {path} both name their task {name}; give one another name")
        configs[name], origins[name] = config, path
    for name, config in configs.items():  # one at a time, so that it is known whose fault an error is
        with TemporaryDirectory(prefix="lorashear-") as folder:
            try:
                results = _evaluated(model, tokenizer, {name: config}, Path(folder), limit, batch, progress)
            except LorashearError:
                raise
            except Exception as error:  # a task is a program of the user's, in templates and functions
                reason = " ".join(str(error).split()) or type(error).__name__
                raise LorashearError(f"{origins[name]}: lm-evaluation-harness cannot run it: {reason}") from error
        found[name] = _task(name, results["results"][name], results["samples"][name])
    return found


def _config(suite: Suite, folder: Path) -> dict[str, Any]:
    """The suite as a task of the harness, its items in a file in ``folder``.

    The space between a context and its continuation stands at the end of the context there: it is moved to the
    continuation anyway, and a choice keeps the length that it has.
    """
    folder.mkdir()
    by_context = any(len({context for context, _ in item.options}) > 1 for item in suite.items)
    row = _row_by_context if by_context else _row_by_choice
    with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row(item)) + "\n" for item in suite.items)
    fields = ("gold", "choices", "text") if by_context else ("text", "choices", "gold")
    text, choice, target = fields
    return {
        "task": suite.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}, "features": _features()},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_choice": choice,
        "doc_to_target": target,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
        "num_fewshot": 0,
    }


def _row_by_choice(item: Item) -> dict[str, Any]:
    """A context, what is chosen from, and which is right."""
    context = item.options[0][0]
    starts = [len(told) - length for (_, told), length in zip(item.options, item.lengths, strict=True)]
    choices = [told[start:] for (_, told), start in zip(item.options, starts, strict=True)]
    return {"text": context + item.options[0][1][: starts[0]], "choices": choices, "gold": item.gold}


def _row_by_context(item: Item) -> dict[str, Any]:
    """The contexts that are chosen from, what follows each, and which is right."""
    return {"text": item.options[0][1], "choices": [context for context, _ in item.options], "gold": item.gold}


def _features() -> Any:
    """Said, and not left to be guessed: text that looks like a day is not one."""
    from datasets import Features, Value

    return Features({"text": Value("string"), "choices": [Value("string")], "gold": Value("int64")})


def _evaluated(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    configs: Mapping[str, dict[str, Any]],
    folder: Path,
    limit: int | None,
    batch: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """What the harness's own `evaluate` gives back; what it stores goes into ``folder``."""
    if limit is not None and limit < 1:
        raise LorashearError(f"limit is {limit}; ask for 1 item or more")
    check_installed()
    shown = sys.stdout, sys.stderr
    with _quiet(), evaluating(model) as device, seeded(SEED, device):
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        # A copy of the tokenizer: the harness gives it a token to pad with.
        lm: Any = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch, softmax_dtype="float32")  # pyright: ignore
        tasks: dict[str, Any] = {}
        for name, config in configs.items():
            kwargs = {**config["dataset_kwargs"], "cache_dir": str(folder / "cache")}
            task = ConfigurableTask(config={**config, "dataset_kwargs": kwargs})
            if task.config.num_fewshot is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(SEED)
            tasks[name] = task
        if progress:
            _tell(lm, list(tasks.values()), progress, shown)
        return dict(evaluate(lm, tasks, limit=limit, bootstrap_iters=BOOTSTRAPS) or {})


def _tell(lm: Any, tasks: Sequence[Any], progress: Progress, shown: tuple[TextIO, TextIO]) -> None:
    """Have the harness's model tell how far it is, on the streams that it was not made quiet for."""
    done = 0

    def told(compute: Callable[..., Any]) -> Callable[..., Any]:
        def call(rows: Any, *args: Any, **named: Any) -> Any:
            nonlocal done
            found = compute(rows, *args, **named)
            total = sum(len(task.instances) for task in tasks)
            done = min(done + len(rows), total)  # padding of the last batch is no request
            with redirect_stdout(shown[0]), redirect_stderr(shown[1]):
                progress(done, total)
            return found

        return call

    lm._model_call, lm._model_generate = told(lm._model_call), told(lm._model_generate)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without its logs, warnings and bars; without a network; and Python's and numpy's random numbers afterwards as they would have
    been."""
    import datasets
    import datasets.config as settings

    disabled, offline = logging.root.manager.disable, settings.HF_HUB_OFFLINE
    bars = datasets.is_progress_bar_enabled()
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        logging.disable(logging.CRITICAL)
        datasets.disable_progress_bars()
        settings.HF_HUB_OFFLINE = True
        random.seed(0)
        np.random.seed(SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            logging.disable(disabled)
            settings.HF_HUB_OFFLINE = offline
            if bars:
                datasets.enable_progress_bars()


def _choices(name: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> HarnessChoices:
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    check_finite(np.array([float(one[0]) for sample in ordered for one in sample["filtered_resps"]]), name)
    return HarnessChoices(
        *(_number(results[f"{each},none"]) for each in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")),
        correct=np.array([sample["acc"] == 1 for sample in ordered]),
        normalised=np.array([sample["acc_norm"] == 1 for sample in ordered]),
        loglikelihoods=tuple(tuple(float(one[0]) for one in sample["filtered_resps"]) for sample in ordered),
    )


def _task(name: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> HarnessTask:
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in results.items():
        metric, _, kind = key.partition(",")
        if kind and metric.endswith("_stderr"):
            errors[_called(metric.removesuffix("_stderr"), kind)] = _number(value)
        elif kind and isinstance(value, int | float):
            metrics[_called(metric, kind)] = float(value)
    items: dict[str, list[float]] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        for metric in sample["metrics"]:
            if isinstance(value := sample[metric], int | float | np.number):
                items.setdefault(_called(metric, sample["filter"]), []).append(float(value))
    return HarnessTask(name, metrics, errors, {name: np.array(values) for name, values in items.items()})


def _called(metric: str, kind: str) -> str:
    return metric if kind == "none" else f"{metric},{kind}"


def _number(value: Any) -> float:
    """The harness says "N/A" where it has none."""
    return float(value) if isinstance(value, int | float) else float("nan")
