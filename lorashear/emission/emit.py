"""Emission: the config whose class builds the pruned shapes and computes the same from them.

1. The fields that set the widths are found by trying (`fields.py`); the class is traced and must give the program wanted.
2. `LlamaConfig` refuses head counts that do not divide the hidden size; the same tensors load as `mistral`.
3. Widths that differ between layers, or that no field sets, go to a generated class (`generated.py`), traced as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import MistralConfig, PreTrainedConfig, PreTrainedModel

from lorashear.emission.continuing import continued
from lorashear.emission.fields import (
    Changes,
    Removed,
    build,
    is_uniform,
    like,
    made,
    missing,
    one_layer,
    shapes_after,
    solutions,
    stored_shapes,
    without,
)
from lorashear.emission.generated import generated, unpruned
from lorashear.emission.rebuild import Original, rebuilt
from lorashear.emission.remembering import Remembered, content
from lorashear.errors import LorashearError
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Groups
from lorashear_passes.aten import DTYPES
from lorashear_passes.capture import CaptureError, capture
from lorashear_passes.groups import group
from lorashear_passes.infer import infer
from lorashear_passes.resize import resize
from lorashear_passes.same import difference


@dataclass(frozen=True)
class Emission:
    """A config for the pruned model, and by which route: "own" class, "mistral", or "generated"."""

    config: PreTrainedConfig
    route: str


def emission(config: PreTrainedConfig, groups: Groups, removed: Removed) -> Emission:
    """The config of the pruned model.

    Raises:
        LorashearError: no class can have the widths; the sentence says why.
    """
    found, reason = solve(config, groups, removed)
    if found is None:
        raise LorashearError(f"{reason}; prune the same number in every layer, or another kind")
    return found


def solve(config: PreTrainedConfig, groups: Groups, removed: Removed) -> tuple[Emission | None, str]:
    """The config, or None and why none will do: shapes that agree are not enough, the class must compute the same."""
    found, reason = by_fields(config, groups, removed)
    if found is not None:
        return found, ""
    found, further = by_modules(config, groups, removed)
    return found, "" if found is not None else f"{reason}, and {further}"


def by_fields(config: PreTrainedConfig, groups: Groups, removed: Removed) -> tuple[Emission | None, str]:
    """As `solve`, with classes that transformers has."""
    return _remembered(_by_fields, config, groups, removed)


def _by_fields(config: PreTrainedConfig, groups: Groups, removed: Removed) -> tuple[Emission | None, str]:
    assert groups.typed is not None, "groups of a captured model have its graph"
    wanted: Graph | None = None
    reason = f"no config can express these widths: {_describe(groups, removed)}"
    for found in _shaped(config, groups, removed):
        wanted = wanted or resize(groups.typed, groups, removed)
        wrong = _otherwise(config, found.config, groups.typed, wanted) or _stuck(config, found.config, groups.typed)
        if not wrong:
            return found, ""
        reason = f"a config with these widths computes something else: {wrong}"
    return None, reason


def _stuck(before: PreTrainedConfig, after: PreTrainedConfig, graph: Graph) -> str:
    """What stops the class from going on from its cache, where it does so at its old widths."""

    def stops(config: PreTrainedConfig) -> str:
        return continued(build(config, "meta").eval(), like(graph))[1]

    failed = stops(after)
    return f"with its cache: {failed}" if failed and not stops(before) else ""


def by_modules(config: PreTrainedConfig, groups: Groups, removed: Removed) -> tuple[Emission | None, str]:
    """As `solve`, with a class generated from a copy of the model whose modules are set to other widths."""
    return _remembered(_by_modules, config, groups, removed)


def _by_modules(config: PreTrainedConfig, groups: Groups, removed: Removed) -> tuple[Emission | None, str]:
    assert groups.typed is not None
    try:
        if stored_shapes(config) != shapes_after(groups, {}):
            return None, "the class of a language model of this config is another one"
    except Exception as error:  # whatever a class raises
        return None, f"this config has no language model: {error}"
    twin = Original(build(config, "meta").eval(), groups.typed, groups, like(groups.typed))
    small, wrong = rebuilt(twin, removed)
    if small is None:
        return None, f"its class cannot take them in its modules: {wrong}"
    whole = unpruned(config)
    dense = groups if whole is config else _groups(whole, groups.typed)
    wanted = resize(groups.typed, groups, removed)
    eps = _eps_changes(config, groups, removed) or {}
    after = generated(config, groups, removed, small, dense, eps)
    wrong = _otherwise(config, after, groups.typed, wanted)
    if not wrong:
        return Emission(after, "generated"), ""
    widths = list(after.pruned_from)
    # Some class reads a field while it runs, and means the model that was pruned: a scale of MiniCPM3.
    for kept in (*([name] for name in widths), widths):
        after = generated(config, groups, removed, small, dense, eps, kept)
        if not _otherwise(config, after, groups.typed, wanted):
            return Emission(after, "generated"), ""
    return None, f"the class generated for them is wrong: {wrong}"


Found = tuple[Emission | None, str]


def _remembered(
    find: Callable[[PreTrainedConfig, Groups, Removed], Found],
    config: PreTrainedConfig,
    groups: Groups,
    removed: Removed,
) -> Found:
    """What is found, with a config of its own, since those who get one set what is theirs."""
    chosen = tuple((name, tuple(indices)) for name, indices in removed.items())
    found, reason = _FOUND.get((find, *content(config), groups.digest, chosen), lambda: find(config, groups, removed))
    return found and replace(found, config=copy.deepcopy(found.config)), reason


_FOUND: Remembered[Found] = Remembered(16)


def _groups(config: PreTrainedConfig, graph: Graph) -> Groups:
    return group(infer(capture(build(config, "meta").eval(), like(graph))))


def _otherwise(before: PreTrainedConfig, after: PreTrainedConfig, graph: Graph, wanted: Graph) -> str:
    """What the class computes otherwise than wanted."""
    try:
        twin = build(after, "meta").to(_precision(graph)).eval()
        return difference(capture(twin, like(graph)), wanted) or _recomputed(before, after, graph)
    except CaptureError as error:
        return str(error)


def _precision(graph: Graph) -> torch.dtype:
    """What the graph's parameters are stored in, so that a constant made beside them is rounded alike."""
    names = {name: dtype for dtype, name in DTYPES.items()}
    held = (names.get(s.value.dtype) for s in graph.sources if s.role == "parameter")
    return next((dtype for dtype in held if dtype is not None and dtype.is_floating_point), torch.float32)


