"""What figures were made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "numpy", "tokenizers")


def versions(device: str, *others: str) -> dict[str, Any]:
    """Of this package, Python and the packages that compute, and the machine."""
    import lorashear

    return {
        "lorashear": lorashear.__version__,
        "python": platform.python_version(),
        **{name: found for name in (*PACKAGES, *others) if (found := _version(name))},
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
