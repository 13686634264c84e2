"""Which split a row belongs to: by given files, by time, or by a hash of a key; never by row order by accident."""

from __future__ import annotations

import datetime
import fnmatch

import numpy as np
import pyarrow as pa

from pipelines.errors import DataError
from pipelines.hashing import as_strings, hash_strings
from pipelines.raw import RawBatch
from pipelines.schema import FileSplit, HashSplit, Schema, TimeSplit

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)
_RESOLUTION = 1_000_000


def assign_split(raw: RawBatch, schema: Schema) -> np.ndarray:
    """The split of every row of a batch.

    Args:
        raw: The batch.
        schema: Its `split` says how.

    Returns:
        int8 `[n]`: index into `SPLITS`.

    Raises:
        DataError: A file matches no pattern, or a time is missing.
    """
    split = schema.split
    if isinstance(split, TimeSplit):
        return _by_time(raw, split)
    if isinstance(split, HashSplit):
        return _by_fractions(_positions(raw, split.key, split.salt), split.valid, split.test)
    return _by_file(raw, split)


def _by_file(raw: RawBatch, split: FileSplit) -> np.ndarray:
    patterns = (split.train, split.valid, split.test)
    for index, pattern in enumerate(patterns):
        if pattern is not None and fnmatch.fnmatch(raw.file.name, pattern):
            if index == TRAIN and split.valid_fraction > 0.0:
                return _by_fractions(_positions(raw, split.key, split.salt), split.valid_fraction, 0.0)
            return np.full(raw.batch.num_rows, index, np.int8)
    shown = ", ".join(f"{name}: {p}" for name, p in zip(SPLITS, patterns, strict=True) if p is not None)
    raise DataError(f"{raw.file}: its name matches no pattern of the schema's split ({shown})")


def _by_time(raw: RawBatch, split: TimeSplit) -> np.ndarray:
    column = raw.batch.column(split.column)
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{raw.where(row)}: the time column {split.column!r} of the split is missing")
    if pa.types.is_timestamp(column.type):
        times = column.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False)
        valid_from, test_from = (_moment(t) for t in (split.valid_from, split.test_from))
    else:
        times = column.to_numpy(zero_copy_only=False)
        valid_from, test_from = split.valid_from, split.test_from
    return np.where(times >= test_from, TEST, np.where(times >= valid_from, VALID, TRAIN)).astype(np.int8)


def _moment(text: int | float | str) -> np.datetime64:
    try:
        return np.datetime64(datetime.datetime.fromisoformat(str(text)), "us")
    except ValueError:
        raise DataError(f"schema: split: {text!r} is neither a number nor an ISO 8601 time") from None


def _positions(raw: RawBatch, key: str, salt: str) -> np.ndarray:
    """A pseudo-random position in [0, 1) for every row, equal for equal keys."""
    if key == "row":
        first = raw.first_row_overall
        text = np.arange(first, first + raw.batch.num_rows).astype(str).astype(object)
    else:
        text = as_strings(raw.batch.column(key))
    salted = np.char.add(f"{salt}:", text.astype(str)).astype(object) if salt else text
    return hash_strings(salted, _RESOLUTION) / _RESOLUTION


def _by_fractions(positions: np.ndarray, valid: float, test: float) -> np.ndarray:
    return np.where(positions < test, TEST, np.where(positions < test + valid, VALID, TRAIN)).astype(np.int8)
