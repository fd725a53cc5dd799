"""Which criterion, refit and damage measure keeps the most: perplexity after one-shot pruning, no training.

    python tools/study_criteria.py --models MODEL_FOLDER ... --text FOLDER [--single tinystories-656k] [--ratios 0.2 0.3 0.5]

FOLDER holds train.jsonl, valid.jsonl and test.jsonl (field ``text``). Calibrates on train, whose last eighth
is the guard, and prints perplexities, one table row a configuration. ``--single`` names models that are read one document per window instead of packed windows.
"""

import argparse
import json
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorashear
from lorashear_passes.allocate import GroupLike
from lorashear_passes.compensate import Walk
from lorashear_passes.oneshot import Budget, Run, Settings, heldout_loss, share_curve

ROWS = {
    "magnitude, no refit": Settings(criterion="magnitude", compensate=False),
    "wanda, no refit": Settings(criterion="wanda", compensate=False),
    "obs, no refit": Settings(compensate=False),
    "random, refit": Settings(criterion="random"),
    "wanda, refit": Settings(criterion="wanda"),
    "obs, refit": Settings(),
    "obs, refit, damp 1e-2": Settings(damp=1e-2),
    "obs, refit to dense": Settings(target="dense"),
}
"""At the split that the guard chose."""

Batch = dict[str, Any]


def batches(tokenizer: Any, file: Path, windows: int, length: int, first: int, single: bool) -> list[Batch]:
    """Windows of ``length`` tokens in batches of 16, packed or one document each (padded)."""
    rows: list[list[int]] = [[]]
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            ids = [first, *tokenizer(json.loads(line)["text"], add_special_tokens=False, verbose=False)["input_ids"]]
            rows = [*rows, ids[:length]] if single else [rows[0] + ids]
            if len(rows) > windows or len(rows[0]) >= windows * length:
                break
    if not single:
        rows = [rows[0][i : i + length] for i in range(0, windows * length, length)]
    result: list[Batch] = []
    kept = [row for row in rows if row]
    for start in range(0, len(kept), 16):
        part = kept[start : start + 16]
        width = max(map(len, part))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
        result.append({"input_ids": ids, "use_cache": False} | ({"attention_mask": mask} if single else {}))
    return result


def described(widths: dict[str, int], groups: Mapping[str, GroupLike]) -> str:
    """Widths per kind, once where all layers agree."""
    kinds: dict[str, list[int]] = {}
    for name, width in widths.items():
        kinds.setdefault(groups[name].kind, []).append(width)
    return "; ".join(f"{k} {'/'.join(map(str, [v[0]] if len(set(v)) == 1 else v))}" for k, v in kinds.items())


def study(folder: Path, text: Path, single: bool, ratios: list[float], windows: int) -> None:
    """Prints the table's rows for one model: every split with OBS and refit, then every row at the split that the guard chose."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = model.config.bos_token_id
    train, valid, test = (
        batches(tokenizer, text / f"{part}.jsonl", count, 256, first, single)
        for part, count in (("train", windows), ("valid", 64), ("test", 160))
    )
    groups = lorashear.groups(model)
    chosen = {n: groups[n] for n in groups if groups[n].kind in ("head", "query", "ffn")}
    cut = len(train) - max(1, len(train) // 8)
    run = Run(model, chosen, Settings(), lambda *_: None)
    walk, guard = Walk(model, list(run.jobs), train[:cut]), Walk(model, list(run.jobs), train[cut:])
    output, losses = run.curves(walk, guard)
    sets = {"loss": losses, "output": output, "share": {n: share_curve(g) for n, g in chosen.items()}}

    def row(ratio: float, label: str, settings: Settings, widths: dict[str, int]) -> float:
        with Run(model, chosen, settings, lambda *_: None).pruned(walk, widths, ""):
            held, *kept = (heldout_loss(model, part) for part in (guard.batches, valid, test))
        shown = " | ".join(f"{math.exp(loss):.3f}" for loss in (held, *kept))
        print(f"| {folder.name} | {ratio:.0%} | {label} | {shown} | {described(widths, chosen)} |", flush=True)
        return held

    row(0.0, "dense", Settings(), run_widths(chosen))
    for ratio, per_layer in product(ratios, (False, True)):
        where = "per layer" if per_layer else "uniform"
        found = run.splits(Budget(groups, ratio, per_layer, 1, {}), sets)
        held = {name: row(ratio, f"{where}: {name}", Settings(), widths) for name, (widths, _) in found.items()}
        best = min(held, key=lambda name: held[name])
        for label, settings in ROWS.items():
            row(ratio, f"{where} at {best!r}: {label}", settings, found[best][0])


def run_widths(chosen: Mapping[str, GroupLike]) -> dict[str, int]:
    """All structures kept."""
    return {name: group.size // group.blocks for name, group in chosen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--single", nargs="*", default=[])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.3, 0.5])
    parser.add_argument("--windows", type=int, default=128, help="calibration windows of 256 tokens")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | removed | configuration | guard | valid | test | kept |\n|---|---|---|---|---|---|---|")
    for folder in args.models:
        study(folder, args.text, folder.name in args.single, args.ratios, args.windows)


if __name__ == "__main__":
    main()
