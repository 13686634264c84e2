"""Which split a row belongs to: by given files, by time, or by a hash of a key; never by row order by accident."""

from __future__ import annotations

import datetime
import fnmatch

import numpy as np
import pyarrow as pa

from pipelines.errors import DataError
from pipelines.hashing import as_strings, hash_strings
from pipelines.raw import RawBatch, first_bad_row
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
        DataError: A file matches no pattern or several, or a time is missing.
    """
    split = schema.split
    if isinstance(split, TimeSplit):
        return _by_time(raw, split)
    if isinstance(split, HashSplit):
        return _by_fractions(_positions(raw, split.key, split.salt), split.valid, split.test)
    return _by_file(raw, split)


def _by_file(raw: RawBatch, split: FileSplit) -> np.ndarray:
    patterns = {name: getattr(split, name) for name in SPLITS if getattr(split, name) is not None}
    matching = [name for name, pattern in patterns.items() if fnmatch.fnmatch(raw.file.name, pattern)]
    if len(matching) != 1:
        found = f"the patterns of {' and '.join(matching)}" if matching else "no pattern"
        shown = ", ".join(f"{name}: {pattern}" for name, pattern in patterns.items())
        raise DataError(f"{raw.file}: its name must match one pattern of the schema's split, matches {found} ({shown})")
    if matching == ["train"] and split.valid_fraction > 0.0:
        return _by_fractions(_positions(raw, split.key, split.salt), split.valid_fraction, 0.0)
    return np.full(raw.batch.num_rows, SPLITS.index(matching[0]), np.int8)


def _by_time(raw: RawBatch, split: TimeSplit) -> np.ndarray:
    number = isinstance(split.valid_from, int | float)
    column = _times(raw, split.column, pa.float64() if number else pa.timestamp("us"))
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if missing.any():
        row = int(np.argmax(missing))
        raise DataError(f"{raw.where(row)}: the time column {split.column!r} of the split is missing")
    times = column.to_numpy(zero_copy_only=False)
    valid_from, test_from = (m if number else _moment(m) for m in (split.valid_from, split.test_from))
    return np.where(times >= test_from, TEST, np.where(times >= valid_from, VALID, TRAIN)).astype(np.int8)


def _times(raw: RawBatch, name: str, type_: pa.DataType) -> pa.Array:
    """The time column in the type of the schema's moments; text or integers where a feature reads it too."""
    column = raw.batch.column(name)
    try:
        return column.cast(type_)
    except pa.ArrowInvalid as error:
        row = first_bad_row(column, lambda part: part.cast(type_))
        raise DataError(f"{raw.where(row)}: time column {name!r} of the split must be {type_}: {error}") from None


def _moment(text: int | float | str) -> np.datetime64:
    try:
        moment = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        raise DataError(f"schema: split: {text!r} is neither a number nor an ISO 8601 time") from None
    # Arrow's timestamps are UTC; a moment without a zone is taken as it stands, like the times of the log.
    naive = moment if moment.tzinfo is None else moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(naive, "us")


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
