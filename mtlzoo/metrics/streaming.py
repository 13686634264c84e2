"""What the streaming metrics of binary labels share: reading a batch, float64 sums, merging, bins in log-odds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

# Log-odds beyond +-20 (probabilities below 2e-9, or as near to 1) share the outermost bins.
LOG_ODDS_LIMIT = 20.0

# Half precision rounds a probability by less than this; what lies further outside [0, 1] is no probability.
_TOLERANCE = 1e-3


class StreamingMetric(keras.metrics.Metric):
    """Base of the metrics that are a function of sums over rows: streaming, mergeable, weighted.

    A subclass creates its sums with `add_sum`, fills them in `accumulate` and reads them in `result`.

    Labels and predictions have shape `[batch]` or `[batch, 1]`; predictions are probabilities of any float dtype. A
    label strictly between 0 and 1 counts as that share of a positive row. `sample_weight` is `None`, a scalar,
    `[batch]` or `[batch, 1]`; a row of weight 0 does not count at all, whatever stands in it. A row that counts makes
    the result NaN where its label or prediction is NaN or outside [0, 1] (a logit, say) or its weight is negative: a
    diverged or misused model must not score well.

    Sums are float64: float32 stops counting ones at 2**24, that is at 17 million rows; float64 at 2**53. Results
    are float64 scalars. In `compile`, pass these metrics as `weighted_metrics`, or they never see the sample weights.
    """

    def __init__(self, name: str):
        super().__init__(name=name, dtype="float64")

    def add_sum(self, name: str, shape: tuple[int, ...] = ()) -> keras.Variable:
        """A float64 variable of zeros; workers add theirs up."""
        return self.add_variable(shape=shape, initializer="zeros", dtype="float64", aggregation="sum", name=name)

    def accumulate(self, labels: Any, predictions: Any, weights: Any) -> None:
        """Adds a batch, three float64 tensors `[batch]`, to the sums."""
        raise NotImplementedError

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Raises:
            ValueError: A shape is neither `[batch]` nor `[batch, 1]`, or the numbers of rows differ.
        """
        self.accumulate(*_rows(y_true, y_pred, sample_weight))

    def merge_state(self, metrics: Iterable[StreamingMetric]) -> None:
        """Adds what other metrics of the same configuration have seen.

        Raises:
            ValueError: A metric is of another class or configuration.
        """
        for metric in metrics:
            check_mergeable(self, metric)
            for own, other in zip(self.variables, metric.variables, strict=True):
                own.assign_add(other.value)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"name": self.name}


def check_mergeable(metric: keras.metrics.Metric, other: keras.metrics.Metric) -> None:
    """Raises a `ValueError` unless both metrics are of one class and, but for their names, one configuration."""
    mine, theirs = ({**m.get_config(), "name": None} for m in (metric, other))
    if type(metric) is not type(other) or mine != theirs:
        raise ValueError(
            f"{type(metric).__name__}.merge_state: cannot merge {type(other).__name__} with {other.get_config()} into "
            f"{type(metric).__name__} with {metric.get_config()}; build both with the same arguments"
        )


def log_odds_bin(predictions: Any, num_bins: int) -> Any:
    """The int32 bin of each probability: `num_bins` bins of equal width in log-odds between -20 and 20."""
    edge = 1.0 / (1.0 + np.exp(LOG_ODDS_LIMIT))
    inner = ops.clip(predictions, edge, 1.0 - edge)
    log_odds = ops.log(inner) - ops.log1p(-inner)
    position = (log_odds + LOG_ODDS_LIMIT) * (num_bins / (2 * LOG_ODDS_LIMIT))
    # Clipped after the cast, so that a NaN too has a bin to poison (its weight is NaN).
    return ops.clip(ops.cast(position, "int32"), 0, num_bins - 1)


def check_count(owner: str, argument: str, value: Any, least: int) -> int:
    """Returns `value` as an int.

    Raises:
        ValueError: `value` is no integer of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{owner}: `{argument}` must be an integer of at least {least}, received {value!r}")
    return int(value)


def _rows(y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Labels, predictions, weights as float64 `[batch]`: rows of weight 0 made neutral, bad rows given weight NaN."""
    labels = _column(y_true, "y_true")  # [batch]
    predictions = _column(y_pred, "y_pred")  # [batch]
    _check_equal_rows(labels, predictions, "y_true")
    if sample_weight is None:
        weights = ops.ones_like(predictions)
    elif len(ops.shape(sample_weight)) == 0:
        weights = ops.ones_like(predictions) * ops.cast(sample_weight, "float64")
    else:
        weights = _column(sample_weight, "sample_weight")
        _check_equal_rows(weights, predictions, "sample_weight")
    counts = ops.not_equal(weights, 0.0)
    # A masked row may hold anything, NaN included, and NaN times 0 would still be NaN.
    labels = ops.where(counts, labels, 0.0)
    predictions = ops.where(counts, predictions, 0.5)
    valid = ops.logical_and(_is_share(labels), _is_share(predictions))
    weights = ops.where(ops.logical_and(valid, weights >= 0.0), weights, np.nan)
    return labels, ops.clip(predictions, 0.0, 1.0), weights


def _is_share(values: Any) -> Any:
    return ops.logical_and(values >= -_TOLERANCE, values <= 1.0 + _TOLERANCE)


def _column(values: Any, name: str) -> Any:
    values = ops.convert_to_tensor(values)
    shape = tuple(values.shape)
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] not in (1, None)):
        raise ValueError(f"`{name}` must have shape [batch] or [batch, 1], received {shape}")
    return ops.reshape(ops.cast(values, "float64"), (-1,))


def _check_equal_rows(values: Any, predictions: Any, name: str) -> None:
    rows, expected = values.shape[0], predictions.shape[0]
    if rows is not None and expected is not None and rows != expected:
        raise ValueError(f"`{name}` has {rows} rows, `y_pred` has {expected}; they must be as many")
