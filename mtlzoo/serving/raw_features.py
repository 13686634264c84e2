"""Raw features → packed features inside a TensorFlow graph: what conversion does to a log, for one request."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines import Categorical, MultiCategorical, Numeric, Schema
from pipelines.schema import FIRST_ID, MISSING, OUT_OF_VOCABULARY
from pipelines.vocabulary import Vocabulary, usable_missing_values

MISSING_INTEGER = np.iinfo(np.int64).min


class RawFeatures(tf.Module):
    """Lookups, hash buckets, transforms and quantile buckets of a schema as a TensorFlow module.

    The same arithmetic in float32 as `pipelines.encode`, so a row gives the same ids and floats on both ways. What
    stands for "missing" where a tensor cannot hold null: the empty string (or, where the schema's `missing_values` lack
    it, the first of them), the smallest int64, NaN; and the schema's own `missing_values`.

    A missing number becomes what the schema says; where it says `missing: error`, the mean: conversion can stop at a
    row, a server cannot without failing the other rows of the batch.

    Args:
        schema: Fitted schema.
        vocabularies: By table name.

    Raises:
        ValueError: The schema is not fitted, or a feature has the name of the length of a list.

    Example:
        >>> features = RawFeatures(dataset.schema, dataset.vocabularies)
        >>> packed = features.packed(features.from_examples(serialized))

    Source: our design.
    """

    def __init__(self, schema: Schema, vocabularies: Mapping[str, Vocabulary]) -> None:
        super().__init__(name="raw_features")
        if schema.fitted is None:
            raise ValueError("raw features need a fitted schema: that of a dataset, pipelines.open_dataset(DIR).schema")
        names = {feature.name for feature in schema.features}
        for multi in schema.multis:
            if length_name(multi) in names:
                raise ValueError(
                    f"feature {length_name(multi)!r} has the name of the length of the list {multi.name!r}"
                )
        self.schema = schema
        self._fitted = schema.fitted
        self.tables = {name: _lookup_table(name, vocabulary) for name, vocabulary in vocabularies.items()}

    @staticmethod
    def input_names(schema: Schema) -> set[str]:
        """Names of all inputs of a request."""
        lists = {name for multi in schema.multis for name in (length_name(multi), multi.weights_name)}
        return {feature.name for feature in schema.features} | lists

    def request_spec(self) -> dict[str, tf.TensorSpec]:
        """Inputs of a request by name: single values `[batch]`; lists `[batch, any]` with `<name>_length` `[batch]`."""
        spec = {}
        for feature in self.schema.features:
            shape = [None, None] if isinstance(feature, MultiCategorical) else [None]
            spec[feature.name] = tf.TensorSpec(shape, _raw_dtype(feature), feature.name)
            if isinstance(feature, MultiCategorical):
                spec[length_name(feature)] = tf.TensorSpec([None], tf.int64, length_name(feature))
                if feature.weights is not None:
                    spec[feature.weights_name] = tf.TensorSpec([None, None], tf.float32, feature.weights_name)
        return spec

    def defaults(self) -> dict[str, np.ndarray]:
        """What stands for each feature that a request may leave out: its missing value, `[1]`.

        Those are the single values for which the schema says what a missing one becomes. A list is always given: its
        length says that it is empty, and a list whose length were left out could not be told from its padding.
        """
        return {
            feature.name: np.array([missing_value(feature)], _raw_dtype(feature).as_numpy_dtype)
            for feature in self.schema.features
            if _may_be_absent(feature)
        }

    def example_spec(self, numbers: Iterable[str] = ()) -> dict[str, Any]:
        """How a serialized `tf.train.Example` with raw values is parsed; absent features are missing.

        Args:
            numbers: Further floats that the examples hold; NaN where one does not.
        """
        spec: dict[str, Any] = {name: tf.io.FixedLenFeature([], tf.float32, float("nan")) for name in numbers}
        for feature in self.schema.features:
            if isinstance(feature, MultiCategorical):
                spec[feature.name] = tf.io.RaggedFeature(_raw_dtype(feature), row_splits_dtype=tf.int64)
                if feature.weights is not None:
                    spec[feature.weights_name] = tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int64)
            else:
                spec[feature.name] = tf.io.FixedLenFeature([], _raw_dtype(feature), missing_value(feature))
        return spec

    def from_request(self, request: Mapping[str, tf.Tensor]) -> dict[str, Any]:
        """Raw values of a request, whose lists are padded; values beyond a list's length are not looked at."""
        raw = dict(request)
        for feature in self.schema.multis:
            lengths = raw.pop(length_name(feature))
            for name in [feature.name] + ([feature.weights_name] if feature.weights is not None else []):
                raw[name] = tf.RaggedTensor.from_tensor(raw[name], lengths=lengths)
        return raw

    def from_examples(self, serialized: tf.Tensor, numbers: Iterable[str] = ()) -> dict[str, Any]:
        """Raw values of serialized examples, string `[batch]`; see `example_spec`."""
        return tf.io.parse_example(serialized, self.example_spec(numbers))

    def number(self, name: str, raw: Mapping[str, Any]) -> tf.Tensor:
        """Raw values of a numeric feature, float32 `[batch]`: NaN, or the schema's number, where one is missing."""
        feature = next(numeric for numeric in self.schema.numerics if numeric.name == name)
        return self._filled(feature, raw[name])

    def packed(self, raw: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """What a model takes, of raw values: ids int32 and floats float32, as `pipelines` packs a batch."""
        packed = {}
        ids = [self._single_id(feature, raw[feature.name]) for feature in self.schema.packed_categorical]
        if ids:
            packed["categorical"] = tf.stack([tf.cast(column, tf.int32) for column in ids], axis=1)
        numbers = [column for f in self.schema.numerics for column in self._numbers(f, raw[f.name])]
        if numbers:
            packed["numeric"] = tf.stack(numbers, axis=1)
        for feature in self.schema.multis:
            packed |= self._list(feature, raw)
        return packed

    def _single_id(self, feature: Categorical | Numeric, values: tf.Tensor) -> tf.Tensor:
        return self._bucket(feature, values) if isinstance(feature, Numeric) else self._ids(feature, values)

    def _ids(self, feature: Categorical, values: tf.Tensor) -> tf.Tensor:
        if feature.hash_buckets is not None:
            text = values if feature.dtype == "string" else tf.strings.as_string(values)
            ids = FIRST_ID + tf.strings.to_hash_bucket_fast(text, feature.hash_buckets)
        else:
            ids = self.tables[feature.table_name].lookup(values)
        missing = usable_missing_values(feature).to_pylist()
        missing += [MISSING_INTEGER] if feature.dtype == "int" else []
        for value in missing:
            ids = tf.where(values == tf.constant(value, values.dtype), tf.constant(MISSING, tf.int64), ids)
        return ids

    def _filled(self, feature: Numeric, values: tf.Tensor) -> tf.Tensor:
        if isinstance(feature.missing, float):
            return tf.where(tf.math.is_nan(values), tf.constant(feature.missing, tf.float32), values)
        return values

    def _bucket(self, feature: Numeric, values: tf.Tensor) -> tf.Tensor:
        edges = tf.constant(self._fitted.numeric[feature.name].edges, tf.float32)
        filled = self._filled(feature, values)
        bucket = tf.searchsorted(edges, filled, side="right", out_type=tf.int64)
        return tf.where(tf.math.is_nan(filled), tf.constant(MISSING, tf.int64), FIRST_ID + bucket)

    def _numbers(self, feature: Numeric, values: tf.Tensor) -> list[tf.Tensor]:
        columns = []
        if feature.has_value:
            fitted = self._fitted.numeric[feature.name]
            mean, std = (tf.constant(number, tf.float32) for number in (fitted.mean, fitted.std))
            filled = self._filled(feature, values)
            number = tf.where(tf.math.is_nan(filled), mean, _transformed(feature, filled))
            columns.append((number - mean) / std if feature.standardize else number)
        if feature.indicator:
            columns.append(tf.cast(tf.math.is_nan(values), tf.float32))
        return columns

    def _list(self, feature: MultiCategorical, raw: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        shape = [None, feature.max_length]
        values = _cut(feature, raw[feature.name])
        ids = values.with_flat_values(self._ids(feature, values.flat_values))
        if feature.weights is not None:
            weights = _cut(feature, raw[feature.weights_name])
        else:
            weights = values.with_flat_values(tf.ones_like(ids.flat_values, tf.float32))
        return {
            feature.name: tf.cast(ids.to_tensor(shape=shape), tf.int32),
            feature.weights_name: weights.to_tensor(shape=shape),
        }


def length_name(feature: MultiCategorical) -> str:
    """Input that says how many values of each list count; the rest is padding, whatever a server filled it with."""
    return f"{feature.name}_length"


def same_rows(request: Mapping[str, tf.Tensor], may_be_absent: Collection[str]) -> dict[str, tf.Tensor]:
    """Every input with as many rows as the request has.

    A server feeds the default of an input that is absent, which has one row whatever the batch is: such an input
    stands for all rows. The others must have the rows of the request.

    Args:
        request: Any dtypes and ranks, rows in dimension 0.
        may_be_absent: Names of the inputs that have a default.
    """
    rows = common_size([tf.shape(values)[0] for values in request.values()])
    return {name: _with_rows(values, rows, name in may_be_absent) for name, values in request.items()}


def common_size(sizes: list[tf.Tensor]) -> tf.Tensor:
    """The size, int32 `[]`, that sizes of 1 are broadcast to: 0 if there is a 0, else the largest."""
    return tf.where(tf.reduce_any(tf.equal(sizes, 0)), 0, tf.reduce_max(sizes))


def _with_rows(values: tf.Tensor, rows: tf.Tensor, broadcast: bool) -> tf.Tensor:
    shape = tf.concat([rows[None], tf.shape(values)[1:]], axis=0)
    # To reshape fails where the number of rows is another, and else copies nothing.
    return tf.broadcast_to(values, shape) if broadcast else tf.reshape(values, shape)


def _lookup_table(name: str, vocabulary: Vocabulary) -> tf.lookup.StaticHashTable:
    integers = vocabulary.values.type == "int64"
    keys = vocabulary.values.to_numpy() if integers else vocabulary.values.to_pylist()
    ids = FIRST_ID + np.arange(len(vocabulary.values), dtype=np.int64)
    content = tf.lookup.KeyValueTensorInitializer(
        tf.constant(keys, tf.int64 if integers else tf.string), tf.constant(ids, tf.int64)
    )
    return tf.lookup.StaticHashTable(content, OUT_OF_VOCABULARY, name=name)


def _raw_dtype(feature: Categorical | Numeric) -> tf.DType:
    if isinstance(feature, Numeric):
        return tf.float32
    return tf.int64 if feature.dtype == "int" else tf.string


def missing_value(feature: Categorical | Numeric) -> Any:
    """What stands for a missing value of the feature in a tensor."""
    if isinstance(feature, Numeric):
        return float("nan")
    if feature.dtype == "int":
        return MISSING_INTEGER
    values = usable_missing_values(feature).to_pylist()
    return "" if "" in values or not values else values[0]


def _may_be_absent(feature: Categorical | Numeric) -> bool:
    if isinstance(feature, Numeric):
        return feature.missing != "error"
    if isinstance(feature, MultiCategorical):
        return False
    return feature.dtype == "int" or len(usable_missing_values(feature)) > 0


def _cut(feature: MultiCategorical, lists: tf.RaggedTensor) -> tf.RaggedTensor:
    return lists[:, : feature.max_length] if feature.keep == "first" else lists[:, -feature.max_length :]


def _transformed(feature: Numeric, values: tf.Tensor) -> tf.Tensor:
    if feature.transform == "log1p":
        return tf.math.log1p(values)
    if feature.transform == "symlog":
        return tf.sign(values) * tf.math.log1p(tf.abs(values))
    return values
