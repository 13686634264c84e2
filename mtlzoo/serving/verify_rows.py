"""Rows to try an export with: as clients send them, and as training saw the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mtlzoo.serving.candidates import CANDIDATES
from mtlzoo.serving.raw_features import length_name, missing_value
from mtlzoo.serving.request import feature_of, request_of
from mtlzoo.serving.verify_model import Arrays
from pipelines import Categorical, DataError, Dataset, MultiCategorical, Numeric, Schema
from pipelines.encode import Encoder
from pipelines.hashing import hash_strings
from pipelines.raw import read_raw
from pipelines.read import Packing
from pipelines.records import columns_of
from pipelines.schema import FIRST_ID, MISSING, OUT_OF_VOCABULARY
from pipelines.vocabulary import Vocabulary, untransform_numbers, usable_missing_values

_CANDIDATE_COUNTS = (8, 5, 1)
_HASHED_AT_ONCE = 100_000
_MOST_HASHED = 20_000_000


@dataclass(frozen=True)
class Rows:
    """The same rows twice.

    Attributes:
        request: Inputs of `serving_default`, by name.
        features: Packed features, as `Dataset.read` gives them.
        origin: Where the rows come from, for a message.
    """

    request: Arrays
    features: dict[str, tf.Tensor]
    origin: str


def rows_of_files(dataset: Dataset, files: Sequence[Path], rows: int) -> Rows:
    """The first rows of raw files, encoded as conversion encodes them.

    Args:
        dataset: Its schema and vocabularies encode the rows.
        files: Raw CSV or Parquet files.
        rows: At most this many.

    Raises:
        DataError: A file is missing, empty or without a column of the schema.
    """
    schema = dataset.schema
    batch = next(read_raw(files, schema, batch_rows=rows)).batch
    encoded = Encoder(schema, dataset.vocabularies)(batch)
    by_key = {key: tf.constant(values) for key, values in encoded.items()}
    for column in columns_of(schema):
        if column.max_length is not None:
            lists = tf.RaggedTensor.from_row_lengths(by_key[column.key], by_key[column.length_key])
            by_key[column.key] = lists.to_tensor(shape=[None, column.max_length])
    packing = Packing(schema, groups=False)
    features, _, _ = packing.unpack(*packing.pack(by_key))
    return Rows(request_of(schema, batch), features, f"{batch.num_rows} rows of {files[0].name}")


def rows_of_dataset(dataset: Dataset, rows: int) -> Rows:
    """The first rows of the test split (validation or training where it is empty), and raw rows that encode to them.

    A value of the vocabulary is that value, out of vocabulary is a value that the vocabulary lacks, a hash bucket is a
    text that falls into it, a bucket of a number is its lower edge; a number is computed back in float64.

    Args:
        dataset: The dataset.
        rows: At most this many.

    Raises:
        DataError: A shard is damaged, or no text was found for a hash bucket.

    Source:
        Our design.

    Example:
        >>> rows_of_dataset(open_dataset("data/demo"), 512).origin
        '512 rows of the test split'
    """
    split = next(name for name in ("test", "valid", "train") if dataset.rows(name))
    with dataset.damaged_shards_named(split):
        features, _, _ = next(iter(dataset.read(split, batch_size=rows)))
    stored = {key: values.numpy() for key, values in features.items()}
    origin = f"{len(next(iter(stored.values())))} rows of the {split} split"
    return Rows(_raw_request(dataset.schema, dataset.vocabularies, stored), features, origin)


def examples_of(request: Arrays, defaults: Arrays) -> np.ndarray:
    """Each row of a request as a serialized `tf.train.Example`, object `[rows]`.

    Args:
        request: Inputs by name; lists are cut to their `<name>_length`, which the examples do not need.
        defaults: By input: what stands for a missing value, which is left out.
    """
    lengths = {key for key in request if key.endswith("_length") and key.removesuffix("_length") in request}
    length_of = {key: f"{key.removesuffix('_weights')}_length" for key in request} | {
        key: f"{key}_length" for key in request if f"{key}_length" in lengths
    }
    examples = []
    for i in range(len(next(iter(request.values())))):
        features = {}
        for key in sorted(set(request) - lengths):
            values = request[key][i : i + 1]
            if values.ndim == 2:
                features[key] = feature_of(values[0, : request[length_of[key]][i]])
            elif key not in defaults or not _same(values[0], defaults[key][0]):
                features[key] = feature_of(values)
        examples.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return np.array(examples, object)


def candidate_request(request: Arrays) -> tuple[Arrays, np.ndarray]:
    """Rows put together as candidates of fewer requests, of several sizes.

    Args:
        request: Inputs `[rows, ...]`.

    Returns:
        Inputs `[requests, candidates, ...]` and `candidates` int64 `[requests]`; and the row of each candidate, int
        `[requests, candidates]`, the request's first row behind those that count.
    """
    groups: list[np.ndarray] = []
    total, start = len(next(iter(request.values()))), 0
    while start < total:
        count = min(_CANDIDATE_COUNTS[len(groups) % len(_CANDIDATE_COUNTS)], total - start)
        groups.append(np.arange(start, start + count))
        start += count
    width = max(map(len, groups))
    places = np.array([np.append(group, np.repeat(group[0], width - len(group))) for group in groups])
    counts = np.array([len(group) for group in groups], np.int64)
    return {key: values[places] for key, values in request.items()} | {CANDIDATES: counts}, places


def _same(value: Any, default: Any) -> bool:
    value, default = (v.encode() if isinstance(v, str) else v for v in (value, default))
    return value == default or (value != value and default != default)


def _raw_request(schema: Schema, vocabularies: dict[str, Vocabulary], stored: Arrays) -> Arrays:
    request: Arrays = {}
    column_of = {feature.name: i for i, feature in enumerate(schema.packed_categorical)}
    numbers = {name: stored["numeric"][:, i] for i, name in enumerate(schema.packed_numeric)}
    for feature in schema.features:
        ids = stored["categorical"][:, column_of[feature.name]] if feature.name in column_of else None
        if isinstance(feature, Numeric):
            request[feature.name] = _raw_numbers(schema, feature, numbers, ids)
        elif isinstance(feature, MultiCategorical):
            weights = stored[feature.weights_name]
            there = (weights != 0) | (stored[feature.name] != 0)
            values = _raw_values(feature, stored[feature.name], vocabularies.get(feature.table_name))
            request[feature.name] = values
            request[length_name(feature)] = np.max(there * np.arange(1, there.shape[1] + 1), axis=1)
            if feature.weights is not None:
                request[feature.weights_name] = weights
        else:
            assert ids is not None
            request[feature.name] = _raw_values(feature, ids, vocabularies.get(feature.table_name))
    return request


def _raw_values(feature: Categorical, ids: np.ndarray, vocabulary: Vocabulary | None) -> np.ndarray:
    """Raw values, int64 or object, of the shape of the ids."""
    distinct, places = np.unique(ids, return_inverse=True)
    values: dict[int, Any] = {MISSING: missing_value(feature)}
    if vocabulary is None:
        assert feature.hash_buckets is not None
        values |= _hashed_values(feature, {int(i) for i in distinct if i >= FIRST_ID})
    else:
        values |= {int(i): vocabulary.values[int(i) - FIRST_ID].as_py() for i in distinct if i >= FIRST_ID}
        values[OUT_OF_VOCABULARY] = _unknown_value(feature, vocabulary)
    # Behind the end of a list stands id 0, which a hashed feature has no value for: any will do there.
    values.setdefault(OUT_OF_VOCABULARY, values[MISSING])
    dtype = np.int64 if feature.dtype == "int" else object
    return np.array([values[int(i)] for i in distinct], dtype)[places].reshape(ids.shape)


def _hashed_values(feature: Categorical, wanted: set[int]) -> dict[int, Any]:
    """For each id a number, or its text, whose hash is that id."""
    assert feature.hash_buckets is not None
    found: dict[int, Any] = {}
    missing = usable_missing_values(feature).to_pylist()
    for start in range(0, _MOST_HASHED, _HASHED_AT_ONCE):
        if len(found) == len(wanted):
            return found
        texts = np.arange(start, start + _HASHED_AT_ONCE).astype(str).astype(object)
        hashed = FIRST_ID + hash_strings(texts, feature.hash_buckets)
        for place in np.flatnonzero(np.isin(hashed, list(wanted - set(found)))):
            value = int(texts[place]) if feature.dtype == "int" else texts[place]
            if value not in missing:
                found[int(hashed[place])] = value
    raise DataError(
        f"feature {feature.name!r}: no value was found for some of its {feature.hash_buckets:,} hash buckets; give raw "
        f"rows with --raw FILE"
    )


def _unknown_value(feature: Categorical, vocabulary: Vocabulary) -> Any:
    taken = set(vocabulary.values.to_pylist()) | set(usable_missing_values(feature).to_pylist())
    number = 0
    while (value := number if feature.dtype == "int" else f"unknown {number}") in taken:
        number += 1
    return value


def _raw_numbers(
    schema: Schema, feature: Numeric, numbers: dict[str, np.ndarray], buckets: np.ndarray | None
) -> np.ndarray:
    """Raw numbers float32 `[n]`, NaN where they were missing."""
    assert schema.fitted is not None
    fitted = schema.fitted.numeric[feature.name]
    # Between the edges lies every number that falls into a bucket.
    edges = np.array([-np.inf, *fitted.edges, np.inf], np.float32)
    if feature.has_value:
        values = numbers[feature.name].astype(np.float64)
        values = values * fitted.std + fitted.mean if feature.standardize else values
        raw = untransform_numbers(feature, values).astype(np.float32)
    if buckets is not None:
        place = np.maximum(buckets - FIRST_ID, 0)
        low, high = edges[place], np.nextafter(edges[place + 1], np.float32(-np.inf))
        middle = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high, np.float32(0)))
        raw = np.clip(raw, low, high) if feature.has_value else middle
        raw = np.where(buckets == MISSING, np.float32(np.nan), raw)
    if feature.indicator:
        raw = np.where(numbers[f"{feature.name}:missing"] == 1, np.float32(np.nan), raw)
    return raw
