"""Predictions of a model while one feature is permuted among the rows of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtlzoo.inspection.sample import Progress
from mtlzoo.tasks import Task
from pipelines import MultiCategorical, Numeric, Schema

PERMUTING = "permute"
Columns = dict[str, list[int] | None]


def feature_columns(schema: Schema) -> dict[str, Columns]:
    """Where a batch holds each feature.

    Args:
        schema: The schema.

    Returns:
        By feature, in the order of the schema: by name of the tensor its columns there; `None`: the whole tensor.

    Example:
        >>> feature_columns(dataset.schema)["price"]
        {'numeric': [0, 1]}

    Source: our design.
    """
    packed = [feature.name for feature in schema.packed_categorical]
    places: dict[str, Columns] = {}
    for feature in schema.features:
        if isinstance(feature, MultiCategorical):
            places[feature.name] = {feature.name: None, feature.weights_name: None}
            continue
        found: Columns = {}
        if feature.name in packed:
            found["categorical"] = [packed.index(feature.name)]
        if isinstance(feature, Numeric):
            own = (feature.name, f"{feature.name}:missing")
            numbers = [place for place, name in enumerate(schema.packed_numeric) if name in own]
            found |= {"numeric": list(numbers)} if numbers else {}
        places[feature.name] = found
    return places


def donor_rows(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row the row whose value it gets: a permutation where all weights are equal.

    Args:
        weights: float64 `[n]`, above 0.
        rng: Draws them.

    Returns:
        int64 `[n]`; row j stands there `n w_j / sum(w)` times, rounded up or down.

    Source: systematic sampling (Madow 1949), shuffled.
    """
    count = len(weights)
    if not count:
        return np.empty(0, np.int64)
    cumulative = np.cumsum(weights) / np.sum(weights)
    drawn = np.searchsorted(cumulative, (np.arange(count) + rng.random()) / count, "right")
    return rng.permutation(np.minimum(drawn, count - 1))


class Predictions:
    """Predictions on a sample, one feature permuted or none."""

    def __init__(self, model: Any, batch_size: int, total: int, progress: Progress | None) -> None:
        self._model, self._batch_size = model, batch_size
        self._done, self._total, self._progress = 0, total, progress

    def __call__(
        self,
        features: dict[str, np.ndarray],
        tasks: Sequence[Task],
        columns: Columns | None = None,
        donors: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """float32 `[n]` by task; with `columns` given their values come from the rows `donors`."""
        count = len(next(iter(features.values())))
        predictions = {task.name: np.empty(count, np.float32) for task in tasks}
        for start in range(0, count, self._batch_size):
            rows = slice(start, start + self._batch_size)
            batch = {name: values[rows] for name, values in features.items()}
            if columns is not None and donors is not None:
                batch |= {key: _replaced(features[key], rows, places, donors) for key, places in columns.items()}
            for name, values in self._model.predict_on_batch(batch).items():
                if name in predictions:
                    predictions[name][rows] = np.reshape(values, -1)
            self._advance(len(next(iter(batch.values()))))
        return predictions

    def _advance(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress(PERMUTING, self._done, self._total)


def _replaced(values: np.ndarray, rows: slice, places: list[int] | None, donors: np.ndarray) -> np.ndarray:
    if places is None:
        return values[donors[rows]]
    changed = values[rows].copy()
    for place in places:
        changed[:, place] = values[donors[rows], place]
    return changed
