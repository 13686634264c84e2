"""Arrow batch → ids and floats, by a fitted schema and its vocabularies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.hashing import GROUP_SPACE, as_strings, hash_strings
from pipelines.records import GROUP_KEY, WEIGHT_KEY, Encoded, bucket_key, missing_key, weight_key
from pipelines.schema import FIRST_ID, MISSING, OUT_OF_VOCABULARY, Categorical, MultiCategorical, Numeric, Schema
from pipelines.validate import label_values
from pipelines.vocabulary import (
    Vocabulary,
    list_weights,
    parted,
    raw_numbers,
    single_values,
    standardize_numbers,
    transform_numbers,
    usable_missing_values,
)

_NO_GROUP = np.iinfo(np.int64).min


class IdLookup:
    """Ids of a categorical feature's values.

    Values are looked up once per batch and distinct value, so that the cost follows the distinct values.

    Args:
        feature: Its declaration.
        vocabulary: The vocabulary of its table; `None` for hash buckets.
    """

    def __init__(self, feature: Categorical, vocabulary: Vocabulary | None) -> None:
        self._feature = feature
        self._missing = usable_missing_values(feature)
        self._ids: dict[str, int] = {}
        self._sorted = np.zeros(0, np.int64)
        if vocabulary is not None and feature.dtype == "int":
            values = vocabulary.values.to_numpy()
            self._order = np.argsort(values, kind="stable")
            self._sorted = values[self._order]
        elif vocabulary is not None:
            self._ids = {value: FIRST_ID + i for i, value in enumerate(vocabulary.values.to_pylist())}

    def __call__(self, values: pa.Array) -> np.ndarray:
        """Ids, int64 `[n]`, of an Arrow array of `n` values; nulls are missing."""
        encoded = values.dictionary_encode()
        distinct = encoded.dictionary
        ids = self._distinct_ids(distinct)
        if len(self._missing):
            ids[pc.is_in(distinct, value_set=self._missing).to_numpy(zero_copy_only=False)] = MISSING
        with_null = np.append(ids, MISSING)
        return with_null[encoded.indices.fill_null(len(ids)).to_numpy(zero_copy_only=False)]

    def _distinct_ids(self, distinct: pa.Array) -> np.ndarray:
        if len(distinct) == 0:
            return np.zeros(0, np.int64)
        if self._feature.hash_buckets is not None:
            return FIRST_ID + hash_strings(as_strings(distinct), self._feature.hash_buckets)
        if self._feature.dtype == "string":
            find = self._ids.get
            return np.array([find(value, OUT_OF_VOCABULARY) for value in distinct.to_pylist()], np.int64)
        values = distinct.to_numpy()
        if len(self._sorted) == 0:
            return np.full(len(values), OUT_OF_VOCABULARY, np.int64)
        at = np.minimum(np.searchsorted(self._sorted, values), len(self._sorted) - 1)
        return np.where(self._sorted[at] == values, FIRST_ID + self._order[at], OUT_OF_VOCABULARY)


class Encoder:
    """Turns raw batches into record columns.

    Args:
        schema: A fitted schema.
        vocabularies: By table name.

    Example:
        >>> encoder = Encoder(dataset.schema, dataset.vocabularies)
        >>> encoder(batch)["item"]
        array([5, 2, 0])
    """

    def __init__(self, schema: Schema, vocabularies: Mapping[str, Vocabulary]) -> None:
        if schema.fitted is None:
            raise ValueError("the encoder needs a fitted schema")
        self._schema = schema
        self._fitted = schema.fitted
        self._lookups = {f.name: IdLookup(f, vocabularies.get(f.table_name)) for f in schema.categoricals}

    def __call__(self, batch: pa.RecordBatch) -> Encoded:
        """Columns by record key: int64 or float32 `[n]`; a list feature's values end to end, with their lengths."""
        encoded: Encoded = {}
        for feature in self._schema.features:
            column = batch.column(feature.source)
            if isinstance(feature, Numeric):
                encoded |= self._numeric(feature, column)
            elif isinstance(feature, MultiCategorical):
                encoded |= self._multi(feature, column, batch)
            else:
                encoded[feature.name] = self._lookups[feature.name](single_values(feature, column))
        for label in self._schema.labels:
            encoded[label.name] = label_values(label, batch.column(label.source))
        return encoded | self._keys(batch)

    def _numeric(self, feature: Numeric, column: pa.Array) -> Encoded:
        fitted = self._fitted.numeric[feature.name]
        raw = raw_numbers(feature, column)
        missing = np.isnan(raw)
        encoded: Encoded = {}
        if feature.buckets is not None:
            bucket = np.searchsorted(np.array(fitted.edges, np.float32), raw, side="right")
            encoded[bucket_key(feature.name)] = np.where(missing, MISSING, FIRST_ID + bucket).astype(np.int64)
        if feature.has_value:
            values = np.where(missing, np.float32(fitted.mean), transform_numbers(feature, raw))
            encoded[feature.name] = standardize_numbers(feature, fitted, values)
        if feature.indicator:
            was_missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
            encoded[missing_key(feature.name)] = was_missing.astype(np.float32)
        return encoded

    def _multi(self, feature: MultiCategorical, column: pa.Array, batch: pa.RecordBatch) -> Encoded:
        lists = parted(feature, column)
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        kept, kept_lengths = _cut(lengths, feature.max_length, feature.keep)
        encoded = {
            feature.name: self._lookups[feature.name](lists.flatten())[kept],
            f"{feature.name}#length": kept_lengths,
        }
        if feature.weights is not None:
            weights = list_weights(feature, batch.column(feature.weights)).flatten()
            encoded[weight_key(feature.name)] = weights.to_numpy(zero_copy_only=False).astype(np.float32)[kept]
        return encoded

    def _keys(self, batch: pa.RecordBatch) -> Encoded:
        keys = self._schema.keys
        encoded: Encoded = {}
        if keys.group is not None:
            column = batch.column(keys.group)
            if pa.types.is_integer(column.type):
                encoded[GROUP_KEY] = column.fill_null(_NO_GROUP).to_numpy()
            else:
                encoded[GROUP_KEY] = hash_strings(as_strings(column), GROUP_SPACE)
        if keys.weight is not None:
            encoded[WEIGHT_KEY] = batch.column(keys.weight).to_numpy(zero_copy_only=False).astype(np.float32)
        return encoded


def _cut(lengths: np.ndarray, max_length: int, keep: str) -> tuple[np.ndarray, np.ndarray]:
    """Which flat values stay when each list keeps at most `max_length` of one end, and the new lengths."""
    kept_lengths = np.minimum(lengths, max_length)
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if keep == "first":
        return position < max_length, kept_lengths
    return position >= np.repeat(lengths - kept_lengths, lengths), kept_lengths
