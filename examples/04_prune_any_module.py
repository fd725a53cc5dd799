"""Prune a module that is no language model: a small vision transformer with a convolutional stem, in memory.

    python examples/04_prune_any_module.py

Nothing is told about its architecture. `lorashear.groups` finds, from one forward on example inputs, which rows, columns and
channels can only go together, and says of the others why they must stay; `lorashear.prune` gives a smaller module. Then the
theorem is checked: the module with the same structures set to zero computes what the smaller one computes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lorashear

WIDTH, HEADS = 48, 6


class Attention(nn.Module):
    """Self-attention with one fused map for queries, keys and values, as vision transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows, places, _ = x.shape
        q, k, v = self.qkv(x).view(rows, places, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, places, -1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Classifier(nn.Module):
    """Images of 32 x 32 to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, WIDTH, 4, 4))
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image).flatten(2).transpose(1, 2)).mean(1))


def least(model: nn.Module, group: lorashear.Group, count: int) -> list[int]:
    """The structures with the smallest weights, by the sum of squares over all that each one owns."""
    held = model.state_dict()
    sizes = [
        sum(float(held[name].index_select(dim, torch.tensor(kept)).square().sum()) for name, dim, kept in owned)
        for owned in (group.slices(structure) for structure in range(group.size))
    ]
    return sorted(sorted(range(group.size), key=sizes.__getitem__)[:count])


def main() -> None:
    torch.manual_seed(0)
    model, images = Classifier().eval(), torch.randn(2, 3, 32, 32)
    groups = lorashear.groups(model, inputs=images)
    removed: dict[str, list[int]] = {}
    for name, group in groups.items():
        if group.prunable:
            removed[name] = least(model, group, group.size // 3)
            print(f"{name}: {len(removed[name])} of {group.size} go, {group.parameters:,} weights each")
        else:
            print(f"{name} stays: {group.reason}")
    small = lorashear.prune(model, removed, inputs=images)

    with torch.no_grad():
        held = model.state_dict()  # the tensors themselves: weights, and the statistics of batch norms
        for name, structures in removed.items():
            for structure in structures:
                for tensor, dim, indices in groups[name].slices(structure):
                    held[tensor].index_fill_(dim, torch.tensor(indices), 0)
        fresh = torch.randn(2, 3, 32, 32)
        zeroed, sliced = model(fresh), small(fresh)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    difference = float((zeroed - sliced).abs().max() / zeroed.abs().max())
    print(f"{before:,} → {after:,} parameters; zeroed and removed differ by {difference:.1e} of the largest output")


if __name__ == "__main__":
    main()
