"""AUC within groups, averaged over the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from mtlzoo.metrics.streaming import check_count, check_mergeable

_HASH_BITS = 64


@keras.saving.register_keras_serializable(package="mtlzoo")
class GAUC(keras.metrics.Metric):
    """AUC of each group (usually a user), averaged with the groups' impressions as weights.

        GAUC = sum_g W_g AUC_g / sum_g W_g,    W_g = sum of the sample weights in group g

    over the groups that have both classes; ties within a group count half. It asks what a recommender asks: how well
    are the impressions of one user ranked among themselves.

    An evaluation metric: it needs the groups, which `fit` and `compile` do not pass, and keeps its rows in NumPy
    arrays, so it runs eagerly only. It is exact while the rows fit into `max_rows`. Beyond that it keeps all rows of a
    sample of the groups, those whose hash falls below a limit, and halves the limit as often as needed. Every group has
    the same chance to stay, `sampled_share`; which ones stay depends neither on the order of rows nor on the worker. A
    kept row takes 32 bytes, and `result` about four times that besides. A group larger than `max_rows` cannot be kept.

    Labels, predictions, weights and groups have shape `[batch]` or `[batch, 1]`. Any scores do, probabilities or
    logits. A row of weight 0 does not count at all. The result is NaN where no kept group has both classes, or where a
    row that counts has a score that is not finite, a label outside [0, 1] or a negative weight.

    Args:
        name: Name in the logs. Defaults to `"gauc"`.
        max_rows: Most rows to keep, at least 1. Defaults to 4 million.

    Raises:
        ValueError: `max_rows` is no integer of at least 1.

    Example:
    >>> metric = GAUC()
    >>> metric.update_state([1, 0, 1, 0], [0.9, 0.1, 0.2, 0.3], groups=[7, 7, 8, 8])
    >>> metric.result()
    0.5

    Source: Zhu et al. 2017, "Optimized cost per click in Taobao display advertising"; Zhou et al. 2018, "Deep interest
    network for click-through rate prediction", section 6.3. The sampling is our design.
    """

    def __init__(self, name: str = "gauc", max_rows: int = 4_000_000):
        super().__init__(name=name, dtype="float64")
        self.max_rows = check_count("GAUC", "max_rows", max_rows, least=1)
        self._sample = _GroupSample(self.max_rows)

    @property
    def sampled_share(self) -> float:
        """The share of the groups that are kept: 1 while the result is exact, then 1/2, 1/4, ..."""
        return 0.5**self._sample.halvings

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None, groups: Any = None) -> None:
        """Adds a batch.

        Raises:
            ValueError: `groups` is missing or holds no integers, a shape is wrong, or the numbers of rows differ.
        """
        if groups is None:
            raise ValueError(
                "GAUC needs the group of every row: call update_state(..., groups=ids). It is an evaluation metric; "
                "`compile` and `fit` cannot pass groups, use AUC there"
            )
        predictions = _array(y_pred, "y_pred").astype(np.float64)
        ids = _array(groups, "groups")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"`groups` must hold integers, received {ids.dtype}; map each group to an integer first")
        weights = np.ones_like(predictions) if sample_weight is None else _weights(sample_weight, len(predictions))
        labels = _array(y_true, "y_true").astype(np.float64)
        for name, values in (("y_true", labels), ("sample_weight", weights), ("groups", ids)):
            if len(values) != len(predictions):
                raise ValueError(f"`{name}` has {len(values)} rows, `y_pred` has {len(predictions)}")
        counts = weights != 0
        positive = weights[counts] * labels[counts]
        self._sample.add(ids[counts].astype(np.int64), predictions[counts], positive, weights[counts] - positive)

    def merge_state(self, metrics: Iterable[GAUC]) -> None:
        """Adds what other metrics have seen, at the smallest of all shares.

        Raises:
            ValueError: A metric is no `GAUC` or has another `max_rows`.
        """
        for metric in metrics:
            check_mergeable(self, metric)
            self._sample.merge(metric._sample)

    def result(self) -> float:
        """The average, a float; NaN where no kept group has both classes."""
        return grouped_auc(*self._sample.columns())

    def reset_state(self) -> None:
        """Forgets all rows; every group counts again."""
        self._sample = _GroupSample(self.max_rows)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"name": self.name, "max_rows": self.max_rows}


class _GroupSample:
    """Rows (group, prediction, positive weight, negative weight) of all groups, or of a sample of them."""

    def __init__(self, max_rows: int):
        self.max_rows = max_rows
        self.halvings = 0
        self._chunks: list[tuple[np.ndarray, ...]] = []
        self._rows = 0

    def add(self, *columns: np.ndarray) -> None:
        """Adds rows of groups that are in the sample; halves the sample until it fits."""
        chunk = self._kept(columns)
        self._chunks.append(chunk)
        self._rows += len(chunk[0])
        while self._rows > self.max_rows and self.halvings < _HASH_BITS:
            self.halvings += 1
            self._drop()

    def merge(self, other: _GroupSample) -> None:
        """Adds the rows of another sample."""
        if other.halvings > self.halvings:
            self.halvings = other.halvings
            self._drop()
        self.add(*other.columns())

    def columns(self) -> tuple[np.ndarray, ...]:
        """All rows that are kept."""
        if not self._chunks:
            return (np.empty(0, np.int64), *(np.empty(0) for _ in range(3)))
        return tuple(np.concatenate(column) for column in zip(*self._chunks, strict=True))

    def _drop(self) -> None:
        self._chunks = [self._kept(chunk) for chunk in self._chunks]
        self._rows = sum(len(chunk[0]) for chunk in self._chunks)

    def _kept(self, columns: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        if self.halvings == 0:
            return columns
        keep = _hash(columns[0]) <= np.uint64(2 ** (_HASH_BITS - self.halvings) - 1)
        return tuple(column[keep] for column in columns)


def grouped_auc(groups: np.ndarray, predictions: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """GAUC of rows that count `positive` as positive and `negative` as negative impressions; four arrays `[rows]`."""
    valid = np.isfinite(predictions) & (positive >= 0) & (negative >= 0)
    if len(groups) == 0 or not valid.all():
        return float("nan")
    order = np.lexsort((predictions, groups))
    groups, predictions, positive, negative = (a[order] for a in (groups, predictions, positive, negative))
    new_group = np.r_[True, groups[1:] != groups[:-1]]  # [rows]
    # A run is the rows of one group with one prediction: ties.
    run_starts = np.flatnonzero(new_group | np.r_[True, predictions[1:] != predictions[:-1]])  # [runs]
    first_runs = np.flatnonzero(new_group[run_starts])  # [groups]
    run_positive, run_negative = np.add.reduceat(positive, run_starts), np.add.reduceat(negative, run_starts)
    below = np.cumsum(run_negative) - run_negative  # [runs], from the first group on
    runs_per_group = np.diff(np.r_[first_runs, len(run_starts)])
    below -= np.repeat(below[first_runs], runs_per_group)

    ordered = np.add.reduceat(run_positive * (below + run_negative / 2), first_runs)  # [groups]
    positives, negatives = np.add.reduceat(run_positive, first_runs), np.add.reduceat(run_negative, first_runs)
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return float("nan")
    aucs = ordered[both] / (positives[both] * negatives[both])
    return float(np.average(aucs, weights=(positives + negatives)[both]))


def _hash(ids: np.ndarray) -> np.ndarray:
    """64 well mixed bits of each id, the same everywhere (the finalizer of SplitMix64)."""
    bits = ids.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _array(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(ops.convert_to_numpy(values))
    except NotImplementedError as error:
        raise ValueError(f"GAUC runs eagerly only, `{name}` is a symbolic tensor; use AUC in `compile`") from error
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        raise ValueError(f"`{name}` must have shape [batch] or [batch, 1], received {array.shape}")
    return array.reshape(-1)


def _weights(sample_weight: Any, rows: int) -> np.ndarray:
    if np.ndim(sample_weight) == 0:
        return np.full(rows, float(sample_weight))
    return _array(sample_weight, "sample_weight").astype(np.float64)
