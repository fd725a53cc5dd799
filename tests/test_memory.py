"""A corpus that does not fit into the memory that there is. LORASHEAR_CORPUS_GB=50 makes it so large; the disk must hold it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import WORDS

ROOT = Path(__file__).resolve().parent.parent
GIGABYTES = float(os.environ.get("LORASHEAR_CORPUS_GB", "1"))
HEADROOM = 300 << 20
"""Bytes that the process may take beyond what PyTorch and transformers have taken when they are imported."""
CHILD = """
import json, os, resource, sys, time
from pathlib import Path
import torch
from transformers import AutoConfig
from lorashear.text import calibration
from lorashear.text import corpus
from lorashear.config import Settings

def status(key):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

folder, text, tokens, headroom = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config, settings = AutoConfig.from_pretrained(folder), Settings(ratio=0.5, tokens=tokens, context=64)

def numbers(rows):  # documents begin with the boundary, 0, and four words that say which they are
    for some in rows.split(1000):
        flat = some.flatten().long()
        at = (flat[:-4] == 0).nonzero().flatten()
        yield from (sum((flat[at + 1 + i] - 2) * 94**i for i in range(4))).tolist()

def dealt(cache):
    os.environ["LORASHEAR_CACHE"] = cache
    started = time.perf_counter()
    windows = calibration.read_windows(folder, config, {"text": [text]}, settings)
    seconds = time.perf_counter() - started
    found = {name: getattr(windows, name).tolist() for name in ("calibration", "guard", "evaluation")}
    training = windows.subsets[0].training
    found |= {"training": list(training.shape), "numbers": list(numbers(training))}
    return found, seconds

torch.ones(100, 100) @ torch.ones(100, 100)
limit = status("VmData") + headroom
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
found, seconds = dealt(sys.argv[5])
found |= {"seconds": seconds, "peak": status("VmHWM"), "limit": limit}
found["again"], found["seconds again"] = dealt(sys.argv[5])
found["anew"], _ = dealt(sys.argv[6])
corpus.MEMORY_BYTES = 1 << 60
try:
    dealt(sys.argv[5])
except MemoryError:
    found["whole"] = "too large"
print(json.dumps(found))
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file of records of about 2 kB, each of which begins with its number, and how many."""
    path, size, count = tmp_path / "corpus.jsonl", 0, 0
    random = np.random.default_rng(0)
    bodies = [" ".join(WORDS[i] for i in random.integers(0, 94, random.integers(50, 1000))) for _ in range(500)]
    with path.open("w") as file:
        while size < GIGABYTES * 1e9:
            block = "".join(
                f'{{"text": "{" ".join(WORDS[n // 94**i % 94] for i in range(4))} {bodies[n * 7 % 500]}"}}\n'
                for n in range(count, count + 10_000)
            )
            count += 10_000
            size += file.write(block)
    yield path, count
    path.unlink()


def in_little_memory(folder: Path, text: Path, *caches: Path) -> dict[str, Any]:
    """What `read_windows` gives, once with the first cache, again, and with the second."""
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "ir", "passes"))
    command = [sys.executable, "-c", CHILD, folder, text, round(1e6 * GIGABYTES), HEADROOM, *caches]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}  # each thread's stack would count
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_corpus_larger_than_the_memory(folder: Path, tmp_path: Path, corpus: tuple[Path, int]) -> None:
    text, count = corpus
    one = in_little_memory(folder, text, tmp_path / "one", tmp_path / "two")
    print({name: one[name] for name in ("seconds", "seconds again", "peak", "limit", "training")})
    assert one["limit"] < text.stat().st_size and one["whole"] == "too large"
    assert one["training"] == [-(-round(1e6 * GIGABYTES) // 64), 64]
    fixed = np.concatenate([one[use] for use in ("calibration", "guard", "evaluation")])
    assert len(np.unique(fixed, axis=0)) == len(fixed)
    used = [
        sum((row[at + 1 + i] - 2) * 94**i for i in range(4))
        for row in fixed.tolist()
        for at in range(60)
        if row[at] == 0
    ]
    assert not set(used) & set(one["numbers"])
    assert len(set(one["numbers"])) == len(one["numbers"])
    for numbers, least in ((used, 1), (one["numbers"], 100)):
        tenths = np.bincount(np.array(numbers) * 10 // count, minlength=10)
        assert len(tenths) == 10 and tenths.min() >= least
    for use in ("calibration", "guard", "evaluation", "training", "numbers"):
        assert one[use] == one["again"][use] == one["anew"][use]
