"""Emission: the config whose class builds the pruned shapes, found by trying, not by a table of architectures.

1. Every integer field of the config that equals an old width (or product of widths) may take the new one.
2. Each combination is built on the meta device; the one whose parameter shapes are all as wanted is the config.
3. `LlamaConfig` refuses head counts that do not divide the hidden size; the same tensors load as `mistral`.
4. Widths that differ between layers, or that neither class takes, go to `modeling_lorashear_llama.py`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, PreTrainedConfig

from lorashear.errors import LorashearError
from lorashear.modeling_lorashear_llama import LorashearLlamaConfig, LorashearLlamaForCausalLM
from lorashear_ir.axes import Product, axes_of, size_with
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Groups
from lorashear_passes.capture import CaptureError, capture
from lorashear_passes.resize import resize
from lorashear_passes.same import difference

# So that per-layer results load here by the usual calls, without running the code that lies in their folder.
AutoConfig.register("lorashear_llama", LorashearLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(LorashearLlamaConfig, LorashearLlamaForCausalLM, exist_ok=True)

Removed = Mapping[str, Collection[int]]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Emission:
    """A config for the pruned model, and by which route: "own" class, "mistral", or "per-layer"."""

    config: PreTrainedConfig
    route: str


def emission(config: PreTrainedConfig, groups: Groups, removed: Removed) -> Emission:
    """The config of the pruned model.

    Raises:
        LorashearError: no class at hand can express the widths; the sentence says which.
    """
    fields, reason = solve(config, groups, removed)
    if fields is None:
        raise LorashearError(f"{reason}; prune the same number in every layer, or another kind")
    return fields


def solve(config: PreTrainedConfig, groups: Groups, removed: Removed) -> tuple[Emission | None, str]:
    """The config, or None and why none will do: shapes that agree are not enough, the class must compute the same."""
    fields = fields_for(config, groups, removed, one_layer=False)
    if fields is None:
        return None, f"no config can express these widths: {_describe(groups, removed)}"
    assert groups.typed is not None, "groups of a captured model have its graph"
    wanted = resize(groups.typed, groups, removed)
    twin = build(fields.config, "meta").eval()
    try:
        wrong = difference(capture(twin, like(groups.typed)), wanted) or _recomputed(
            config, fields.config, groups.typed
        )
    except CaptureError as error:
        wrong = str(error)
    if wrong:
        return None, f"a config with these widths computes something else: {wrong}"
    return fields, ""


class _Unstored(TorchFunctionMode):
    """Weights on the meta device, which `torch.empty` makes; what a class computes itself, its buffers, for real."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if func is torch.empty else kwargs))


def _recomputed(before: PreTrainedConfig, after: PreTrainedConfig, graph: Graph) -> str:
    """Which buffer that is not stored has other values in the model of another config; Gemma scales by ``√hidden``."""
    with _Unstored():
        old, new = (build(config, "cpu") for config in (before, after))
    stored, buffers = old.state_dict(), dict(new.named_buffers())
    read = {source.path for source in graph.sources if source.role == "buffer"}
    for name, buffer in old.named_buffers():
        if name in read and name not in stored and not torch.equal(buffer, buffers[name]):
            return f"{name}, which is not stored, has other values"
    return ""


def like(graph: Graph) -> dict[str, Any]:
    """Inputs of the shapes that a language model's graph was captured with."""
    made: dict[str, Any] = {
        source.path: torch.zeros(source.value.shape, dtype=torch.long, device="meta")
        for source in graph.sources
        if source.role == "input"
    }
    return {**made, "use_cache": False}


def fields_for(config: PreTrainedConfig, groups: Groups, removed: Removed, *, one_layer: bool) -> Emission | None:
    """The emission, or None. With ``one_layer`` only the first layer is built, which is enough to know whether."""
    wanted = shapes_after(groups, removed)
    eps = _eps_changes(config, groups, removed)
    if eps is None:
        return None
    if is_uniform(groups, removed):
        for changes in _candidates(config, groups, removed):
            for route, made in _configs(config, {**changes, **eps}):
                if _fits(made, wanted, one_layer and _shows_in_one_layer(config, groups, wanted)):
                    return Emission(made, route)
    made = _per_layer(config, groups, removed, eps)
    return Emission(made, "per-layer") if made is not None and _fits(made, wanted, False) else None


def shapes_after(groups: Groups, removed: Removed) -> Shapes:
    """The shape of every parameter once the structures are gone."""
    sizes = {groups[name].axis.name: width for name, width in groups.widths(removed).items()}
    return {name: tuple(size_with(d, sizes) for d in dims) for name, dims in groups.tensors.items()}


def is_uniform(groups: Groups, removed: Removed) -> bool:
    """Whether all groups of a kind and size are left with the same width."""
    widths = groups.widths(removed)
    left: dict[tuple[str, int], set[int]] = {}
    for group in groups.values():
        if group.prunable:
            left.setdefault((group.kind, group.axis.size), set()).add(widths.get(group.name, group.axis.size))
    return all(len(found) == 1 for found in left.values())


def _describe(groups: Groups, removed: Removed) -> str:
    widths = groups.widths(removed)
    return ", ".join(f"{name} {groups[name].axis.size} → {width}" for name, width in list(widths.items())[:4])


