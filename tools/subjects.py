"""The trained models that the studies prune, and their text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorashear.text import calibration, data
from lorashear_passes.walk import Batch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
CONTEXT, GUARD, TEST = 256, 32, 160


@dataclass(frozen=True)
class Subject:
    """A model, its text, and the ratios to prune at."""

    folder: Path
    text: Mapping[str, Path]
    ratios: tuple[float, ...] = (0.2, 0.5)
    single: bool = False  # one document a window, padded: the model has never seen packed text


def subjects(shared: Path, scratch: Path) -> Iterator[Subject]:
    subprocess.run(
        [sys.executable, ROOT / "examples" / "stdlib_text.py", scratch], check=True, stdout=subprocess.DEVNULL
    )
    source = {split: scratch / f"{split}.jsonl" for split in ("train", "valid", "test")}
    yield Subject(ROOT / "examples" / "stdlib-llama-2.8m", source)
    stories = {split: shared / "text" / "tinystories" / f"{split}.jsonl" for split in ("train", "valid", "test")}
    if shared.is_dir():
        yield Subject(shared / "models" / "babyllama-105", stories)
        yield Subject(shared / "models" / "stories260k", stories)
        # Two fifths of its weights are the embedding, so half of all parameters is out of reach.
        yield Subject(shared / "models" / "tinystories-656k", stories, (0.15, 0.3), single=True)


def batches(tokenizer: Any, file: Path, count: int, single: bool) -> list[Batch]:
    windows = data.windows(tokenizer, data.read_texts([file]), CONTEXT, count, packed=not single)
    return calibration.batches(windows, len(tokenizer), "cpu")
