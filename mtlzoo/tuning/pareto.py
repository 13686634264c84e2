"""Pareto fronts: which trials are beaten by none, and how a search spreads over the front."""

from __future__ import annotations

import numpy as np

# Share of the plain sum in the mixture; it keeps weakly dominated points from being as good as their betters.
_AUGMENTATION = 0.05


def front(costs: np.ndarray) -> np.ndarray:
    """Which points no other point dominates: none is as good in every cost and better in one.

    Args:
        costs: `[points, measures]`, low is good.

    Returns:
        Booleans `[points]`. Of equal points all are kept.

    Example:
        >>> front(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])).tolist()
        [True, True, False]

    Source: the definition.
    """
    as_good = (costs[:, None, :] <= costs[None, :, :]).all(axis=2)  # [i, j]: i is as good as j in everything
    better = (costs[:, None, :] < costs[None, :, :]).any(axis=2)
    return np.logical_not((as_good & better).any(axis=0))


def mixture(costs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Points as one number each, for one direction through the front: the augmented Chebyshev distance.

        c'_j = (c_j - min_j) / (max_j - min_j),    value = max_j w_j c'_j + 0.05 sum_j w_j c'_j

    Whatever the weights, its minimum is on the front, and each point of the front, also in its hollows, is the minimum
    for some weights; that is not so for a weighted sum.

    Args:
        costs: `[points, measures]`, low is good.
        weights: `[measures]`, at least 0, of sum 1.

    Returns:
        `[points]`, low is good.

    Example:
        >>> mixture(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0.9, 0.1])).round(3).tolist()
        [0.105, 0.945]

    Source: Knowles, "ParEGO" (IEEE Transactions on Evolutionary Computation, 2006), eq. 2.
    """
    low, high = costs.min(axis=0), costs.max(axis=0)
    scaled = weights * (costs - low) / np.where(high > low, high - low, 1.0)
    return scaled.max(axis=1) + _AUGMENTATION * scaled.sum(axis=1)


def drawn_weights(measures: int, seed: int, trial: int) -> np.ndarray:
    """Weights of a trial's mixture, uniform on the simplex, from the seed and the number of the trial alone.

    Args:
        measures: How many.
        seed: Of the search.
        trial: Number of trials before it.

    Returns:
        `[measures]`, of sum 1.

    Source: Knowles (2006), section 3, draws from an even grid; the whole simplex is our design.
    """
    return np.random.default_rng([seed, trial]).dirichlet(np.ones(measures))


def middle(costs: np.ndarray) -> int:
    """The point of a front that is nearest to the best of every measure: that of the evenly weighted mixture.

    Args:
        costs: `[points, measures]`, low is good.

    Returns:
        Its index.

    Source: our design.
    """
    return int(np.argmin(mixture(costs, np.full(costs.shape[1], 1 / costs.shape[1]))))
