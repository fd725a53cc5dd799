"""Models to compute with: a folder that LoRAShear wrote, or a working copy on the device and in the dtype asked for."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from lorashear.config import Training
from lorashear.disk import checkpoint
from lorashear.errors import LorashearError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(model: str | Path, *, revision: str | None = None) -> torch.nn.Module:
    """Any folder that LoRAShear wrote, or a hub id that it was pushed to, as a transformers model in its stored dtype.

    No code that lies in the folder is run.

    Raises:
        LorashearError: no such model, or its files are broken.
    """
    folder = checkpoint.resolve(model, revision)
    checkpoint.Checkpoint.open(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)


def working_copy(folder: Path, *, settings: Training, trust_remote_code: bool = False) -> torch.nn.Module:
    """The model to compute with, in memory and in eval mode: on a CPU in float32, which it is fast in."""
    dtype = DTYPES[settings.dtype] if settings.dtype else torch.float32 if settings.device == "cpu" else "auto"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.eval().to(settings.device)  # pyright: ignore


def check_usable(settings: Training) -> None:
    """Refuse a device or dtype that torch does not know or have: LorashearError."""
    if settings.dtype is not None and settings.dtype not in DTYPES:
        raise LorashearError(f"dtype is {settings.dtype}; there are {', '.join(DTYPES)}")
    try:
        torch.empty(1, device=settings.device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0]
        raise LorashearError(f"device is {settings.device}, which torch cannot use here: {said}") from error
