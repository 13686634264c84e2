"""What an evaluation of one task prints, and which way each number should go."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from mtlzoo.metrics.auc import AUC
from mtlzoo.metrics.calibration import CalibrationRatio, ExpectedCalibrationError
from mtlzoo.metrics.gauc import GAUC
from mtlzoo.metrics.log_loss import LogLoss, NormalizedEntropy

DIRECTIONS: dict[str, Literal["max", "min"]] = {
    "auc": "max",
    "gauc": "max",
    "log_loss": "min",
    "normalized_entropy": "min",
    "ece": "min",
    "loss": "min",
}


def direction(metric_name: str) -> Literal["max", "min"]:
    """Whether a metric should rise or fall, by the name it has in the logs (`"val_ctcvr_auc"`, `"loss"`).

    Give it to `EarlyStopping`, `ModelCheckpoint` and KerasTuner: Keras's `mode="auto"` guesses, and minimises an AUC
    that it does not know.

    Raises:
        ValueError: The metric has no direction (calibration is best at 1), or its name is unknown.

    Example:
    >>> direction("val_ctcvr_auc")
    'max'
    """
    for known, way in DIRECTIONS.items():
        if _ends_in(metric_name, known):
            return way
    if _ends_in(metric_name, "calibration"):
        raise ValueError(
            f"{metric_name!r} has no direction: a calibration ratio is best at 1, neither high nor low; "
            "select by log_loss, normalized_entropy or ece instead"
        )
    raise ValueError(f"unknown metric {metric_name!r}: its name must be or end in '_' and one of {sorted(DIRECTIONS)}")


def _ends_in(metric_name: str, known: str) -> bool:
    return metric_name == known or metric_name.endswith(f"_{known}")


class TaskEvaluation:
    """All metrics of one task, and its rows and positives: streaming, mergeable, eager.

    Args:
        grouped: Whether `update` gets the groups, and GAUC is computed. Defaults to `False`.

    Example:
    >>> evaluation = TaskEvaluation(grouped=True)
    >>> evaluation.update([0, 1, 0, 1], [0.1, 0.4, 0.3, 0.8], groups=[1, 1, 2, 2])
    >>> evaluation.result()["auc"], evaluation.result()["rows"]
    (1.0, 4)
    """

    def __init__(self, grouped: bool = False):
        metrics = (AUC(), LogLoss(), NormalizedEntropy(), CalibrationRatio(), ExpectedCalibrationError())
        self.metrics: dict[str, keras.metrics.Metric] = {metric.name: metric for metric in metrics}
        self.gauc = GAUC() if grouped else None
        self.rows = 0
        self.positives = 0

    def update(self, labels: Any, predictions: Any, weights: Any = None, groups: Any = None) -> None:
        """Adds a batch; shapes `[batch]` or `[batch, 1]`. Large batches (65,536 rows) are the fastest.

        Raises:
            ValueError: Shapes do not fit, or `groups` is missing in a grouped evaluation.
        """
        if self.gauc is not None:
            self.gauc.update_state(labels, predictions, weights, groups=groups)
        for metric in self.metrics.values():
            metric.update_state(labels, predictions, weights)
        positive = np.reshape(ops.convert_to_numpy(labels), -1) > 0.5
        counts = np.ones_like(positive) if weights is None else np.reshape(ops.convert_to_numpy(weights), -1) != 0
        self.rows += int(np.broadcast_to(counts, positive.shape).sum())
        self.positives += int((positive & counts).sum())

    def merge(self, evaluations: Iterable[TaskEvaluation]) -> None:
        """Adds what other evaluations of the same task have seen.

        Raises:
            ValueError: One is grouped and the other is not.
        """
        for other in evaluations:
            if (self.gauc is None) != (other.gauc is None):
                raise ValueError("cannot merge a grouped evaluation with one that is not; give both the same `grouped`")
            if self.gauc is not None and other.gauc is not None:
                self.gauc.merge_state([other.gauc])
            for name, metric in self.metrics.items():
                metric.merge_state([other.metrics[name]])
            self.rows += other.rows
            self.positives += other.positives

    def result(self) -> dict[str, float | int | None]:
        """`auc`, `gauc`, `log_loss`, `normalized_entropy`, `calibration`, `ece`, `rows`, `positives`, ready for JSON.

        `None` stands for what cannot be said: a NaN, or GAUC without groups. `rows` and `positives` count the rows
        whose weight is not 0.
        """
        values = {name: float(metric.result()) for name, metric in self.metrics.items()}
        values["gauc"] = float("nan") if self.gauc is None else self.gauc.result()
        keys = ("auc", "gauc", "log_loss", "normalized_entropy", "calibration", "ece")
        scores = {key: None if math.isnan(values[key]) else values[key] for key in keys}
        return {**scores, "rows": self.rows, "positives": self.positives}
