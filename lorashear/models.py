"""What users hand in as a model, and its analysis: a folder or hub id, a transformers model, or any nn.Module."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lorashear import adapters
from lorashear.disk import checkpoint
from lorashear.emission import emit
from lorashear.emission.rebuild import Original, Removed, copied, rebuilt
from lorashear.emission.remembering import Remembered, content
from lorashear.errors import Fault, LorashearError
from lorashear_ir.functions import expand
from lorashear_ir.graph import Graph
from lorashear_ir.groups import Group, Groups
from lorashear_passes.capture import CaptureError, capture
from lorashear_passes.compose import compose
from lorashear_passes.groups import group
from lorashear_passes.infer import RuleError, infer

Model = str | Path | torch.nn.Module
Inputs = Mapping[str, Any] | Sequence[Any] | torch.Tensor
"""Arguments of a forward: by name, in order, or the only one."""


OTHERS = ("MaskedLM", "PreTraining", "Classification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction")
"""How classes end that have another head than a causal language model, though one may be built from their config."""


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model folder, as transformers understands it.

    Raises:
        LorashearError: transformers refuses it; its first sentence is quoted.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise LorashearError(
            f"{folder / 'config.json'} is not a config that transformers accepts: {_first(error)}"
        ) from error


def build_twin(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config on the meta device: every shape and no weight.

    Raises:
        LorashearError: the config names no causal language model, or its numbers fit no model.
    """
    kind = config.model_type
    other = next((name for name in config.architectures or () if name.endswith(OTHERS)), None)
    if other is not None:
        raise LorashearError(
            f"no causal language model can be built from this {kind} config: it is that of {other} "
            "(lorashear.prune takes any module in memory)"
        )
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).eval()
    except Exception as error:
        why = _first(error)
        if why.startswith("Unrecognized configuration class"):  # and its repr
            why = f"{type(config).__name__} is no decoder-only language model's (lorashear.prune takes any module in memory)"
        raise LorashearError(f"no causal language model can be built from this {kind} config: {why}") from error


