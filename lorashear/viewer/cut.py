"""A plan for a reader: what goes of each group, and the model before and after it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from lorashear.evaluation.bandwidth import cache_bytes
from lorashear.plans import ranges
from lorashear.report import layer_widths
from lorashear_ir.axes import size_with
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Groups
from lorashear_ir.products import products

Content = dict[str, Any]


def cut(
    groups: Groups,
    removed: Mapping[str, Collection[int]],
    graphs: tuple[Graph, Graph],
    models: tuple[nn.Module, nn.Module] | None,
) -> Content:
    """The part ``cut`` of a view.

    Args:
        groups: of the model before.
        removed: structures by group.
        graphs: before and after, composed, with types.
        models: copies before and after, on the meta device, for what they keep of a token; None of what is no language model.
    """
    removed = {name: indices for name, indices in removed.items() if indices}
    before, after = ({name: g.axis.size for name, g in groups.items()}, groups.widths(removed))
    caches = [token_bytes(model) for model in models] if models else [None, None]
    before_lines, after_lines = (str(graph).splitlines() for graph in graphs)
    return {
        "removed": {name: ranges(indices) for name, indices in removed.items()},
        "widths": layer_widths(groups, removed),
        "figures": {
            "parameters": _both(groups.parameters(before), groups.parameters(after)),
            "bytes": _both(_sum(groups, before, _bytes(groups)), _sum(groups, after, _bytes(groups))),
            "flops": _both(_sum(groups, before, _flops(groups)), _sum(groups, after, _flops(groups))),
            "cache": _both(*caches),
        },
        "diff": list(difflib.unified_diff(before_lines, after_lines, "before", "after", n=1, lineterm="")),
    }


def token_bytes(model: nn.Module) -> int | None:
    """Bytes that a model on the meta device keeps of each token that it reads: its KV cache. None where it keeps none, or needs more than tokens."""
    ids = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    try:
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("batched_mm")  # pyright: ignore[reportCallIssue]  # the one that needs no data
        with torch.no_grad():
            kept = [cache_bytes(model(input_ids=ids[:, :n], use_cache=True)["past_key_values"]) for n in (1, 2)]
    except Exception:  # whatever a model does that cannot be run on tokens alone, and without weights
        return None
    one, two = kept
    return None if one is None or two is None else two - one


def _both(before: float | None, after: float | None) -> Content | None:
    return None if before is None or after is None else {"before": before, "after": after}


def _bytes(groups: Groups) -> dict[str, float]:
    """What one entry of each parameter takes in memory."""
    assert groups.typed is not None
    sizes = {s.path: int(re.sub(r"\D", "", s.value.dtype) or 8) / 8 for s in groups.typed.sources}
    return {name: sizes[name] for name in groups.tensors}


def _flops(groups: Groups) -> dict[str, float] | None:
    """Two FLOPs for each multiplication by an entry of each parameter, a token; None where nobody knows what a token is."""
    assert groups.typed is not None
    tokens = [math.prod(s.value.shape) for s in groups.typed.sources if s.role == "input" and s.path == "input_ids"]
    if not tokens:
        return None
    found = dict.fromkeys(groups.tensors, 0.0)
    for name, count in products(groups.typed, tokens[0]).items():
        found[groups.tied.get(name, name)] += 2 * count
    return found


def _sum(groups: Groups, widths: Mapping[str, int], prices: Mapping[str, float] | None) -> int | None:
    """Of all parameters at these widths, at what an entry of each counts."""
    if prices is None:
        return None
    sizes = {groups[name].axis.name: width for name, width in widths.items()}
    counts = {name: math.prod(size_with(d, sizes) for d in dims) for name, dims in groups.tensors.items()}
    return round(sum(prices[name] * count for name, count in counts.items()))
