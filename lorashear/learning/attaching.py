"""A fresh LoRA adapter for a model that has none."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from lorashear.adapters import adapter_layers, quiet
from lorashear.disk.lora import PREFIX
from lorashear.errors import LorashearError
from lorashear.seeding import seeded

ALPHA = 32
"""LoRA's α. The update is scaled by α/r, so that the best learning rate hardly depends on the rank."""
KERNELS = ("out_proj",)
"""Maps that peft refuses to adapt where Mamba's kernels read the weight themselves, past an adapter."""
FUSED = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Names that peft takes, in some mixtures of experts, for what the experts were before their weights became one tensor."""


def attach(model: torch.nn.Module, *, rank: int, seed: int = 0) -> Any:
    """The model as a PeftModel with a LoRA adapter on every linear map but the head; only that is trainable.

    Weights of experts that lie in one tensor get none, and where peft would adapt other maps than these, those neither.

    Raises:
        LorashearError: there is no linear map.
    """
    from peft import LoraConfig, get_peft_model

    names = _maps(model)
    if not names:
        raise LorashearError(f"{type(model).__name__} takes no LoRA adapter: it has no linear map but its head")
    turned = any(isinstance(model.get_submodule(name), Conv1D) for name in names)

    def put_on(names: list[str]) -> Any:
        spelled = "|".join(map(re.escape, names))
        config = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=f"({spelled})", fan_in_fan_out=turned)
        return get_peft_model(model, config)  # type: ignore[arg-type]

    reason = ValueError()
    with seeded(seed), quiet():
        for refused in ((), KERNELS, FUSED, (*KERNELS, *FUSED)):
            left = [name for name in names if name.rpartition(".")[2] not in refused]
            try:
                found = put_on(left)
            except ValueError as error:
                reason = error
                continue
            if {path.removeprefix(PREFIX) for path, _ in adapter_layers(found)} <= set(left):
                return found
            reason = ValueError("peft puts it on other modules than it is told")
            found.unload()
    raise LorashearError(f"{type(model).__name__} takes no LoRA adapter: {reason}")


def _maps(model: Any) -> list[str]:
    """The linear maps of a model by name, but for its head, what shares a weight, and what computes more than the map."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if type(module).forward in (torch.nn.Linear.forward, Conv1D.forward)
        and module is not head
        and uses[id(module.weight)] == 1  # type: ignore[arg-type]
    ]


def checkpoint_activations(model: Any) -> None:
    """Let a transformers model or a PeftModel compute what is between two layers twice in training, and keep less.

    Raises:
        LorashearError: its class does not know how.
    """
    enable = (
        getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    )  # the older name
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise LorashearError(f"{error} Leave gradient_checkpointing (--gradient-checkpointing) out") from error
