"""How far a measured mean, ratio or difference may be off by the choice of the items: standard errors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def mean_error(values: ArrayLike) -> float:
    """Of the mean of ``values`` [n]: their sample standard deviation over the root of n; not a number for fewer than two."""
    found = np.asarray(values, np.float64).tolist()
    if len(found) < 2:
        return math.nan
    # Added up one by one: an evaluation harness does, and figures of the two are to be the same to the last digit.
    mean = sum(found) / len(found)
    return math.sqrt(sum([(value - mean) ** 2 for value in found]) / (len(found) - 1)) / math.sqrt(len(found))


def paired_error(first: ArrayLike, second: ArrayLike) -> float:
    """Of the difference of two means over the same items, [n] each: that of the mean of the items' differences."""
    return mean_error(np.subtract(first, second, dtype=np.float64))


def ratio_error(sums: ArrayLike, counts: ArrayLike) -> float:
    """Of sum(``sums``) / sum(``counts``) over n clusters drawn as wholes, [n] each, as of the loss a token over documents.

    The ratio is taken for linear in the totals about where it is: a cluster moves it by its residual, its sum less the
    ratio times its count, over the total count. Not a number for fewer than two clusters.

    After W. G. Cochran, Sampling Techniques, third edition (Wiley, 1977), chapter 6, without a finite population.
    """
    return _error_of_total(_influence(sums, counts))


def paired_ratio_error(
    first_sums: ArrayLike, first_counts: ArrayLike, second_sums: ArrayLike, second_counts: ArrayLike
) -> float:
    """Of the difference of two ratios as in `ratio_error` over the same clusters, [n] each."""
    return _error_of_total(_influence(first_sums, first_counts) - _influence(second_sums, second_counts))


def _influence(sums: ArrayLike, counts: ArrayLike) -> np.ndarray:
    """By how much each cluster moves the ratio from where the others leave it, to first order; they add up to zero."""
    above, below = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    return (above - above.sum() / below.sum() * below) / below.sum()


def _error_of_total(terms: np.ndarray) -> float:
    """Of a sum of independent terms whose mean is zero."""
    return len(terms) * mean_error(terms) if len(terms) > 1 else math.nan
