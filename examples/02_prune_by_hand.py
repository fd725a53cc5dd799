"""Look at a model's structures, choose some by hand, and check that removing them equals setting them to zero.

python examples/02_prune_by_hand.py [FOLDER]        any LLaMA folder; by default the checkpoint that ships here
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

import lorashear


def main() -> None:
    disable_progress_bar()
    folder = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("stdlib-llama-2.8m")
    model = lorashear.load(folder).float().eval()
    groups = lorashear.groups(model)
    removed = {}
    for name, group in groups.items():
        if group.prunable and group.kind in ("head", "ffn"):
            removed[name] = list(range(group.size // 4))  # the first quarter, for no better reason
            print(f"{name}: {len(removed[name])} of {group.size}, {group.parameters:,} weights each")
    small = lorashear.prune(model, removed)

    with torch.no_grad():  # the same structures in the given model, index by index
        for name, structures in removed.items():
            for structure in structures:
                for parameter, dim, indices in groups[name].slices(structure):
                    model.get_parameter(parameter).index_fill_(dim, torch.tensor(indices), 0)
        tokens = torch.arange(32).reshape(1, 32)
        zeroed, sliced = model(input_ids=tokens).logits, small(input_ids=tokens).logits
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    difference = float((zeroed - sliced).abs().max() / zeroed.abs().max())
    print(f"{before:,} → {after:,} parameters; zeroed and removed differ by {difference:.1e} of the largest logit")


if __name__ == "__main__":
    main()