class _Unstored(TorchFunctionMode):
    """Weights on the meta device, which `torch.empty` makes; what a class computes itself, its buffers, for real."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if func is torch.empty else kwargs))


def _recomputed(before: PreTrainedConfig, after: PreTrainedConfig, graph: Graph) -> str:
    """Which tensor that is not stored has other values in the model of another config; Gemma scales by ``√hidden``.

    Loading makes these tensors a second time, which is done here too: not all classes do it from the same attributes.
    """
    with _Unstored(), torch.no_grad():
        old, new = (build(config, "cpu") for config in (before, after))
        for model in (old, new):
            wrong = _made_anew(model)
            if wrong:
                return wrong
    stored = set(old.state_dict())
    for source in graph.sources:
        if source.role not in ("buffer", "constant") or source.path in stored:
            continue
        held, other = (_held(model, source.path) for model in (old, new))
        if held is not None and (other is None or not torch.equal(held, other)):
            return f"{source.path}, which is not stored, has other values"
    return ""


def _made_anew(model: torch.nn.Module) -> str:
    """Let a model make its unstored tensors as it does when it is loaded; what fails."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # as the loader marks what it has read, so that it is left alone
    models = {path: part for path, part in model.named_modules() if isinstance(part, PreTrainedModel)}
    for path, module in reversed(list(model.named_modules())):  # a module may make what lies in others within it
        # Of the models that it lies in, the innermost makes its weights.
        owner = models[max((p for p in models if p == "" or f"{path}.".startswith(f"{p}.")), key=len)]
        try:
            owner._init_weights(module)
        except (RuntimeError, ValueError, TypeError) as error:
            return f"when it is loaded, {path} fails: {error}"
    return ""


def _held(model: torch.nn.Module, path: str) -> torch.Tensor | None:
    """A buffer or a plain attribute; None for a constant that the forward makes itself."""
    held: Any = model
    for name in path.split("."):
        held = getattr(held, name, None)
    return held if isinstance(held, torch.Tensor) else None


def expresses(config: PreTrainedConfig, groups: Groups, removed: Removed) -> bool:
    """Whether some config gives these shapes, whatever its class computes from it; one layer is enough to see it."""
    return next(_shaped(config, groups, removed, one_layer(config, groups, removed)), None) is not None


def _shaped(
    config: PreTrainedConfig, groups: Groups, removed: Removed, single: PreTrainedConfig | None = None
) -> Iterator[Emission]:
    """Emissions with the wanted shapes; of one layer if a config of a ``single`` one is to be changed."""
    wanted = shapes_after(groups, removed)
    eps = _eps_changes(config, groups, removed)
    if eps is None or not is_uniform(groups, removed):
        return

    def routed(changes: Mapping[str, int]) -> Emission | None:
        return _routed(single or config, {**changes, **eps})

    def misses(changes: Mapping[str, int]) -> float:
        emitted = routed(changes)
        return missing(emitted.config, wanted, whole=single is None) if emitted is not None else inf

    tried: list[Changes] = []
    for changes in solutions(config, groups, removed, misses):
        if changes not in tried:
            tried.append(changes)
            emitted = routed(changes)
            assert emitted is not None
            yield emitted


def _describe(groups: Groups, removed: Removed) -> str:
    widths = groups.widths(removed)
    return ", ".join(f"{name} {groups[name].axis.size} → {width}" for name, width in list(widths.items())[:4])


def _eps_changes(config: PreTrainedConfig, groups: Groups, removed: Removed) -> dict[str, float] | None:
    """The config's eps after the removal; None where one field would have to hold several values."""
    before = {norm.weight: norm.eps for norm in groups.norms}
    after = groups.eps(removed)
    if all(after[name] == before[name] for name in after):
        return {}
    if len(set(after.values())) > 1 or len(set(before.values())) > 1:
        return None
    old, new = next(iter(before.values())), next(iter(after.values()))
    names = [n for n, v in config.to_dict().items() if isinstance(v, float) and v == old and "eps" in n]
    return {names[0]: new} if len(names) == 1 else None


def _routed(config: PreTrainedConfig, changes: Mapping[str, Any]) -> Emission | None:
    """The changed config as its own class; as mistral where LLaMA's class refuses."""
    values = {**config.to_dict(), **changes}
    classes: list[tuple[str, type[PreTrainedConfig], dict[str, Any]]] = [("own", type(config), values)]
    if config.model_type == "llama" and not (values.get("attention_bias") or values.get("mlp_bias")):
        plain = without(values, "attention_bias", "mlp_bias", "pretraining_tp")
        classes.append(("mistral", MistralConfig, {**plain, "sliding_window": None}))
    for route, cls, taken in classes:
        emitted = made(cls, taken)
        if emitted is not None:
            return Emission(emitted, route)
    return None