def twin_of(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """`build_twin` of the config in a model folder."""
    return build_twin(read_config(folder, trust_remote_code=trust_remote_code), trust_remote_code=trust_remote_code)


def _first(error: Exception) -> str:
    """The first sentence of somebody else's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def as_module(model: Model, *, revision: str | None = None, trust_remote_code: bool = False) -> torch.nn.Module:
    """A module to trace: the meta twin of a folder, or the module itself."""
    check_kind(model)
    if isinstance(model, torch.nn.Module):
        return model
    folder = checkpoint.resolve(model, revision)
    return twin_of(folder, trust_remote_code=trust_remote_code)


def check_kind(model: Any) -> None:
    """Refuse what is no model, or one inside something else: LorashearError."""
    if not isinstance(model, str | Path | torch.nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise LorashearError(f"a model is a folder, a hub id or a torch module, and {what} is none: pass one of these")
    if not isinstance(model, torch.nn.Module):
        return
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise LorashearError(f"{name} is TorchScript, whose operators are compiled: pass the module it was made from")
    inner = ", ".join(n for n, _ in model.named_children())
    if inner in ("module", "_orig_mod") and type(model).__module__.startswith("torch."):  # DataParallel, torch.compile
        raise LorashearError(f"{name} only runs another module: pass that one, its attribute {inner}")
    packed = [path for path, each in model.named_modules() if type(each).__module__.startswith("torch.ao.nn.quantized")]
    if packed:
        raise LorashearError(f"{name} has quantised weights in module {packed[0]}: prune first, quantise the result")
    lazy = [n for n, p in model.named_parameters() if isinstance(p, torch.nn.UninitializedParameter)]
    if lazy:
        raise LorashearError(f"{name} has no shape yet for {lazy[0]}: call it once with its inputs")


def example_inputs(module: torch.nn.Module) -> dict[str, Any]:
    """Token ids for a language model: two rows of five, enough to tell every dim from every other."""
    device = next(module.parameters()).device
    return {"input_ids": torch.zeros(2, 5, dtype=torch.long, device=device), "use_cache": False}


def keywords(module: torch.nn.Module, inputs: Inputs | None = None) -> dict[str, Any]:
    """Inputs by the names of the forward's arguments, on the module's device.

    Raises:
        LorashearError: the module needs inputs, or other ones.
    """
    signature = inspect.signature(_called(module).forward)
    if inputs is None:
        return _default_inputs(module, signature)
    named = isinstance(inputs, Mapping)
    given = () if named else inputs if isinstance(inputs, tuple | list) else (inputs,)
    try:
        bound = signature.bind(*given, **(inputs if named else {}))  # type: ignore[arg-type]
    except TypeError as error:
        raise LorashearError(
            f"{type(module).__name__} cannot be called with these inputs: {error}; {_takes(signature)}"
        ) from error
    if not named and any(signature.parameters[name].kind.name == "VAR_POSITIONAL" for name in bound.arguments):
        raise LorashearError(f"{type(module).__name__} takes any number of arguments: pass inputs by their names")
    values = inputs if named else bound.arguments
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return _apart(module, {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in values.items()})  # type: ignore[union-attr]


def _apart(module: torch.nn.Module, values: dict[str, Any]) -> dict[str, Any]:
    """The inputs, each tensor an object of its own: one that is given twice is two inputs, that could differ."""
    seen = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}

    def own(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in seen:
            return tensor.detach().clone()
        seen.add(id(tensor))
        return tensor

    return pytree.tree_map_only(torch.Tensor, own, values)


def _default_inputs(module: torch.nn.Module, signature: inspect.Signature) -> dict[str, Any]:
    """Token ids, for a model that is called with these alone."""
    name, config = type(module).__name__, getattr(module, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise LorashearError(f"{name} is no transformers model: pass inputs; {_takes(signature)}")
    main = getattr(_called(module), "main_input_name", "input_ids")
    if main != "input_ids" or config.is_encoder_decoder:
        needs = main if main != "input_ids" else "the inputs of its encoder and of its decoder"
        raise LorashearError(f"{name} needs {needs}, not token ids alone: pass inputs; {_takes(signature)}")
    return example_inputs(module)


def _takes(signature: inspect.Signature) -> str:
    """The arguments of a forward in words."""
    names = [p.name for p in signature.parameters.values() if not p.kind.name.startswith("VAR")]
    return f"its forward takes {', '.join(names) or 'no arguments'}"


def _called(module: torch.nn.Module) -> torch.nn.Module:
    """The module whose forward names the arguments: that of a PeftModel hands on whatever it is given."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]


def emptied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy on the meta device: every shape and no weight. Raises LorashearError."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = torch.nn.Parameter(empty) if isinstance(tensor, torch.nn.Parameter) else empty
    return copied(module, memo)


def trace(
    model: Model, inputs: Inputs | None = None, *, revision: str | None = None, trust_remote_code: bool = False
) -> Graph:
    """The typed graph of a model, its composed operators (attention, norms, MLPs) folded into one node each.

    ``str(graph)`` is its text form, and `lorashear.parse` reads that back.

    Args:
        model: a folder or hub id (traced from its config, without weights), or a module.
        inputs: arguments of its forward (by name, in order, or the only one); needed for a module that is no transformers model.
        revision: of a hub id.

    Raises:
        LorashearError: no such model, inputs missing, or the model cannot be traced.
    """
    module = as_module(model, revision=revision, trust_remote_code=trust_remote_code)
    return compose(typed(captured(module, inputs)))


def captured(module: torch.nn.Module, inputs: Inputs | None = None) -> Graph:
    """The graph of a module before inference, with all adapters that it has."""
    try:
        with adapters.every_one(module):
            return capture(module, keywords(module, inputs))
    except CaptureError as error:
        missing = inputs is None and isinstance(error.__cause__, TypeError | AttributeError | ValueError)
        hint = "; if it needs more than token ids, pass inputs" if missing else ""
        raise LorashearError(f"{error}{hint}") from error


def typed(graph: Graph) -> Graph:
    """The graph with its types.

    Raises:
        Fault: a rule of the op table is wrong.
    """
    try:
        return infer(graph)
    except RuleError as error:
        raise fault(error) from error


def fault(error: RuleError) -> Fault:
    """What to say of a rule that is wrong."""
    return Fault(f"{error}; this is a fault of LoRAShear, not of the model: please report it")


def groups(
    model: Model | Graph,
    inputs: Inputs | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Groups:
    """The node groups of a model or graph, by name.

    A group is prunable if removing one of its structures is exact and, for a model with a config, if its class can take
    the width.
    """
    if isinstance(model, Graph):
        return group(typed(expand(model)) if model.functions else model)
    module = as_module(model, revision=revision, trust_remote_code=trust_remote_code)
    found = analysed(module, inputs)
    config = getattr(module, "config", None)
    return expressible(found, config, module, inputs) if isinstance(config, PreTrainedConfig) else found


def analysed(module: torch.nn.Module, inputs: Inputs | None = None) -> Groups:
    """The node groups of a module, whether or not its class can take other widths."""
    return group(typed(captured(module, inputs)))


def expressible(
    found: Groups, config: PreTrainedConfig, module: torch.nn.Module, inputs: Inputs | None = None
) -> Groups:
    """The groups, those not prunable that the class cannot take at other widths, with the reason.

    It can if a field of its config sets the width, or if attributes of the modules of a copy do.
    """
    twin = inputs is None and not adapters.holds(module) and all(p.is_meta for p in module.parameters())
    if twin:  # all that a folder says of its class is its config
        asked = type(module), *content(config), found.digest
        reasons = _REASONS.get(asked, lambda: _reasons(found, config, module, inputs))
    else:
        reasons = _reasons(found, config, module, inputs)
    result: list[Group] = []
    for each in found.values():
        reason = each.reason or reasons[each.name]
        result.append(replace(each, prunable=not reason, reason=reason))
    return Groups(result, found.tensors, found.norms, found.tied, found.typed)


_REASONS: Remembered[dict[str, str]] = Remembered(16)


def _reasons(found: Groups, config: PreTrainedConfig, module: torch.nn.Module, inputs: Inputs | None) -> dict[str, str]:
    """Why the class cannot take prunable groups at other widths; empty where it can."""
    families: dict[tuple[str, int], dict[str, list[int]]] = {}
    for each in found.values():
        if each.prunable:
            first = [block * each.axis.size for block in range(each.blocks)]
            families.setdefault((each.kind, each.size), {})[each.name] = first
    by_config = _by_config(config, found, families) if not adapters.holds(module) else {}
    original: Original | None = None
    reasons: dict[str, str] = {}
    for family, removed in families.items():
        reason = by_config.get(family, f"no field of {type(config).__name__} sets this width alone")
        if reason and original is None:
            assert found.typed is not None, "groups of a captured model have its graph"
            hollow = emptied(module)
            original = Original(hollow, found.typed, found, keywords(hollow, inputs))
        wrong = _without_config(original, removed) if reason and original else {}
        for name in removed:
            reasons[name] = f"{reason}: {wrong[name]}" if wrong.get(name) else "" if wrong else reason
    return reasons


def _without_config(original: Original, removed: Removed) -> dict[str, str]:
    """What stops each group from getting its width by attributes; empty where nothing does.

    All are tried at once, and those that differ only in numbers (the layers of a tower) apart from the others.
    """
    towers: dict[str, dict[str, Collection[int]]] = {}
    for name, indices in removed.items():
        towers.setdefault(re.sub(r"\d+", "*", name), {})[name] = indices
    small, wrong = rebuilt(original, removed)
    if len(towers) == 1:
        return dict.fromkeys(removed, wrong)
    reasons: dict[str, str] = {}
    for tower in towers.values():
        alone, why = rebuilt(original, tower)
        if alone is None and small is not None:
            other = next(name for name in removed if name not in tower)
            why = f"its modules take this width only together with others, as that of {other}"
        reasons.update(dict.fromkeys(tower, why))
    return reasons


def _by_config(
    config: PreTrainedConfig, found: Groups, families: Mapping[tuple[str, int], Removed]
) -> dict[tuple[str, int], str]:
    """The families whose widths a field of the config sets, each with what is wrong with that, empty where nothing is.

    The class may read the field for more than a width, as a scale. That is seen in a trace; one of all families together
    is enough where it agrees.
    """
    fits = [family for family, removed in families.items() if emit.expresses(config, found, removed)]
    together = {name: indices for family in fits for name, indices in families[family].items()}
    if not fits or emit.by_fields(config, found, together)[0] is not None:
        return dict.fromkeys(fits, "")
    return {family: emit.by_fields(config, found, families[family])[1] for family in fits}