def _candidates(config: PreTrainedConfig, groups: Groups, removed: Removed) -> Iterator[dict[str, int]]:
    """Combinations of new field values, those that change most fields first."""
    sizes = {groups[name].axis.name: width for name, width in groups.widths(removed).items()}
    moved: dict[int, set[int]] = {}
    for dims in groups.tensors.values():
        for dim in dims:
            if not any(axis.name in sizes for axis in axes_of(dim)):
                continue
            factors = dim.factors if isinstance(dim, Product) else (dim,)
            for begin, end in itertools.combinations(range(len(factors) + 1), 2):
                part = Product(factors[begin:end], 0)
                old, new = size_with(part, {}), size_with(part, sizes)
                if old != new:
                    moved.setdefault(old, set()).add(new)
    fields = {
        name: [value, *sorted(moved[value])]
        for name, value in config.to_dict().items()
        if isinstance(value, int) and not isinstance(value, bool) and value in moved and "token" not in name
    }
    options = [[(name, value) for value in values] for name, values in fields.items()]
    original = {name: values[0] for name, values in fields.items()}
    combinations = [dict(choice) for choice in itertools.product(*options)]
    combinations.sort(key=lambda c: -sum(c[name] != original[name] for name in c))
    yield from combinations


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


def _configs(config: PreTrainedConfig, changes: dict[str, Any]) -> Iterator[tuple[str, PreTrainedConfig]]:
    """The changed config as its own class; as mistral where LLaMA's class refuses; as ours where there are biases."""
    values = {**config.to_dict(), **changes}
    made = _make(type(config), values)
    if made is not None:
        yield "own", made
    elif config.model_type == "llama":
        if not (values.get("attention_bias") or values.get("mlp_bias")):
            made = _make(
                MistralConfig,
                {**_without(values, "attention_bias", "mlp_bias", "pretraining_tp"), "sliding_window": None},
            )
            if made is not None:
                yield "mistral", made
        else:
            made = _make(LorashearLlamaConfig, values)
            if made is not None:
                yield "per-layer", made


def _make(cls: type[PreTrainedConfig], values: dict[str, Any]) -> PreTrainedConfig | None:
    values = _without(values, "model_type", "architectures", "_name_or_path")
    try:
        return cls.from_dict(values)
    except Exception:  # each class refuses in its own way; whichever it is, this is no config of the class
        return None


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _fits(config: PreTrainedConfig, wanted: Shapes, one_layer: bool) -> bool:
    """Whether the class builds the wanted shapes from this config."""
    if one_layer and hasattr(config, "num_hidden_layers"):
        config = _make(type(config), {**config.to_dict(), "num_hidden_layers": 1}) or config
    try:
        model = build(config, "meta")
    except Exception:  # as above: a class that cannot be built does not fit
        return False
    stored = model.state_dict()
    built = {n: tuple(t.shape) for n, t in (*model.named_parameters(), *model.named_buffers()) if n in stored}
    return all(wanted.get(name) == shape for name, shape in built.items()) and (one_layer or len(built) == len(wanted))


def _shows_in_one_layer(config: PreTrainedConfig, groups: Groups, wanted: Shapes) -> bool:
    """Whether the first layer has a parameter that changes: layers of a hybrid are not alike."""
    changed = {name for name, dims in groups.tensors.items() if wanted[name] != tuple(d.size for d in dims)}
    single = _make(type(config), {**config.to_dict(), "num_hidden_layers": 1})
    if single is None:
        return False
    try:
        return any(name in changed for name, _ in build(single, "meta").named_parameters())
    except Exception:  # a class that has no single layer
        return False


def build(config: PreTrainedConfig, device: str) -> torch.nn.Module:
    """A model of the config with weights that mean nothing yet."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config)


def _per_layer(
    config: PreTrainedConfig, groups: Groups, removed: Removed, eps: dict[str, float]
) -> PreTrainedConfig | None:
    """Our own LLaMA with the widths of each layer."""
    if config.model_type not in ("llama", "lorashear_llama"):
        return None
    widths = groups.widths(removed)
    layers: dict[str, dict[str, int]] = {}
    values: dict[str, Any] = {**_without(config.to_dict(), "per_layer_config", "auto_map"), **eps}
    for name, group in groups.items():
        width = widths.get(name, group.axis.size)
        layer = re.search(r"\.(\d+)\.", name)
        if group.kind == "hidden":
            values["hidden_size"] = width
        elif group.kind in ("head", "query", "ffn") and layer:
            layers.setdefault(layer[1], {})[group.kind] = width
        elif group.axis.size != width:
            return None
    many = int(values["num_attention_heads"]), int(values["num_key_value_heads"] or values["num_attention_heads"])
    own: dict[str, dict[str, int]] = {}
    for layer, kinds in layers.items():
        heads = kinds.get("head", 1)
        fields = {"num_key_value_heads": heads, "num_attention_heads": heads * kinds.get("query", 1)}
        if "head" not in kinds and "query" not in kinds:
            fields = {"num_key_value_heads": many[1], "num_attention_heads": many[0]}
        own[layer] = {**fields, **({"intermediate_size": kinds["ffn"]} if "ffn" in kinds else {})}
    for field in ("num_key_value_heads", "num_attention_heads", "intermediate_size"):
        found = [fields[field] for fields in own.values() if field in fields]
        if found:
            values[field] = max(found)
    for fields in own.values():
        for field in [f for f in fields if fields[f] == values[f]]:
            del fields[field]
    differing = {layer: fields for layer, fields in own.items() if fields}
    return _make(LorashearLlamaConfig, {**values, **({"per_layer_config": differing} if differing else {})})
