"""What conversion must give, computed the slow and plain way: one Python value at a time, from the raw rows."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import tensorflow as tf

from pipelines.schema import Categorical, MultiCategorical, Numeric, Schema


def read_all(dataset, split: str, batch_size: int = 700, **options) -> dict[str, np.ndarray]:
    """All batches of a split end to end: features, `label/<name>`, `weight/<name>`, and `groups` if there are."""
    parts = []
    for features, labels, weights, *groups in dataset.read(split, batch_size, **options):
        part = dict(features)
        part |= {f"label/{name}": value for name, value in labels.items()}
        part |= {f"weight/{name}": value for name, value in weights.items()}
        part |= {"groups": groups[0]} if groups else {}
        parts.append({key: value.numpy() for key, value in part.items()})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def expected(rows: list[dict], train: list[dict], schema: Schema) -> dict[str, np.ndarray]:
    """The batch columns of `rows`, by vocabularies and statistics of `train` and the bucket edges of the schema."""
    vocabularies = {f.table_name: _vocabulary(f, train, schema) for f in schema.categoricals}
    packed = [[_single(f, row, vocabularies, schema) for f in schema.packed_categorical] for row in rows]
    numbers = {f.name: _numbers(f, rows, train) for f in schema.numerics}
    columns: dict[str, np.ndarray] = {}
    if schema.packed_categorical:
        columns["categorical"] = np.array(packed, np.int32)
    if schema.packed_numeric:
        columns["numeric"] = np.stack([_numeric_column(name, numbers) for name in schema.packed_numeric], axis=1)
    for feature in schema.multis:
        lists = [_list(feature, row, vocabularies) for row in rows]
        columns[feature.name] = np.array([_padded(ids, feature.max_length) for ids, _ in lists], np.int32)
        columns[feature.weights_name] = np.array([_padded(w, feature.max_length) for _, w in lists], np.float32)
    return columns | _targets(rows, schema)


def _is_missing(feature: Categorical, value) -> bool:
    return value is None or value in feature.missing_values


def _cut(feature: MultiCategorical, values: list | None) -> list:
    values = values or []
    return values[: feature.max_length] if feature.keep == "first" else values[-feature.max_length :]


def _vocabulary(feature: Categorical, train: list[dict], schema: Schema) -> dict:
    counts: Counter = Counter()
    for user in (f for f in schema.categoricals if f.table_name == feature.table_name):
        for row in train:
            value = row[user.source]
            values = (value or []) if isinstance(user, MultiCategorical) else [value]
            counts.update(v for v in values if not _is_missing(user, v))
    frequent = [(value, count) for value, count in counts.items() if count >= feature.min_count]
    frequent.sort(key=lambda pair: (-pair[1], pair[0].encode() if isinstance(pair[0], str) else pair[0]))
    return {value: 2 + i for i, (value, _) in enumerate(frequent[: feature.max_size])}


def _id(feature: Categorical, value, vocabularies: dict[str, dict]) -> int:
    if _is_missing(feature, value):
        return 1
    if feature.hash_buckets is not None:
        return 2 + int(tf.strings.to_hash_bucket_fast([str(value)], feature.hash_buckets)[0])
    return vocabularies[feature.table_name].get(value, 0)


def _single(feature: Categorical | Numeric, row: dict, vocabularies: dict[str, dict], schema: Schema) -> int:
    if isinstance(feature, Categorical):
        return _id(feature, row[feature.source], vocabularies)
    value = _number(feature, row)
    if value is None:
        return 1
    edges = schema.fitted.numeric[feature.name].edges
    return 2 + sum(edge <= np.float32(value) for edge in edges)


def _list(feature: MultiCategorical, row: dict, vocabularies: dict[str, dict]) -> tuple[list[int], list[float]]:
    ids = [_id(feature, value, vocabularies) for value in _cut(feature, row[feature.source])]
    weights = [1.0] * len(ids) if feature.weights is None else _cut(feature, row[feature.weights])
    return ids, weights


def _padded(values: list, length: int) -> list:
    return values + [0] * (length - len(values))


def _was_missing(feature: Numeric, row: dict) -> bool:
    value = row[feature.source]
    return value is None or math.isnan(value)


def _number(feature: Numeric, row: dict) -> float | None:
    if not _was_missing(feature, row):
        return row[feature.source]
    return feature.missing if isinstance(feature.missing, float) else None


def _transformed(feature: Numeric, value: float) -> float:
    if feature.transform == "log1p":
        return math.log1p(value)
    return math.copysign(math.log1p(abs(value)), value) if feature.transform == "symlog" else value


def _numbers(feature: Numeric, rows: list[dict], train: list[dict]) -> dict[str, np.ndarray]:
    seen = [_transformed(feature, v) for v in (_number(feature, row) for row in train) if v is not None]
    mean = np.mean(seen) if seen else 0.0
    deviation = np.std(seen) if len(set(seen)) > 1 else 1.0
    values = [_number(feature, row) for row in rows]
    floats = np.array([mean if v is None else _transformed(feature, v) for v in values])
    return {
        "value": (floats - mean) / deviation if feature.standardize else floats,
        "missing": np.array([_was_missing(feature, row) for row in rows], float),
    }


def _numeric_column(name: str, numbers: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    feature, _, indicator = name.partition(":")
    return numbers[feature][indicator or "value"]


def _targets(rows: list[dict], schema: Schema) -> dict[str, np.ndarray]:
    """Click, conversion given click and both, spelt out; any other funnel has its own test."""
    click = np.array([[float(row["click"])] for row in rows])
    conversion = np.array([[float(row["conversion"])] for row in rows])
    weight = np.array([[row[schema.keys.weight] if schema.keys.weight else 1.0] for row in rows])
    return {
        "label/click": click,
        "label/conversion": conversion,
        "label/ctcvr": click * conversion,
        "weight/click": weight,
        "weight/conversion": weight * click,
        "weight/ctcvr": weight,
    }
