"""`verify`: a user's pair of folders checked against the plan between them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from lorashear import models
from lorashear.disk.checkpoint import Checkpoint, resolve
from lorashear.disk.slicing import sliced
from lorashear.emission.declared import vocabulary
from lorashear.errors import LorashearError
from lorashear.planning import lower
from lorashear.plans import Plan
from lorashear.pruning import masked, pruned
from lorashear_ir.groups import Groups, TensorCut
from lorashear_passes.groups import group
from lorashear_passes.neutralise import neutralised
from lorashear_passes.program import record


def verify(model: str | Path, small: str | Path, *, revision: str | None = None) -> list[str]:
    """Check a pruned folder against its original: shapes, indices, bits, and the theorem for the slice.

    Returns:
        One line for each thing that holds.

    Raises:
        LorashearError: the first thing that does not hold.
    """
    source, result = Checkpoint.open(resolve(model, revision)), Checkpoint.open(Path(small))
    plan = Plan.load(result.folder / "lorashear" / "plan.json")
    if plan.source != source.digest():
        raise LorashearError(
            f"'{small}' was not made from '{model}': config, tensor names, dtypes or shapes differ; "
            "give the model that it was pruned from, in the same revision"
        )
    twin = models.twin_of(source.folder)
    groups = models.groups(twin)
    _plan(plan, lower(source, twin, groups, plan.removed, {}), result)
    return [*_tensors(source, result, plan), _theorem(source, groups, plan)]


def _plan(plan: Plan, wanted: Plan, result: Checkpoint) -> None:
    """The kept indices and the config are those that removing the plan's structures asks for."""
    for name in sorted({*plan.tensors, *wanted.tensors}):
        if plan.tensors.get(name) != wanted.tensors.get(name):
            raise LorashearError(f"what the plan keeps of {name} does not follow from the structures that it removes")
    for name in sorted({*plan.names, *wanted.names}):
        if plan.names.get(name, name) != wanted.names.get(name, name):
            raise LorashearError(f"what the plan calls {name} does not follow from the structures that it removes")
    for field in sorted({*plan.config, *wanted.config, *result.config}):
        found = [config.get(field) for config in (wanted.config, plan.config, result.config)]
        if found[0] != found[1] or found[0] != found[2]:
            raise LorashearError(
                f"{field} should be {found[0]}; the plan's config.json has {found[1]} and the folder's {found[2]}"
            )


def _tensors(source: Checkpoint, result: Checkpoint, plan: Plan) -> list[str]:
    names = {name: new for name in source.tensors if (new := plan.names.get(name, name)) is not None}
    if set(names.values()) != set(result.tensors):
        odd = sorted(set(names.values()) ^ set(result.tensors))[0]
        raise LorashearError(f"tensor {odd} is in only one of '{source.folder}' and '{result.folder}'")
    untouched = cut = 0
    why = "compensation and training" if plan.settings.get("tokens") else "compensation"
    for name, new in names.items():
        info, found = source.tensors[name], result.read(new)
        want = sliced(source.read(name), plan.tensors.get(name, TensorCut({})), info.dtype)
        if found.shape != want.shape or found.dtype != want.dtype:
            raise LorashearError(f"{name} has shape {list(found.shape)}; the plan says {list(want.shape)}")
        if name in plan.changed:
            if hashlib.sha256(found.tobytes()).hexdigest() != plan.changed[name]:
                raise LorashearError(f"{name} was changed by {why}, but its bytes are not those the plan records")
        elif found.tobytes() != want.tobytes():
            raise LorashearError(f"{name} is not, bit for bit, what the plan cuts from the original")
        else:
            untouched += name not in plan.tensors
            cut += name in plan.tensors
    return [
        f"{untouched} tensors are untouched and {cut} are sliced, bit for bit as planned",
        f"{len(plan.changed)} tensors were changed on purpose by {why}: {', '.join(plan.changed) or 'none'}",
    ]


def _theorem(source: Checkpoint, groups: Groups, plan: Plan) -> str:
    """Zeroed equals removed, on the real weights in float32 and random tokens."""
    model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32, trust_remote_code=False).eval()
    small = pruned(model, model.config, groups, plan.removed)
    pieces = vocabulary(model.config)
    tokens = torch.randint(0, pieces, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = small(input_ids=tokens).logits
        want = _zeroed(model, groups, plan, tokens)
    difference = ((want - got).abs().max() / want.abs().max()).item()
    if not difference < 1e-4:
        raise LorashearError(f"zeroed and removed differ by {difference:.1e} of the largest logit; they should not")
    return f"zeroed and removed compute the same function: they differ by {difference:.1e} of the largest logit"


def _zeroed(model: torch.nn.Module, groups: Groups, plan: Plan, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of the whole model with what the plan removes at its neutral value: zero, for the scores of experts −∞."""
    if not any(groups[name].kind == "expert" for name in plan.removed):
        masked(model, groups, plan.removed)
        return model(input_ids=tokens).logits
    inputs = {"input_ids": tokens, "use_cache": False}
    program = record(model, inputs)
    result = neutralised(program, group(program.graph), plan.removed)(**inputs)
    return next(value for value in result.values() if isinstance(value, torch.Tensor))
