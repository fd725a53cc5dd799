"""The pieces of `make bench-speed`, on a shape that is a thousandth of what it is made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorashear.disk.checkpoint import Checkpoint
from lorashear.evaluation import speed
from lorashear.terminal.progress import Terminal
from tools.bench_speed import HEADS, RATIO, SHAPES, compared, make, row

TINY = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_half_of_a_shape_beside_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(speed, "peak_bytes", lambda folder, **_: 1_500_000 if folder.name == "dense" else 700_000)
    with Terminal() as terminal:
        folders = make({**SHAPES[name], **TINY}, tmp_path, ["head", "query", "ffn"], terminal)
        costs = compared(*folders, "bfloat16", [1, 2], 6, 2, 1, terminal.progress)
    dense, pruned = (sum(tensor.bytes for tensor in Checkpoint.open(at).tensors.values()) for at in folders)
    assert pruned <= (1 - RATIO) * dense
    assert [(cost.name, cost.batch) for cost in costs] == [("dense", 1), ("pruned", 1), ("dense", 2), ("pruned", 2)]
    least = 2.0 if SHAPES[name]["tie_word_embeddings"] else 2.1  # of a table that is only looked up rows are read
    assert costs[1].decode_bound > 0.97 * least
    cells = row(name, "bfloat16", costs[0], costs[1]).strip("| ").split(" | ")
    assert len(cells) == len(HEADS)
    assert cells[:3] == [name, "bfloat16", "1"]
    assert cells[6] == f"{costs[1].decode_bound:.2f}×"
    assert cells[-1] == "1.5 MB → 0.7 MB"
