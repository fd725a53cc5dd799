"""All that the page shows, as one JSON document: docs/view.md describes it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lorashear import models
from lorashear.disk import checkpoint
from lorashear.emission import emit
from lorashear.errors import LorashearError
from lorashear.models import Inputs, Model
from lorashear.plans import Plan
from lorashear.viewer.cut import cut
from lorashear.viewer.measured import measured
from lorashear.viewer.program import program
from lorashear_ir.functions import expand
from lorashear_ir.groups import Groups, SelectionError
from lorashear_passes.compose import compose
from lorashear_passes.resize import resize

FORMAT = "lorashear-view/1"
Removed = Mapping[str, Collection[int]]


def content(
    model: Model,
    inputs: Inputs | None = None,
    *,
    plan: str | Path | Removed | None = None,
    reports: Iterable[str | Path] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """See `lorashear.view`."""
    folder = checkpoint.resolve(model, revision) if isinstance(model, str | Path) else None
    module = models.as_module(folder or model, trust_remote_code=trust_remote_code)
    groups = models.groups(module, inputs)
    name = folder.resolve().name if folder else type(module).__name__
    removed = plan if plan is None or isinstance(plan, Mapping) else _read(Path(plan).expanduser(), folder)
    return shown(name, module, groups, removed, [Path(report).expanduser() for report in reports])


def shown(
    name: str, module: nn.Module, groups: Groups, removed: Removed | None, reports: Iterable[Path]
) -> dict[str, Any]:
    """As `content`, of a model whose groups are known.

    Raises:
        LorashearError: a choice that no model can be made of, or a report of another one.
    """
    assert groups.typed is not None, "groups of a captured model have its graph"
    composed = compose(groups.typed)
    found = {
        "format": FORMAT,
        "model": {"name": name, "class": groups.typed.name, "parameters": groups.parameters()},
        "program": program(composed, models.typed(expand(composed)), groups),
        "groups": [_group(groups, each) for each in groups],
        "cut": None,
        "measured": measured(groups, reports),
    }
    if removed is not None:
        try:
            after = compose(models.typed(resize(groups.typed, groups, removed)))
        except SelectionError as error:
            raise LorashearError(str(error)) from error
        found["cut"] = cut(groups, removed, (composed, after), _twins(module, groups, removed))
    return found


def _group(groups: Groups, name: str) -> dict[str, Any]:
    group = groups[name]
    return {
        "name": name,
        "kind": group.kind,
        "size": group.size,
        "prunable": group.prunable,
        "reason": group.reason,
        "blocks": group.blocks,
        "parameters": group.parameters,
        "axis": group.axis.name,
        "slots": [list(slot) for slot in group.slots],
    }


def _read(path: Path, folder: Path | None) -> Removed:
    """What a plan removes, given by its file or by the folder of the result that it is of."""
    file = path / "lorashear" / "plan.json" if path.is_dir() else path
    found = Plan.load(file)
    if folder and checkpoint.Checkpoint.open(folder).digest() != found.source:
        raise LorashearError(f"{file} is a plan for another model than '{folder}': pass the one that it was made for")
    return found.removed


def _twins(module: nn.Module, groups: Groups, removed: Removed) -> tuple[nn.Module, nn.Module] | None:
    """A language model before and after, without weights; None of what is none, or is none of its class after."""
    if not isinstance(module, PreTrainedModel):
        return None
    try:
        small = emit.emission(module.config, groups, removed).config
    except LorashearError:  # widths that only a module in memory can have
        return None
    return models.emptied(module), models.build_twin(small)
