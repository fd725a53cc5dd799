"""The tensors of one checkpoint on disk beside the parameters of its class: what is stored where, and under which name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lorashear.disk.checkpoint import LEFT_OVER, Checkpoint, Part
from lorashear.disk.stored import stored
from lorashear_ir.groups import TensorCut


@dataclass(frozen=True)
class Storage:
    """`parts` has every tensor that the class stores, under the name that the checkpoint would have for it.

    In ``source`` parameters that lie in one tensor on disk are tensors of their own; ``stacks`` says which.
    """

    source: Checkpoint
    parts: Mapping[str, Part]
    prefix: str
    stacks: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, source: Checkpoint, twin: PreTrainedModel) -> Storage:
        """For the class of ``twin``. A checkpoint may leave out or add the prefix of its base model's parameters.

        Raises:
            LorashearError: the class stores something that is no part of one parameter.
        """
        prefix = f"{twin.base_model_prefix}."
        found = stored(twin)
        stacks = {
            name: {_like(name, piece, prefix): rows for piece, rows in pieces.items()}
            for canonical, pieces in found.stacks.items()
            if (name := _spelled(canonical, prefix, source.tensors)) in source.tensors
        }
        source = source.apart(stacks)
        parts = {_spelled(name, prefix, source.tensors): part for name, part in found.parts.items()}
        return cls(source, parts, prefix, stacks)

    @property
    def named(self) -> dict[str, str]:
        """What parameters that are stored as they are, are called on disk."""
        return {part.parameter: name for name, part in self.parts.items() if not part.fixed}

    def check(self, twin: PreTrainedModel) -> None:
        """Hold the checkpoint against it. Raises LorashearError for what is missing, misshapen or unexpected."""
        first = tied(twin)
        names = {part.parameter: name for name, part in self.parts.items()}
        aliases = {names[further]: names[original] for further, original in first.items() if further in names}
        left_over = "|".join([LEFT_OVER, *(twin._keys_to_ignore_on_load_unexpected or ())])
        self.source.check_shapes({name: part.shape for name, part in self.parts.items()}, aliases, left_over)

    def cuts(self, cuts: Mapping[str, TensorCut], first: Mapping[str, str]) -> dict[str, TensorCut | None]:
        """Cuts of parameters, by their first names, as cuts of stored tensors; None: it goes as a whole."""
        named = {name: first.get(part.parameter, part.parameter) for name, part in self.parts.items()}
        return {name: self.parts[name].cut(cuts[path]) for name, path in named.items() if path in cuts}

    def twice(self, first: Mapping[str, str]) -> list[str]:
        """Tensors on disk that are there under another name of the same parameter too, byte for byte."""
        held: dict[tuple[str, tuple[int, ...]], str] = {}
        found: list[str] = []
        by_first = sorted(self.parts.items(), key=lambda item: item[1].parameter in first)
        for name, part in by_first:
            if name in self.source.tensors:
                at = first.get(part.parameter, part.parameter), tuple(place.indices[0] for place in part.places)
                if held.setdefault(at, name) != name and self.source.same(held[at], name):
                    found.append(name)
        return found

    def first_names(self, first: Mapping[str, str]) -> dict[str, str]:
        """What tied tensors that are on disk under a further name alone are called by their first one, which is what engines look for:
        the embedding, where only the output head is stored."""
        own = {part.parameter: name for name, part in self.parts.items() if not part.fixed}
        held = {part.parameter for name, part in self.parts.items() if name in self.source.tensors}
        further = {p: original for p, original in first.items() if p in held and original not in held}
        return {own[p]: own[original] for p, original in further.items() if p in own and original in own}

    def renamed(
        self, small: PreTrainedModel, cuts: Mapping[str, TensorCut], first: Mapping[str, str]
    ) -> dict[str, str]:
        """What remaining tensors are called in a checkpoint of the pruned class, where that is another name.

        Experts are numbered by their names, and those that stay move up.
        """
        at: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
        fixed: dict[str, tuple[int, ...]] = {}
        for name, part in self.parts.items():
            fixed[part.parameter] = part.fixed
            at[part.parameter, tuple(part.places[dim].indices[0] for dim in part.fixed)].append(name)
        result: dict[str, str] = {}
        for name, part in stored(small).parts.items():
            if not fixed[part.parameter]:
                continue
            cut = cuts.get(first.get(part.parameter, part.parameter))
            keep = cut.keep if cut is not None else {}
            entry = [
                keep[dim][place.indices[0]] if dim in keep else place.indices[0]
                for dim, place in enumerate(part.places)
            ]
            held = at[part.parameter, tuple(entry[dim] for dim in fixed[part.parameter])]
            before = next(each for each in held if self.parts[each].holds(entry))
            after = _like(before, name, self.prefix)
            if after != before:
                result[before] = after
        return result


def tied(twin: torch.nn.Module) -> dict[str, str]:
    """For each further name of a parameter, its first name."""
    first: dict[int, str] = {}
    names = {n: first.setdefault(id(p), n) for n, p in twin.named_parameters(remove_duplicate=False)}
    return {name: original for name, original in names.items() if name != original}


def _spelled(name: str, prefix: str, names: Collection[str]) -> str:
    """A name as a checkpoint has it."""
    return next((each for each in (name, name.removeprefix(prefix), prefix + name) if each in names), name)


def _like(example: str, name: str, prefix: str) -> str:
    """A name with the base model's prefix where the example has it."""
    return prefix * example.startswith(prefix) + name.removeprefix(prefix)
