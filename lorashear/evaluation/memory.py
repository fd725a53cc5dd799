"""The most memory that one run of a model takes: weights, cache and what it computes with, but not what else the process has."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lorashear import models
from lorashear.config import Training
from lorashear.errors import LorashearError
from lorashear.evaluation.bandwidth import weight_bytes
from lorashear.evaluation.greedy import check_counts, check_positions, prompt_ids, run, vocabulary
from lorashear.loading import DTYPES, working_copy
from lorashear.terminal.stages import Say

STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux says what a process holds, and where it takes that the highest is to be forgotten."""


def peak_bytes(
    model: nn.Module | str | Path,
    *,
    batch: int = 1,
    prompt: int = 128,
    tokens: int = 32,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    say: Say | None = None,
) -> int | None:
    """The most bytes that a model takes while it reads a prompt and decodes after it, its weights among them.

    On a GPU that is what torch's allocator counts, less what else it had given out; the CUDA context and what libraries take by
    themselves is not in it. On a CPU a process of its own loads the folder, with the dtype and threads asked for: its highest
    resident memory during the run (not while it loads), less what it had when it had imported everything. Weights that are
    mapped from the file count as far as the run touches them: of an embedding that is only looked up, few pages. Some megabytes
    are the code of libraries that the first run touches. Elsewhere than on Linux the highest mark cannot be set back, so that
    loading counts, too.

    Args:
        model: a folder, or a model on a GPU, which stays as it is.
        batch, prompt, tokens: rows, and tokens of each, as in `lorashear.evaluation.speed.measure`.
        device, dtype: for a folder: where to load it, and the dtype to compute in, by default as `lorashear.loading` says.
        say: called with the reason where the answer is None: a model on a CPU that no folder is known of, another kind of device,
            or a process that ended before its time.

    Raises:
        LorashearError: a count is under 1, the dtype unknown, the folder no model, or its positions too few.
    """
    if dtype is not None and dtype not in DTYPES:
        raise LorashearError(f"dtype is {dtype}; there are {', '.join(DTYPES)}")
    sizes = {"batch": batch, "prompt": prompt, "tokens": tokens}
    check_counts(**sizes)
    if isinstance(model, nn.Module):
        where = next((p.device for p in model.parameters()), torch.device("cpu"))
    else:
        where = torch.device(device)
    if where.type == "cpu":
        if isinstance(model, nn.Module):
            return _none(say, "on a CPU memory is measured in a process of its own, which needs the model's folder")
        return _in_a_process(
            say, folder=str(model), dtype=dtype, trust_remote_code=trust_remote_code, name=str(model), **sizes
        )
    if where.type != "cuda":
        return _none(say, f"nothing here counts the memory of a device of kind {where.type}")
    if not isinstance(model, nn.Module):
        settings = Training(device=device, dtype=dtype)
        model = working_copy(Path(model), settings=settings, trust_remote_code=trust_remote_code)
    return _on_a_gpu(model, where, **sizes)


def _none(say: Say | None, reason: str) -> None:
    if say:
        say(reason)


def _on_a_gpu(model: nn.Module, device: torch.device, batch: int, prompt: int, tokens: int) -> int:
    check_positions(type(model).__name__, getattr(model, "config", None), prompt, tokens)
    ids = prompt_ids(vocabulary([model]), batch, prompt)
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run(model, ids, tokens)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before + weight_bytes(model)


def _in_a_process(say: Say | None, **asked: Any) -> int | None:
    # The package may lie where only this process knows; and nothing that lies about in the current folder is imported (-P).
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-P", "-m", "lorashear.evaluation.memory", json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(said)
        if "error" in found:
            raise LorashearError(found["error"])
        return int(found["bytes"])
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return _none(say, f"the process that measured memory ended with status {done.returncode}: {last}")


def main() -> None:
    """What the process does: a request as JSON is its argument, and the answer the last line that it prints."""
    asked = json.loads(sys.argv[1])
    try:
        found: dict[str, Any] = {"bytes": _alone(**asked)}
    except LorashearError as error:
        found = {"error": str(error)}
    print(json.dumps(found))


def _alone(
    folder: str, name: str, dtype: str | None, trust_remote_code: bool, batch: int, prompt: int, tokens: int
) -> int:
    config = models.read_config(Path(folder), trust_remote_code=trust_remote_code)
    twin = models.build_twin(config, trust_remote_code=trust_remote_code)  # imports what loading would import
    check_positions(name, config, prompt, tokens)
    ids = prompt_ids(vocabulary([twin]), batch, prompt)
    settings = Training(device="cpu", dtype=dtype)
    _touch_libraries(DTYPES[settings.dtype or "float32"])
    before = _status("VmRSS") if MARK.exists() else _highest()
    model = working_copy(Path(folder), settings=settings, trust_remote_code=trust_remote_code)
    _forget_highest()
    run(model, ids, tokens)
    return _highest() - before


def _touch_libraries(dtype: torch.dtype) -> None:
    """Use what every model uses, so that its code is resident before anything is counted."""
    some = torch.ones(1, 1, 64, 64, dtype=dtype)
    some = functional.silu(functional.linear(some, some[0, 0]))
    functional.scaled_dot_product_attention(some, some, some).float().mean().rsqrt()


def _highest() -> int:
    """Bytes of memory that the process had at most, since it began or since that was forgotten."""
    if STATUS.exists():
        return _status("VmHWM")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _forget_highest() -> None:
    if MARK.exists():
        MARK.write_text("5")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found, f"no {field} in {STATUS}"
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
