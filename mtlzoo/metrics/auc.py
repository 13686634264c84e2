"""Area under the ROC curve, right on rare labels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo.metrics.streaming import StreamingMetric, check_count, log_odds_bin


@keras.saving.register_keras_serializable(package="mtlzoo")
class AUC(StreamingMetric):
    """Area under the ROC curve from two histograms over the log-odds of the predictions.

    With `P_i` and `N_i` the weight of the positive and negative rows in bin `i`:

        AUC = sum_i P_i (sum_{j<i} N_j + N_i / 2) / (sum_i P_i  sum_i N_i)

    the probability that a positive row scores above a negative one, ties within a bin counting half. Bins of equal
    width in log-odds resolve probabilities of 0.0005 as well as those near one half; `keras.metrics.AUC` spaces its
    thresholds evenly in probability and sees most rare-label scores in one or two of its bins.

    The error grows with the square of the bin width over the spread of the scores. Measured at 0.05 % positives and one
    million rows against the exact value: at a standard deviation of 0.02 in log-odds 0.0007 with 16,384 bins, 0.0014
    with 8,192, 0.006 with 4,096; at 1.0 below 0.00005 with all of them. Scores in a band narrower still want more bins.

    The result is NaN while there are no positive or no negative rows: no ranking exists to be judged. What the metric
    takes in, and what makes it NaN besides, is told in `StreamingMetric`.

    Args:
        name: Name in the logs. Defaults to `"auc"`.
        num_bins: Number of bins, at least 2. Defaults to 16,384.

    Raises:
        ValueError: `num_bins` is no integer of at least 2.

    Example:
    >>> metric = AUC()
    >>> metric.update_state([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> float(metric.result())
    0.75

    Source: our design; the estimate is the Mann-Whitney statistic of the binned scores.
    """

    def __init__(self, name: str = "auc", num_bins: int = 16384):
        super().__init__(name=name)
        self.num_bins = check_count("AUC", "num_bins", num_bins, least=2)
        self.positives = self.add_sum("positives", (self.num_bins,))
        self.negatives = self.add_sum("negatives", (self.num_bins,))

    def accumulate(self, labels: Any, predictions: Any, weights: Any) -> None:
        """Adds a batch, three float64 tensors `[batch]`, to the histograms."""
        bins = log_odds_bin(predictions, self.num_bins)  # [batch]
        positive = weights * labels
        self.positives.assign_add(ops.segment_sum(positive, bins, self.num_bins))  # [bins]
        self.negatives.assign_add(ops.segment_sum(weights - positive, bins, self.num_bins))

    def result(self) -> Any:
        """The area, a float64 scalar; NaN without positive or without negative rows."""
        positives, negatives = self.positives.value, self.negatives.value
        below = ops.cumsum(negatives) - negatives / 2  # [bins]
        return ops.sum(positives * below) / (ops.sum(positives) * ops.sum(negatives))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "num_bins": self.num_bins}
