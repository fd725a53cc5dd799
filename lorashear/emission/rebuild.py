"""A model of the same class with other widths: cut its parameters, and set the numbers in its modules that must follow.

Which attribute of which module drives which size is not known; it is found by trying, from the traced program:

1. The graph says which numbers change in the operators of each module, and from what to what.
2. Every whole-number attribute of that module (or of its config) with such an old value takes the new one, but those
   that do not follow the width where the class reads it from its config (`following.py`).
3. The result is traced again. It must be, operator for operator and number for number, the program that `resize` writes
   out, and it must go on from its cache where the model does. Where an attribute drives several sizes the choices are
   tried in turn; where none fits, the class cannot do it.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from lorashear import adapters
from lorashear.emission.continuing import continued
from lorashear.emission.fields import Removed, is_uniform
from lorashear.emission.following import still
from lorashear.errors import LorashearError
from lorashear.modeling_lorashear import loop_over_odd_experts
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Groups
from lorashear_passes.capture import CaptureError, capture
from lorashear_passes.program import cut_tensor
from lorashear_passes.resize import resize
from lorashear_passes.same import agreement, numbers

TRIES = 32
"""Values that are tried for a short run of numbers."""

WITH_CACHE = "traced it is right, but with its cache"
BACK = 6
"""Traces for each value that an attribute may have, at most."""

SHAPES = {"in_features": 1, "out_features": 0, "num_embeddings": 0, "embedding_dim": 1}
"""Attributes of torch's own layers that say the shape of their weight and that no operator reads."""


@dataclass(frozen=True)
class Setting:
    """One number to set: an attribute of a module, or a field of the config that the module holds."""

    module: str
    name: str
    of_config: bool
    value: Any


@dataclass(frozen=True)
class Original:
    """The model that copies are made of, ``graph``, the typed program of ``model(**inputs)``, and what the model can do."""

    model: torch.nn.Module
    graph: Graph
    groups: Groups
    inputs: Mapping[str, Any]

    @functools.cached_property
    def goes_on(self) -> bool:
        """Whether it goes on from its cache."""
        return not continued(self.model, self.inputs)[1]

    @functools.cached_property
    def can_be_recorded(self) -> bool:
        """Whether a recording shows the whole program."""
        try:
            with adapters.every_one(self.model):
                capture(self.model, self.inputs, recorded=True)
        except CaptureError:
            return False
        return True

    @functools.cached_property
    def failure(self) -> str:
        """What its forward raises."""
        return failure(self.model, self.inputs)


def rebuilt(original: Original, removed: Removed) -> tuple[torch.nn.Module | None, str]:
    """A smaller copy of a model (None where its class cannot be one), and what the last try had wrong."""
    small, wrong = _searched(original, removed)
    if small is None:
        return None, wrong
    loop_over_odd_experts(small)
    failed = failure(small, original.inputs)
    if failed and not original.failure:
        return None, f"traced it is right, but when it runs: {failed}"
    return small, ""


def failure(model: torch.nn.Module, inputs: Mapping[str, Any]) -> str:
    """What one forward raises; a class may take another way through itself when it is not traced."""
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception as error:  # whatever a class raises
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ""


