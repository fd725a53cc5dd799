"""LoRA training on windows of text: the one loop behind knowledge transfer and recovery."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from lorashear.emission.declared import vocabulary
from lorashear.errors import LorashearError
from lorashear.learning import trainstate
from lorashear.learning.hyperparameters import Hyperparameters
from lorashear.learning.losses import losses
from lorashear.learning.mixture import Measured, Mixture
from lorashear.learning.processes import Processes
from lorashear.learning.sharding import full, local
from lorashear.learning.snapshots import Snapshots, written_to
from lorashear.learning.teaching import Teacher
from lorashear.likelihood import batch_size, mean_loss
from lorashear.seeding import seeded
from lorashear.terminal.stopping import deferred
from lorashear.text.data import tokens_in, told

CLIP = 1.0  # the gradient's norm at most
FIGURES = ("loss", "text", "divergence", "distance")
"""Of a step: what is made smaller, and what that is made of."""
ANOTHER = 7919  # between the seeds of two processes, for what they drop at random


@dataclass(frozen=True)
class Step:
    """What one step did: its losses before the update (see `losses.Losses`; ``loss`` is what was made smaller), and tokens a
    second."""

    step: int
    loss: float
    text: float
    rate: float
    speed: float
    divergence: float | None = None
    distance: float | None = None
    removed: int | None = None  # structures that are gone
    parameters: int | None = None  # of the model as it would be if it were cut now, without the adapter
    measured: Measured | None = None  # of the subsets, where a stretch of training ends or the first one begins


class Companion(Protocol):
    """What goes along with training and has a state of its own."""

    def start(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Before the first step, or after so many, from what `state` gave then; it may leave trained weights as it likes."""
        ...

    def __call__(self, step: int) -> None:
        """After so many steps: free to change weights."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What `start` needs to go on."""
        ...


Shown = Callable[[Step, int], None]
"""Called with what a step did, and the number of steps."""
Left = Callable[[], tuple[int, int]]
"""Tells, when a step is done, how many structures are gone and how many parameters are left."""

LOG = "training.jsonl"
WHOLE = "weights.safetensors"


def adapt(
    model: Any,
    mixture: Mixture,
    folder: Path,
    shown: Shown,
    *,
    teacher: Teacher | None = None,
    companion: Companion | None = None,
    snapshots: Snapshots | None = None,
    processes: Processes | None = None,
    left: Left | None = None,
    earlier: int = 0,
) -> dict[str, Any]:
    """Train a model (see `train`) and save its adapter, or all weights by their names in it where it has none, into a folder,
    beside a log with a line a step.

    Args:
        shown: called with what each step did, and the number of steps.
        processes: all that do so together; the first one writes.
        left: asked after every step for what the log and ``shown`` say of the model.
        earlier: steps of stages before this one, from which the log and ``shown`` count on.

    Returns:
        What was done, for the report.
    """
    processes = processes or Processes()
    with _logged(folder, mixture, shown, left, earlier) as stepped:
        train(
            model,
            mixture,
            teacher=teacher,
            companion=companion,
            snapshots=snapshots,
            stepped=stepped if processes.main else None,
            processes=processes,
        )
    trained = {name: full(value.detach()) for name, value in model.named_parameters() if value.requires_grad}
    if processes.main:
        with written_to(folder):
            if hasattr(model, "peft_config"):
                model.save_pretrained(folder, state_dict=trained)
            else:
                save_file({name: value.cpu().contiguous() for name, value in trained.items()}, folder / WHOLE)
    return {
        **asdict(mixture.hyperparameters),
        "steps": mixture.last,
        "tokens": mixture.tokens,
        "windows": sum(len(subset.training) for subset in mixture.subsets),
        "stopped": mixture.stopped,
        "measured": [asdict(measured) for measured in mixture.measured],
    }


@contextmanager
def _logged(
    folder: Path, mixture: Mixture, shown: Shown, left: Left | None, earlier: int
) -> Iterator[Callable[[Step], None]]:
    """Each step that is given becomes a line of the log in the folder, behind those of the steps before it, and is shown."""
    with ExitStack() as stack:
        log: TextIO | None = None

        def stepped(step: Step) -> None:
            nonlocal log
            if left:
                removed, parameters = left()
                step = replace(step, removed=removed, parameters=parameters)
            log = log or stack.enter_context(_behind(folder / LOG, step.step))
            step = replace(step, step=earlier + step.step)
            print(json.dumps(asdict(step)), file=log, flush=True)
            shown(step, earlier + mixture.last)

        yield stepped


def _behind(path: Path, step: int) -> TextIO:
    """The log, to be gone on with at this step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: step - 1] if path.exists() else []
    path.write_text("".join(lines), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What an optimizer would change.

    Raises:
        LorashearError: nothing.
    """
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise LorashearError(f"{type(model).__name__} has nothing trainable: put a LoRA adapter on it")
    return found


