"""Statistics over seeds: means and paired gains with 95 % intervals, and Holm's correction for many comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

ALPHA = 0.05


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; the interval is NaN where a single value leaves it open."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width: what stands behind +-."""
        return (self.high - self.low) / 2.0

    def text(self, sign: str = "") -> str:
        """`0.1234 ± 0.0056`, with `?` for an open interval; `sign="+"` shows the mean's sign always."""
        half = "?" if math.isnan(self.half) else f"{self.half:.4f}"
        return f"{self.mean:{sign}.4f} ± {half}"


@dataclass(frozen=True)
class Gain:
    """A mean paired difference.

    Attributes:
        interval: Mean of the differences, and its 95 % interval (for this comparison alone).
        p: Two-sided p of the paired t-test; NaN where a single pair leaves it open.
        wins: Pairs in which the difference is above 0.
        pairs: Pairs in all.
    """

    interval: Interval
    p: float
    wins: int
    pairs: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with its 95 % interval by Student's t.

        mean +- t_(0.975, n - 1) s / sqrt(n),   s^2 = sum_i (x_i - mean)^2 / (n - 1)

    Args:
        values: One or more numbers, independent of each other.

    Raises:
        ValueError: There are none.

    Example:
        >>> interval = mean_interval([1.0, 2.0, 3.0])
        >>> round(interval.low, 3), round(interval.high, 3)
        (-0.484, 4.484)

    Source: Student, "The probable error of a mean" (Biometrika 1908).
    """
    if not values:
        raise ValueError("there are no values to take a mean of")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    quantile = float(student.ppf(1.0 - ALPHA / 2.0, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_gain(values: Sequence[float], others: Sequence[float]) -> Gain:
    """By how much `values` lie above `others`, pair by pair.

        d_i = values_i - others_i,   p = 2 P(T_(n - 1) > |mean(d)| sqrt(n) / s_d)

    Differences that are all the same leave no doubt: p is 1 if they are 0, otherwise 0.

    Args:
        values: A number per seed.
        others: What it is compared with, of the same seeds in the same order.

    Raises:
        ValueError: There are none, or not as many of the one as of the other.

    Example:
        >>> gain = paired_gain([0.71, 0.74, 0.73], [0.70, 0.72, 0.70])
        >>> round(gain.interval.mean, 3), round(gain.p, 3), f"{gain.wins}/{gain.pairs}"
        (0.02, 0.074, '3/3')

    Source: Student (1908), his second example.
    """
    if len(values) != len(others):
        raise ValueError(f"pairs are needed, there are {len(values)} values and {len(others)} others")
    differences = [a - b for a, b in zip(values, others, strict=True)]
    interval = mean_interval(differences)
    wins = sum(d > 0.0 for d in differences)
    return Gain(interval, _two_sided_p(differences), wins, len(differences))


def _two_sided_p(differences: list[float]) -> float:
    if len(differences) == 1:
        return math.nan
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    statistic = abs(mean) * math.sqrt(len(differences)) / deviation
    return float(2.0 * student.sf(statistic, len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of m comparisons made together, corrected so that one false alarm among them keeps its 5 %.

        p'_(i) = max_(j <= i) min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Args:
        p_values: Of the m comparisons; NaN stands for one that could not be made, and does not count.

    Returns:
        The corrected ones in the same order, NaN where NaN was.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of Statistics 1979).
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[i] = largest
    return corrected


def verdict(gain: Gain, corrected_p: float) -> str:
    """`"gain"` or `"loss"` where the corrected p is below 5 %, else `"not shown"`."""
    if not corrected_p < ALPHA:
        return "not shown"
    return "gain" if gain.interval.mean > 0.0 else "loss"
