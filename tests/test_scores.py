"""Criteria that one look at the dense model settles, against brute force on the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lorashear
from lorashear_passes import scores
from lorashear_passes.allocate import allocate
from lorashear_passes.oneshot import Settings, compress
from lorashear_passes.splits import standardised
from lorashear_passes.surgery import Surgeon, units
from lorashear_passes.walk import heldout_loss, swapped, token_loss
from test_theorem import random_llama

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ("head", "query", "ffn", "hidden")


def batches(count: int = 2, seed: int = 3) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, 96, (3, 11), generator=random), "use_cache": False} for _ in range(count)]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return random_llama("tied").eval()


@pytest.fixture(scope="module")
def groups(model: torch.nn.Module) -> lorashear.Groups:
    return lorashear.groups(model).only(KINDS)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of the summed loss, for every parameter, by ordinary backward."""
    copy = random_llama("tied").eval()
    copy.load_state_dict(model.state_dict())
    sum(token_loss(copy, batch) for batch in batches()).backward()  # type: ignore[union-attr]
    return {name: p.grad for name, p in copy.named_parameters() if p.grad is not None}


def by_hand(group: lorashear.Group, importance: dict[str, torch.Tensor]) -> list[float]:
    """Summed over everything that a structure owns, slice by slice."""
    return [
        sum(
            importance[name].double().index_select(dim, torch.tensor(list(indices))).sum().item()
            for name, dim, indices in group.slices(structure)
            if name in importance
        )
        for structure in range(group.size)
    ]


def untouched(model: torch.nn.Module) -> bool:
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return not hooks and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_loss_of_a_batch_is_the_held_out_one(model: torch.nn.Module) -> None:
    assert token_loss(model, batches(1)[0]).item() == pytest.approx(heldout_loss(model, batches(1)), rel=1e-5)
    padded = {**batches(1)[0], "attention_mask": torch.ones(3, 11, dtype=torch.long).tril(6)}
    assert token_loss(model, padded).item() == pytest.approx(heldout_loss(model, [padded]), rel=1e-5)


def test_magnitude(model: torch.nn.Module, groups: lorashear.Groups) -> None:
    squares = {name: p.detach().square() for name, p in model.named_parameters()}
    for name, found in scores.magnitude(model, groups).items():
        assert found.tolist() == pytest.approx(by_hand(groups[name], squares), rel=1e-5)


def test_taylor_is_weight_times_gradient(model: torch.nn.Module, groups: lorashear.Groups) -> None:
    products = {name: (model.get_parameter(name).detach() * g).abs() for name, g in gradients(model).items()}
    for name, found in scores.taylor(model, groups, batches()).items():
        assert found.tolist() == pytest.approx(by_hand(groups[name], products), rel=1e-3)
    assert untouched(model)


def test_an_adapter_sees_the_gradient_through_its_random_half(
    model: torch.nn.Module, groups: lorashear.Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With B = 0 the estimate is G AᵀA; where AᵀA is the identity, it is the gradient itself."""
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    held = {name: g for name, g in gradients(model).items() if name in linear}
    products = {name: (model.get_parameter(name).detach() * g).square() for name, g in held.items()}
    rank = 64  # no map of the model reads more
    randn = torch.randn
    monkeypatch.setattr(scores, "RANK", rank)
    monkeypatch.setattr(torch, "randn", lambda r, n, **more: rank**0.5 * torch.linalg.qr(randn(r, n, **more))[0])
    for name, found in scores.lora_gradient(model, groups, batches()).items():
        assert found.tolist() == pytest.approx(by_hand(groups[name], products), rel=1e-3)
    assert untouched(model)


def test_a_small_adapter_still_ranks_better_than_chance(model: torch.nn.Module, groups: lorashear.Groups) -> None:
    exact = scores.taylor(model, groups, batches())
    found = scores.lora_gradient(model, groups, batches())
    name = "model.layers.0.mlp.ffn"
    assert (
        torch.corrcoef(torch.stack([found[name].argsort().argsort(), exact[name].argsort().argsort()]).double())[0, 1]
        > 0.5
    )


def test_fluctuation_is_the_variance_of_what_is_read(model: torch.nn.Module, groups: lorashear.Groups) -> None:
    found = scores.fluctuation(model, groups, batches())
    down = model.get_submodule("model.layers.0.mlp.down_proj")
    seen: list[torch.Tensor] = []
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for batch in batches():
            model(**batch)
    handle.remove()
    rows = torch.cat([each.flatten(0, 1) for each in seen])
    want = rows.double().var(0, unbiased=False) * down.weight.detach().double().square().sum(0)
    assert found["model.layers.0.mlp.ffn"].tolist() == pytest.approx(want.tolist(), rel=1e-4)
    assert untouched(model)


def test_a_constant_channel_does_not_fluctuate() -> None:
    class Fixed(torch.nn.Module):
        """Its second channel is always three, and large."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(4, 3), torch.nn.Linear(3, 4)
            self.up.weight.data[1], self.up.bias.data[1] = 0, 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.up(x).sigmoid())

    module = Fixed()
    found = lorashear.groups(module, torch.randn(2, 4))
    name = next(name for name, group in found.items() if ("up.weight", 0) in group.slots)
    scored = scores.fluctuation(module, {name: found[name]}, [{"x": torch.randn(8, 4)}])[name]
    assert scored[1] == pytest.approx(0, abs=1e-12) and scored[1] < scored.max()


