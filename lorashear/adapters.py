"""Models that carry adapters of peft: every adapter is seen while they are analysed, and their bookkeeping after a cut.

The analysis has no rule for adapters. An adapter that is not active would not be in the traced program, though it must
shrink with the weight that it adapts; so for the time of a trace everything that can stand in a place stands there.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from lorashear.disk.lora import PREFIX
from lorashear.errors import LorashearError

_OWN = ("lora_", "modules_to_save.", "original_module.")
"""What peft's own parts of a wrapped module are called."""


def holds(model: torch.nn.Module) -> bool:
    """Whether peft has put adapters into a model."""
    return any(True for _ in adapter_layers(model))


@contextmanager
def every_one(model: torch.nn.Module) -> Iterator[None]:
    """For a moment all adapters of a model are active, and all copies of a module that is saved whole are added up.

    Raises:
        LorashearError: adapters are merged into the base weights, where no trace shows them.
    """
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for path, layer in adapter_layers(model):
            if layer.merged_adapters:
                raise LorashearError(
                    f"adapter {layer.merged_adapters[0]} is merged into {path}, so that a trace does not show it: "
                    "call unmerge_adapter() first, or merge_and_unload() to prune the plain model"
                )
            changed.append((vars(layer), dict(vars(layer))))
            layer._active_adapter, layer._disable_adapters = _adapters(layer), False
            if hasattr(layer, "modules_to_save"):
                layer.forward = _together([layer.original_module, *layer.modules_to_save.values()])
        yield
    finally:
        for attributes, before in changed:
            attributes.clear()
            attributes.update(before)


def settle(model: torch.nn.Module) -> None:
    """Make what peft notes about its layers follow their weights: sizes, ranks, and the config of each adapter.

    The scaling of a layer stays when its rank shrinks. Peft reads it from the config as alpha and rank, so a layer whose
    rank changed gets a new alpha, and both go to the config by module (``rank_pattern``, ``alpha_pattern``).
    """
    shrunk: set[str] = set()
    for _, layer in adapter_layers(model):
        if not hasattr(layer, "lora_A"):  # another method of peft, which has no rank or counts it in its own way
            continue
        for adapter, rank in layer.r.items():
            down, up = _weights(layer, adapter)
            layer.in_features, layer.out_features = down.shape[1], up.shape[0]
            # A wrapped parameter of several experts keeps their ranks side by side.
            left = down.shape[0] // getattr(layer, "num_experts", 1)
            if left != rank:
                shrunk.add(adapter)
                layer.r[adapter] = left
                layer.lora_alpha[adapter] = _alpha(layer, adapter)
    for adapter in shrunk:
        _note_ranks(model, adapter)


def check_mergeable(model: torch.nn.Module) -> None:
    """Whether `merged` would find adapters to merge.

    Raises:
        LorashearError: it would not.
    """
    name = type(model).__name__
    if not _is_peft(model) or not holds(model):
        raise LorashearError(
            f"{name} is no PeftModel with adapters in its layers, so there is nothing to merge: leave merge out"
        )
    if any(layer._disable_adapters for _, layer in adapter_layers(model)):
        raise LorashearError(f"the adapters of this {name} are disabled: enable those to merge, or leave merge out")


def merged(model: Any) -> torch.nn.Module:
    """The plain model, the active adapters of ``model`` merged into its weights; ``model`` is used up.

    Raises:
        LorashearError: peft cannot merge these adapters.
    """
    _part(model)
    try:
        return model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise LorashearError(f"peft cannot merge these adapters into weights: {str(error).splitlines()[0]}") from error


def carrying(model: torch.nn.Module, folder: str | Path, *, trainable: bool = False) -> torch.nn.Module:
    """The model as a PeftModel with an adapter that was saved, in eval mode."""
    from peft import PeftModel

    with quiet():
        return PeftModel.from_pretrained(model, folder, is_trainable=trainable).eval()  # type: ignore[arg-type]


