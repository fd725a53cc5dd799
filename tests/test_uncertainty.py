"""Standard errors against formulas and against drawing again and again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorashear.evaluation.uncertainty import mean_error, paired_error, paired_ratio_error, ratio_error

DRAWS = 4000
CLUSTERS = 60


def test_of_a_share() -> None:
    """Of n trials with k successes it is sqrt(p (1 - p) / (n - 1))."""
    values = np.array([True] * 37 + [False] * 63)
    assert mean_error(values) == pytest.approx(math.sqrt(0.37 * 0.63 / 99), rel=1e-12)
    assert mean_error([1.0, 2.0, 4.0]) == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3), rel=1e-12)


def test_one_value_and_one_cluster_say_nothing() -> None:
    assert math.isnan(mean_error([True])) and math.isnan(paired_error([1], [0]))
    assert math.isnan(ratio_error([3.0], [2])) and math.isnan(paired_ratio_error([3.0], [2], [2.0], [2]))


def test_pairs_are_as_far_off_as_their_differences() -> None:
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, False, True, True])
    assert paired_error(first, second) == mean_error([0, 1, 0, -1, 0])
    assert paired_error(first, first) == 0
    assert paired_error(first, second) == paired_error(second, first)


def test_pairs_by_mcnemar() -> None:
    """Of b items that only one gets right and c that only the other does: sqrt((b + c - (b - c)^2 / n) / (n (n - 1)))."""
    first = np.array([True] * 30 + [True] * 12 + [False] * 5 + [False] * 53)
    second = np.array([True] * 30 + [False] * 12 + [True] * 5 + [False] * 53)
    assert paired_error(first, second) == pytest.approx(math.sqrt((17 - 49 / 100) / (100 * 99)), rel=1e-12)


def test_a_ratio_with_equal_counts_is_a_mean() -> None:
    sums = np.array([3.0, 5.0, 4.0, 9.0])
    assert ratio_error(sums, [2, 2, 2, 2]) == pytest.approx(mean_error(sums / 2), rel=1e-12)


def test_a_ratio_by_cochrans_formula() -> None:
    sums, counts = np.array([30.0, 52.0, 9.0, 80.0]), np.array([10, 20, 4, 25])
    ratio = 171 / 59
    variance = ((sums - ratio * counts) ** 2).sum() / 3 / 4 / (59 / 4) ** 2
    assert ratio_error(sums, counts) == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert ratio_error(counts, counts) == pytest.approx(0, abs=1e-15)


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[draws, clusters] each: counts, and sums of two models that err alike on a cluster."""
    random = np.random.default_rng(0)
    counts = random.integers(5, 50, (DRAWS, CLUSTERS))
    hard = random.normal(3, 0.5, counts.shape)
    first = counts * hard + random.normal(0, 1, counts.shape)
    second = counts * (hard + 0.2) + random.normal(0, 1, counts.shape)
    return counts, first, second


def test_a_ratio_by_simulation() -> None:
    counts, sums, _ = drawn()
    scatter = (sums.sum(1) / counts.sum(1)).std()
    said = np.mean([ratio_error(one, many) for one, many in zip(sums[:300], counts[:300], strict=True)])
    assert said == pytest.approx(scatter, rel=0.05)


def test_paired_ratios_by_simulation() -> None:
    """Much smaller than of two models on different clusters, and as the differences scatter."""
    counts, first, second = drawn()
    scatter = ((first.sum(1) - second.sum(1)) / counts.sum(1)).std()
    said = [
        paired_ratio_error(one, many, other, many)
        for one, other, many in zip(first[:300], second[:300], counts[:300], strict=True)
    ]
    assert np.mean(said) == pytest.approx(scatter, rel=0.05)
    alone = math.hypot(ratio_error(first[0], counts[0]), ratio_error(second[0], counts[0]))
    assert said[0] < alone / 5
    assert paired_ratio_error(first[0], counts[0], first[0], counts[0]) == 0
