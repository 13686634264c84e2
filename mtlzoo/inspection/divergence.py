"""How differently two tasks weigh the features."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mtlzoo.inspection.importance import Importance, TaskImportance


@dataclass(frozen=True)
class Divergence:
    """How differently two tasks weigh the features.

        share_f(t)       = max(importance(t, f), 0) / sum_g max(importance(t, g), 0)
        total variation  = 1/2 sum_f |share_f(a) - share_f(b)|
        rank correlation = correlation of the features' ranks by importance, ties sharing their mean rank

    The total variation is the part of one task's importance that would have to move to other features to become the
    other's: 0 where the tasks weigh all features alike, 1 where they use different ones. Errors of the importances
    make it larger; between two tasks that are the same it is above 0.

    Attributes:
        tasks: The two tasks.
        total_variation: In [0, 1]; `None` where a task has no feature of positive importance.
        rank_correlation: Spearman's, in [-1, 1]; `None` where the importances of a task are all the same.

    Source: Spearman 1904 (American Journal of Psychology 15); the choice of the two is our design.
    """

    tasks: tuple[str, str]
    total_variation: float | None
    rank_correlation: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "tasks": self.tasks,
            "total_variation": self.total_variation,
            "rank_correlation": self.rank_correlation,
        }


def divergences(importance: Importance) -> list[Divergence]:
    """How differently each pair of tasks weighs the features.

    Args:
        importance: From `permutation_importance`.

    Returns:
        One entry for each pair of the tasks that have importances.

    Example:
        >>> pair = divergences(permutation_importance(model, dataset, repeats=2))[0]
        >>> pair.tasks, round(pair.total_variation, 2)
        (('click', 'conversion'), 0.41)

    Source: our design.
    """
    found = []
    for a, b in combinations([task for task in importance.tasks.values() if task.features], 2):
        first, second = shares_of(a), shares_of(b)
        distance = None
        if first and second:
            distance = sum(abs(first[name] - second[name]) for name in first) / 2.0
        ranks = rank_correlation(*([feature.mean for feature in task.features] for task in (a, b)))
        found.append(Divergence((a.task.name, b.task.name), distance, ranks))
    return found


def shares_of(task: TaskImportance) -> dict[str, float]:
    """By feature its share of the task's importance, in [0, 1]; empty where no feature has a positive one."""
    positive = {feature.feature: max(feature.mean, 0.0) for feature in task.features}
    total = sum(positive.values())
    return {name: value / total for name, value in positive.items()} if total else {}


def largest_shares(importance: Importance) -> dict[str, float]:
    """By feature its largest share of any task's importance, from the largest to the smallest."""
    shares = [shares_of(task) for task in importance.tasks.values()]
    names = next((list(of_task) for of_task in shares if of_task), [])
    largest = {name: max(of_task.get(name, 0.0) for of_task in shares) for name in names}
    return dict(sorted(largest.items(), key=lambda item: -item[1]))


def rank_correlation(a: list[float], b: list[float]) -> float | None:
    """Spearman's correlation of two lists of the same length; `None` where one of them is constant.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
        0.5

    Source: Spearman 1904 (American Journal of Psychology 15).
    """
    first, second = (_centred_ranks(np.asarray(values)) for values in (a, b))
    scale = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(np.sum(first * second) / scale) if scale else None


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks minus their mean; ties share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2.0
    return ranks[group] - (len(values) + 1) / 2.0
