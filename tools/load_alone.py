"""Load model folders with transformers and nothing of ours, use each, and print what it did, a line of JSON a folder.

A folder may hold ``want.safetensors`` with the ``logits`` that it should compute. Run as a process of its own:
`python tools/load_alone.py TOKENS FOLDER ...`, with the token ids as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

GREEDY = {
    **{"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0},
    **{"return_dict_in_generate": True, "output_logits": True},
}
CLOSE = 2e-5  # of the largest logit


def used(folder: Path, tokens: torch.Tensor) -> dict[str, object]:
    """What a model does: its class, how far its logits are from those wanted, and what is wrong with using it further."""
    model = _loaded(folder)
    found: dict[str, object] = {"name": type(model).__name__, "difference": 0.0}
    got = logits(model, tokens)
    if (folder / "want.safetensors").exists():
        want = load_file(folder / "want.safetensors")["logits"]
        found["difference"] = float((got - want).abs().max() / want.abs().max())

    def greedy() -> str:
        with_cache, without = (model.generate(input_ids=tokens, use_cache=use, **GREEDY) for use in (True, False))
        if not torch.equal(with_cache.sequences, without.sequences):
            return "another continuation with the cache than without"
        apart = (torch.stack(with_cache.logits) - torch.stack(without.logits)).abs().max() / got.abs().max()
        return "" if apart < CLOSE else f"with the cache the logits are {float(apart):.0e} away from those without"

    def again() -> str:
        model.save_pretrained(folder / "again")
        return "" if torch.equal(got, logits(_loaded(folder / "again"), tokens)) else "saved again it is another model"

    return {**found, "greedy": _outcome(greedy), "again": _outcome(again)}


def _loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    for config in (getattr(module, "config", None) for module in model.modules()):
        if config is not None and hasattr(config, "use_cache"):
            config.use_cache = False  # a cache is for the continuation to try
    with torch.inference_mode():
        return model(input_ids=tokens).logits


def _outcome(step: Callable[[], str]) -> str:
    try:
        return step()
    except Exception as error:  # whatever a class fails with is what is asked
        return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


if __name__ == "__main__":
    for ours in ("lorashear", "lorashear_ir", "lorashear_passes"):
        sys.modules[ours] = None  # type: ignore[assignment]  # as if it were not installed: importing it fails
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    for each in sys.argv[2:]:
        with redirect_stdout(sys.stderr):  # some classes print
            line = json.dumps(used(Path(each), torch.tensor(json.loads(sys.argv[1]))))
        print(line, flush=True)
