"""The walk against whole forwards, the choice of splits, and ``compress`` on a tiny model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from lorashear_passes import oneshot
from lorashear_passes.oneshot import Outcome, Settings, compress
from lorashear_passes.walk import Walk, consumers, heldout_loss, swapped

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """Two residual branches, each with a linear consumer: ``mix`` of 3 heads of 2, ``down`` of 6 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.mix = nn.Linear(8, 6, bias=False), nn.Linear(6, 8, bias=False)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor]:
        x = x + self.mix(torch.tanh(self.value(x)).cumsum(1) / 3)
        return (x + self.down(torch.relu(self.up(x) + shift)),)


class Tiny(nn.Module):
    def __init__(self, chained: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.chained = chained

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(input_ids)
        for number, block in enumerate(self.blocks):
            x = block(x if self.chained else x * 2, torch.tensor(0.1 * number))[0]
        return self.head(x)


@dataclass(frozen=True)
class Group:
    name: str
    kind: str
    size: int
    owned: tuple[tuple[str, int, int], ...]
    blocks: int = 1
    parameters: int = 10

    @property
    def slots(self) -> tuple[tuple[str, int], ...]:
        return tuple((name, dim) for name, dim, _ in self.owned)

    def slices(self, index: int, /) -> list[tuple[str, int, list[int]]]:
        return [(name, dim, list(range(index * width, (index + 1) * width))) for name, dim, width in self.owned]


class Groups(dict[str, Group]):
    def __init__(self, hidden: bool = False) -> None:
        super().__init__()
        everywhere: list[tuple[str, int, int]] = [("embed.weight", 1, 1)]
        for i in range(2):
            b = f"blocks.{i}."
            self[f"{i}.head"] = Group(f"{i}.head", "head", 3, ((b + "value.weight", 0, 2), (b + "mix.weight", 1, 2)))
            self[f"{i}.ffn"] = Group(
                f"{i}.ffn", "ffn", 6, ((b + "up.weight", 0, 1), (b + "up.bias", 0, 1), (b + "down.weight", 1, 1))
            )
            everywhere += [
                (b + "value.weight", 1, 1),
                (b + "up.weight", 1, 1),
                (b + "mix.weight", 0, 1),
                (b + "down.weight", 0, 1),
            ]
            everywhere.append((b + "down.bias", 0, 1))
        if hidden:
            self["hidden"] = Group("hidden", "hidden", 8, tuple(everywhere))

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def only(self, *names: str) -> "Groups":
        for name in set(self) - set(names):
            del self[name]
        return self

    def count(self, widths: Mapping[str, int], /) -> int:
        hidden = widths.get("hidden", 8)
        total = 11 * hidden
        for i in range(2):
            total += hidden * (4 * widths.get(f"{i}.head", 3) + 2 * widths.get(f"{i}.ffn", 6) + 1) + widths.get(
                f"{i}.ffn", 6
            )
        return total


def tiny(chained: bool = True, padded: bool = True) -> tuple[Tiny, list[dict[str, Any]]]:
    torch.manual_seed(0)
    model = Tiny(chained).eval()
    batches: list[dict[str, Any]] = []
    for number in range(4):
        mask = torch.ones(3, 7, dtype=torch.long)
        mask[0, 5:] = 0
        batches.append({"input_ids": torch.randint(0, 11, (3, 7 - number % 2))})
        if padded:
            batches[-1]["attention_mask"] = mask[:, : 7 - number % 2]
    return model, batches


def test_tied_weights_and_other_modules_are_no_consumers() -> None:
    model, _ = tiny()
    slots = [
        ("embed.weight", 1),
        ("head.weight", 1),
        ("blocks.0.up.bias", 0),
        ("blocks.0.up.weight", 1),
        ("blocks.0.mix.weight", 0),
    ]
    assert consumers(model, slots) == ("blocks.0.up",)


@pytest.mark.parametrize("chained", [True, False])
def test_the_walk_sees_what_whole_forwards_see(chained: bool) -> None:
    model, batches = tiny(chained)
    names = ["blocks.0.mix", "blocks.0.down", "blocks.1.mix", "blocks.1.down"]
    walk = Walk(model, names, batches)
    assert len(walk.stages) == (2 if chained else 1)  # what happens between blocks makes them no chain
    seen: list[torch.Tensor] = []
    hook = model.get_submodule("blocks.1.down").register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for batch in batches:
        model(**batch)
    hook.remove()
    rows = torch.cat([x[batch["attention_mask"].bool()] for x, batch in zip(seen, batches, strict=True)])
    states, found = walk.start, {}
    for stage in walk.stages:
        found |= walk.covariances(stage, states, stage.consumers)
        states = walk.advance(stage, states)
    torch.testing.assert_close(found["blocks.1.down"][0], rows.T @ rows / len(rows))


@pytest.mark.parametrize("beside", [0, 1])
def test_a_tail_gives_the_loss_of_the_whole_and_leaves_no_trace(beside: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a model that takes more from its blocks than the hidden states."""
    plain = Block.forward

    def forward(self: Tiny, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(input_ids)
        for number, block in enumerate(self.blocks):
            x, *others = block(x, torch.tensor(0.1 * number))
            assert len(others) == beside
        return self.head(x)

    monkeypatch.setattr(Block, "forward", lambda *given: (*plain(*given)[:1], *[None] * beside))
    monkeypatch.setattr(Tiny, "forward", forward)
    model, batches = tiny()
    walk = Walk(model, ["blocks.0.down", "blocks.1.down"], batches)
    states = walk.advance(walk.stages[0], walk.start)
    with walk.tail(1, states):
        loss = heldout_loss(model, batches)
    assert loss == pytest.approx(heldout_loss(model, batches))
    assert "forward" not in vars(model.blocks[0])


def masked(model: Tiny, groups: Groups, outcome: Outcome) -> dict[str, torch.Tensor]:
    """Parameters with the outcome's structures at zero."""
    values = {n: outcome.weights.get(n, p.data).clone() for n, p in model.named_parameters()}
    for name, structures in outcome.removed.items():
        for structure in structures:
            for parameter, dim, indices in groups[name].slices(structure):
                values[parameter].index_fill_(dim, torch.tensor(indices), 0)
    return values


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(criterion="wanda"), Settings(criterion="random"), Settings(target="dense")]
)
@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("per_layer", [True, False])
def test_compress_lands_repeats_itself_and_leaves_the_model_alone(
    settings: Settings, chained: bool, per_layer: bool
) -> None:
    model, batches = tiny(chained)
    groups = Groups()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = (
        compress(model, groups, batches[:3], ratio=0.3, heldout=batches[3:], per_layer=per_layer, settings=settings)
        for _ in range(2)
    )
    assert one.removed == two.removed
    assert all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    widths = one.split.widths
    assert groups.count(widths) <= 0.7 * groups.count({})
    assert {n: groups[n].size - len(one.removed.get(n, [])) for n in widths} == widths
    for name, structures in one.removed.items():
        for parameter, dim in groups[name].slots:
            if dim == 1:
                assert not one.weights[parameter][
                    :,
                    [
                        i
                        for s in structures
                        for n, d, x in groups[name].slices(s)
                        if (n, d) == (parameter, 1)
                        for i in x
                    ],
                ].any()


