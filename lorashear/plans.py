"""A plan: what is kept of every tensor, as a small JSON file that reproduces the slice without torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lorashear.errors import LorashearError
from lorashear_ir.groups import TensorCut

FORMAT = "lorashear-plan/1"


@dataclass(frozen=True)
class Plan:
    """Kept indices and scale corrections for each stored tensor, and the config of the result.

    With the original checkpoint it gives the *slice* bit for bit. What compensation or training changed besides is
    named in ``changed`` with a hash of the new tensor; it is recorded here, not replayed.
    """

    source: str  # digest of the checkpoint's config, names, dtypes and shapes
    removed: Mapping[str, tuple[int, ...]]  # structures by group name
    tensors: Mapping[str, TensorCut]
    config: Mapping[str, Any]  # config.json of the result
    route: str  # "own", "mistral" or "generated"
    settings: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str | None] = field(
        default_factory=dict
    )  # new names of tensors; None where one goes as a whole
    stacks: Mapping[str, Mapping[str, int]] = field(
        default_factory=dict
    )  # tensors that are taken apart, with the rows of the tensors that lie in them
    parameters: Mapping[str, str] = field(
        default_factory=dict
    )  # what parameters are called on disk, where that is another name
    contents: str = ""  # hash of the checkpoint's weights; empty where they were not read
    changed: Mapping[str, str] = field(default_factory=dict)  # tensor name → SHA-256 of its new bytes

    def __repr__(self) -> str:
        return f"Plan({len(self.removed)} groups, {len(self.tensors)} tensors, {self.route})"

    def to_json(self) -> str:
        runs = cache(ranges)  # most tensors keep what others keep
        tensors = {
            name: {
                "keep": {str(dim): runs(kept) for dim, kept in cut.keep.items()},
                **({"scale": cut.scale} if cut.scale != 1.0 else {}),
                **({"offset": cut.offset} if cut.offset else {}),
            }
            for name, cut in self.tensors.items()
        }
        removed = {name: ranges(indices) for name, indices in self.removed.items() if indices}
        content = {
            "format": FORMAT,
            "source": self.source,
            "contents": self.contents,
            "route": self.route,
            "settings": dict(self.settings),
            "removed": removed,
            "tensors": tensors,
            "names": dict(self.names),
            **({"stacks": {name: dict(rows) for name, rows in self.stacks.items()}} if self.stacks else {}),
            **({"parameters": dict(self.parameters)} if self.parameters else {}),
            "changed": dict(self.changed),
            "config": dict(self.config),
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "the plan") -> Plan:
        """Raises LorashearError where the text is no plan."""
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise LorashearError(
                    f"{name} has the format {content['format']}; this LoRAShear reads {FORMAT}: make it anew, or take the version that made it"
                )
            indices = cache(_indices)  # most tensors keep what others keep: once in memory is enough
            tensors = {
                tensor: TensorCut(
                    {int(dim): indices(kept) for dim, kept in cut["keep"].items()},
                    float(cut.get("scale", 1.0)),
                    float(cut.get("offset", 0.0)),
                )
                for tensor, cut in content["tensors"].items()
            }
            return cls(
                source=content["source"],
                contents=content["contents"],
                removed={group: indices(kept) for group, kept in content["removed"].items()},
                tensors=tensors,
                config=content["config"],
                route=content["route"],
                settings=content["settings"],
                names=content["names"],
                stacks=content.get("stacks", {}),
                parameters=content.get("parameters", {}),
                changed=content["changed"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            missing = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
            raise LorashearError(
                f"{name} is no LoRAShear plan: {missing}; give the lorashear/plan.json of a result"
            ) from error

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Raises LorashearError: no such file, or no plan in it."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            said = (error.strerror or error) if isinstance(error, OSError) else "it is no UTF-8 text"
            raise LorashearError(
                f"no plan can be read from {path}: {said}; give the lorashear/plan.json of a result"
            ) from error
        return cls.from_json(text, str(path))


def ranges(indices: Collection[int]) -> str:
    """``0-3,7`` for 0, 1, 2, 3, 7."""
    chosen = np.sort(np.fromiter(indices, np.int64, len(indices)))
    ends = np.flatnonzero(np.diff(chosen, append=chosen[-1:] + 2) != 1)
    firsts = chosen[np.concatenate([[0], ends[:-1] + 1])] if len(chosen) else chosen
    return ",".join(
        str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts.tolist(), chosen[ends].tolist(), strict=True)
    )


def _indices(text: str) -> tuple[int, ...]:
    result: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        result.extend(range(int(first), int(last or first) + 1))
    return tuple(result)


def plan(model: str | Path, removed: Mapping[str, Collection[int]], *, revision: str | None = None) -> Plan:
    """The plan that removes chosen structures from the model in a folder or of a hub id. Its weights are not read.

    Raises:
        LorashearError: no such model, or a choice that no model can be made of.
    """
    from lorashear.planning import plan_for  # torch is needed to analyse, not to apply

    return plan_for(model, removed, revision)
