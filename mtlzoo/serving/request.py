"""Raw rows → the arrays of a Predict request, and examples in the requests of the other methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
from tensorflow_serving.apis import input_pb2

from mtlzoo.serving.raw_features import length_name, missing_value
from pipelines import MultiCategorical, Numeric, Schema
from pipelines.vocabulary import list_weights, parted, raw_numbers, single_values

_DTYPES = {"int": np.int64, "float": np.float32, "string": object}
_PADDING = {"int": 0, "float": 0.0, "string": ""}


def request_of(schema: Schema, rows: pa.RecordBatch) -> dict[str, np.ndarray]:
    """Arrays for the inputs of `serving_default`, by name.

    Args:
        schema: The model's schema.
        rows: Raw rows with the schema's raw columns, in the types that `pipelines.raw` reads them in.

    Returns:
        Strings (object), int64 or float32 `[n]`; lists padded to the longest, `[n, longest]`, at least one wide, with
        `<name>_length`. Nulls become what the export takes for missing.

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
            request[feature.name] = _padded(lists, missing_value(feature), feature.dtype)
            request[length_name(feature)] = lists.value_lengths().to_numpy().astype(np.int64)
            if feature.weights is not None:
                weights = list_weights(feature, rows.column(feature.weights))
                request[feature.weights_name] = _padded(weights, np.nan, "float")
        else:
            values = single_values(feature, column).to_pylist()
            request[feature.name] = _values(values, missing_value(feature), feature.dtype)
    return request


def _padded(lists: pa.ListArray, missing: Any, kind: str) -> np.ndarray:
    rows = lists.to_pylist()
    # TF Serving cannot pad a list of width 0 to the width of its batch.
    longest = max([1, *(len(row) for row in rows)])
    flat = [value for row in rows for value in row + [_PADDING[kind]] * (longest - len(row))]
    return _values(flat, missing, kind).reshape(len(rows), longest)


def _values(values: list[Any], missing: Any, kind: str) -> np.ndarray:
    return np.array([missing if value is None else value for value in values], _DTYPES[kind])


def feature_of(values: np.ndarray) -> tf.train.Feature:
    """Values `[n]` of an input as a feature of a `tf.train.Example`: int64, float32, or strings (str or bytes)."""
    if values.dtype.kind == "i":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    if values.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    texts = [value.encode() if isinstance(value, str) else value for value in values]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=texts))


def serialized_examples(given: input_pb2.Input) -> np.ndarray:
    """The examples of a Classify or Regress request, object `[n]`, the context of a list in front of each."""
    context, examples = b"", given.example_list.examples
    if given.WhichOneof("kind") == "example_list_with_context":
        context = given.example_list_with_context.context.SerializeToString()
        examples = given.example_list_with_context.examples
    serialized = np.empty(len(examples), object)
    serialized[:] = [context + example.SerializeToString() for example in examples]
    return serialized
