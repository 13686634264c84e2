"""Faults of raw rows that no model should ever see: found before anything is written, with file, column and row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import DataError
from pipelines.raw import RawBatch, first_bad_row
from pipelines.schema import Categorical, Label, MultiCategorical, Numeric, Schema
from pipelines.vocabulary import list_weights, parted


def label_values(label: Label, column: pa.Array) -> np.ndarray:
    """The label as 0 and 1.

    Args:
        label: Its declaration.
        column: The raw column, of `n` rows.

    Returns:
        int64 `[n]`; a value that is neither 0 nor 1 comes out as -1 (never where the label declares `positive`).
    """
    if label.positive is not None:
        positive = pa.scalar(label.positive, type=column.type)
        return pc.fill_null(pc.equal(column, positive), False).to_numpy(zero_copy_only=False).astype(np.int64)
    values = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(values == 1.0, 1, np.where(values == 0.0, 0, -1)).astype(np.int64)


def valid_rows(raw: RawBatch, schema: Schema) -> np.ndarray | None:
    """Checks labels, funnel, weights, numeric and list columns of a batch.

    Args:
        raw: The batch.
        schema: The schema; its `funnel_violations` says whether a child without its parent stops or is dropped.

    Returns:
        Boolean `[n]`, the rows to keep, or `None` where all stay.

    Raises:
        DataError: The first fault: its file, row, column, value, and what to do.
    """
    labels = {label.name: _checked_label(label, raw) for label in schema.labels}
    for numeric in schema.numerics:
        _check_numeric(numeric, raw)
    for single in schema.singles:
        _check_whole(single, raw)
    for multi in schema.multis:
        _check_lists(multi, raw)
    _check_weight(schema, raw)
    keep = np.ones(raw.batch.num_rows, bool)
    for label in schema.labels:
        if label.parent is None:
            continue
        violations = (labels[label.name] == 1) & (labels[label.parent] == 0)
        if violations.any() and schema.funnel_violations == "error":
            raise DataError(
                f"{raw.where(int(np.argmax(violations)))}: {label.name} is 1 but its parent {label.parent} is 0 "
                f"({int(violations.sum())} of {len(violations)} rows here); correct the log, or set "
                f"`funnel_violations: drop` in the schema to leave such rows out"
            )
        keep &= ~violations
    return None if keep.all() else keep


def _checked_label(label: Label, raw: RawBatch) -> np.ndarray:
    column = raw.batch.column(label.source)
    values = label_values(label, column)
    wrong = values < 0
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{raw.where(row)}: label {label.name!r} (column {label.source!r}) is {column[row].as_py()!r}; it must be "
            f"0 or 1, or the schema must say which value counts as 1 (`positive:`)"
        )
    return values


def _check_numeric(feature: Numeric, raw: RawBatch) -> None:
    exact = raw.batch.column(feature.source).to_numpy(zero_copy_only=False).astype(np.float64)
    # As the records hold them: what overflows float32, or rounds to -1 there, is as bad as the thing itself.
    with np.errstate(over="ignore"):
        values = exact.astype(np.float32)
    _refuse(np.isinf(values), exact, feature.source, raw, "it must be finite and within the range of float32")
    if feature.missing == "error":
        _refuse(
            np.isnan(values),
            exact,
            feature.source,
            raw,
            f"fill it, or set `missing: mean` (or a number) for feature {feature.name!r}",
        )
    if feature.transform == "log1p":
        _refuse(values <= -1.0, exact, feature.source, raw, "it must be above -1 for log1p; use `transform: symlog`")


def _check_whole(feature: Categorical, raw: RawBatch) -> None:
    column = raw.batch.column(feature.source)
    if feature.dtype == "int" and pa.types.is_floating(column.type):
        values = column.to_numpy(zero_copy_only=False)
        _refuse(
            ~np.isnan(values) & (values != np.floor(values)),
            values,
            feature.source,
            raw,
            f"it must be whole for feature {feature.name!r}",
        )


def _check_lists(feature: MultiCategorical, raw: RawBatch) -> None:
    lists = _parted(feature, feature.source, parted, "values", raw)
    if feature.weights is None:
        return
    weights = _parted(feature, feature.weights, list_weights, "weights", raw)
    lengths, found = (a.value_lengths().to_numpy(zero_copy_only=False) for a in (lists, weights))
    if not np.array_equal(lengths, found):
        row = int(np.argmax(lengths != found))
        raise DataError(
            f"{raw.where(row)}: {lengths[row]} values in column {feature.source!r} but {found[row]} weights in "
            f"{feature.weights!r}; each value of feature {feature.name!r} needs its weight"
        )
    flat = weights.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    wrong = np.zeros(len(lengths), bool)
    wrong[row_of[~np.isfinite(flat)]] = True
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{raw.where(row)}: column {feature.weights!r} is {weights[row].as_py()} and must hold finite weights"
        )


def _parted(feature: MultiCategorical, column: str, part: Callable, what: str, raw: RawBatch) -> pa.ListArray:
    array = raw.batch.column(column)
    try:
        return part(feature, array)
    except pa.ArrowInvalid:
        row = first_bad_row(array, lambda piece: part(feature, piece))
        raise DataError(
            f"{raw.where(row)}: column {column!r} is {array[row].as_py()!r}; it must hold {what} of feature "
            f"{feature.name!r} parted by {feature.separator!r}"
        ) from None


def _check_weight(schema: Schema, raw: RawBatch) -> None:
    if schema.keys.weight is None:
        return
    values = raw.batch.column(schema.keys.weight).to_numpy(zero_copy_only=False).astype(np.float64)
    wrong = ~(np.isfinite(values) & (values >= 0))
    _refuse(wrong, values, schema.keys.weight, raw, "it must be a finite weight of at least 0")


def _refuse(wrong: np.ndarray, values: np.ndarray, column: str, raw: RawBatch, demand: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        count = int(wrong.sum())
        found = "empty" if np.isnan(values[row]) else values[row]
        raise DataError(
            f"{raw.where(row)}: column {column!r} is {found}: {demand} "
            f"({count} such row{'s' if count > 1 else ''} in this batch of {len(wrong)})"
        )
