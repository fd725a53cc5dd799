"""From a choice of structures to a plan for the tensors as they are stored."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lorashear import models
from lorashear.disk import checkpoint
from lorashear.disk.folder import MODELING_FILE
from lorashear.disk.storage import Storage
from lorashear.emission import emit, registering
from lorashear.errors import LorashearError
from lorashear.modeling_lorashear import has_odd_experts
from lorashear.plans import Plan
from lorashear_ir.groups import Groups, SelectionError


def plan_for(model: str | Path, removed: Mapping[str, Collection[int]], revision: str | None = None) -> Plan:
    """See `lorashear.plan`."""
    folder = checkpoint.resolve(model, revision)
    source = checkpoint.Checkpoint.open(folder)
    twin = models.twin_of(folder)
    return lower(source, twin, models.groups(twin), removed, {})


def lower(
    source: checkpoint.Checkpoint,
    twin: PreTrainedModel,
    groups: Groups,
    removed: Mapping[str, Collection[int]],
    settings: Mapping[str, Any],
) -> Plan:
    """A plan for the stored tensors of a model like ``twin``; a tied one may be stored under any of its names.

    Raises:
        LorashearError: a choice that no model can be made of, or stored tensors that are not the class's.
    """
    try:
        cuts = groups.cuts(removed)
    except SelectionError as error:
        raise LorashearError(str(error)) from error
    storage = Storage.of(source, twin)
    storage.check(twin)
    made = emit.emission(twin.config, groups, removed)
    stored = {name: cut for name, cut in storage.cuts(cuts, groups.tied).items() if name in storage.source.tensors}
    small = models.build_twin(made.config)
    renamed = storage.renamed(small, cuts, groups.tied)
    return Plan(
        source=source.digest(),
        removed={name: tuple(sorted(indices)) for name, indices in removed.items() if indices},
        tensors={name: cut for name, cut in stored.items() if cut is not None},
        names={
            **storage.first_names(groups.tied),
            **{name: new for name, new in renamed.items() if name in storage.source.tensors},
            **{name: None for name, cut in stored.items() if cut is None},
            **dict.fromkeys(storage.twice(groups.tied)),
        },
        stacks=storage.stacks,
        parameters={
            path: name for path, name in storage.named.items() if path != name and name in storage.source.tensors
        },
        config=config_json(made, source.config, small),
        route=made.route,
        settings=settings,
    )


def config_json(made: emit.Emission, before: Mapping[str, Any], small: PreTrainedModel) -> dict[str, Any]:
    """config.json of the result ``small``, with both spellings of the RoPE fields and an explicit head_dim."""
    content = json.loads(made.config.to_json_string())
    content["architectures"] = before.get("architectures")
    if made.route == "mistral":
        content["architectures"] = ["MistralForCausalLM"]
    for name in ("dtype", "torch_dtype"):
        if name in before:
            content["dtype"] = before[name]
    if has_odd_experts(small):
        content["experts_implementation"] = "eager"  # the loader's word for a loop over them
    if made.route == "generated":
        classes = registering.classes(made.config.model_type)
        module = MODELING_FILE.removesuffix(".py")
        content["architectures"] = [classes["AutoModelForCausalLM"].__name__]
        content["auto_map"] = {auto: f"{module}.{each.__name__}" for auto, each in classes.items()}
    rope = content.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        # Engines that read only the legacy spelling fall back to theta 10000 without a word.
        content["rope_theta"] = rope["rope_theta"]
        scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
        if scaling.get("rope_type", "default") != "default":
            content["rope_scaling"] = scaling
    return content
