"""What only the training split can tell: the vocabulary of each table, means, deviations and bucket edges.

Memory is bounded by the number of distinct values, not of rows, and by a cap on that: beyond `max_distinct` values of
one table the rarest are dropped and their counts forgotten (lossy counting, Manku and Motwani 2002), which the
vocabulary records as `exact = False`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from pipelines.errors import DataError
from pipelines.schema import FIRST_ID, Categorical, Fitted, FittedNumeric, MultiCategorical, Numeric, Schema

MAX_DISTINCT = 4_000_000
_MERGE_AT = 1_000_000
_MERGE_PARTS = 64
_SAMPLE_CAPACITY = 1 << 20
_BY_FREQUENCY = [("count", "descending"), ("value", "ascending")]


@dataclass(frozen=True)
class Vocabulary:
    """The values of one table in order of falling training frequency; value `i` has id `2 + i`.

    Attributes:
        values: Arrow int64 or string array, no nulls.
        counts: int64 `[n]`, occurrences in the training split.
        exact: Whether the counts are exact.
    """

    values: pa.Array
    counts: np.ndarray
    exact: bool = True

    @property
    def size(self) -> int:
        """Rows of the embedding table: the vocabulary plus out-of-vocabulary and missing."""
        return FIRST_ID + len(self.values)

    @property
    def digest(self) -> str:
        """SHA-256 of the values in the order of their ids, with their type, as 16 hexadecimal digits; not the counts.

        What is hashed: type and number of values, then int64 values as they are, or the lengths (int64) of all strings
        before their UTF-8 bytes. No two vocabularies share it, however Arrow holds them.
        """
        hashed = hashlib.sha256(f"{self.values.type} {len(self.values)}\n".encode())
        for part in _content(self.values):
            hashed.update(part)
        return hashed.hexdigest()[:16]


def _content(values: pa.Array) -> list[memoryview]:
    """The bytes of all values, free of offsets into larger buffers; of strings first their lengths."""
    if pa.types.is_integer(values.type):
        return [values.to_numpy().astype("<i8", copy=False).data]
    lengths = pc.binary_length(values).to_numpy().astype("<i8")
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(values)], values), "")
    return [lengths.data, memoryview(joined[0].as_buffer())]


class FrequencyCounter:
    """Counts values of a stream of Arrow arrays.

    Args:
        max_distinct: Cap on the distinct values kept.
    """

    def __init__(self, max_distinct: int = MAX_DISTINCT) -> None:
        self._max_distinct = max_distinct
        self._counts: pa.Table | None = None
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self.exact = True

    def add(self, values: pa.Array) -> None:
        """Adds an array; nulls are not counted."""
        counted = pc.value_counts(values.drop_null())
        if len(counted) == 0:
            return
        self._pending.append(pa.table({"value": counted.field("values"), "count": counted.field("counts")}))
        self._pending_rows += len(counted)
        kept = 0 if self._counts is None else self._counts.num_rows
        if self._pending_rows >= max(_MERGE_AT, kept) or len(self._pending) >= _MERGE_PARTS:
            self._merge()

    def vocabulary(self, min_count: int, max_size: int | None) -> Vocabulary:
        """The values that occur at least `min_count` times, the most frequent `max_size` of them; ties by value."""
        self._merge()
        if self._counts is None:
            return Vocabulary(pa.array([], pa.string()), np.zeros(0, np.int64), self.exact)
        table = self._counts.filter(pc.greater_equal(self._counts["count"], min_count))
        table = table.sort_by(_BY_FREQUENCY)
        table = table.slice(0, max_size) if max_size is not None else table
        values = table["value"].combine_chunks()
        return Vocabulary(values, table["count"].to_numpy(), self.exact)

    def _merge(self) -> None:
        tables = ([] if self._counts is None else [self._counts]) + self._pending
        if not self._pending:
            return
        merged = pa.concat_tables(tables).group_by("value").aggregate([("count", "sum")])
        self._counts = merged.rename_columns({"count_sum": "count"}).select(["value", "count"])
        self._pending, self._pending_rows = [], 0
        if self._counts.num_rows > self._max_distinct:
            # Half, so that the next drop is far; by a total order, so that ties neither all go nor depend on threads.
            self._counts = self._counts.sort_by(_BY_FREQUENCY).slice(0, max(self._max_distinct // 2, 1))
            self.exact = False


class NumericSummary:
    """Mean, deviation and quantiles of a stream of floats (NaN left out).

    Mean and variance are exact (Chan's merge of partial sums). Quantiles are exact up to 2**20 values; beyond, they
    come from a uniform sample of between half that many and that many.

    Args:
        quantiles: Whether quantiles will be asked for; without them no values are kept.
        seed: Of the sample.
    """

    def __init__(self, quantiles: bool = True, seed: int = 0) -> None:
        self._quantiles = quantiles
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0
        self._kept: list[np.ndarray] = []
        self._kept_rows = 0
        self._level = 0
        self._random = np.random.default_rng(seed)

    def add(self, raw: np.ndarray, transformed: np.ndarray) -> None:
        """Adds raw values (for bucket edges) and the same transformed (for mean and deviation), both `[n]`."""
        present = ~np.isnan(raw)
        raw, transformed = raw[present], transformed[present].astype(np.float64)
        if len(raw) == 0:
            return
        mean = float(transformed.mean())
        squares = float(np.square(transformed - mean).sum())
        total = self.count + len(raw)
        delta = mean - self.mean
        self._squares += squares + delta * delta * self.count * len(raw) / total
        self.mean += delta * len(raw) / total
        self.count = total
        if self._quantiles:
            self._sample(raw)

    def fitted(self, feature: Numeric) -> FittedNumeric:
        """The statistics as the schema stores them; a constant feature has deviation 1."""
        deviation = float(np.sqrt(self._squares / self.count)) if self.count else 0.0
        sample = np.concatenate(self._kept) if self._kept else np.zeros(0, np.float32)
        edges = quantile_edges(sample, feature.buckets) if feature.buckets else np.zeros(0, np.float32)
        # Below the resolution of float32 a deviation is rounding: dividing by it would blow up any other value.
        float32 = np.finfo(np.float32)
        constant = deviation <= max(abs(self.mean) * float32.eps, float32.tiny)
        mean, std = np.float32(self.mean), np.float32(1.0 if constant else deviation)
        return FittedNumeric(mean=float(mean), std=float(std), edges=tuple(float(e) for e in edges))

    def _sample(self, raw: np.ndarray) -> None:
        keep = raw if self._level == 0 else raw[self._random.random(len(raw)) < 0.5**self._level]
        self._kept.append(keep.astype(np.float32))
        self._kept_rows += len(keep)
        while self._kept_rows > _SAMPLE_CAPACITY:
            values = np.concatenate(self._kept)
            self._kept = [values[self._random.random(len(values)) < 0.5]]
            self._kept_rows = len(self._kept[0])
            self._level += 1


def quantile_edges(values: np.ndarray, buckets: int) -> np.ndarray:
    """Edges of about equally full buckets; bucket of x = number of edges <= x.

    A value that alone fills a bucket or more (the zeros of a capital gain) gets a bucket of its own, the heaviest first
    and as long as edges last, and the others share the rest; plain quantiles would spend nearly all edges on it.

    Args:
        values: float32 `[n]`, no NaN.
        buckets: Wanted number of buckets, at least 2; fewer come out where there are fewer distinct values.

    Returns:
        float32 `[k]`, rising, `k < buckets`.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= buckets:
        return distinct[1:]
    heavy = counts >= len(values) / buckets
    edges: set[int] = set()
    for own in sorted(np.flatnonzero(heavy), key=lambda i: -counts[i]):
        # A bucket of one value has an edge at it and an edge at the next value; none below the first or above the last.
        wider = edges | ({int(own), int(own) + 1} - {0, len(distinct)})
        edges = wider if len(wider) < buckets else edges
    light = np.flatnonzero(~heavy)
    light_buckets = buckets - len(edges)
    if len(light):
        share = np.cumsum(counts[light]) / counts[light].sum()
        cuts = np.searchsorted(share, np.arange(1, light_buckets) / light_buckets, side="left")
        edges |= set(light[np.minimum(cuts + 1, len(light) - 1)].tolist()) - {0}
    return distinct[sorted(edges)].astype(np.float32)


class VocabularyFitter:
    """Fits all tables and numeric statistics of a schema over the training batches."""

    def __init__(self, schema: Schema, max_distinct: int = MAX_DISTINCT) -> None:
        self._schema = schema
        fitted = [f for f in schema.categoricals if f.hash_buckets is None]
        self._counters = {f.table_name: FrequencyCounter(max_distinct) for f in fitted}
        self._summaries = {f.name: NumericSummary(quantiles=f.buckets is not None) for f in schema.numerics}

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds training rows."""
        for feature in self._schema.categoricals:
            if feature.hash_buckets is None:
                self._counters[feature.table_name].add(present_values(feature, batch.column(feature.source)))
        for numeric in self._schema.numerics:
            raw = raw_numbers(numeric, batch.column(numeric.source))
            self._summaries[numeric.name].add(raw, transform_numbers(numeric, raw))

    def finish(self) -> tuple[dict[str, Vocabulary], Fitted]:
        """Vocabularies by table, and the `fitted` section of the schema."""
        vocabularies: dict[str, Vocabulary] = {}
        tables: dict[str, int] = {}
        for feature in self._schema.categoricals:
            name = feature.table_name
            if feature.hash_buckets is not None:
                tables[name] = FIRST_ID + feature.hash_buckets
            elif name not in vocabularies:
                found = self._counters[name].vocabulary(feature.min_count, feature.max_size)
                type_ = pa.int64() if feature.dtype == "int" else pa.string()
                vocabularies[name] = Vocabulary(found.values.cast(type_), found.counts, found.exact)
                tables[name] = vocabularies[name].size
        statistics = {f.name: self._summaries[f.name].fitted(f) for f in self._schema.numerics}
        for numeric in self._schema.numerics:
            if numeric.buckets is not None:
                tables[numeric.name] = FIRST_ID + len(statistics[numeric.name].edges) + 1
        digests = {name: vocabulary.digest for name, vocabulary in vocabularies.items()}
        return vocabularies, Fitted(tables=tables, numeric=statistics, vocabularies=digests)


def present_values(feature: Categorical, column: pa.Array) -> pa.Array:
    """The flat values of a categorical column that are not missing."""
    if isinstance(feature, MultiCategorical):
        flat = parted(feature, column).flatten()
    else:
        flat = single_values(feature, column)
    missing = usable_missing_values(feature)
    return flat.filter(pc.invert(pc.is_in(flat, value_set=missing))) if len(missing) else flat


def usable_missing_values(feature: Categorical) -> pa.Array:
    """The declared missing values that the feature's type can hold."""
    if feature.dtype == "int":
        return pa.array([v for v in feature.missing_values if isinstance(v, int)], pa.int64())
    return pa.array([str(v) for v in feature.missing_values], pa.string())


def single_values(feature: Categorical, column: pa.Array) -> pa.Array:
    """A single-valued categorical column in the feature's type; floats where a numeric feature reads it too."""
    if feature.dtype == "int" and pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column), None, column).cast(pa.int64())
    return column


