"""Log loss and normalized entropy: hand-computed values and edges."""

from __future__ import annotations

import numpy as np
import pytest

from mtlzoo.metrics import LogLoss, NormalizedEntropy


def value(metric, *batch):
    metric.update_state(*batch)
    return float(metric.result())


def test_by_hand():
    expected = -(np.log(0.8) + 3 * np.log(0.9)) / 4
    assert value(LogLoss(), [1, 0], np.array([0.8, 0.1]), [1, 3]) == pytest.approx(expected, rel=1e-9)


def test_a_certain_error_costs_the_clip():
    assert value(LogLoss(), [1.0], [0.0]) == pytest.approx(-np.log(1e-7), rel=1e-9)
    assert value(LogLoss(), [0.0], [1.0]) == pytest.approx(-np.log(1e-7), rel=1e-6)
    assert value(LogLoss(), [0.0, 1.0], [0.0, 1.0]) == pytest.approx(1e-7, rel=1e-6)


def test_the_base_rate_has_normalized_entropy_one():
    rate = 0.04
    labels = np.repeat([1, 0], [4, 96])
    assert value(NormalizedEntropy(), labels, np.full(100, rate)) == pytest.approx(1.0, rel=1e-9)
    assert value(NormalizedEntropy(), labels, np.where(labels, 0.3, 0.03)) < 1
    assert value(NormalizedEntropy(), labels, np.full(100, 0.1)) > 1


@pytest.mark.parametrize("label", [0, 1])
def test_normalized_entropy_of_one_class_is_nan(label):
    assert np.isnan(value(NormalizedEntropy(), [label, label], [0.1, 0.2]))
