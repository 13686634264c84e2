"""Raw features → packed features inside a TensorFlow graph: what conversion does to a log, for one request."""

from __future__ import annotations

from collections.abc import Mapping
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
    stands for "missing" where a tensor cannot hold null: the empty string (as the schema's `missing_values` has it),
    the smallest int64, NaN; and the schema's own `missing_values`.

    Args:
        schema: Fitted schema.
        vocabularies: By table name.
    """

    def __init__(self, schema: Schema, vocabularies: Mapping[str, Vocabulary]) -> None:
        super().__init__(name="raw_features")
        if schema.fitted is None:
            raise ValueError("raw features need a fitted schema: that of a dataset, pipelines.open_dataset(DIR).schema")
        self.schema = schema
        self._fitted = schema.fitted
        self.tables = {name: _lookup_table(name, vocabulary) for name, vocabulary in vocabularies.items()}

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

    def example_spec(self) -> dict[str, Any]:
        """How a serialized `tf.train.Example` with raw values is parsed; absent features are missing."""
        spec: dict[str, Any] = {}
        for feature in self.schema.features:
            if isinstance(feature, MultiCategorical):
                spec[feature.name] = tf.io.RaggedFeature(_raw_dtype(feature), row_splits_dtype=tf.int64)
                if feature.weights is not None:
                    spec[feature.weights_name] = tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int64)
            else:
                spec[feature.name] = tf.io.FixedLenFeature([], _raw_dtype(feature), _absent(feature))
        return spec

    def from_request(self, request: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Packed features of a request, whose lists are padded; values beyond a list's length are not looked at."""
        raw = dict(request)
        for feature in self.schema.multis:
            lengths = raw.pop(length_name(feature))
            for name in [feature.name] + ([feature.weights_name] if feature.weights is not None else []):
                raw[name] = tf.RaggedTensor.from_tensor(raw[name], lengths=lengths)
        return self._packed(raw)

    def from_examples(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        """Packed features of serialized examples, string `[batch]`."""
        return self._packed(tf.io.parse_example(serialized, self.example_spec()))

    def _packed(self, raw: Mapping[str, Any]) -> dict[str, tf.Tensor]:
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


def _absent(feature: Categorical | Numeric) -> Any:
    if isinstance(feature, Numeric):
        return float("nan")
    return MISSING_INTEGER if feature.dtype == "int" else ""


def _cut(feature: MultiCategorical, lists: tf.RaggedTensor) -> tf.RaggedTensor:
    return lists[:, : feature.max_length] if feature.keep == "first" else lists[:, -feature.max_length :]


def _transformed(feature: Numeric, values: tf.Tensor) -> tf.Tensor:
    if feature.transform == "log1p":
        return tf.math.log1p(values)
    if feature.transform == "symlog":
        return tf.sign(values) * tf.math.log1p(tf.abs(values))
    return values
