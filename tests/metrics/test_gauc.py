"""GAUC against a loop of scikit-learn over the groups; sampling of groups; merging."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mtlzoo.metrics import GAUC


def reference(y, p, w, groups):
    total = weight = 0.0
    for group in np.unique(groups[w > 0]):
        rows = (groups == group) & (w > 0)
        if len(np.unique(y[rows])) == 2:
            total += w[rows].sum() * roc_auc_score(y[rows], p[rows], sample_weight=w[rows])
            weight += w[rows].sum()
    return total / weight if weight else float("nan")


def data(seed, n, num_groups):
    rng = np.random.default_rng(seed)
    groups = rng.integers(-num_groups // 2, num_groups // 2 + 1, n)
    y = (rng.random(n) < 0.4).astype(np.float32)
    p = (rng.integers(0, 8, n) / 8 + 0.01 * (groups % 3)).astype(np.float32)  # with ties
    return y, p, rng.choice([0.0, 0.5, 1.0, 2.0], n), groups


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 120), num_groups=st.integers(1, 20), cut=st.integers(0, 120))
def test_equals_scikit_learn_group_by_group_in_any_split(seed, n, num_groups, cut):
    y, p, w, groups = data(seed, n, num_groups)
    one, left, right = GAUC(), GAUC(), GAUC()
    one.update_state(y, p, w, groups=groups)
    left.update_state(y[:cut, None], p[:cut, None], w[:cut, None], groups=groups[:cut, None])
    right.update_state(y[cut:], p[cut:], w[cut:], groups=groups[cut:])
    left.merge_state([right])
    for metric in (one, left):
        assert metric.result() == pytest.approx(reference(y, p, w, groups), rel=1e-9, nan_ok=True)


def test_by_hand_weighted_by_impressions():
    metric = GAUC()
    # Group 1: AUC 1 with 2 impressions; group 2: AUC 1/4 (a tie and an inversion) with 3; group 3: one class only.
    metric.update_state([1, 0, 1, 0, 0, 1], [0.9, 0.1, 0.3, 0.3, 0.8, 0.5], groups=[1, 1, 2, 2, 2, 3])
    assert metric.result() == pytest.approx((2 * 1 + 3 * 0.25) / 5)


def test_neighbouring_groups_do_not_tie():
    """The last score of one group equals the first of the next."""
    metric = GAUC()
    metric.update_state([0, 1, 0, 1], [0.2, 0.5, 0.5, 0.7], groups=[1, 1, 2, 2])
    assert metric.result() == 1.0


def test_nothing_to_average_is_nan():
    metric = GAUC()
    assert np.isnan(metric.result())
    metric.update_state([1, 0], [0.1, 0.2], groups=[1, 2])
    assert np.isnan(metric.result())


def test_a_nan_prediction_makes_it_nan_unless_masked():
    metric = GAUC()
    metric.update_state([1, 0, 1], [0.3, 0.2, np.nan], [1, 1, 0], groups=[1, 1, 1])
    assert metric.result() == 1.0
    metric.update_state([1], [np.nan], groups=[1])
    assert np.isnan(metric.result())


@pytest.mark.parametrize(("label", "weight"), [(-1.0, 1.0), (np.nan, 1.0), (0.0, -1.0)])
def test_a_bad_label_or_weight_makes_it_nan(label, weight):
    metric = GAUC()
    metric.update_state([1, 0, label], [0.3, 0.2, 0.1], [1, 1, weight], groups=[1, 1, 1])
    assert np.isnan(metric.result())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_predictions(dtype):
    p = keras.ops.cast([0.5, 0.25, 0.75], dtype)
    metric = GAUC()
    metric.update_state([1, 0, 0], p, groups=keras.ops.convert_to_tensor([4, 4, 4]))
    assert metric.result() == 0.5


def sampled(order, y, p, groups, parts=1, batch=500):
    metrics = [GAUC(max_rows=2000) for _ in range(parts)]
    for k, rows in enumerate(np.array_split(order, len(order) // batch)):
        metrics[k % parts].update_state(y[rows], p[rows], groups=groups[rows])
    metrics[0].merge_state(metrics[1:])
    return metrics[0]


def test_beyond_max_rows_it_keeps_whole_groups_whatever_the_order_or_the_worker():
    rng = np.random.default_rng(0)
    n = 20_000
    y, p, _, groups = data(0, n, 4000)
    results = {
        (metric.result(), metric.sampled_share)
        for order in (np.arange(n), rng.permutation(n))
        for parts in (1, 3)
        for metric in [sampled(order, y, p, groups, parts)]
    }
    (_, share), *others = results
    assert share == 1 / 16  # 20,000 rows: 1/8 of the groups keep about 2,500, 1/16 about 1,250
    assert all(other[1] == share for other in others)
    np.testing.assert_allclose([r for r, _ in results], next(iter(results))[0], rtol=1e-12)


def test_the_sample_bounds_the_rows_and_is_unbiased_over_groups():
    """Shifting the ids draws another sample; the mean over samples must meet the exact value."""
    rng = np.random.default_rng(1)
    n = 8000
    groups = rng.integers(0, 1500, n)
    y = (rng.random(n) < 0.5).astype(np.float32)
    p = 1 / (1 + np.exp(-rng.normal(size=n) - y * (groups % 3)))
    exact = GAUC()
    exact.update_state(y, p, groups=groups)
    estimates = []
    for shift in range(60):
        metric = GAUC(max_rows=3000)
        metric.update_state(y, p, groups=groups + shift * 10_000)
        assert metric.sampled_share in (0.5, 0.25)
        estimates.append(metric.result())
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert 0 < error < 0.005
    assert abs(np.mean(estimates) - exact.result()) < 4 * error


def test_a_group_that_cannot_fit_ends_in_nan_not_in_a_loop():
    metric = GAUC(max_rows=3)
    metric.update_state(np.arange(8) % 2, np.linspace(0, 1, 8), groups=np.full(8, 5))
    assert np.isnan(metric.result())


def test_reset_restores_the_full_share():
    metric = GAUC(max_rows=10)
    metric.update_state(np.arange(40) % 2, np.linspace(0, 1, 40), groups=np.arange(40) // 2)
    assert metric.sampled_share < 1
    metric.reset_state()
    assert metric.sampled_share == 1
    metric.update_state([0, 1], [0.1, 0.2], groups=[1, 1])
    assert metric.result() == 1.0


def test_survives_serialization():
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(GAUC("user_auc", max_rows=9)))
    assert again.get_config() == {"name": "user_auc", "max_rows": 9}


def test_misuse_is_refused():
    metric = GAUC()
    with pytest.raises(ValueError, match="GAUC needs the group of every row"):
        metric.update_state([0, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="`groups` must hold integers, received float64"):
        metric.update_state([0, 1], [0.1, 0.2], groups=np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="`groups` has 3 rows, `y_pred` has 2"):
        metric.update_state([0, 1], [0.1, 0.2], groups=[1, 2, 3])
    with pytest.raises(ValueError, match=r"`y_pred` must have shape \[batch\] or \[batch, 1\]"):
        metric.update_state([0, 1], [[0.1, 0.2]], groups=[1, 2])
    with pytest.raises(ValueError, match="`max_rows` must be an integer of at least 1, received 0"):
        GAUC(max_rows=0)
    with pytest.raises(ValueError, match="cannot merge"):
        metric.merge_state([GAUC(max_rows=5)])


def test_in_a_graph_it_says_that_it_is_eager_only():
    update = tf.function(lambda p: GAUC().update_state([0, 1], p, groups=[1, 1]))
    with pytest.raises(ValueError, match="GAUC runs eagerly only, `y_pred` is a symbolic tensor"):
        update(tf.constant([0.1, 0.2]))


def test_in_compile_it_says_what_to_use():
    model = keras.Sequential([keras.layers.Dense(1, "sigmoid")])
    model.compile(loss="binary_crossentropy", weighted_metrics=[GAUC()])
    with pytest.raises(ValueError, match="`compile` and `fit` cannot pass groups, use AUC there"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
