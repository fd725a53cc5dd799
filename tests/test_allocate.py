"""The landing contract, on stand-in groups with exact counts."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from lorashear_passes.allocate import Unreachable, allocate


@dataclass(frozen=True)
class Group:
    name: str
    kind: str
    size: int
    blocks: int
    slots: tuple[tuple[str, int], ...]
    parameters: int = 1

    def slices(self, index: int, /) -> list[tuple[str, int, list[int]]]:
        return [(name, dim, [index]) for name, dim in self.slots]


class Shape:
    """A LLaMA by its numbers."""

    def __init__(
        self, layers: int = 3, hidden: int = 32, kv: int = 4, rep: int = 2, head: int = 4, ffn: int = 90
    ) -> None:
        self.layers, self.hidden, self.kv, self.rep, self.head, self.ffn = layers, hidden, kv, rep, head, ffn
        self.groups: dict[str, Group] = {"hidden": Group("hidden", "hidden", hidden, 1, (("embed", 1),))}
        for i in range(layers):
            self.groups[f"{i}.head"] = Group(f"{i}.head", "head", kv, 1, ((f"{i}.q", 0), (f"{i}.k", 0), (f"{i}.o", 1)))
            self.groups[f"{i}.query"] = Group(f"{i}.query", "query", kv * rep, kv, ((f"{i}.q", 0), (f"{i}.o", 1)))
            self.groups[f"{i}.ffn"] = Group(f"{i}.ffn", "ffn", ffn, 1, ((f"{i}.up", 0), (f"{i}.down", 1)))

    def __getitem__(self, name: str, /) -> Group:
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def count(self, widths: Mapping[str, int], /) -> int:
        hidden = widths.get("hidden", self.hidden)
        total = 200 * hidden
        for i in range(self.layers):
            kv, rep = widths.get(f"{i}.head", self.kv), widths.get(f"{i}.query", self.rep)
            total += hidden * (2 * self.head * kv * (rep + 1) + 3 * widths.get(f"{i}.ffn", self.ffn) + 2)
        return total

    def curves(self, kinds: str, seed: int = 0) -> dict[str, list[float]]:
        draw = random.Random(seed)
        found: dict[str, list[float]] = {}
        for name, group in self.groups.items():
            if group.kind in kinds.split(","):
                total, curve = 0.0, [0.0]
                for _ in range(group.size // group.blocks):
                    total += draw.random() ** 3
                    curve.append(total)
                found[name] = curve
        return found


def steps(shape: Shape, widths: dict[str, int], per_layer: bool, multiples: dict[str, int]) -> list[int]:
    """What one allowed step given back at these widths costs, per family."""
    sizes = {n: shape[n].size // shape[n].blocks for n in widths}
    names = (
        [[n] for n in widths]
        if per_layer
        else [[n for n in widths if shape[n].kind == k] for k in {shape[n].kind for n in widths}]
    )
    here = shape.count(widths)
    found: list[int] = []
    for family in names:
        step = multiples.get(shape[family[0]].kind, 1)
        wider = {n: min(sizes[n], (widths[n] // step + 1) * step) for n in family}
        if all(wider[n] > widths[n] for n in family):
            found.append(shape.count({**widths, **wider}) - here)
    return found


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("multiples", [{}, {"ffn": 8, "hidden": 8}, {"ffn": 24, "hidden": 8, "head": 2}])
@pytest.mark.parametrize("kinds", ["head,query,ffn", "ffn", "head", "head,query,ffn,hidden", "hidden"])
def test_it_lands_at_or_past_the_ratio_by_less_than_a_step(
    kinds: str, multiples: dict[str, int], per_layer: bool
) -> None:
    shape = Shape()
    total = shape.count({})
    for seed in range(6):
        ratio = 0.03 + 0.09 * seed
        try:
            widths = allocate(shape, shape.curves(kinds, seed), ratio, per_layer=per_layer, multiples=multiples)
        except Unreachable as error:
            assert error.largest < ratio or kinds.endswith("hidden")
            continue
        removed = total - shape.count(widths)
        assert removed >= ratio * total
        assert removed - ratio * total < min(steps(shape, widths, per_layer, multiples))
        for name, width in widths.items():
            units = shape[name].size // shape[name].blocks
            assert 1 <= width <= units
            if width < units:
                assert width % multiples.get(shape[name].kind, 1) == 0
        if not per_layer:
            assert all(
                len({w for n, w in widths.items() if shape[n].kind == k}) == 1 for k in {shape[n].kind for n in widths}
            )


@pytest.mark.parametrize(("layers", "per_layer"), [(3, False), (1, True), (3, True)], ids=["few", "one", "many"])
def test_no_choice_does_less_damage(layers: int, per_layer: bool) -> None:
    """Against every choice that lands; "many" goes through the knapsack, whose costs are rounded to 1/4000 of what goes."""
    shape = Shape(layers=layers, ffn=12)
    for seed in range(12):
        curves, target = shape.curves("head,ffn", seed), 0.3 * shape.count({})
        # By layer, or for all layers: what each pair of widths costs and damages.
        options = list(product(range(4), range(12)))
        parts = [[i] for i in range(layers)] if per_layer else [list(range(layers))]
        costs, damages = [np.zeros(1)], [np.zeros(1)]
        for part in parts:
            cost = [
                shape.count({}) - shape.count({f"{i}.head": 4 - h for i in part} | {f"{i}.ffn": 12 - f for i in part})
                for h, f in options
            ]
            damage = [sum(curves[f"{i}.head"][h] + curves[f"{i}.ffn"][f] for i in part) for h, f in options]
            costs.append(np.add.outer(costs[-1], cost).ravel())
            damages.append(np.add.outer(damages[-1], damage).ravel())
        step = len(parts[0]) * (shape.count({}) - shape.count({"0.ffn": 11}))
        passing = costs[-1] >= target
        least, landing = damages[-1][passing].min(), damages[-1][passing & (costs[-1] < target + step)].min()
        widths = allocate(shape, curves, 0.3, per_layer=per_layer)
        found = sum(curve[shape[name].size - widths[name]] for name, curve in curves.items())
        assert least - 1e-9 <= found <= landing * (1.001 if per_layer and layers > 1 else 1.0) + 1e-9, seed


def test_what_costs_nothing_goes_first() -> None:
    shape = Shape()
    curves = {name: [float(i) for i in range(len(curve))] for name, curve in shape.curves("ffn").items()}
    curves["1.ffn"] = [0.0] * len(curves["1.ffn"])
    widths = allocate(shape, curves, 0.1, per_layer=True)
    assert widths["1.ffn"] < widths["0.ffn"] == shape.ffn


def test_refusals_say_how_far_it_goes_and_what_holds_it_back() -> None:
    shape = Shape()
    with pytest.raises(Unreachable, match="3 head group") as caught:
        allocate(shape, shape.curves("head"), 0.9)
    assert 0 < caught.value.largest < 0.9
    widths = {n: 1 for n in shape.curves("head")}
    assert caught.value.largest == pytest.approx(1 - shape.count(widths) / shape.count({}))
    with pytest.raises(Unreachable):
        allocate(shape, shape.curves("ffn"), 0.2, minimum={"ffn": 89})
    with pytest.raises(ValueError, match="ratio"):
        allocate(shape, shape.curves("ffn"), 1.0)


def test_nothing_to_remove_and_the_same_answer_twice() -> None:
    shape = Shape()
    assert all(
        w == shape[n].size // shape[n].blocks for n, w in allocate(shape, shape.curves("head,query,ffn"), 0.0).items()
    )
    curves = shape.curves("head,query,ffn", 2)
    assert allocate(shape, curves, 0.4, per_layer=True) == allocate(shape, curves, 0.4, per_layer=True)


def test_a_large_shape_is_quick() -> None:
    shape = Shape(layers=80, hidden=8192, kv=8, rep=8, head=128, ffn=28672)
    curves = shape.curves("head,query,ffn")
    for per_layer in (False, True):
        widths = allocate(shape, curves, 0.5, per_layer=per_layer)
        removed = shape.count({}) - shape.count(widths)
        assert 0 <= removed - 0.5 * shape.count({}) < 3 * 8192 * (1 if per_layer else 80)
