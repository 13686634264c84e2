"""What each row brings into the score of a task, so that scores come with a standard error."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from mtlzoo.metrics.log_loss import CLIP

Measure = Literal["auc", "log_loss"]
MEASURES: tuple[Measure, ...] = ("auc", "log_loss")


def row_scores(measure: Measure, labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The score of a task, row by row; higher is better.

        auc:       of a positive row the share of the negatives' weight that scores below it, of a negative row the
                   share of the positives' weight that scores above it; ties count half
        log_loss:  y log p + (1 - y) log(1 - p),  p clipped to [1e-7, 1 - 1e-7]

    The weighted mean over the positives (as well as that over the negatives) is the AUC, the weighted mean over all
    rows minus the log loss.

    Args:
        measure: `"auc"` or `"log_loss"`.
        labels: bool `[n]`, of both classes.
        predictions: Probabilities `[n]`, none of them NaN.
        weights: float64 `[n]`, above 0.

    Returns:
        float64 `[n]`.

    Example:
        >>> row_scores("auc", np.array([False, True, False]), np.array([0.1, 0.4, 0.5]), np.ones(3)).tolist()
        [1.0, 0.5, 0.0]

    Source: DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44), the components of their eq. 5 and 6, weighted.
    """
    if measure == "log_loss":
        chance = np.clip(predictions.astype(np.float64), CLIP, 1.0 - CLIP)
        return np.where(labels, np.log(chance), np.log1p(-chance))
    order = np.argsort(predictions, kind="stable")
    first = np.diff(predictions[order], prepend=-math.inf) > 0.0  # of each group of ties
    starts, group = np.flatnonzero(first), np.cumsum(first) - 1
    ordered, positive = weights[order], labels[order]
    positives, negatives = (np.add.reduceat(ordered * side, starts) for side in (positive, ~positive))  # [groups]
    below = (np.cumsum(negatives) - negatives / 2.0) / negatives.sum()
    above = 1.0 - (np.cumsum(positives) - positives / 2.0) / positives.sum()
    scores = np.empty(len(labels))
    scores[order] = np.where(positive, below[group], above[group])
    return scores


def mean_and_error(
    measure: Measure, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
    """A score from `row_scores`, or a difference of two of them, with its standard error over rows.

        mean  = sum_i w_i s_i / sum_i w_i                                 over the positives (auc), over all (log_loss)
        error = sqrt(sum_g n_g / (n_g - 1) sum_(i in g) w_i^2 (s_i - mean)^2 / (sum_(i in g) w_i)^2)

    The groups g are the positives and the negatives (auc), or all rows (log_loss).

    Args:
        measure: `"auc"` or `"log_loss"`.
        labels: bool `[n]`, of both classes.
        scores: float64 `[n]`.
        weights: float64 `[n]`, above 0.

    Returns:
        Mean and standard error; the error is NaN where a group is a single row.

    Example:
        >>> mean_and_error("log_loss", np.array([True, False]), np.array([-0.1, -0.3]), np.ones(2))
        (-0.2, 0.1)

    Source: DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44), eq. 5 to 8, weighted; for the mean the usual one.
    """
    groups = (labels, ~labels) if measure == "auc" else (np.ones(len(labels), bool),)
    mean = float(np.average(scores[groups[0]], weights=weights[groups[0]]))
    variance = 0.0
    for group in groups:
        own, count = weights[group], int(group.sum())
        correction = count / (count - 1) if count > 1 else math.nan
        variance += correction * float(np.sum((own * (scores[group] - mean)) ** 2) / own.sum() ** 2)
    return mean, math.sqrt(variance)
