"""Emission: the config whose class builds the pruned shapes and computes the same from them.

1. The fields that set the widths are found by trying (`fields.py`); the class is traced and must give the program wanted.
2. `LlamaConfig` refuses head counts that do not divide the hidden size; the same tensors load as `mistral`.
3. Widths that differ between layers, or that neither class takes, go to `modeling_lorashear_llama.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, PreTrainedConfig

from lorashear.errors import LorashearError
from lorashear.fields import Shapes, build, made, missing, options, search, stored_shapes, without
from lorashear.modeling_lorashear_llama import LorashearLlamaConfig, LorashearLlamaForCausalLM
from lorashear_ir.axes import size_with
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Groups
from lorashear_passes.aten import DTYPES
from lorashear_passes.capture import CaptureError, capture
from lorashear_passes.resize import resize
from lorashear_passes.same import difference

# So that per-layer results load here by the usual calls, without running the code that lies in their folder.
AutoConfig.register("lorashear_llama", LorashearLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(LorashearLlamaConfig, LorashearLlamaForCausalLM, exist_ok=True)

Removed = Mapping[str, Collection[int]]


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
    assert groups.typed is not None, "groups of a captured model have its graph"
    wanted: Graph | None = None
    reason = f"no config can express these widths: {_describe(groups, removed)}"
    for found in _shaped(config, groups, removed):
        wanted = wanted or resize(groups.typed, groups, removed)
        wrong = _otherwise(config, found.config, groups.typed, wanted)
        if not wrong:
            return found, ""
        reason = f"a config with these widths computes something else: {wrong}"
    return None, reason


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
    """Which tensor that is not stored has other values in the model of another config; Gemma scales by ``√hidden``."""
    with _Unstored():
        old, new = (build(config, "cpu") for config in (before, after))
    for source in graph.sources:
        if source.role not in ("buffer", "constant"):
            continue
        held, other = (_held(model, source.path) for model in (old, new))
        if held is not None and (other is None or not torch.equal(held, other)):
            return f"{source.path}, which is not stored, has other values"
    return ""


def _held(model: torch.nn.Module, path: str) -> torch.Tensor | None:
    """A buffer or a plain attribute; None for a constant that the forward makes itself."""
    held: Any = model
    for name in path.split("."):
        held = getattr(held, name, None)
    return held if isinstance(held, torch.Tensor) else None


def like(graph: Graph) -> dict[str, Any]:
    """Inputs of the shapes that a language model's graph was captured with."""
    made: dict[str, Any] = {
        source.path: torch.zeros(source.value.shape, dtype=torch.long, device="meta")
        for source in graph.sources
        if source.role == "input"
    }
    return {**made, "use_cache": False}


def expresses(config: PreTrainedConfig, groups: Groups, removed: Removed) -> bool:
    """Whether some config gives these shapes, whatever its class computes from it; one layer is enough to see it."""
    before, after = shapes_after(groups, {}), shapes_after(groups, removed)
    single = made(type(config), {**config.to_dict(), "num_hidden_layers": 1})
    try:
        few = stored_shapes(single) if single is not None else {}
    except Exception:  # a class that has no single layer
        few = {}
    # The layers of a hybrid are not alike: one that shows nothing of this says nothing.
    shows = any(after.get(name) != before.get(name) for name in few)
    return next(_shaped(config, groups, removed, single if shows else None), None) is not None


def _shaped(
    config: PreTrainedConfig, groups: Groups, removed: Removed, single: PreTrainedConfig | None = None
) -> Iterator[Emission]:
    """Emissions with the wanted shapes; of one layer if a config of a ``single`` one is to be changed."""
    wanted = shapes_after(groups, removed)
    eps = _eps_changes(config, groups, removed)
    if eps is None:
        return

    def routed(changes: Mapping[str, int]) -> Emission | None:
        return _routed(single or config, {**changes, **eps})

    def misses(changes: Mapping[str, int]) -> float:
        emitted = routed(changes)
        return missing(emitted.config, wanted, whole=single is None) if emitted is not None else inf

    if is_uniform(groups, removed):
        for changes in search(options(config, groups, _sizes(groups, removed)), misses):
            emitted = routed(changes)
            assert emitted is not None
            yield emitted
    layered = _per_layer(config, groups, removed, eps)
    if layered is not None and missing(layered, wanted, whole=True) == 0:
        yield Emission(layered, "per-layer")


def _sizes(groups: Groups, removed: Removed) -> dict[str, int]:
    """The new widths by axis."""
    return {groups[name].axis.name: width for name, width in groups.widths(removed).items()}


def shapes_after(groups: Groups, removed: Removed) -> Shapes:
    """The shape of every parameter once the structures are gone."""
    sizes = _sizes(groups, removed)
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
    """The changed config as its own class; as mistral where LLaMA's class refuses; as ours where there are biases."""
    values = {**config.to_dict(), **changes}
    classes: list[tuple[str, type[PreTrainedConfig], dict[str, Any]]] = [("own", type(config), values)]
    if config.model_type == "llama" and (values.get("attention_bias") or values.get("mlp_bias")):
        classes.append(("per-layer", LorashearLlamaConfig, values))
    elif config.model_type == "llama":
        plain = without(values, "attention_bias", "mlp_bias", "pretraining_tp")
        classes.append(("mistral", MistralConfig, {**plain, "sliding_window": None}))
    for route, cls, taken in classes:
        emitted = made(cls, taken)
        if emitted is not None:
            return Emission(emitted, route)
    return None


def _per_layer(
    config: PreTrainedConfig, groups: Groups, removed: Removed, eps: dict[str, float]
) -> PreTrainedConfig | None:
    """Our own LLaMA with the widths of each layer."""
    if config.model_type not in ("llama", "lorashear_llama"):
        return None
    widths = groups.widths(removed)
    layers: dict[str, dict[str, int]] = {}
    values: dict[str, Any] = {**without(config.to_dict(), "per_layer_config", "auto_map"), **eps}
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
    return made(LorashearLlamaConfig, {**values, **({"per_layer_config": differing} if differing else {})})
