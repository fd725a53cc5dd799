"""How much to remove: a share, or as much as leaves so many parameters or bytes."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from lorashear.config import Settings
from lorashear.disk.checkpoint import Checkpoint
from lorashear.errors import LorashearError


def settled(settings: Settings, source: Checkpoint, twin: nn.Module) -> Settings:
    """The settings with a ratio, which leaves at most the parameters or bytes that were asked for.

    Args:
        source: the checkpoint of the dense model, whose tensors are what ``bytes`` is of.
        twin: that model without weights, whose parameters count, tied ones once.

    Raises:
        LorashearError: the dense model has no more than that.
    """
    if settings.ratio is not None:
        return settings
    if settings.params is not None:
        cost, whole, asked = "parameters", sum(p.numel() for p in twin.parameters()), settings.params
    else:
        cost, whole, asked = "bytes", source.bytes, settings.bytes
    assert asked is not None, "settings say one way or another how much to remove"
    if asked >= whole:
        word = "params" if cost == "parameters" else cost
        raise LorashearError(
            f"'{source.folder}' has {whole:,} {cost}, and {word} leaves {asked:,}, so that nothing would go: pass fewer"
        )
    return replace(settings, ratio=1 - asked / whole, cost=cost, params=None, bytes=None)
