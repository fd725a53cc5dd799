"""Which criterion, refit and damage measure keeps the most: perplexity after one-shot pruning, no training.

    python tools/study_criteria.py --models MODEL_FOLDER ... --text FOLDER [--single tinystories-656k] [--ratios 0.2 0.3 0.5]

FOLDER holds train.jsonl, valid.jsonl and test.jsonl (field ``text``). Calibrates on train, prints valid and test perplexity, one
table row a configuration. ``--single`` names models that are read one document per window instead of packed windows.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lorashear
import torch
from lorashear_passes.allocate import GroupsLike, Unreachable
from lorashear_passes.compensate import swapped
from lorashear_passes.oneshot import Outcome, Settings, compress, heldout_loss
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = {
    "magnitude, no refit, output": Settings(criterion="magnitude", compensate=False, damage="output"),
    "wanda, no refit, output": Settings(criterion="wanda", compensate=False, damage="output"),
    "obs, no refit, output": Settings(compensate=False, damage="output"),
    "wanda, refit, output": Settings(criterion="wanda", damage="output"),
    "obs, refit, output": Settings(damage="output"),
    "obs, refit, share": Settings(damage="share"),
    "obs, refit, loss": Settings(damage="loss"),
    "obs, refit, guard": Settings(),
    "obs, refit to dense, guard": Settings(target="dense"),
}

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


def perplexities(model: nn.Module, groups: GroupsLike, outcome: Outcome, sets: list[list[Batch]]) -> list[float]:
    """Of the model with the outcome's structures at zero, which is the pruned model's (heads, queries, channels)."""
    weights = dict(outcome.weights)
    for name, structures in outcome.removed.items():
        for parameter, dim in groups[name].slots:
            if dim == 1:
                value = weights.setdefault(parameter, model.get_parameter(parameter).data.clone())
                owned = [s for i in structures for n, d, s in groups[name].slices(i) if (n, d) == (parameter, dim)]
                value.index_fill_(dim, torch.tensor(sum((list(s) for s in owned), [])), 0)
    with swapped(model, weights):
        return [math.exp(heldout_loss(model, part)) for part in sets]


def described(widths: dict[str, int], groups: GroupsLike) -> str:
    """Widths per kind, once where all layers agree."""
    kinds: dict[str, list[int]] = {}
    for name, width in widths.items():
        kinds.setdefault(groups[name].kind, []).append(width)
    return "; ".join(f"{k} {'/'.join(map(str, [v[0]] if len(set(v)) == 1 else v))}" for k, v in kinds.items())


def study(folder: Path, text: Path, single: bool, ratios: list[float], windows: int, rows: dict[str, Settings]) -> None:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = model.config.bos_token_id
    train, valid, test = (
        batches(tokenizer, text / f"{part}.jsonl", count, 256, first, single)
        for part, count in (("train", windows), ("valid", 64), ("test", 160))
    )
    groups = lorashear.groups(model)
    print(
        f"| {folder.name} | 0 | | dense | {math.exp(heldout_loss(model, valid)):.3f} | {math.exp(heldout_loss(model, test)):.3f} | | | |"
    )
    for per_layer in (False, True):
        for ratio in ratios:
            for label, settings in rows.items():
                started = time.perf_counter()
                try:
                    outcome = compress(
                        model, groups, train, ratio=ratio, per_layer=per_layer, settings=replace(settings)
                    )
                except Unreachable as error:
                    print(f"| {folder.name} | {ratio:.0%} | | {label} | {error} |")
                    continue
                seconds = time.perf_counter() - started
                kept = perplexities(model, groups, outcome, [valid, test])
                print(
                    f"| {folder.name} | {ratio:.0%} | {'per layer' if per_layer else 'uniform'} | {label} | {kept[0]:.3f} | {kept[1]:.3f} "
                    f"| {described(outcome.widths, groups)} | {outcome.currency} | {seconds:.0f} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--single", nargs="*", default=[])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.3, 0.5])
    parser.add_argument("--windows", type=int, default=128, help="calibration windows of 256 tokens")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| model | removed | widths | configuration | valid | test | kept | split | seconds |\n|---|---|---|---|---|---|---|---|---|"
    )
    for folder in args.models:
        study(folder, args.text, folder.name in args.single, args.ratios, args.windows, {n: ROWS[n] for n in args.rows})


if __name__ == "__main__":
    main()
