"""Scores row by row, against scikit-learn and loops over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from mtlzoo.inspection.scores import mean_and_error, row_scores

RNG = np.random.default_rng(0)


def rows(count: int, ties: int | None = None):
    labels = RNG.random(count) < 0.3
    predictions = np.clip(RNG.random(count) * 0.7 + 0.2 * labels, 0, 1).astype("float32")
    if ties is not None:
        predictions = (np.round(predictions * ties) / ties).astype("float32")
    return labels, predictions, RNG.exponential(size=count)


@pytest.mark.parametrize("ties", [None, 5])
def test_means_are_scikit_learns_scores(ties):
    labels, predictions, weights = rows(500, ties)
    scores = row_scores("auc", labels, predictions, weights)
    expected = roc_auc_score(labels, predictions, sample_weight=weights)
    assert mean_and_error("auc", labels, scores, weights)[0] == pytest.approx(expected, rel=1e-12)
    assert np.average(scores[~labels], weights=weights[~labels]) == pytest.approx(expected, rel=1e-12)
    scores = row_scores("log_loss", labels, predictions, weights)
    expected = -log_loss(labels, np.clip(predictions.astype(float), 1e-7, 1 - 1e-7), sample_weight=weights)
    assert mean_and_error("log_loss", labels, scores, weights)[0] == pytest.approx(expected, rel=1e-9)


def test_components_of_the_auc_by_looking_at_every_pair():
    labels, predictions, weights = rows(60, ties=8)
    scores = row_scores("auc", labels, predictions, weights)
    for i in range(60):
        others = labels != labels[i]
        lower = predictions < predictions[i] if labels[i] else predictions > predictions[i]
        wins = lower + 0.5 * (predictions == predictions[i])
        assert scores[i] == pytest.approx(np.average(wins[others], weights=weights[others]))


def test_the_error_is_that_of_many_draws():
    means, errors = [], []
    for _ in range(400):
        labels = RNG.random(300) < 0.3
        predictions = RNG.normal(labels * 1.0)
        weights = np.ones(300)
        mean, error = mean_and_error("auc", labels, row_scores("auc", labels, predictions, weights), weights)
        means.append(mean)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_the_error_of_a_mean_is_the_usual_one():
    scores = RNG.normal(size=50)
    mean, error = mean_and_error("log_loss", np.ones(50, bool), scores, np.full(50, 7.0))
    assert mean == pytest.approx(scores.mean())
    assert error == pytest.approx(scores.std(ddof=1) / math.sqrt(50))


def test_a_single_row_of_a_class_leaves_the_error_open():
    labels = np.array([True, False, False])
    scores = row_scores("auc", labels, np.array([0.5, 0.1, 0.7]), np.ones(3))
    mean, error = mean_and_error("auc", labels, scores, np.ones(3))
    assert mean == 0.5
    assert math.isnan(error)


def test_certain_and_wrong_predictions_are_clipped():
    scores = row_scores("log_loss", np.array([True, False]), np.array([0.0, 1.0], "float32"), np.ones(2))
    np.testing.assert_allclose(scores, math.log(1e-7))
