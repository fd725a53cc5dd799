"""`lorashear env`: what a bug report needs to say of the machine and what is installed. Torch is imported for devices alone."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lorashear import cache
from lorashear.terminal.options import AsJson

NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "datasets", "numpy")
OPTIONAL = ("onnx", "onnxruntime", "gguf", "openvino", "lm_eval")
ABSENT = "not installed"


def environment() -> dict[str, Any]:
    """By name: versions, the machine, and where the cache is."""
    import psutil

    import lorashear

    return {
        "lorashear": lorashear.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpus": _cpus(),
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "devices": _devices(),
        **{name: _version(name) for name in (*NEEDED, *OPTIONAL)},
        "cache": str(cache.folder()),
    }


def lines(found: Mapping[str, Any]) -> str:
    """A key, a space and a value each."""
    return "\n".join(f"{name} {', '.join(each) if isinstance(each, list) else each}" for name, each in found.items())


def env(as_json: AsJson = False) -> None:
    """Versions of lorashear and what it uses, and the machine: a line each, to be copied into a bug report."""
    found = environment()
    print(json.dumps(found, indent=2) if as_json else lines(found))


def _cpus() -> int:
    """Those that this process may use, where the system tells."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT


def _devices() -> list[str]:
    """As torch sees them; what is wrong with it is what a bug report is about, and no reason to end."""
    try:
        import torch

        gpus = [torch.cuda.get_device_properties(at) for at in range(torch.cuda.device_count())]
        found = [f"cuda:{at} {gpu.name} {gpu.total_memory / 1e9:.1f} GB" for at, gpu in enumerate(gpus)]
        built = [f"CUDA {torch.version.cuda}"] if torch.version.cuda else []
        return ["cpu", *built, *found, *(["mps"] if torch.backends.mps.is_available() else [])]
    except Exception as error:
        return [f"unknown, because torch fails with {type(error).__name__}: {' '.join(str(error).split())}"]
