"""Divergence between tasks, against scipy and small hand-computed shares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from mtlzoo.inspection import FeatureImportance, Importance, TaskImportance, divergences, features_by_share
from mtlzoo.inspection.divergence import largest_shares, rank_correlation, shares_of
from mtlzoo.tasks import Task

RNG = np.random.default_rng(0)


def task_of(name: str, means: dict[str, float]) -> TaskImportance:
    features = tuple(FeatureImportance(f, mean, mean - 0.01, mean + 0.01, (mean,)) for f, mean in means.items())
    return TaskImportance(Task(name, name, (), False, True), 100, 20, 100, 0.7 if means else None, features)


def importance_of(**tasks: dict[str, float]) -> Importance:
    return Importance("test", "auc", 1, 100, {name: task_of(name, means) for name, means in tasks.items()})


@pytest.mark.parametrize("levels", [1_000, 4])
def test_rank_correlation_is_scipys(levels):
    for _ in range(20):
        a, b = RNG.integers(0, levels, (2, 15)).tolist()
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b)[0])
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None


def test_tasks_that_agree_and_tasks_that_share_nothing():
    means = {"a": 0.3, "b": 0.1, "c": 0.0, "d": -0.1}
    same, apart = divergences(
        importance_of(click=means, cart={f: 5 * m for f, m in means.items()}, buy={"a": 0, "b": 0, "c": 1, "d": 2})
    )[:2]
    assert (same.tasks, apart.tasks) == (("click", "cart"), ("click", "buy"))
    assert (same.total_variation, same.rank_correlation) == pytest.approx((0.0, 1.0))
    assert apart.total_variation == pytest.approx(1.0)


def test_shares_leave_out_what_is_below_zero():
    importance = importance_of(click={"a": 0.3, "b": 0.1, "c": -0.2}, buy={"a": 0.1, "b": 0.1, "c": 0.2})
    assert shares_of(importance.tasks["click"]) == pytest.approx({"a": 0.75, "b": 0.25, "c": 0.0})
    (pair,) = divergences(importance)
    assert pair.total_variation == pytest.approx((0.5 + 0.0 + 0.5) / 2)
    assert list(largest_shares(importance)) == features_by_share(importance) == ["a", "c", "b"]


def test_what_does_not_exist_is_left_out_or_none():
    nothing = {"a": -0.1, "b": 0.0}
    pairs = divergences(importance_of(click={"a": 0.2, "b": 0.1}, cart=nothing, buy={}))
    assert [pair.tasks for pair in pairs] == [("click", "cart")]
    assert pairs[0].total_variation is None
    assert pairs[0].rank_correlation == pytest.approx(-1.0)
    assert shares_of(task_of("cart", nothing)) == {}
    assert features_by_share(importance_of(cart=nothing)) == ["a", "b"]
    assert features_by_share(importance_of(buy={})) == []
    assert divergences(importance_of(buy={})) == []
