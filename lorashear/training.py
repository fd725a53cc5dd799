"""LoRA training on windows of text: the one loop behind knowledge transfer and recovery."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lorashear.adapters import adapter_layers, quiet
from lorashear.config import BATCH, Settings
from lorashear.data import tokens_in
from lorashear.errors import LorashearError
from lorashear.evaluate import batch_size
from lorashear.lora import PREFIX
from lorashear.losses import losses
from lorashear.snapshots import Snapshots
from lorashear.stopping import deferred

ALPHA = 32
"""LoRA's α. The update is scaled by α/r, so that the best learning rate hardly depends on the rank."""
WARM_UP = 0.1  # share of the steps in which the rate rises to its highest: a pruned model's first gradients are large
CLIP = 1.0  # the gradient's norm at most


@dataclass(frozen=True)
class Recipe:
    """How adapters are trained."""

    steps: int
    rate: float  # the highest learning rate; a cosine leads down from it to zero
    rank: int = Settings.rank
    batch: int = BATCH  # windows a step
    distill: float = Settings.distill  # share of the loss that the dense model has, the rest that of the text itself
    seed: int = 0


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


KERNELS = ("out_proj",)
"""Maps that peft refuses to adapt where Mamba's kernels read the weight themselves, past an adapter."""
FUSED = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Names that peft takes, in some mixtures of experts, for what the experts were before their weights became one tensor."""

Shown = Callable[[Step, int], None]
"""Called with what a step did, and the number of steps."""
Left = Callable[[], tuple[int, int]]
"""Tells, when a step is done, how many structures are gone and how many parameters are left."""

LOG = "training.jsonl"


def recipe(settings: Settings, model: Any, windows: Tensor) -> Recipe:
    """How a PeftModel is trained on as many tokens of some windows as the settings say."""
    assert settings.tokens is not None
    rate = settings.learning_rate or default_rate(model.get_input_embeddings().weight.shape[1])
    steps = max(1, round(settings.tokens * len(windows) / (BATCH * tokens_in(windows))))
    ranks = [config.r for config in model.peft_config.values()]
    return Recipe(steps, rate, rank=max(ranks), distill=settings.distill, seed=settings.seed)


def adapt(
    model: Any,
    windows: Tensor,
    recipe: Recipe,
    folder: Path,
    shown: Shown,
    *,
    teacher: torch.nn.Module | None = None,
    companion: Companion | None = None,
    snapshots: Snapshots | None = None,
    left: Left | None = None,
) -> dict[str, Any]:
    """Train a PeftModel (see `train`) and save its adapter into a folder, beside a log with a line a step.

    Args:
        shown: called with what each step did, and the number of steps.
        left: asked after every step for what the log and ``shown`` say of the model.

    Returns:
        What was done, for the report.
    """
    with _logged(folder, recipe.steps, shown, left) as stepped:
        train(model, windows, recipe, teacher=teacher, companion=companion, snapshots=snapshots, stepped=stepped)
    model.save_pretrained(folder)
    tokens = round(recipe.steps * recipe.batch * tokens_in(windows) / len(windows))
    return {**asdict(recipe), "tokens": tokens, "windows": len(windows)}


@contextmanager
def _logged(folder: Path, steps: int, shown: Shown, left: Left | None) -> Iterator[Callable[[Step], None]]:
    """Each step that is given becomes a line of the log in the folder, behind those of the steps before it, and is shown."""
    with ExitStack() as stack:
        log: TextIO | None = None

        def stepped(step: Step) -> None:
            nonlocal log
            if left:
                removed, parameters = left()
                step = replace(step, removed=removed, parameters=parameters)
            log = log or stack.enter_context(_behind(folder / LOG, step.step))
            print(json.dumps(asdict(step)), file=log, flush=True)
            shown(step, steps)

        yield stepped


def _behind(path: Path, step: int) -> TextIO:
    """The log, to be gone on with at this step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: step - 1] if path.exists() else []
    path.write_text("".join(lines), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def default_rate(hidden: int) -> float:
    """The highest learning rate for a model of this width: 5e-4 · (2000 / hidden)^0.78.

    Measured for LoRA at α = 32 on models of the LLaMA family (Schulman et al., LoRA Without Regret, 2025).
    """
    return 5e-4 * (2000 / hidden) ** 0.78


def adapted(model: torch.nn.Module, *, rank: int, seed: int = 0) -> Any:
    """The model as a PeftModel with a LoRA adapter on every linear map but the head; only that is trainable.

    Weights of experts that lie in one tensor get none, and where peft would adapt other maps than these, those neither.

    Raises:
        LorashearError: there is no linear map.
    """
    from peft import LoraConfig, get_peft_model

    names = _maps(model)
    if not names:
        raise LorashearError(f"{type(model).__name__} takes no LoRA adapter: it has no linear map but its head")
    turned = any(isinstance(model.get_submodule(name), Conv1D) for name in names)

    def put_on(names: list[str]) -> Any:
        spelled = "|".join(map(re.escape, names))
        config = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=f"({spelled})", fan_in_fan_out=turned)
        return get_peft_model(model, config)  # type: ignore[arg-type]

    reason = ValueError()
    with _random(seed, None), quiet():
        for refused in ((), KERNELS, FUSED, (*KERNELS, *FUSED)):
            left = [name for name in names if name.rpartition(".")[2] not in refused]
            try:
                found = put_on(left)
            except ValueError as error:
                reason = error
                continue
            if {path.removeprefix(PREFIX) for path, _ in adapter_layers(found)} <= set(left):
                return found
            reason = ValueError("peft puts it on other modules than it is told")
            found.unload()
    raise LorashearError(f"{type(model).__name__} takes no LoRA adapter: {reason}")


