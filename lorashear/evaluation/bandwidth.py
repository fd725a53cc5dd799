"""Bytes that a model's weights and cache take, those that decoding a token reads, and what pruning can gain by reading fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from lorashear.evaluation.speed import Cost


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def cache_bytes(cache: Any) -> int | None:
    """Bytes of all tensors within a cache, each once, whatever kind of object it is; None where there is no cache."""
    if cache is None:
        return None
    found: dict[tuple[int, int, torch.Size], int] = {}
    seen: set[int] = set()
    left = [cache]
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            # Two names for the same entries count once; what is only repeated by a stride of zero takes no more than it has.
            # Not by the address of the entries: those on the meta device have none.
            key = (item.untyped_storage()._cdata, int(item.storage_offset()), item.shape)
            found[key] = min(item.nbytes, item.untyped_storage().nbytes())
        else:
            left.extend(_within(item))
    return sum(found.values())


def read_bytes(model: nn.Module, *, batch: int = 1, cache: int = 0) -> int:
    """Bytes that one step of decoding reads, a new token in each of ``batch`` rows: every parameter once, of tables that are only
    looked up one row for each, and ``cache`` bytes of cache.

    An embedding that is tied to the output head counts whole, since the head multiplies by it. All experts of a mixture count,
    as a large batch reads them; a single row reads fewer.
    """
    modules = list(model.modules())
    tables = {id(p): p for m in modules if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    multiplied = {id(p) for m in modules if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    looked_up = tables.keys() - multiplied
    whole = sum(p.nbytes for p in model.parameters() if id(p) not in looked_up)
    rows = sum(min(batch, tables[one].shape[0]) * tables[one][0].nbytes for one in looked_up)
    return whole + rows + cache


def decode_bound(dense: nn.Module, pruned: nn.Module, *, batch: int = 1, caches: tuple[int, int] = (0, 0)) -> float:
    """How many times faster the pruned model can decode at most where memory bounds both: the bytes that a step of the dense one
    reads over those of the pruned one.

    It is no bound where arithmetic takes the time, as with large batches, or where the pruned model alone fits into a processor's
    cache. ``caches`` are the bytes of both caches.
    """
    return read_bytes(dense, batch=batch, cache=caches[0]) / read_bytes(pruned, batch=batch, cache=caches[1])


def explained(dense: Cost, pruned: Cost) -> str:
    """Why decoding gained what it did, in a sentence or two: the bytes that a step reads, and the time that they do not explain.

    That time is what would be left of a step if it read nothing, were both models to read as fast: it is spent on calling
    operators, on norms, and on attention, which stay as many.
    """
    text = (
        f"At batch {pruned.batch} a step of {dense.name} reads {_size(dense.read_bytes)} of weights and cache and one of "
        f"{pruned.name} {_size(pruned.read_bytes)}, so that decoding gains {pruned.decode_bound:.2f} times at most where memory bounds "
        f"it; it gained {pruned.decode_ratio:.2f} times."
    )
    if dense.read_bytes <= pruned.read_bytes:
        return text
    before, after = dense.batch / dense.decode, pruned.batch / pruned.decode
    left = (after * dense.read_bytes - before * pruned.read_bytes) / (dense.read_bytes - pruned.read_bytes)
    left = min(left, after)  # where noise has it that the smaller one is slower
    if left <= 0:
        return text
    return (
        f"{text} That is as if {1000 * left:.1f} of the {1000 * after:.1f} ms that a step of {pruned.name} takes (of the "
        f"{1000 * before:.1f} ms of {dense.name}) went into what does not shrink with the weights."
    )


def _within(item: Any) -> list[Any]:
    """What an object of a cache holds; modules and configs are the model's."""
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if isinstance(item, nn.Module | PreTrainedConfig | type) or callable(item):
        return []
    slots = [name for kind in type(item).__mro__ for name in _names(getattr(kind, "__slots__", ()))]
    return [*getattr(item, "__dict__", {}).values(), *(getattr(item, name) for name in slots if hasattr(item, name))]


def _names(slots: str | tuple[str, ...] | list[str]) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