def save_apart(model: Any, folder: Path, lora: Path) -> Path:
    """Save the model under a PeftModel, which stays as it is, into ``folder``, and its adapter where is returned.

    Raises:
        LorashearError: it has not exactly one adapter, or that is merged into the weights.
    """
    names = list(model.peft_config)
    if len(names) != 1:
        raise LorashearError(f"the PeftModel has adapters {', '.join(names)}; compile takes a model with one")
    if any(layer.merged_adapters for _, layer in adapter_layers(model)):
        raise LorashearError(
            "the adapter is merged into the weights: call unmerge_adapter(), or pass merge_and_unload()"
        )
    plain = model.get_base_model()
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in plain.state_dict().items()
        if not any(f".{part}" in name for part in _OWN)
    }
    plain.save_pretrained(folder, state_dict=state)
    model.save_pretrained(lora)
    return lora if names == ["default"] else lora / names[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers warns of when peft calls it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _part(model: torch.nn.Module) -> None:
    """Give an adapted weight that is tied to another one a tensor of its own: merging would change both."""
    names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for _, layer in adapter_layers(model):
        held = layer.get_base_layer()._parameters if hasattr(layer, "merge") else {}
        for name, parameter in held.items():
            if parameter is not None and names[id(parameter)] > 1:
                held[name] = torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def without(model: Any) -> tuple[torch.nn.Module, dict[str, str]] | None:
    """The plain model under a PeftModel and, by the names of the parameters in ``model``, which is used up, those in it."""
    if not _is_peft(model) or not hasattr(model.base_model, "unload"):
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = model.base_model.unload()
    return plain, {names[id(p)]: name for name, p in plain.named_parameters() if id(p) in names}


def _is_peft(model: torch.nn.Module) -> bool:
    return "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel)


def adapter_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules of peft that choose among adapters, by path."""
    if "peft" not in sys.modules:  # then nobody can have made one
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield path, module


def _adapters(layer: Any) -> list[str]:
    """The adapters that a layer has weights of."""
    held: list[Any] = [getattr(layer, name, None) for name in layer.adapter_layer_names]
    return list(dict.fromkeys(adapter for each in held if hasattr(each, "keys") for adapter in each.keys()))


def _together(modules: list[torch.nn.Module]) -> Any:
    def forward(*arguments: Any, **named: Any) -> Any:
        first, *others = (module(*arguments, **named) for module in modules)
        for other in others:
            first = pytree.tree_map(lambda a, b: a + b if isinstance(a, torch.Tensor) else a, first, other)
        return first

    return forward


def _weights(layer: Any, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of an adapter."""
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    return getattr(down, "weight", down), getattr(up, "weight", up)


def _alpha(layer: Any, adapter: str) -> float:
    """The alpha that gives a layer's scaling at its rank."""
    rank = layer.r[adapter]
    alpha = layer.scaling[adapter] * (math.sqrt(rank) if layer.use_rslora.get(adapter) else rank)
    return int(alpha) if alpha == int(alpha) else alpha


def _note_ranks(model: torch.nn.Module, adapter: str) -> None:
    """Write the ranks and alphas of an adapter into its config; the commonest stand for all, the others by module."""
    layers = {
        path.removeprefix(PREFIX): each for path, each in adapter_layers(model) if adapter in getattr(each, "r", ())
    }
    held = {path: (each.r[adapter], each.lora_alpha[adapter]) for path, each in layers.items()}
    (rank, alpha), _ = Counter(held.values()).most_common(1)[0]
    config = getattr(model, "peft_config", {}).get(adapter)
    if config is None:
        return
    config.r, config.lora_alpha = rank, alpha
    config.rank_pattern = {path: r for path, (r, _) in held.items() if r != rank}
    config.alpha_pattern = {path: a for path, (_, a) in held.items() if a != alpha}