def _maps(model: Any) -> list[str]:
    """The linear maps of a model by name, but for its head, what shares a weight, and what computes more than the map."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if type(module).forward in (torch.nn.Linear.forward, Conv1D.forward)
        and module is not head
        and uses[id(module.weight)] == 1  # type: ignore[arg-type]
    ]


@contextmanager
def _random(seed: int, device: torch.device | None) -> Iterator[None]:
    """What is random in here, the adapters' start and dropout, follows from the seed; outside nothing changes."""
    with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


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
    windows: Tensor,
    recipe: Recipe,
    *,
    teacher: torch.nn.Module | None = None,
    companion: Companion | None = None,
    snapshots: Snapshots | None = None,
    stepped: Callable[[Step], None] | None = None,
) -> None:
    """Train what is trainable in ``model``; which windows a step sees depends on the seed and the step alone.

    Args:
        windows: token ids, int64 [windows, length], padded by `data.PADDING`; gone through again, in another order, when
            all were seen.
        teacher: the dense model, to stay close to; without it only text counts.
        companion: called after every step.
        snapshots: what an earlier run came to, which goes on, and where this one's states go. Where there are some, Ctrl-C and
            SIGTERM wait for the end of the step, and its state.
        stepped: called after every step and the companion.

    Raises:
        LorashearError: nothing is trainable, or the loss stops being a number; the adapters are then as they last were good.
    """
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)
    device = parameters[0].device
    before = {module: module.training for module in model.modules()}
    model.train()
    with ExitStack() as stack:
        stack.callback(_set_modes, before)
        asked = stack.enter_context(deferred()) if snapshots else None
        stack.enter_context(_random(recipe.seed, device))
        done, state = snapshots.last() if snapshots else (0, {})
        if companion:
            companion.start(done, state)
        if done:
            _restore(model, optimizer, state)
        good = [p.detach().clone() for p in parameters]
        for step, rows in islice(enumerate(_batches(windows, recipe), 1), done, None):
            started = time.perf_counter()
            rate = recipe.rate * _share(step - 1, recipe.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            found = _backward(model, teacher, rows.to(device), recipe.distill, (step - 1) / recipe.steps)
            norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            if not math.isfinite(found["loss"]) or not math.isfinite(norm.item()):
                for parameter, value in zip(parameters, good, strict=True):
                    parameter.data.copy_(value)
                raise LorashearError(
                    f"the loss is not a number at step {step} of {recipe.steps}, at a learning rate of {rate:.1e}: "
                    "pass a smaller one (--learning-rate)"
                )
            for parameter, value in zip(parameters, good, strict=True):
                value.copy_(parameter.detach())
            optimizer.step()
            if companion:
                companion(step)
            seconds = time.perf_counter() - started
            if stepped:
                stepped(Step(step, rate=rate, speed=tokens_in(rows) / seconds, **found))
            if snapshots and asked:
                if asked.number is not None or snapshots.due(step) or step == recipe.steps:
                    snapshots.save(step, _state(model, optimizer) | (companion.state() if companion else {}))
                asked.act()


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What is trained, the optimizer's moments, and where what is random has come to."""
    found = {"random.cpu": torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[f"trained.{name}"] = parameter
            found |= {f"{what}.{name}": value for what, value in optimizer.state[parameter].items()}
            if parameter.is_cuda:
                found["random.cuda"] = torch.cuda.get_rng_state(parameter.device)
    return found


def _restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """As it was when `_state` gave this."""
    torch.set_rng_state(state["random.cpu"])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(state[f"trained.{name}"])
            moments = {what: state[f"{what}.{name}"] for what in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {what: value.to(parameter.device) for what, value in moments.items()}
            optimizer.state[parameter]["step"] = state[f"step.{name}"]
            if parameter.is_cuda:
                torch.cuda.set_rng_state(state["random.cuda"], parameter.device)


def _set_modes(modes: dict[torch.nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode


def _batches(windows: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """[batch, length] for each step, from one shuffled pass over the windows after another."""
    order = torch.empty(0, dtype=torch.long)
    for turn, _ in enumerate(range(recipe.steps)):
        while len(order) < recipe.batch:
            generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + turn)
            order = torch.cat([order, torch.randperm(len(windows), generator=generator)])
        yield windows[order[: recipe.batch]]
        order = order[recipe.batch :]


def _backward(
    model: torch.nn.Module, teacher: torch.nn.Module | None, rows: Tensor, distill: float, done: float
) -> dict[str, Any]:
    """Add the gradients of a step, in as many parts as keep the logits small; its losses by name, and all together."""
    size = batch_size(rows.shape[1], _vocabulary(model))
    found: dict[str, float] = defaultdict(float)
    for some in rows.split(size):
        share = (tokens_in(some) - len(some)) / (tokens_in(rows) - len(rows))  # of what is told: all but the first
        each = losses(model, teacher if distill else None, some)
        total = each.total(distill, done)
        (total * share).backward()
        for name, value in {"loss": total, **vars(each)}.items():
            if value is not None:
                found[name] += value.item() * share
    return found


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _share(step: int, steps: int) -> float:
    """Of the highest rate: a straight rise, then a cosine to zero at the last step."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
