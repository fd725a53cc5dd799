"""How llama.cpp is told of rotary embeddings: keys of the file, and one tensor of factors for LLaMA 3. No torch here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lorashear.engines.llama import Llama
from lorashear.errors import LorashearError

FACTORS = "rope_freqs.weight"
KNOWN = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings"},
}
"""Fields of each type that are understood."""
FIXED = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
"""Of yarn. There are keys for the first two, which llama.cpp does not read for a LLaMA."""
ALWAYS = {"rope_theta", "rope_type", "type"}


def check(llama: Llama) -> None:
    """Raises LorashearError, half a sentence, for embeddings that llama.cpp does not compute, or not in that way."""
    kind = llama.rope["rope_type"]
    if kind not in KNOWN:
        raise LorashearError(f"its rotary embeddings are of type {kind}; llama.cpp has {', '.join(KNOWN)}")
    given = {name: value for name, value in llama.rope.items() if name not in ALWAYS and value is not None}
    if given.pop("partial_rotary_factor", 1.0) != 1.0:
        raise LorashearError("its rotary embeddings turn a part of each head, and llama.cpp turns whole ones")
    for name, fixed in FIXED.items() if kind == "yarn" else ():
        if given.pop(name, fixed) != fixed:
            raise LorashearError(f"its rotary embeddings have a {name} of {llama.rope[name]}, and llama.cpp {fixed}")
    if kind != "default" and (odd := next((name for name in given if name not in KNOWN[kind]), None)):
        raise LorashearError(f"its rotary embeddings of type {kind} have {odd}, which llama.cpp has no key for")
    if llama.head_dim % 2:
        raise LorashearError(
            f"its heads are {llama.head_dim} wide, and rotary embeddings of llama.cpp need an even width"
        )


def values(llama: Llama) -> dict[str, Any]:
    """The keys that follow the name of the architecture."""
    rope, kind = llama.rope, llama.rope["rope_type"]
    found: dict[str, Any] = {"rope.dimension_count": llama.head_dim, "rope.freq_base": float(rope["rope_theta"])}
    if kind not in ("linear", "yarn"):
        return found
    found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        before = rope.get("original_max_position_embeddings") or llama.positions
        found["rope.scaling.original_context_length"] = int(before)
    return found


def factors(llama: Llama) -> np.ndarray | None:
    """What each frequency is divided by, for LLaMA 3: waves longer than the old context all, short ones not, others in part."""
    rope = llama.rope
    if rope["rope_type"] != "llama3":
        return None
    steps = np.arange(0, llama.head_dim, 2) / llama.head_dim
    waves = 2 * math.pi * rope["rope_theta"] ** steps
    before, low, high = (
        rope[name] for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    share = np.clip((before / waves - low) / (high - low), 0, 1)  # of the frequency that is left as it is
    return (1 / (share + (1 - share) / rope["factor"])).astype(np.float32)
