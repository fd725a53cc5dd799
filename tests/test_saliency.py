"""Criteria against brute force."""

import pytest
import torch

from lorashear_passes import saliency

pytestmark = pytest.mark.usefixtures("one_thread")


def problem(
    structures: int = 6, width: int = 1, out: int = 4, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = structures * width
    rows = torch.randn(200, inputs, generator=generator, dtype=torch.float64)
    rows = rows @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    weight = torch.randn(out, inputs, generator=generator, dtype=torch.float64)
    return weight, rows.T @ rows / 200, torch.arange(inputs).reshape(structures, width)


def refit_error(weight: torch.Tensor, covariance: torch.Tensor, gone: torch.Tensor, damp: float) -> float:
    """Error of the best weights without the columns, from the normal equations, in the damped metric."""
    metric = covariance + damp * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    keep = torch.ones(len(covariance), dtype=torch.bool)
    keep[gone] = False
    fit = torch.zeros_like(weight)
    if keep.any():
        fit[:, keep] = torch.linalg.solve(metric[keep][:, keep], (weight @ metric)[:, keep].T).T
    change = weight - fit
    return float(torch.trace(change @ metric @ change.T))


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_obs_order_is_the_greedy_one_by_brute_force(width: int, seed: int) -> None:
    weight, covariance, columns = problem(6, width, seed=seed)
    order = saliency.obs_order(weight, covariance, columns, damp=1e-3)
    gone: list[int] = []
    for structure in order:
        left = [s for s in range(6) if s not in gone]
        costs = {s: refit_error(weight, covariance, columns[[*gone, s]].flatten(), 1e-3) for s in left}
        assert costs[structure] == pytest.approx(min(costs.values()))
        gone.append(structure)


def test_a_short_order_is_the_beginning_of_the_whole_one() -> None:
    weight, covariance, columns = problem(9)
    for rounds in (128, 4):
        whole = saliency.obs_order(weight, covariance, columns, rounds=rounds)
        assert sorted(whole) == list(range(9))
        for count in range(10):
            assert saliency.obs_order(weight, covariance, columns, count=count, rounds=rounds) == whole[:count]


def test_several_blocks_lose_equally_many_in_every_round() -> None:
    weight, covariance, columns = problem(6)
    for order in (
        saliency.obs_order(weight, covariance, columns, blocks=2),
        saliency.in_rounds(saliency.wanda(weight, covariance, columns), 2),
    ):
        assert sorted(order) == list(range(6))
        for start in range(0, 6, 2):
            assert sorted(s // 3 for s in order[start : start + 2]) == [0, 1]


def test_wanda_and_magnitude_follow_their_formulas() -> None:
    weight, covariance, columns = problem(3, 2)
    expected = [sum(float(weight[:, j].square().sum() * covariance[j, j]) for j in pair) for pair in columns.tolist()]
    assert saliency.wanda(weight, covariance, columns).tolist() == pytest.approx(expected)
    squares = weight.square().sum(0)
    assert saliency.summed([(squares, columns)]).tolist() == pytest.approx(squares.reshape(3, 2).sum(1).tolist())


def test_ties_go_to_the_lower_index() -> None:
    assert saliency.in_rounds(torch.tensor([1.0, 0.0, 0.0, 1.0])) == [1, 2, 0, 3]


def test_random_scores_repeat_with_their_seed() -> None:
    one, two = (saliency.random_scores(9, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_a_dead_or_singular_input_is_no_obstacle() -> None:
    weight, covariance, columns = problem(4)
    covariance = covariance * 0
    assert sorted(saliency.obs_order(weight, covariance, columns)) == [0, 1, 2, 3]
