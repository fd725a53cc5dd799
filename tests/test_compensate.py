"""The refit against ``lstsq``."""

import pytest
import torch

from lorashear_passes.compensate import compensate


def samples(rows: int = 60, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    hidden = hidden @ torch.randn(width, width, generator=generator, dtype=torch.float64)
    return hidden, torch.randn(4, width, generator=generator, dtype=torch.float64)


def test_the_refit_is_least_squares_on_the_samples() -> None:
    hidden, weight = samples()
    kept = torch.tensor([0, 2, 3])
    fitted = compensate(weight, hidden.T @ hidden / 60, kept, damp=0)
    expected = torch.linalg.lstsq(hidden[:, kept], hidden @ weight.T).solution.T
    torch.testing.assert_close(fitted[:, kept], expected, rtol=1e-7, atol=1e-8)
    assert not fitted[:, [1, 4, 5]].any()


def test_the_refit_to_a_dense_model_is_least_squares_too() -> None:
    hidden, weight = samples()
    seen = hidden + 0.1 * torch.randn(60, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept = torch.tensor([1, 2, 5])
    fitted = compensate(weight, seen.T @ seen / 60, kept, cross=hidden.T @ seen / 60, damp=0)
    expected = torch.linalg.lstsq(seen[:, kept], hidden @ weight.T).solution.T
    torch.testing.assert_close(fitted[:, kept], expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("damp", [0.0, 1e-3, 0.1, 10.0])
def test_the_refit_never_raises_the_calibration_error(damp: float) -> None:
    hidden, weight = samples()
    for number in range(6):
        kept = torch.tensor([i for i in range(6) if i != number])
        plain = weight.clone()
        plain[:, number] = 0
        fitted = compensate(weight, hidden.T @ hidden / 60, kept, damp=damp)
        assert (hidden @ (fitted - weight).T).square().sum() <= (hidden @ (plain - weight).T).square().sum() + 1e-9


def test_dead_inputs_and_nothing_kept() -> None:
    weight = torch.randn(3, 4)
    assert compensate(weight, torch.zeros(4, 4), torch.tensor([0, 1])).isfinite().all()
    assert not compensate(weight, torch.eye(4), torch.tensor([], dtype=torch.long)).any()
