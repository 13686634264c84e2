"""The numbers that an evaluation prints, and their directions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mtlzoo.metrics import TaskEvaluation, direction

KEYS = ["auc", "gauc", "log_loss", "normalized_entropy", "calibration", "ece", "rows", "positives"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auc", "max"),
        ("val_ctcvr_auc", "max"),
        ("gauc", "max"),
        ("val_click_gauc", "max"),
        ("loss", "min"),
        ("val_loss", "min"),
        ("click_loss", "min"),
        ("val_click_log_loss", "min"),
        ("conversion_normalized_entropy", "min"),
        ("val_ece", "min"),
    ],
)
def test_directions(name, expected):
    assert direction(name) == expected


@pytest.mark.parametrize("name", ["calibration", "val_click_calibration"])
def test_calibration_has_no_direction(name):
    with pytest.raises(ValueError, match="has no direction"):
        direction(name)


@pytest.mark.parametrize("name", ["accuracy", "", "impressions_per_second", "aucs", "xauc"])
def test_unknown_metrics_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown metric .*'auc', 'ece', 'gauc', 'log_loss'"):
        direction(name)


@pytest.fixture
def rows():
    rng = np.random.default_rng(2)
    y = (rng.random((1000, 1)) < 0.2).astype(np.float32)
    p = 1 / (1 + np.exp(1.5 - y - rng.normal(size=(1000, 1))))
    w = (rng.random((1000, 1)) < 0.7).astype(np.float32)
    return y, p.astype(np.float32), w, rng.integers(0, 60, 1000)


def test_all_keys_in_order_and_counts_of_weighted_rows(rows):
    y, p, w, groups = rows
    evaluation = TaskEvaluation(grouped=True)
    evaluation.update(y, p, w, groups)
    result = json.loads(json.dumps(evaluation.result(), allow_nan=False))
    assert list(result) == KEYS
    assert result["rows"] == int(w.sum())
    assert result["positives"] == int((w * y).sum())
    counts = w[:, 0] > 0
    assert result["auc"] == pytest.approx(roc_auc_score(y[counts], p[counts]), abs=1e-3)
    assert 0.5 < result["gauc"] < 1


def test_merging_equals_one_pass(rows):
    whole, left, right = (TaskEvaluation(grouped=True) for _ in range(3))
    whole.update(*rows)
    left.update(*(a[:300] for a in rows))
    right.update(*(a[300:] for a in rows))
    left.merge([right])
    assert left.result() == pytest.approx(whole.result(), rel=1e-9)


def test_without_groups_gauc_is_none(rows):
    evaluation = TaskEvaluation()
    evaluation.update(*rows[:2])
    assert evaluation.result()["gauc"] is None
    assert evaluation.result()["rows"] == 1000
    with pytest.raises(ValueError, match="cannot merge a grouped evaluation"):
        evaluation.merge([TaskEvaluation(grouped=True)])


def test_what_cannot_be_said_is_none():
    evaluation = TaskEvaluation()
    evaluation.update(np.zeros(3), np.full(3, 0.1))
    result = evaluation.result()
    assert result["positives"] == 0
    assert [result[key] for key in ("auc", "normalized_entropy", "calibration")] == [None] * 3
    assert result["log_loss"] == pytest.approx(-np.log(0.9))
