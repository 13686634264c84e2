"""AUC against scikit-learn where it is hard: rare labels, narrow and extreme scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mtlzoo.metrics import AUC


def streamed(y, p, w=None, batch=250_000, **arguments):
    metric = AUC(**arguments)
    for start in range(0, len(y), batch):
        rows = slice(start, start + batch)
        metric.update_state(y[rows], p[rows], None if w is None else w[rows])
    return float(metric.result())


@pytest.mark.parametrize("spread", [2.0, 0.3, 0.02])
@pytest.mark.parametrize("center", [-7.6, -3.0, 5.0])
def test_rare_labels_within_two_thousandths_of_scikit_learn(spread, center):
    rng = np.random.default_rng(7)
    n = 1_000_000
    y = (rng.random(n) < 0.0005).astype(np.float32)
    p = (1 / (1 + np.exp(-center - spread * (rng.normal(size=n) + y)))).astype(np.float32)
    w = rng.integers(0, 4, n).astype(np.float32)
    counts = w > 0
    assert streamed(y, p, w) == pytest.approx(roc_auc_score(y[counts], p[counts], sample_weight=w[counts]), abs=0.002)


def test_extreme_scores():
    rng = np.random.default_rng(3)
    y = (rng.random(5000) < 0.3).astype(np.float32)
    scores = np.array([0.0, 1e-12, 1e-7, 3e-7, 1e-5, 0.5, 0.99999, 1 - 2**-24, 1.0], np.float32)
    p = scores[np.clip(rng.integers(0, 9, 5000) + 2 * y, 0, 8).astype(int)]
    # 0 and 1e-12 lie beyond log-odds -20: they share a bin.
    shared = np.where(p < 1e-10, 0, p)
    assert streamed(y, p) == pytest.approx(roc_auc_score(y, shared), abs=1e-9)


def test_all_scores_equal_is_one_half():
    assert streamed(np.array([0, 1, 0, 1, 1]), np.full(5, 0.04, np.float32)) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_nan(label):
    assert np.isnan(streamed(np.full(4, label), np.array([0.1, 0.2, 0.3, 0.4])))


def test_positives_of_weight_zero_are_no_positives():
    assert np.isnan(streamed(np.array([0, 1]), np.array([0.1, 0.2]), np.array([1, 0])))


def test_a_soft_label_is_a_share_of_a_positive():
    soft = streamed(np.array([0.25, 1.0]), np.array([0.3, 0.2]))
    hard = streamed(np.array([1, 0, 1]), np.array([0.3, 0.3, 0.2]), np.array([0.25, 0.75, 1.0]))
    assert soft == pytest.approx(hard, rel=1e-12)


@pytest.mark.parametrize("num_bins", [1, 2.5, "many", True])
def test_num_bins_is_checked(num_bins):
    with pytest.raises(ValueError, match="`num_bins` must be an integer of at least 2, received"):
        AUC(num_bins=num_bins)
