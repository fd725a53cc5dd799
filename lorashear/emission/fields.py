"""Which fields of a config set the widths of its class: found by trying, not by a table of architectures.

1. Every integer field that equals an old width (or product of widths) may take the new one.
2. Models of the changed config are built on the meta device, and the shapes that are not as wanted are counted. From few
   changes, then from all, single fields are changed as long as fewer shapes miss; where there are few fields, every
   combination is tried.
3. A field that no shape needs keeps its value: it may be a context or a window that has the same number by chance. What
   the class computes from it beside shapes is for the caller to see; he is given the most changes that fit as well.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from math import inf, prod
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from lorashear.emission.remembering import Remembered, content
from lorashear_ir.axes import Product, axes_of, size_with
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Groups
from lorashear_passes.capture import capture
from lorashear_passes.resize import resize
from lorashear_passes.same import difference

Shapes = dict[str, tuple[int, ...]]
Changes = dict[str, int]
Removed = Mapping[str, Collection[int]]

MOST = 64
"""Combinations that are all tried."""
KEPT = 256
"""Configs whose shapes are kept."""


def new_sizes(groups: Groups, removed: Removed) -> dict[str, int]:
    """The new widths by axis."""
    return {groups[name].axis.name: width for name, width in groups.widths(removed).items()}


def shapes_after(groups: Groups, removed: Removed) -> Shapes:
    """The shape of every parameter once the structures are gone."""
    sizes = new_sizes(groups, removed)
    return {name: tuple(size_with(d, sizes) for d in dims) for name, dims in groups.tensors.items()}


def is_uniform(groups: Groups, removed: Removed) -> bool:
    """Whether all groups of a kind and size are left with the same width."""
    widths = groups.widths(removed)
    left: dict[tuple[str, int], set[int]] = {}
    for group in groups.values():
        if group.prunable:
            left.setdefault((group.kind, group.axis.size), set()).add(widths.get(group.name, group.axis.size))
    return all(len(found) == 1 for found in left.values())


def one_layer(config: PreTrainedConfig, groups: Groups, removed: Removed) -> PreTrainedConfig | None:
    """A config of a single layer, if that layer shows what a removal changes; the layers of a hybrid are not alike."""
    before, after = shapes_after(groups, {}), shapes_after(groups, removed)
    single = made(type(config), {**config.to_dict(), "num_hidden_layers": 1})
    try:
        few = stored_shapes(single) if single is not None else {}
    except Exception:  # a class that has no single layer
        few = {}
    return single if any(after.get(name) != before.get(name) for name in few) else None


def driven(config: PreTrainedConfig, groups: Groups, names: Collection[str], *, chance: bool = False) -> list[Changes]:
    """The fields that the class reads the width of these groups from, each with its value at one structure less in all.

    Where several give the shapes, those with which the class computes the same. None where the config has no such field.
    What the config itself would refuse, as heads that do not divide a width, does not count. With ``chance`` also the
    most fields that fit, some of which may have the number of a width by chance.
    """
    asked = *content(config), groups.digest, tuple(names), chance
    return _DRIVEN.get(asked, lambda: _driven(config, groups, names, chance))


_DRIVEN: Remembered[list[Changes]] = Remembered(64)


def _driven(config: PreTrainedConfig, groups: Groups, names: Collection[str], chance: bool) -> list[Changes]:
    removed = {name: [block * groups[name].axis.size for block in range(groups[name].blocks)] for name in names}
    single = one_layer(config, groups, removed)
    wanted = shapes_after(groups, removed)

    def misses(changes: Changes) -> float:
        changed = copy.copy(single or config)
        vars(changed).update(changes)
        return missing(changed, wanted, whole=single is None)

    *ways, most = list(solutions(config, groups, removed, misses)) or [{}]
    if len(ways) > 1:
        ways = [each for each in ways if _computes(config, each, groups, removed)] or ways
    return [each for each in (*ways, *([most] if chance or not ways else ())) if each]


def _computes(config: PreTrainedConfig, changes: Changes, groups: Groups, removed: Removed) -> bool:
    """Whether the class of a changed config computes what it should without the structures."""
    changed = copy.copy(config)
    vars(changed).update(changes)
    graph = groups.typed
    assert graph is not None, "groups of a captured model have its graph"
    try:
        found = capture(build(changed, "meta").eval(), like(graph))
    except Exception:  # a class that refuses it in its own way
        return False
    return not difference(found, resize(graph, groups, removed))


def like(graph: Graph) -> dict[str, Any]:
    """Inputs of the shapes that a language model's graph was captured with."""
    made: dict[str, Any] = {
        source.path: torch.zeros(source.value.shape, dtype=torch.long, device="meta")
        for source in graph.sources
        if source.role == "input"
    }
    return {**made, "use_cache": False}


