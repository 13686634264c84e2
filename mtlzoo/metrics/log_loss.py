"""Log loss, and log loss relative to that of the base rate."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo.metrics.streaming import StreamingMetric

# A prediction is kept this far from 0 and 1, so one row costs 16.1 at most.
CLIP = 1e-7


@keras.saving.register_keras_serializable(package="mtlzoo")
class LogLoss(StreamingMetric):
    """Weighted mean binary log loss in nats, over all rows since the last reset.

        LogLoss = -sum_i w_i (y_i log p_i + (1 - y_i) log(1 - p_i)) / sum_i w_i

    with `p` clipped to [1e-7, 1 - 1e-7]. NaN before the first row that counts. What the metric takes in, and what
    makes it NaN besides, is told in `StreamingMetric`.

    Args:
        name: Name in the logs. Defaults to `"log_loss"`.

    Example:
    >>> metric = LogLoss()
    >>> metric.update_state([1, 0], [0.5, 0.5])
    >>> round(float(metric.result()), 4)
    0.6931
    """

    def __init__(self, name: str = "log_loss"):
        super().__init__(name=name)
        self.loss = self.add_sum("loss")
        self.weight = self.add_sum("weight")

    def accumulate(self, labels: Any, predictions: Any, weights: Any) -> None:
        """Adds a batch, three float64 tensors `[batch]`, to the sums."""
        predictions = ops.clip(predictions, CLIP, 1.0 - CLIP)
        losses = -(labels * ops.log(predictions) + (1.0 - labels) * ops.log1p(-predictions))  # [batch]
        self.loss.assign_add(ops.sum(weights * losses))
        self.weight.assign_add(ops.sum(weights))

    def result(self) -> Any:
        """The mean loss, a float64 scalar."""
        return self.loss.value / self.weight.value


@keras.saving.register_keras_serializable(package="mtlzoo")
class NormalizedEntropy(LogLoss):
    """Log loss divided by the log loss of always predicting the average label.

        NE = LogLoss / H(m),    H(m) = -(m log m + (1 - m) log(1 - m)),    m = sum_i w_i y_i / sum_i w_i

    1 is what the base rate alone reaches, lower is better, and unlike the log loss it compares across base rates. NaN
    without positive or without negative rows, where `H` is 0. Predictions are clipped as in `LogLoss`.

    Args:
        name: Name in the logs. Defaults to `"normalized_entropy"`.

    Example:
    >>> metric = NormalizedEntropy()
    >>> metric.update_state([1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25])
    >>> round(float(metric.result()), 4)
    1.0

    Source: He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook", eq. 1.
    """

    def __init__(self, name: str = "normalized_entropy"):
        super().__init__(name=name)
        self.positives = self.add_sum("positives")

    def accumulate(self, labels: Any, predictions: Any, weights: Any) -> None:
        """Adds a batch, three float64 tensors `[batch]`, to the sums."""
        super().accumulate(labels, predictions, weights)
        self.positives.assign_add(ops.sum(weights * labels))

    def result(self) -> Any:
        """The ratio, a float64 scalar; NaN without positive or without negative rows."""
        mean = self.positives.value / self.weight.value
        # At a mean of 0 or 1 this is 0 * log(0) = NaN: the wanted answer.
        entropy = -(mean * ops.log(mean) + (1.0 - mean) * ops.log(1.0 - mean))
        return super().result() / entropy
