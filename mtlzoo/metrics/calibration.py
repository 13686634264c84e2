"""How far predicted probabilities agree with observed rates, overall and along the range of predictions."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo.metrics.streaming import StreamingMetric, check_count, log_odds_bin


@keras.saving.register_keras_serializable(package="mtlzoo")
class CalibrationRatio(StreamingMetric):
    """Predicted over observed positives; 1 is perfect, above 1 the model promises too much.

        CalibrationRatio = sum_i w_i p_i / sum_i w_i y_i

    NaN without positive rows. What the metric takes in, and what makes it NaN besides, is told in `StreamingMetric`.

    Args:
        name: Name in the logs. Defaults to `"calibration"`.

    Example:
    >>> metric = CalibrationRatio()
    >>> metric.update_state([1, 0, 0, 0], [0.5, 0.25, 0.25, 0.25])
    >>> float(metric.result())
    1.25

    Source: "calibration" in He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook", section 2.
    """

    def __init__(self, name: str = "calibration"):
        super().__init__(name=name)
        self.predicted = self.add_sum("predicted")
        self.observed = self.add_sum("observed")

    def accumulate(self, labels: Any, predictions: Any, weights: Any) -> None:
        """Adds a batch, three float64 tensors `[batch]`, to the sums."""
        self.predicted.assign_add(ops.sum(weights * predictions))
        self.observed.assign_add(ops.sum(weights * labels))

    def result(self) -> Any:
        """The ratio, a float64 scalar; NaN without positive rows."""
        observed = self.observed.value
        return ops.where(ops.equal(observed, 0.0), float("nan"), self.predicted.value / observed)


@keras.saving.register_keras_serializable(package="mtlzoo")
class ExpectedCalibrationError(StreamingMetric):
    """Mean distance between predicted and observed rate over bins of equal weight.

        ECE = sum_b |sum_{i in b} w_i (p_i - y_i)| / sum_i w_i

    Bins of equal width in probability put nearly all rows of a rare label into one. So rows are first sorted into
    `num_cells` cells of equal width in log-odds (between -20 and 20; beyond, into the outermost), and the cells,
    in order, are dealt to `num_bins` bins of about equal weight: cell `c` of weight `W_c` belongs to bin

        b(c) = min(floor(num_bins (sum_{d<c} W_d + W_c / 2) / sum_d W_d), num_bins - 1).

    A cell is never divided, so a bin may be empty where one cell outweighs it. The distance within a bin uses the
    predictions themselves, not the centres of cells. A perfect model's value is above 0 by sampling noise alone.

    NaN before the first row that counts. What the metric takes in, and what makes it NaN besides, is told in
    `StreamingMetric`.

    Args:
        name: Name in the logs. Defaults to `"ece"`.
        num_bins: Number of bins of equal weight, at least 1. Defaults to 15.
        num_cells: Number of cells, at least `num_bins`. Defaults to 4,096: predictions in a cell differ by 1 % at most.

    Raises:
        ValueError: `num_bins` or `num_cells` is no integer or too small.

    Example:
    >>> metric = ExpectedCalibrationError(num_bins=2)
    >>> metric.update_state([0, 0, 1, 1], [0.25, 0.25, 0.75, 0.5])
    >>> float(metric.result())
    0.3125

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", with bins of equal
    weight; the cells are our design.
    """

    def __init__(self, name: str = "ece", num_bins: int = 15, num_cells: int = 4096):
        super().__init__(name=name)
        self.num_bins = check_count("ExpectedCalibrationError", "num_bins", num_bins, least=1)
        self.num_cells = check_count("ExpectedCalibrationError", "num_cells", num_cells, least=self.num_bins)
        self.weight = self.add_sum("weight", (self.num_cells,))
        self.excess = self.add_sum("excess", (self.num_cells,))

    def accumulate(self, labels: Any, predictions: Any, weights: Any) -> None:
        """Adds a batch, three float64 tensors `[batch]`, to the cells."""
        cells = log_odds_bin(predictions, self.num_cells)  # [batch]
        self.weight.assign_add(ops.segment_sum(weights, cells, self.num_cells))  # [cells]
        self.excess.assign_add(ops.segment_sum(weights * (predictions - labels), cells, self.num_cells))

    def result(self) -> Any:
        """The error, a float64 scalar."""
        weight = self.weight.value  # [cells]
        total = ops.sum(weight)
        middle = (ops.cumsum(weight) - weight / 2) / total
        bins = ops.clip(ops.cast(middle * self.num_bins, "int32"), 0, self.num_bins - 1)  # [cells]
        excess = ops.segment_sum(self.excess.value, bins, self.num_bins)  # [bins]
        return ops.sum(ops.absolute(excess)) / total

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "num_bins": self.num_bins, "num_cells": self.num_cells}