@pytest.mark.parametrize("per_layer", [True, False])
def test_held_out_loss_chooses_among_the_splits_that_were_tried(per_layer: bool) -> None:
    model, batches = tiny()
    split = compress(model, Groups(), batches, ratio=0.3, heldout=batches, per_layer=per_layer).split
    assert len(split.tried) > 1
    exact = {name: loss for name, loss in split.tried.items() if name.endswith(", all windows")}
    won, among = (f"{split.name}, all windows", exact) if exact else (split.name, split.tried)
    assert among[won] == min(among.values())
    for start in ("knowledge", "standardised scores"):
        assert any(name.startswith(start) for name in split.tried) == per_layer


@pytest.mark.parametrize("per_layer", [True, False])
def test_a_split_that_is_known_is_not_tried_again(per_layer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny()
    known: dict[str, list[float]] = {}

    def found(**other: Any) -> Outcome:
        given = {"ratio": 0.3, "heldout": batches[3:], "per_layer": per_layer, "measured": known, **other}
        return compress(model, Groups(), batches[:3], **given)

    once = found()
    with monkeypatch.context() as patch:
        patch.setattr(oneshot, "heldout_loss", lambda *_: pytest.fail("all splits are known"))
        again = found()
        with pytest.raises(pytest.fail.Exception):
            found(ratio=0.4)
    assert (again.removed, again.split, again.alternative) == (once.removed, once.split, once.alternative)
    assert all(torch.equal(value, again.weights[name]) for name, value in once.weights.items())
    assert found(measured={}).split == once.split


def test_a_uniform_split_is_the_best_of_all_uniform_splits_where_they_are_few() -> None:
    model, batches = tiny()
    groups = Groups()
    split = compress(model, groups, batches, ratio=0.3, heldout=batches).split
    losses: dict[tuple[int, int], float] = {}
    for heads in (1, 2, 3):
        for ffn in range(1, 7):
            widths = {"0.head": heads, "1.head": heads, "0.ffn": ffn, "1.ffn": ffn}
            wider = [widths | {"0.ffn": ffn + 1, "1.ffn": ffn + 1}, widths | {"0.head": heads + 1, "1.head": heads + 1}]
            most = 0.7 * groups.count({})
            if groups.count(widths) <= most and all(groups.count(w) > most for w in wider):
                outcome = compress(model, groups, batches, ratio=0.3, widths=widths)
                with swapped(model, masked(model, groups, outcome)):
                    losses[heads, ffn] = heldout_loss(model, batches)
    assert (split.widths["0.head"], split.widths["0.ffn"]) == min(losses, key=lambda at: losses[at])


def test_refitting_beats_dropping_on_the_calibration_text() -> None:
    model, batches = tiny()
    groups = Groups().only("0.ffn", "1.ffn")
    dense = [model(**batch).detach() for batch in batches]
    errors: list[float] = []
    for refit in (True, False):
        outcome = compress(model, groups, batches, ratio=0.2, settings=Settings(compensate=refit))
        with swapped(model, masked(model, groups, outcome)):
            errors.append(
                sum(float((model(**b).detach() - d).square().sum()) for b, d in zip(batches, dense, strict=True))
            )
    assert errors[0] < errors[1]


def test_hidden_channels_are_zeroed_and_their_readers_refitted() -> None:
    model, batches = tiny()
    groups = Groups(hidden=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = compress(model, Groups(hidden=True).only("hidden"), batches, ratio=0.3, heldout=batches)
    assert 0 < len(outcome.removed["hidden"]) < 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    both = compress(model, groups, batches, ratio=0.5, heldout=batches)
    assert groups.count(both.split.widths) <= 0.5 * groups.count({})
    assert len(both.split.tried) > 2


def test_without_text_magnitude_decides_and_nothing_is_refitted() -> None:
    model, _ = tiny()
    outcome = compress(model, Groups(), None, ratio=0.3)
    assert outcome.removed
    assert not outcome.weights
    with torch.no_grad():
        model.get_parameter("blocks.0.up.weight")[4] = 0
        model.get_parameter("blocks.0.up.bias")[4] = 0
        model.get_parameter("blocks.0.down.weight")[:, 4] = 0
    assert compress(model, Groups().only("0.ffn"), None, ratio=0.02).removed["0.ffn"] == [4]


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(ValueError, match="is none of obs"):
        Settings(criterion="best")
