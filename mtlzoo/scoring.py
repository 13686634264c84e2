"""Batch scoring: the probabilities of every impression of a dataset in one file.

    shards → packed batches → probabilities → row groups → file

The model runs as one graph, in the form that is served. A thread of its own makes columns of finished batches and
writes them while the next batch is computed; no more than a row group and two batches are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa

from mtlzoo import backend
from mtlzoo.models import MultiTaskModel
from mtlzoo.serving.client_files import Write, answer_file
from mtlzoo.training.evaluate import EVALUATION_BATCH
from mtlzoo.training.same_data import check_same_data
from pipelines import DataError, Dataset, Schema

SPLIT, ROW, GROUP, PREFIX = "split", "row", "group", "p_"
GROUP_ROWS = 1 << 17


def score(
    model: keras.Model,
    dataset: Dataset,
    out: str | Path,
    splits: str | Sequence[str] = ("test",),
    batch_size: int = EVALUATION_BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes a row for every impression, split after split, each in the order of the log.

    The columns:

        split     string    the split
        row       int64     place in the split, from 0
        group     int64     group key as the dataset keeps it: an integer itself, else its hash; where there is a key
        click     int8      every label, by its name: 0 or 1
        p_click   float32   every target of the model, by its name: its probability

    A funnel's `p_conversion` is P(conversion | click) on all impressions, `p_ctcvr` P(click and conversion). They are
    those of `model.predict` up to rounding, computed by `model.for_serving()`.

    Args:
        model: A model whose `predict` gives probabilities by task.
        dataset: The dataset; its vocabularies must be those that the model was trained with.
        out: `.parquet`, in row groups of 131,072 rows at most; or `.csv`, `.json`, `.jsonl`. It is written beside its
            place and renamed in when whole: an interruption leaves an older file as it is.
        splits: A split or several.
        batch_size: Impressions that are computed at a time.
        progress: Called with rows done and rows in all.

    Returns:
        Rows written.

    Raises:
        DataError: The dataset's features are not the model's, a split is unknown or empty, two columns would have one
            name, or `out` is a directory, lies in none, or has another ending.
        ValueError: `splits` is empty.

    Example:
        >>> score(model, dataset, "scores.parquet")
        9918

    Source: our design.
    """
    out = _checked_path(out)
    names = (splits,) if isinstance(splits, str) else tuple(dict.fromkeys(splits))
    if not names:
        raise ValueError("splits names no split; give one or several, such as ('valid', 'test')")
    check_same_data(model, dataset)
    _check_columns(dataset.schema)
    grouped = dataset.schema.keys.group is not None
    batches = {name: dataset.read(name, batch_size, groups=grouped) for name in names}
    predict = _predictor(model, batches[names[0]])
    done, total = 0, sum(dataset.rows(name) for name in names)
    with dataset.damaged_shards_named(*names), answer_file(out) as write, ThreadPoolExecutor(1) as thread:
        table = _Table(dataset.schema, write)
        writing: Future[None] | None = None
        for name in names:
            row = 0
            for features, labels, _, *groups in batches[name]:
                predictions = predict(features)
                if writing is not None:
                    writing.result()  # raises what went wrong in the thread
                writing = thread.submit(table.add, name, row, labels, predictions, *groups)
                size = len(next(iter(labels.values())))
                row, done = row + size, done + size
                if progress is not None:
                    progress(done, total)
        if writing is not None:
            writing.result()
        table.flush()
    return done


def _checked_path(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name the file to write, {path / 'scores.parquet'} for example")
    return path


def _check_columns(schema: Schema) -> None:
    taken = {SPLIT, ROW, GROUP, *(f"{PREFIX}{target.name}" for target in schema.targets)}
    twice = [label.name for label in schema.labels if label.name in taken]
    if twice:
        raise DataError(
            f"the label {twice[0]!r} has the name of another column of the scores; give it another name in the schema "
            f"(`column:` keeps the raw column's), convert and train again"
        )


def _predictor(model: keras.Model, batches: Any) -> Callable[[Any], dict[str, Any]]:
    """Features → probabilities float32 `[batch]` by task."""
    served = model.for_serving() if isinstance(model, MultiTaskModel) else model

    def predict(features: dict[str, Any]) -> dict[str, Any]:
        predictions = served(features, training=False)
        return {task: keras.ops.reshape(values, (-1,)) for task, values in predictions.items()}

    return backend.compiled(predict, batches)


class _Table:
    """Columns of finished batches, written when they fill a row group."""

    def __init__(self, schema: Schema, write: Write) -> None:
        self._labels = [label.name for label in schema.labels]
        self._targets = [target.name for target in schema.targets]
        self._write = write
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0

    def add(
        self, split: str, row: int, labels: dict[str, Any], predictions: dict[str, Any], groups: Any = None
    ) -> None:
        """Takes a batch whose first impression is the split's `row`-th."""
        size = len(next(iter(labels.values())))
        columns = {SPLIT: pa.repeat(split, size), ROW: np.arange(row, row + size)}
        if groups is not None:
            columns[GROUP] = _numpy(groups)
        columns |= {name: _numpy(labels[name]).astype(np.int8) for name in self._labels}
        columns |= {f"{PREFIX}{name}": _numpy(predictions[name]) for name in self._targets if name in predictions}
        self._batches.append(pa.RecordBatch.from_pydict(columns))
        self._rows += size
        if self._rows >= GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what is not written yet."""
        if not self._batches:
            return
        rows = pa.concat_batches(self._batches)
        for start in range(0, rows.num_rows, GROUP_ROWS):
            self._write(rows.slice(start, GROUP_ROWS))
        self._batches, self._rows = [], 0


def _numpy(values: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(values).reshape(-1)