def _searched(original: Original, removed: Removed) -> tuple[torch.nn.Module | None, str]:
    model, graph, groups, inputs = original.model, original.graph, original.groups, original.inputs
    wanted = resize(graph, groups, removed)
    small = _cut_copy(model, groups, removed)
    _mend_eps(small, groups, removed)
    tried: dict[frozenset[Setting], tuple[tuple[int, int], str]] = {}

    def agree(settings: Collection[Setting]) -> tuple[tuple[int, int], str]:
        key = frozenset(settings)
        if key not in tried:
            for setting in settings:
                _set(small, setting)
            agreed, wrong = _agreement(small, wanted, original)
            if not wrong and original.goes_on:
                ended, failed = continued(small, inputs)
                agreed = agreed[0], agreed[1] + ended
                wrong = f"{WITH_CACHE}: {failed}" if failed else ""
            tried[key] = agreed, wrong
        return tried[key]

    furthest, reason = (-1, 0), ""
    # Few classes read their config while they run. Where a number may change or stay, both are where to start from.
    alike = is_uniform(groups, removed)
    fixed = still(model, graph, groups, removed)
    for with_config, start in (*itertools.product((False, True), (0, -1)), (False, None)):
        if start is None and not reason.startswith(WITH_CACHE):
            continue  # what follows no width may still have to change, where a class means another one by it
        sure, choices = _settings(model, graph, wanted, with_config, alike, fixed, unless_needed=start is None)
        start = start or 0
        held = [options[start] for options in choices]
        agreed, wrong = agree([*sure, *itertools.chain(*held)])
        if not wrong:
            return small, ""
        if agreed > furthest:
            furthest, reason = agreed, wrong
        # Attributes are settled one by one: the right value of each lets the program agree further. A wrong one may too,
        # so that where nothing leads on the way is gone back.
        most = len(tried) + BACK * sum(map(len, choices))
        path = [(held, agreed, _flips(choices, 0))]
        while path and len(tried) < most:
            held, agreed, flips = path[-1]
            for number, option in flips:
                other = [*held[:number], option, *held[number + 1 :]]
                further, wrong = agree([*sure, *itertools.chain(*other)])
                if not wrong:
                    return small, ""
                if further > furthest:
                    furthest, reason = further, wrong
                if further > agreed:
                    path.append((other, further, _flips(choices, number)))
                    break
            else:
                path.pop()
    return None, reason


def _flips(choices: list[list[list[Setting]]], first: int) -> Iterator[tuple[int, list[Setting]]]:
    """Every other value of every choice, beginning with those of the ``first`` one."""
    for number in (*range(first, len(choices)), *range(first)):
        for option in choices[number]:
            yield number, option


def _agreement(small: torch.nn.Module, wanted: Graph, original: Original) -> tuple[tuple[int, int], str]:
    """How many operators of the copy are as wanted and how many ran, and what the first other one is.

    A copy that stops where the model can be recorded is a wrong one: torch.export would find no other way through it.
    """
    try:
        with adapters.every_one(small):
            try:
                made = capture(small, original.inputs, recorded=True)
            except CaptureError:
                if original.can_be_recorded:
                    raise
                made = capture(small, original.inputs)
            agreed, wrong = agreement(made, wanted)
    except CaptureError as error:
        if error.partial is None:
            return (0, 0), error.reason
        # Operators whose results nothing reads are still in it, so it may differ early and yet be right so far.
        made, wrong = error.partial, error.reason
        agreed, _ = agreement(made, wanted)
    return (agreed, len(made.nodes)), wrong


def _cut_copy(model: torch.nn.Module, groups: Groups, removed: Removed) -> torch.nn.Module:
    """A copy that holds cut parameters; the whole ones are never copied."""
    cuts = groups.cuts(removed)
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            cut = cuts.get(name)
            made = cut_tensor(tensor.detach(), cut) if cut is not None else tensor.detach().clone()
            memo[id(tensor)] = (
                torch.nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made
            )
    small = copied(model, memo)
    for module in small.modules():
        weight = getattr(module, "weight", None)
        for name, dim in SHAPES.items():
            if isinstance(weight, torch.Tensor) and isinstance(getattr(module, name, None), int):
                setattr(module, name, weight.shape[dim])
    return small