def train(
    model: torch.nn.Module,
    mixture: Mixture,
    *,
    teacher: Teacher | None = None,
    companion: Companion | None = None,
    snapshots: Snapshots | None = None,
    stepped: Callable[[Step], None] | None = None,
    processes: Processes | None = None,
) -> None:
    """Train what is trainable in ``model`` on what the mixture draws, until that ends.

    Args:
        teacher: what tells of the dense model, to stay close to; without it only text counts.
        companion: called after every step.
        snapshots: what an earlier run came to, which goes on, and where this one's states go. Where there are some, Ctrl-C and
            SIGTERM wait for the end of the step, and its state.
        stepped: called after every step and the companion.
        processes: all that call this together, each with its own copy of the model, or its rows of it; each computes a share of
            every step's windows.

    Raises:
        LorashearError: nothing is trainable, or the loss stops being a number; the adapters are then as they last were good.
    """
    processes, hyper = processes or Processes(), mixture.hyperparameters
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters, lr=hyper.rate, weight_decay=0.0)
    device = parameters[0].device
    before = {module: module.training for module in model.modules()}
    model.train()
    with ExitStack() as stack:
        stack.callback(_set_modes, before)
        asked = stack.enter_context(deferred()) if snapshots else None
        stack.enter_context(seeded(hyper.seed + ANOTHER * processes.rank, device))
        done, state = snapshots.last() if snapshots else (0, {})
        if companion:
            companion.start(done, state)
        if done:
            trainstate.restore(model, optimizer, processes, state)
        measure = partial(mean_loss, model, processes=processes)
        mixture.start(done, measure, state)
        good = [p.detach().clone() for p in parameters]
        for step in count(done + 1):
            if step > mixture.last:
                break
            started = time.perf_counter()
            rows = mixture.draw()
            rate = hyper.rate_at(step) * mixture.cooled(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            with processes.others(f"computing step {step} of {mixture.last}"):
                mine = _backward(model, teacher, rows, hyper, hyper.done(step), device, processes)
                summed = _added_up(parameters, mine, processes)
                found: dict[str, Any] = {name: summed[name] if summed[_known(name)] else None for name in FIGURES}
                norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            if not math.isfinite(summed["loss"]) or not math.isfinite(full(norm).item()):
                for parameter, value in zip(parameters, good, strict=True):
                    parameter.data.copy_(value)
                raise LorashearError(
                    f"the loss is not a number at step {step} of {mixture.last}, at a learning rate of {rate:.1e}: "
                    "pass a smaller one (--learning-rate)"
                )
            for parameter, value in zip(parameters, good, strict=True):
                value.copy_(parameter.detach())
            optimizer.step()
            if companion:
                companion(step)
            seconds = time.perf_counter() - started
            mixture.after(step, measure)
            if stepped:
                speed = tokens_in(rows) / seconds
                stepped(Step(step, rate=rate, speed=speed, measured=mixture.news(step), **found))
            if snapshots and asked:
                due = asked.number is not None or snapshots.due(step) or step == mixture.last
                asked.number, due = _together(asked.number, due, processes)
                if due:
                    state = trainstate.read(model, optimizer, processes) | mixture.state()
                    state |= companion.state() if companion else {}
                    if processes.main:
                        snapshots.save(step, state)
                asked.act()


def _together(number: int | None, due: bool, processes: Processes) -> tuple[int | None, bool]:
    """A signal that any process has got, and whether the first one wants a state, or any has got a signal."""
    if processes.size == 1:
        return number, due
    found = processes.gathered((number, due))
    signals = [number for number, _ in found if number is not None]
    return (signals[0] if signals else None), bool(signals) or found[0][1]


def _set_modes(modes: dict[torch.nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode


def _backward(
    model: torch.nn.Module,
    teacher: Teacher | None,
    rows: Tensor,
    hyper: Hyperparameters,
    done: float,
    device: torch.device,
    processes: Processes,
) -> dict[str, float]:
    """Add the gradients of this process's share of a step, in as many parts as keep the logits small; the share's losses by
    name, and all together."""
    size = hyper.micro_batch or batch_size(rows.shape[1], vocabulary(model.config))
    every = max(1, told(rows))
    found = dict.fromkeys((*FIGURES, *map(_known, FIGURES)), 0.0)
    for some, share in processes.dealt(rows, size):
        with processes.accelerator.autocast():
            each = losses(model, teacher if hyper.distill else None, some.to(device))
        total = each.total(hyper.distill, done)
        share = share * told(some) / every
        (total * share).backward()
        for name, value in zip(FIGURES, (total, each.text, each.divergence, each.distance), strict=True):
            if value is not None:
                found[name] += value.item() * share
                found[_known(name)] += share
    return found


def _known(name: str) -> str:
    """What counts the share of a step for which a figure is known."""
    return f"{name} known"


def _added_up(parameters: list[torch.nn.Parameter], found: dict[str, float], processes: Processes) -> dict[str, Any]:
    """Gradients and losses of all processes, where gradients are not added up already, as those of sharded weights.

    Adapters are small, so that their gradients go together when all are there; a parameter that no process has used has
    none afterwards either.
    """
    if processes.size == 1:
        return found
    sharded = any(local(parameter) is not parameter for parameter in parameters)
    names = sorted(found)
    numbers = [found[name] for name in names]
    if sharded:
        numbers = processes.summed(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return dict(zip(names, numbers, strict=True))
    used = [float(parameter.grad is not None) for parameter in parameters]
    counted = processes.summed(torch.tensor(numbers + used, dtype=torch.float64)).tolist()
    some = [p for p, count in zip(parameters, counted[len(names) :], strict=True) if count]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
    together = processes.summed(torch.cat([gradient.flatten().float() for gradient in gradients]))
    for parameter, part in zip(some, together.split([p.numel() for p in some]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
    return dict(zip(names, counted, strict=False))
