"""The mixture that training draws from: shares by what was lost, an end when nothing gains, the same draws after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

import pytest
import torch

from lorashear.learning.hyperparameters import Hyperparameters
from lorashear.learning.mixture import FLOOR, NO_GAIN, PATIENCE, Mixture
from lorashear.text.calibration import Subset
from lorashear.text.data import PADDING, READ, told

HELD = {"code": 100, "stories": 200, "web": 300}
"""Numbers of subsets: their windows begin with them."""


def subset(name: str, windows: int = 10, length: int = 6) -> Subset:
    """Windows that say which subset they are of, and which of it."""
    rows = torch.full((windows, length), HELD[name])
    rows[:, 1] = torch.arange(windows)
    return Subset(name, rows, rows[:1])


def mixture(steps: int = 48, dense: Mapping[str, float] | None = None, **more: object) -> Mixture:
    subsets = [subset(name) for name in HELD]
    return Mixture(subsets, Hyperparameters(steps, 1.0, batch=4, seed=3), dense=dense, **more)  # type: ignore[arg-type]


def measuring(losses: Mapping[str, float]) -> Callable[[torch.Tensor], float]:
    """Held-out losses by subset, as if a model had them."""
    names = {number: name for name, number in HELD.items()}
    return lambda rows: losses[names[int(rows[0, 0])]]


def drawn(mixed: Mixture, steps: int) -> torch.Tensor:
    return torch.cat([mixed.draw() for _ in range(steps)])


LOST = {"code": 2.0, "stories": 1.5, "web": 1.0}
DENSE = {"code": 1.4, "stories": 1.3, "web": 1.2}


def test_shares_follow_what_was_lost_above_a_floor() -> None:
    mixed = mixture(dense=DENSE)
    mixed.start(0, measuring(LOST), {})
    (measured,) = mixed.measured
    assert measured.degradation == pytest.approx({"code": 0.6, "stories": 0.2, "web": 0.0})
    floor = FLOOR / 3
    wanted = {"code": floor + (1 - FLOOR) * 0.75, "stories": floor + (1 - FLOOR) * 0.25, "web": floor}
    assert measured.share == pytest.approx(wanted) and sum(measured.share.values()) == pytest.approx(1)
    rows = drawn(mixed, 300)
    for name, share in measured.share.items():
        assert (rows[:, 0] == HELD[name]).sum().item() == pytest.approx(1200 * share, abs=1)


@pytest.mark.parametrize(
    ("more", "losses"),
    [({"dense": DENSE, "dynamic": False}, LOST), ({}, LOST), ({"dense": DENSE}, dict.fromkeys(HELD, 0.5))],
    ids=["static", "no dense model", "nothing lost"],
)
def test_shares_are_equal_where_nothing_says_otherwise(more: dict[str, object], losses: dict[str, float]) -> None:
    mixed = mixture(**more)  # type: ignore[arg-type]
    mixed.start(0, measuring(losses), {})
    assert mixed.measured[0].share == pytest.approx(dict.fromkeys(HELD, 1 / 3))
    assert (mixed.measured[0].degradation is None) == ("dense" not in more)


def test_a_fixed_share_stays_and_the_others_have_the_rest() -> None:
    mixed = mixture(dense=DENSE, fixed={"web": 0.4})
    mixed.start(0, measuring(LOST), {})
    share = mixed.measured[0].share
    assert share["web"] == 0.4 and share["code"] > share["stories"] and sum(share.values()) == pytest.approx(1)
    none = mixture(fixed={"web": 1.0, "code": 0.0, "stories": 0.0})
    assert set(drawn(none, 20)[:, 0].tolist()) == {HELD["web"]}


def test_shares_are_of_tokens_that_are_told() -> None:
    """A window of a question and a short answer counts for its answer."""
    long, short = subset("code", length=9), subset("web", length=9)
    short.training[:, 2:7] = READ - 5
    short.training[:, 8] = PADDING
    assert told(short.training) == 2 * len(short.training)
    mixed = Mixture([long, short], Hyperparameters(10, 1.0, batch=5))
    rows = drawn(mixed, 100)
    mine = rows[:, 0] == HELD["web"]
    assert told(rows[mine]) == pytest.approx(told(rows[~mine]), abs=9)
    assert mixed.tokens == sum(9 - int(row[8] == PADDING) for row in rows)


def test_each_subset_is_gone_through_before_it_comes_again() -> None:
    mixed = mixture()
    rows = drawn(mixed, 15)
    for number in HELD.values():
        seen = rows[rows[:, 0] == number][:, 1].tolist()
        assert len(seen) == 20 and sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    orders = [rows[rows[:, 0] == number][:10, 1].tolist() for number in HELD.values()]
    assert orders[0] != orders[1] != orders[2]


def test_a_state_goes_on_with_the_same_windows() -> None:
    losses = dict(LOST)
    whole = mixture(dense=DENSE)
    whole.start(0, measuring(losses), {})
    drawn(whole, 8)
    whole.after(8, measuring({**losses, "code": 1.5}))
    state = {name: value.clone() for name, value in whole.state().items()}
    again = mixture(dense=DENSE)
    again.start(8, measuring({}), state)
    assert again.measured == whole.measured and again.tokens == whole.tokens
    assert torch.equal(drawn(again, 20), drawn(whole, 20))


def run(mixed: Mixture, losses: Callable[[int], Mapping[str, float]]) -> int:
    """The last step, where training measures these losses after each step."""
    mixed.start(0, measuring(losses(0)), {})
    for step in count(1):
        if step > mixed.last:
            return step - 1
        mixed.after(step, measuring(losses(step)))
    raise AssertionError


def test_it_ends_when_no_subset_gains_any_more() -> None:
    """Until step 16 one subset gains; the others never do."""
    mixed = mixture(steps=96, dense=DENSE)
    assert mixed.stretch == 8
    last = run(mixed, lambda step: {**LOST, "stories": 1.5 - 0.01 * min(step, 16)})
    assert last == 16 + (PATIENCE + 1) * 8 and mixed.stopped == NO_GAIN
    assert [m.step for m in mixed.measured] == list(range(0, last + 1, 8))
    cooled = [mixed.cooled(step) for step in range(last - 7, last + 1)]
    assert cooled == pytest.approx([1 - i / 8 for i in range(8)])


def test_it_runs_to_its_end_while_one_gains() -> None:
    mixed = mixture(steps=96)
    assert run(mixed, lambda step: {**LOST, "web": 1.0 - 0.001 * step}) == 96 and not mixed.stopped
    assert mixed.cooled(96) == 1.0


def test_it_is_not_stopped_where_that_saves_nothing() -> None:
    mixed = mixture(steps=24)
    assert run(mixed, lambda _: LOST) == 24 and not mixed.stopped
    assert [m.step for m in mixed.measured] == [0, 8, 16, 24]


def test_a_state_after_the_end_was_decided() -> None:
    mixed = mixture(steps=96)
    mixed.start(0, measuring(LOST), {})
    for step in range(1, 18):
        mixed.after(step, measuring(LOST))
    again = mixture(steps=96)
    again.start(17, measuring({}), mixed.state())
    assert (again.stopped, again.last) == (NO_GAIN, 24) == (mixed.stopped, mixed.last)
    assert again.cooled(20) == mixed.cooled(20) < 1


def test_news_comes_with_the_step_that_they_are_of() -> None:
    mixed = mixture(steps=96)
    mixed.start(0, measuring(LOST), {})
    assert (mixed.news(1), mixed.news(2)) == (mixed.measured[0], None)
    mixed.after(8, measuring(LOST))
    assert (mixed.news(8), mixed.news(9)) == (mixed.measured[1], None)