@pytest.mark.parametrize("criterion", ["taylor", "lora", "flap"])
def test_every_criterion_prunes_to_the_ratio_and_repeats(
    model: torch.nn.Module, groups: lorashear.Groups, criterion: str
) -> None:
    chosen = groups.only(("head", "query", "ffn"))
    request: dict[str, Any] = {"ratio": 0.3, "heldout": batches(1), "settings": Settings(criterion=criterion)}
    before = {name: p.clone() for name, p in model.named_parameters()}
    first, second = (compress(model, chosen, batches(), **request) for _ in range(2))
    assert first.removed == second.removed and first.removed
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()) and untouched(model)
    with swapped(model, first.weights):
        assert heldout_loss(model, batches()) > 0


def test_a_recorded_criterion_compiles(folder: Any, text: Any, tmp_path: Any) -> None:
    found = {
        criterion: lorashear.compile(
            folder, 0.3, tmp_path / criterion, text=text, windows=4, one_shot=True, criterion=criterion
        )
        for criterion in ("taylor", "lora", "flap", "obs")
    }
    assert {result.report["criterion"] for result in found.values()} == {"taylor", "lora", "flap", "obs"}
    assert len({str(result.plan.removed) for result in found.values()}) == 4


@pytest.mark.parametrize("criterion", ["obs", "wanda", "flap", "taylor", "magnitude", "random"])
def test_every_criterion_scores_every_structure(
    model: torch.nn.Module, groups: lorashear.Groups, criterion: str
) -> None:
    """All on the dense model, and so that the least is what a group would lose first."""
    surgeon = Surgeon(model, dict(groups), Settings(criterion=criterion, compensate=False), batches())
    walk = surgeon.walk(batches())
    found = surgeon.scored(walk)
    assert {name: len(each) for name, each in found.items()} == {name: g.size for name, g in groups.items()}
    for name, group in groups.items():
        if group.kind == "ffn":
            widths = {n: units(g) - (n == name) for n, g in groups.items()}
            with surgeon.pruned(walk, widths) as (removed, _):
                assert removed[name] == [int(found[name].argmin())]


@pytest.mark.parametrize("criterion", ["obs", "wanda", "flap", "taylor", "lora"])
def test_another_ratio_scores_nothing_again(
    model: torch.nn.Module, groups: lorashear.Groups, criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was kept, of other kinds beside, ends in the plan of a first run."""
    heldout, settings = batches(seed=4), Settings(criterion=criterion)

    def outcome(ratio: float, kinds: tuple[str, ...], known: dict[str, list[float]]) -> Any:
        chosen = groups.only(kinds)
        more: dict[str, Any] = {"heldout": heldout, "settings": settings, "measured": known, "per_layer": True}
        return compress(model, chosen, batches(), ratio=ratio, **more)

    known: dict[str, list[float]] = {}
    outcome(0.1, KINDS, known)
    first = outcome(0.15, ("head", "ffn", "hidden"), {})
    for name in ("_walked", "_front_scores"):
        monkeypatch.setattr(Surgeon, name, lambda *_: pytest.fail("scored again"))
    monkeypatch.setattr(scores, "FROM_TEXT", dict.fromkeys(scores.FROM_TEXT, lambda *_: pytest.fail("ranked again")))
    again = outcome(0.15, ("head", "ffn", "hidden"), known)
    assert again.removed == first.removed and again.split == first.split
    assert all(torch.equal(again.weights[name], weight) for name, weight in first.weights.items())


def test_standardised_scores_are_one_threshold(groups: lorashear.Groups) -> None:
    """What the budget takes of each group lies below what it leaves of any, in deviations from the group's mean."""
    chosen = {name: group for name, group in groups.items() if group.kind in ("ffn", "query")}
    random = torch.Generator().manual_seed(5)
    scores = {name: torch.rand(g.size, generator=random, dtype=torch.float64).exp() for name, g in chosen.items()}
    curves = standardised(chosen, scores)
    scaled = standardised(chosen, {name: 3 + 10 * each for name, each in scores.items()})
    for name, curve in curves.items():
        assert curve[0] == 0 and curve == sorted(curve)
        assert curve == pytest.approx(scaled[name], rel=1e-6, abs=1e-6)
    widths = allocate(groups, curves, 0.1, per_layer=True)
    gone, left = [], []
    for name, group in chosen.items():
        each = (scores[name] - scores[name].mean()) / scores[name].std(correction=0)
        rounds = each.reshape(group.blocks, -1).sort(1).values.mean(0).tolist()
        cut = units(group) - widths[name]
        gone += rounds[:cut]
        left += rounds[cut:][:-1] if group.kind == "query" else rounds[cut:]  # a head keeps its last query
    assert 5 < len(gone) and max(gone) < sorted(left)[2]  # the budget's last structures are those that land on it
