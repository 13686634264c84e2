"""Calibration ratio and expected calibration error: hand-computed values and behaviour at click rates."""

from __future__ import annotations

import numpy as np
import pytest

from mtlzoo.metrics import CalibrationRatio, ExpectedCalibrationError


def value(metric, *batch):
    metric.update_state(*batch)
    return float(metric.result())


def test_ratio_by_hand():
    assert value(CalibrationRatio(), [1, 0, 1], [0.5, 0.5, 1.0], [1, 2, 1]) == 1.25


def test_ratio_without_positives_is_nan():
    assert np.isnan(value(CalibrationRatio(), [0, 0], [0.1, 0.2]))


def test_error_by_hand_in_two_bins():
    labels, predictions = [0, 0, 1, 1], [0.25, 0.25, 0.75, 0.5]
    assert value(ExpectedCalibrationError(num_bins=2), labels, predictions) == (0.5 + 0.75) / 4


def test_error_of_one_bin_is_the_total_difference():
    metric = ExpectedCalibrationError(num_bins=1)
    assert value(metric, [1, 0, 0], np.array([0.2, 0.3, 0.2])) == pytest.approx(0.1, abs=1e-12)


@pytest.fixture(scope="module")
def clicks():
    rng = np.random.default_rng(5)
    p = 1 / (1 + np.exp(3.5 - rng.normal(size=400_000)))
    return (rng.random(400_000) < p).astype(np.float32), p


def test_error_agrees_with_quantile_bins_of_the_sorted_rows(clicks):
    y, p = clicks
    wrong = p**0.8
    order = np.argsort(wrong)
    parts = np.array_split((wrong - y)[order], 15)
    expected = sum(abs(part.sum()) for part in parts) / len(y)
    assert expected > 0.01
    assert value(ExpectedCalibrationError(), y, wrong) == pytest.approx(expected, rel=0.01)


def test_error_sees_what_bins_of_equal_width_hide(clicks):
    """Off by a quarter up and down the range but right on average, all far below 1/15."""
    y, p = clicks
    p, y = p[p < 1 / 15], y[p < 1 / 15]
    low = p < np.median(p)
    factor = np.where(low, 0.75, 1 + 0.25 * p[low].sum() / p[~low].sum())
    wrong = p * factor
    assert abs(wrong.mean() - p.mean()) < 1e-9
    one_bin = abs((wrong - y).mean())
    assert value(ExpectedCalibrationError(), y, wrong) > 5 * one_bin


def test_a_calibrated_model_has_an_error_of_sampling_noise(clicks):
    y, p = clicks
    noise = np.sqrt((p * (1 - p)).mean() * 15 / len(y))
    assert value(ExpectedCalibrationError(), y, p) < 2 * noise


@pytest.mark.parametrize(("num_bins", "num_cells"), [(0, 10), (15, 14), (2.0, 10)])
def test_arguments_are_checked(num_bins, num_cells):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        ExpectedCalibrationError(num_bins=num_bins, num_cells=num_cells)
