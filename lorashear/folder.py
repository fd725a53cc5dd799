"""The result folder: a model folder like any other, with the plan and the report in ``lorashear/``. No torch here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorashear.checkpoint import Checkpoint
from lorashear.errors import LorashearError
from lorashear.plans import Plan
from lorashear.slicing import write_checkpoint

MODELING_FILE = "modeling_lorashear_llama.py"
TAKEN_ALONG = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)


def write_folder(
    plan: Plan,
    source: Checkpoint,
    folder: Path,
    *,
    replace: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write everything that a result holds into an empty folder.

    Args:
        replace: tensors whose values are not the slice's, in their final shapes (BF16 as uint16 bits).

    Raises:
        LorashearError: the plan was made for another checkpoint.
    """
    if plan.source != source.digest():
        raise LorashearError(
            f"the plan was made for another checkpoint than '{source.folder}': config, tensor names, dtypes or shapes differ"
        )
    write_checkpoint(source, plan.tensors, replace or {}, folder, progress=progress)
    write_json(folder / "config.json", plan.config)
    for pattern in TAKEN_ALONG:
        for path in sorted(source.folder.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    if plan.route == "per-layer":
        shutil.copyfile(Path(__file__).with_name(MODELING_FILE), folder / MODELING_FILE)
    own = folder / "lorashear"
    own.mkdir()
    plan.save(own / "plan.json")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
