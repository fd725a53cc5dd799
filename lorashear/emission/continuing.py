"""Whether a model goes on from the cache that it keeps: the traced forward, which keeps none, does not show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from lorashear_passes.tracing import quiet, untouched, whole_experts

CACHES = ("past_key_values", "cache_params")
"""What transformers' models call the cache in their outputs and arguments."""


def continued(model: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[int, str]:
    """How many modules end well while the inputs and one more token are read, and what is raised, if anything is."""
    tokens = inputs.get("input_ids")
    ended: list[None] = []
    with torch.no_grad(), untouched(model), whole_experts(model), quiet():
        hook = register_module_forward_hook(lambda *_: ended.append(None))
        try:
            kept = model(**{**inputs, "use_cache": True})
            cache = {name: held for name in CACHES if (held := getattr(kept, name, None)) is not None}
            if tokens is not None:  # some keep their state in their modules
                model(input_ids=tokens[:, -1:], use_cache=True, **cache)
        except Exception as error:  # whatever a class raises
            return len(ended), next(iter(str(error).strip().splitlines()), type(error).__name__)
        finally:
            hook.remove()
    return len(ended), ""
