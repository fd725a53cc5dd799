"""The result folder: a model folder like any other, with the plan and the report in ``lorashear/``. No torch here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorashear.disk.checkpoint import SINGLE, Checkpoint
from lorashear.disk.journal import Journal
from lorashear.disk.layout import SHARD_BYTES
from lorashear.disk.lora import CONFIG, WEIGHTS, Adapter
from lorashear.disk.slicing import Slice, write_slice
from lorashear.errors import LorashearError
from lorashear.plans import Plan
from lorashear_ir.groups import TensorCut

MODELING_FILE = "modeling_lorashear.py"
BESIDE = "adapter"  # the folder, in a result, of an adapter that is kept
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


def wanted_slice(
    plan: Plan,
    source: Checkpoint,
    *,
    replace: Mapping[str, np.ndarray] | None = None,
    shard_bytes: int = SHARD_BYTES,
    check_contents: bool = False,
    merged: Adapter | None = None,
) -> Slice:
    """What the plan makes of a checkpoint's tensors. Nothing is read but headers, unless contents are checked.

    Args:
        replace: tensors whose values are not the slice's, in their final shapes (BF16 as uint16 bits).
        merged: an adapter that is added to the weights.
        check_contents: hold the weights too against the plan's hash of them.

    Raises:
        LorashearError: the plan was made for another checkpoint.
    """
    if plan.source != source.digest():
        raise LorashearError(
            f"the plan was made for another checkpoint than '{source.folder}': config, tensor names, dtypes or shapes differ; "
            "give the model that it was made for, in the same revision"
        )
    if check_contents and not plan.contents:
        raise LorashearError("the plan has no hash of the weights that it was made for: leave --check-contents out")
    if check_contents and plan.contents != source.contents():
        raise LorashearError(
            f"the plan was made for other weights than those in '{source.folder}': names and shapes agree, values differ; "
            "give those, or leave --check-contents out to cut these by it"
        )
    return Slice.of(source.apart(plan.stacks), plan.tensors, replace, shard_bytes, plan.names, merged)


def write_folder(
    plan: Plan,
    wanted: Slice,
    folder: Path,
    *,
    journal: Journal | None = None,
    kept: Adapter | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write everything that a result holds into a folder that is empty, or holds what a journal says.

    An adapter that is ``kept`` goes into the folder `BESIDE` in it, cut as its base is.

    Raises:
        LorashearError: a tensor cannot be read or written.
    """
    write_slice(wanted, folder, journal, progress)
    write_json(folder / "config.json", plan.config)
    for path in taken_along(wanted.source):
        shutil.copyfile(path, folder / path.name)
    if plan.route == "generated":
        shutil.copyfile(Path(__file__).parent.parent / MODELING_FILE, folder / MODELING_FILE)
    own = folder / "lorashear"
    own.mkdir(exist_ok=True)
    plan.save(own / "plan.json")
    if kept is not None:
        write_adapter(kept, plan.tensors, folder / BESIDE)


def write_adapter(adapter: Adapter, cuts: Mapping[str, TensorCut], folder: Path) -> None:
    """Write an adapter of peft for a base model of which the cuts were made."""
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier run may have begun
    folder.mkdir()
    write_slice(Slice.of(adapter.held, adapter.cuts(cuts)), folder)
    (folder / SINGLE).rename(folder / WEIGHTS)
    write_json(folder / CONFIG, {**adapter.config, "base_model_name_or_path": None})


def taken_along(source: Checkpoint) -> list[Path]:
    """The files of a model's folder that a result takes as they are."""
    found = (path for pattern in TAKEN_ALONG for path in sorted(source.folder.glob(pattern)))
    return [path for path in dict.fromkeys(found) if path.is_file()]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