def parted(feature: MultiCategorical, column: pa.Array) -> pa.ListArray:
    """The values of a multi-valued column as lists; see `_as_lists`."""
    return _as_lists(column, feature.separator, pa.int64() if feature.dtype == "int" else pa.string())


def list_weights(feature: MultiCategorical, column: pa.Array) -> pa.ListArray:
    """The weights of a multi-valued feature as lists of float64; see `_as_lists`."""
    return _as_lists(column, feature.separator, pa.float64())


def _as_lists(column: pa.Array, separator: str, type_: pa.DataType) -> pa.ListArray:
    """Text (of a CSV) is parted at the separator; null and empty text are empty lists.

    Raises:
        pyarrow.ArrowInvalid: A part is not of the type.
    """
    if pa.types.is_list(column.type):
        return pc.if_else(column.is_valid(), column, pa.scalar([], type=column.type))
    text = pc.fill_null(column, "")
    lists = pc.split_pattern(text, separator)
    return pc.if_else(pc.equal(text, ""), pa.scalar([], type=lists.type), lists).cast(pa.list_(type_))


def raw_numbers(feature: Numeric, column: pa.Array) -> np.ndarray:
    """The raw numbers as float32 `[n]`: missing ones are NaN, or the number that the schema puts in their place."""
    values = column.to_numpy(zero_copy_only=False).astype(np.float32)
    if isinstance(feature.missing, float):
        values = np.where(np.isnan(values), np.float32(feature.missing), values)
    return values


