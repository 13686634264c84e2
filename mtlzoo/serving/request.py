"""Raw rows → the arrays of a Predict request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from mtlzoo.serving.raw_features import MISSING_INTEGER, length_name
from pipelines import MultiCategorical, Numeric, Schema
from pipelines.vocabulary import list_weights, parted, raw_numbers


def request_of(schema: Schema, rows: pa.RecordBatch) -> dict[str, np.ndarray]:
    """Arrays for the inputs of `serving_default`, by name.

    Args:
        schema: The model's schema.
        rows: Raw rows with the schema's raw columns, in the types that `pipelines.raw` reads them in.

    Returns:
        Strings (object), int64 or float32 `[n]`; lists padded to the longest, `[n, longest]`, with `<name>_length`.
        Nulls become what the export takes for missing.

    Example:
        >>> request = request_of(dataset.schema, batch)
        >>> answers = loaded.signatures["serving_default"](**{k: tf.constant(v) for k, v in request.items()})
    """
    request: dict[str, np.ndarray] = {}
    for feature in schema.features:
        column = rows.column(feature.source)
        if isinstance(feature, Numeric):
            # The export fills missing values itself; here they stay NaN.
            as_is = feature.model_copy(update={"missing": "error"})
            request[feature.name] = raw_numbers(as_is, column)
        elif isinstance(feature, MultiCategorical):
            lists = parted(feature, column)
            request[feature.name] = _padded(lists, feature.dtype)
            request[length_name(feature)] = lists.value_lengths().to_numpy().astype(np.int64)
            if feature.weights is not None:
                weights = list_weights(feature, rows.column(feature.weights))
                request[feature.weights_name] = _padded(weights, "float")
        else:
            request[feature.name] = _values(column.to_pylist(), feature.dtype)
    return request


def _padded(lists: pa.ListArray, kind: str) -> np.ndarray:
    rows = lists.to_pylist()
    longest = max((len(row) for row in rows), default=0)
    fill: Any = {"int": MISSING_INTEGER, "float": 0.0, "string": ""}[kind]
    return _values([value for row in rows for value in row + [fill] * (longest - len(row))], kind).reshape(
        len(rows), longest
    )


def _values(values: list[Any], kind: str) -> np.ndarray:
    if kind == "int":
        return np.array([MISSING_INTEGER if value is None else value for value in values], np.int64)
    if kind == "float":
        return np.array(values, np.float32)
    return np.array(["" if value is None else value for value in values], object)
