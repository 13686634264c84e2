"""Metrics of binary predictions: streaming, mergeable, serializable, weighted, and right on rare labels."""

from mtlzoo.metrics.auc import AUC
from mtlzoo.metrics.calibration import CalibrationRatio, ExpectedCalibrationError
from mtlzoo.metrics.evaluation import DIRECTIONS, TaskEvaluation, direction
from mtlzoo.metrics.gauc import GAUC
from mtlzoo.metrics.log_loss import LogLoss, NormalizedEntropy

__all__ = [
    "AUC",
    "DIRECTIONS",
    "GAUC",
    "CalibrationRatio",
    "ExpectedCalibrationError",
    "LogLoss",
    "NormalizedEntropy",
    "TaskEvaluation",
    "direction",
]
