"""What an engine needs of widths, to load a result and to be fast with it: `lorashear compile --target`. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorashear.errors import LorashearError

WIDE = ("ffn", "hidden")
"""Kinds whose widths a matrix product runs over."""


@dataclass(frozen=True)
class Needs:
    """``format`` is what a result is exported to; ``multiples`` are those that widths of a kind must be; ``why``, of them."""

    format: str
    multiples: Mapping[str, int] = field(default_factory=dict)
    why: str = ""
    splits: bool = False
    """Whether several devices can share its layers."""
    adapters: bool = True
    """Whether it takes an adapter of PEFT, by itself or once that is exported."""


NEEDS = {
    "transformers": Needs("transformers"),
    "llama.cpp": Needs("gguf", dict.fromkeys(WIDE, 256), "blocks of K-quants are 256 wide"),
    "vllm": Needs("transformers", dict.fromkeys(WIDE, 128), "tiles of GPU kernels are 128 wide", splits=True),
    "onnx": Needs("onnx", adapters=False),
    "mlx": Needs(
        "mlx",
        dict.fromkeys(WIDE, 64),
        "mlx-lm quantises in groups of 64, and leaves out what these do not divide",
        adapters=False,
    ),
}


def check(target: str | None, tensor_parallel: int, keeps_adapter: bool = False) -> None:
    """Raises LorashearError for an engine that nobody knows, that takes no adapter, or that does not split what it is asked to."""
    if target is not None and target not in NEEDS:
        raise LorashearError(f"target is {target}; there are {', '.join(NEEDS)}")
    if target is not None and keeps_adapter and not NEEDS[target].adapters:
        raise LorashearError(
            f"an adapter that is kept cannot go to {target}: leave target or adapter (--adapter keep) out"
        )
    if tensor_parallel < 1:
        raise LorashearError(f"tensor_parallel is {tensor_parallel}; it is a number of devices, 1 or more")
    if tensor_parallel > 1 and (target is None or not NEEDS[target].splits):
        able = ", ".join(name for name, needs in NEEDS.items() if needs.splits)
        raise LorashearError(f"tensor_parallel is of an engine that splits layers over devices: pass target ({able})")


def multiples(target: str | None, tensor_parallel: int, round_to: int) -> dict[str, int]:
    """What widths must be multiples of, by kind: those of the engine, of ``round_to``, and equal shares for each device.

    A structure of kind "head" is a key-value head with its queries.
    """
    own = NEEDS[target].multiples if target else {}
    found = {kind: math.lcm(round_to, own.get(kind, 1)) for kind in WIDE}
    found["ffn"] = math.lcm(found["ffn"], tensor_parallel * own.get("ffn", 1))
    return {**found, "head": tensor_parallel}