def solutions(
    config: PreTrainedConfig, groups: Groups, removed: Removed, misses: Callable[[Changes], float]
) -> Iterator[Changes]:
    """As `search`. Fields that are not set are tried where the others do not do: GPT-2's ``n_inner``."""
    found = False
    for unset in (False, True):
        for changes in search(options(config, groups, new_sizes(groups, removed), unset=unset), misses):
            yield changes
            found = True
        if found:
            return


def options(config: PreTrainedConfig, groups: Groups, sizes: Mapping[str, int], *, unset: bool) -> dict[str, list[int]]:
    """The fields that may have to change, each with its possible new values; ``sizes`` are the new widths by axis.

    With ``unset`` also fields that are null, which may get any of them.
    """
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
    declared = {field.name for field in fields(config) if "int" in str(field.type)}  # pyright: ignore
    every = sorted({new for news in moved.values() for new in news})
    return {
        name: sorted(moved[value]) if value is not None else every
        for name, value in config.to_dict().items()
        if (unset and value is None and name in declared)
        or (isinstance(value, int) and not isinstance(value, bool) and value in moved and "token" not in name)
    }


def search(choices: Mapping[str, Sequence[int]], misses: Callable[[Changes], float]) -> Iterator[Changes]:
    """Changes of fields with which nothing misses: few, each time without one of those before, and at last the most.

    ``misses`` counts what is not as wanted under some changes; infinitely many where the class refuses them.
    """
    counted: dict[tuple[tuple[str, int], ...], float] = {}

    def count(changes: Changes) -> float:
        key = tuple(sorted(changes.items()))
        if key not in counted:
            counted[key] = misses(changes)
        return counted[key]

    first = _few(choices, count)
    if first is None:
        return
    ways = [first]
    for name in first:
        other = _few({field: values for field, values in choices.items() if field != name}, count)
        if other is not None and other not in ways:
            ways.append(other)
    yield from ways
    most = first
    for name, values in choices.items():
        for value in values if name not in most else ():
            if count({**most, name: value}) == 0:
                most = {**most, name: value}
                break
    yield most


def _few(choices: Mapping[str, Sequence[int]], count: Callable[[Changes], float]) -> Changes | None:
    """Changes with which nothing misses and of which none can be left out."""
    starts: list[Changes] = [{}, {name: values[0] for name, values in choices.items()}]
    found = next((end for end in (_descended(start, choices, count) for start in starts) if count(end) == 0), None)
    if found is None and prod(len(values) + 1 for values in choices.values()) <= MOST:
        found = next((each for each in _combinations(choices) if count(each) == 0), None)
    for name in list(found or ()):
        fewer = {other: value for other, value in (found or {}).items() if other != name}
        if count(fewer) == 0:
            found = fewer
    return found


def _descended(changes: Changes, choices: Mapping[str, Sequence[int]], count: Callable[[Changes], float]) -> Changes:
    """Fewer and fewer misses, one field at a time."""
    least, better = count(changes), True
    while least > 0 and better:
        better = False
        for name, values in choices.items():
            for value in (None, *values):
                tried = {other: held for other, held in changes.items() if other != name}
                if value is not None:
                    tried[name] = value
                if count(tried) < least:
                    changes, least, better = tried, count(tried), True
    return changes


def _combinations(choices: Mapping[str, Sequence[int]]) -> Iterator[Changes]:
    for values in itertools.product(*([None, *each] for each in choices.values())):
        yield {name: value for name, value in zip(choices, values, strict=True) if value is not None}


def missing(config: PreTrainedConfig, wanted: Shapes, *, whole: bool) -> float:
    """How many dims of parameters are not as wanted in a model of the config; not ``whole``: of those that it has."""
    try:
        built = stored_shapes(config)
    except Exception:  # each class refuses in its own way; one that cannot be built does not fit
        return inf
    wrong = 0
    for name, shape in built.items():
        other = wanted.get(name, ())
        wrong += sum(a != b for a, b in zip(shape, other, strict=True)) if len(shape) == len(other) else len(shape)
    return wrong + sum(len(shape) for name, shape in wanted.items() if whole and name not in built)


def stored_shapes(config: PreTrainedConfig) -> Shapes:
    """The shape of every tensor that a model of the config stores, each tied one once."""
    return _SHAPES.get(content(config), lambda: _stored_shapes(config))


def _stored_shapes(config: PreTrainedConfig) -> Shapes:
    model = build(config, "meta")
    stored = model.state_dict()
    return {n: tuple(t.shape) for n, t in (*model.named_parameters(), *model.named_buffers()) if n in stored}


_SHAPES: Remembered[Shapes] = Remembered(KEPT)  # the same few changes are tried for one width after another


def build(config: PreTrainedConfig, device: str) -> torch.nn.Module:
    """A model of the config with weights that mean nothing yet."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config)


def made(cls: type[PreTrainedConfig], values: Mapping[str, Any]) -> PreTrainedConfig | None:
    """A config of the class with these values, if it takes them."""
    try:
        return cls.from_dict(without(values, "model_type", "architectures", "_name_or_path"))
    except Exception:  # as above
        return None


def without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