def copied(model: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    """A deep copy, with what ``memo`` has by id in place of tensors.

    Raises:
        LorashearError: the model holds something that python cannot copy.
    """
    # A copied set may be gone through in another order, and a class that loops over one is then another program.
    for module in model.modules():
        for held in vars(module).values():
            if isinstance(held, set):
                again = held.copy()
                memo[id(held)] = again if [*again] == [*held] else held
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        said = str(error).strip().splitlines()[0]
        raise LorashearError(
            f"{type(model).__name__} cannot be copied, so no smaller one can be made of it: {said}"
        ) from error


def _mend_eps(small: torch.nn.Module, groups: Groups, removed: Removed) -> None:
    """A norm over fewer gets eps·n/n' in its own module."""
    before = {norm.weight: norm.eps for norm in groups.norms}
    for weight, eps in groups.eps(removed).items():
        module = small.get_submodule(weight.rpartition(".")[0])
        for name, value in vars(module).items():
            unset = name == "eps" and value is None  # torch's rms_norm has a default
            if (unset or (isinstance(value, float) and value == before[weight])) and eps != before[weight]:
                setattr(module, name, eps)


def _settings(
    model: torch.nn.Module,
    graph: Graph,
    wanted: Graph,
    with_config: bool,
    alike: bool,
    fixed: Collection[tuple[type, str]],
    *,
    unless_needed: bool,
) -> tuple[list[Setting], list[list[list[Setting]]]]:
    """Settings that leave no doubt, and for each of the others its choices, each a list of settings.

    With ``alike`` all layers get the same widths. Attributes in ``fixed``, by class and name, stay; with ``unless_needed``
    they, like the place in the KV cache, may change, but stay first.
    """
    moved: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for path, old, new in numbers(graph, wanted):
        moved[path][old].add(new)
    # A module of which another calls a method, not the module, has its operators under the other's path.
    called = {node.module for node in graph.nodes}
    for path, _ in model.named_modules():
        if path and path not in called:
            for old, news in moved.get(path.rpartition(".")[0], {}).items():
                moved[path][old] |= news
    # A module may hold a number of its parts that it reads on another way only: a state's width, a kernel's size.
    within = copy.deepcopy(moved)
    for whole, cut in zip(graph.sources, wanted.sources, strict=True):
        if whole.role == "parameter" and whole.path.count(".") > 1:
            for old, new in zip(whole.value.shape, cut.value.shape, strict=True):
                within[whole.path.rsplit(".", 2)[0]][old].add(new)
    indices = _indices(model) | (set(fixed) if unless_needed else set())
    sure: list[Setting] = []
    choices: dict[tuple[Any, ...], dict[Any, list[Setting]]] = {}
    for path, numbered in within.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        for name, value, of_config in _attributes(module, with_config):
            options = _options(value, moved[path] if of_config else numbered)
            at = type(module.config if of_config else module), name
            if at in fixed and not unless_needed:
                continue
            if at in indices:
                options = sorted({value, *options})
            if len(options) == 1 and options[0] != value:
                sure.append(Setting(path, name, of_config, options[0]))
            elif len(options) > 1:
                # Where all layers get the same widths, modules of one class with the same choice before them choose alike.
                who = type(module) if alike else path
                choice = choices.setdefault((who, name, of_config, value, tuple(options)), {})
                if at in indices:  # it changes only if nothing else will do: both starts of the search are to stay
                    choice.setdefault("first", []).append(Setting(path, name, of_config, value))
                for option in sorted(options, key=lambda o: o == value):  # first to change, then to stay
                    choice.setdefault(option, []).append(Setting(path, name, of_config, option))
    return sure, [[*alike.values()] for alike in choices.values()]


def _indices(model: torch.nn.Module) -> set[tuple[type, str]]:
    """Attributes, by class and name, that hold in every module the number in its path, as the place in the KV cache does."""
    found: dict[tuple[type, str], bool] = {}
    for path, module in model.named_modules():
        places = {int(part) for part in path.split(".") if part.isdecimal()}
        for name, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool):
                at = type(module), name
                found[at] = found.get(at, True) and value in places
    return {at for at, always in found.items() if always}


def _options(value: Any, numbers: Mapping[int, set[int]]) -> list[Any]:
    """What an attribute may become: each of its numbers by itself."""
    if isinstance(value, int):
        return sorted(numbers.get(value, {value}))
    return list(itertools.product(*(sorted(numbers.get(v, {v})) for v in value)))[:TRIES]


def _attributes(module: torch.nn.Module, with_config: bool) -> Iterator[tuple[str, Any, bool]]:
    """Whole numbers, and short runs of them as tuples, that a module or its config holds."""
    config = getattr(module, "config", None) if with_config else None
    for owner in (module, config):
        if isinstance(owner, torch.nn.Module | PreTrainedConfig):
            for name, value in vars(owner).items():
                if not (name.startswith("_") or (owner is module and name in SHAPES)) and _whole(value):
                    yield name, tuple(value) if isinstance(value, list) else value, owner is config


def _whole(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return 0 < len(value) <= 4 and all(_whole(v) and isinstance(v, int) for v in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _set(model: torch.nn.Module, setting: Setting) -> None:
    owner: Any = model.get_submodule(setting.module)
    if setting.of_config:
        # Its own copy: other layers may keep other widths.
        owner.config = copy.copy(owner.config)
        owner = owner.config
    value = setting.value
    setattr(owner, setting.name, list(value) if isinstance(getattr(owner, setting.name), list) else value)