def transform_numbers(feature: Numeric, raw: np.ndarray) -> np.ndarray:
    """The feature's transform, float32 `[n]` to float32 `[n]`."""
    if feature.transform == "log1p":
        return np.log1p(raw)
    if feature.transform == "symlog":
        return np.sign(raw) * np.log1p(np.abs(raw))
    return raw


def standardize_numbers(feature: Numeric, fitted: FittedNumeric, transformed: np.ndarray) -> np.ndarray:
    """Transformed numbers as a model gets them, float32 `[n]`."""
    if feature.standardize:
        transformed = (transformed - np.float32(fitted.mean)) / np.float32(fitted.std)
    return transformed.astype(np.float32)


def untransform_numbers(feature: Numeric, values: np.ndarray) -> np.ndarray:
    """The numbers whose `transform_numbers` these are, in their dtype and shape."""
    if feature.transform == "log1p":
        return np.expm1(values)
    if feature.transform == "symlog":
        return np.sign(values) * np.expm1(np.abs(values))
    return values


def save_vocabularies(vocabularies: dict[str, Vocabulary], folder: Path) -> None:
    """Writes each vocabulary as `<table>.parquet` with the columns value and count, and what is not exact."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, vocabulary in vocabularies.items():
        table = pa.table({"value": vocabulary.values, "count": vocabulary.counts})
        pa.parquet.write_table(table, folder / f"{name}.parquet")
    inexact = sorted(name for name, vocabulary in vocabularies.items() if not vocabulary.exact)
    (folder / "inexact.json").write_text(json.dumps(inexact), encoding="utf-8")


def load_vocabularies(
    names: Iterable[str], folder: Path, digests: Mapping[str, str] | None = None
) -> dict[str, Vocabulary]:
    """Reads vocabularies written by `save_vocabularies`.

    Args:
        names: Names of their tables.
        folder: Where they stand.
        digests: By table name, the digests that are known (`Schema.fitted.vocabularies`).

    Raises:
        DataError: A file is missing, damaged, or does not have its digest; the message names it.
    """
    loaded = {}
    path = folder / "inexact.json"
    try:
        inexact = set(json.loads(path.read_text(encoding="utf-8")))
        for name in names:
            path = folder / f"{name}.parquet"
            table = pa.parquet.read_table(path).combine_chunks()
            values = table["value"].combine_chunks()
            loaded[name] = Vocabulary(values, table["count"].to_numpy(), name not in inexact)
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise DataError(f"{path}: the vocabularies are missing or damaged ({error}); convert the log again") from None
    for name, digest in (digests or {}).items():
        if name in loaded and loaded[name].digest != digest:
            raise DataError(
                f"{folder / name}.parquet: its values differ from what was written (digest); "
                f"restore it or convert the log again"
            )
    return loaded
