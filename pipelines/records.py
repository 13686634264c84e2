"""How an encoded impression lies in a TFRecord: the one definition that the writer and the reader share.

Every column of `columns_of(schema)` is one feature of a `tf.train.Example`. In the layout `rows` an Example is an
impression; in `blocks` it is a run of impressions, and each feature holds the column of their values. A list feature's
values of a block lie end to end, with their numbers per impression in `<key>#length`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import tensorflow as tf

from pipelines.example_bytes import Values, serialize_examples
from pipelines.schema import Schema

BLOCK_ROWS = 1024
Layout = Literal["blocks", "rows"]
Compression = Literal["none", "gzip"]

Encoded = dict[str, np.ndarray]


@dataclass(frozen=True)
class Storage:
    """How the records of a dataset lie on disk.

    Attributes:
        layout: What an Example holds.
        shards: Wanted number of shards per split.
        compression: Of each shard as a whole.
    """

    layout: Layout = "blocks"
    shards: int = 8
    compression: Compression = "none"


@dataclass(frozen=True)
class Column:
    """One feature of an Example.

    Attributes:
        key: Its name in the Example.
        kind: `"int"` (int64 list) or `"float"` (float list).
        max_length: Most values per impression of a list feature; `None`: exactly one.
    """

    key: str
    kind: Literal["int", "float"]
    max_length: int | None = None

    @property
    def length_key(self) -> str:
        """Key of the numbers of values per impression; weights of a list share those of its values."""
        return f"{self.key.removesuffix('#weight')}#length"


def compression_type(compression: Compression) -> str:
    """What TensorFlow calls it."""
    return "GZIP" if compression == "gzip" else ""


def bucket_key(name: str) -> str:
    """Key of the bucket ids of a numeric feature."""
    return f"{name}#bucket"


def missing_key(name: str) -> str:
    """Key of the missing indicator of a numeric feature."""
    return f"{name}#missing"


def weight_key(name: str) -> str:
    """Key of the weights of a multi-valued feature."""
    return f"{name}#weight"


GROUP_KEY = "#group"
WEIGHT_KEY = "#weight"


def columns_of(schema: Schema) -> tuple[Column, ...]:
    """The columns of a schema's records: features in order, then labels, then keys."""
    columns = [Column(f.name, "int") for f in schema.singles]
    for feature in schema.numerics:
        columns += [Column(bucket_key(feature.name), "int")] if feature.buckets is not None else []
        columns += [Column(feature.name, "float")] if feature.has_value else []
        columns += [Column(missing_key(feature.name), "float")] if feature.indicator else []
    for multi in schema.multis:
        columns += [Column(multi.name, "int", multi.max_length)]
        columns += [Column(weight_key(multi.name), "float", multi.max_length)] if multi.weights is not None else []
    columns += [Column(label.name, "int") for label in schema.labels]
    columns += [Column(GROUP_KEY, "int")] if schema.keys.group is not None else []
    columns += [Column(WEIGHT_KEY, "float")] if schema.keys.weight is not None else []
    return tuple(columns)


def serialize_blocks(encoded: Encoded, columns: tuple[Column, ...], rows: int) -> list[bytes]:
    """Examples of `BLOCK_ROWS` impressions each, the last one shorter."""
    ends = np.minimum(np.arange(0, rows + BLOCK_ROWS, BLOCK_ROWS), rows)
    values = {}
    for column in columns:
        of_column = ends
        if column.max_length is not None:
            values[column.length_key] = Values(encoded[column.length_key], ends)
            of_column = _offsets(encoded[column.length_key])[ends]
        values[column.key] = Values(encoded[column.key], of_column)
    return serialize_examples(values, len(ends) - 1)


def serialize_rows(encoded: Encoded, columns: tuple[Column, ...], rows: int) -> list[bytes]:
    """One Example per impression."""
    # Plain lists are several times faster to index than arrays, one element at a time.
    values = {c.key: encoded[c.key].tolist() for c in columns}
    offsets = {c.length_key: _offsets(encoded[c.length_key]).tolist() for c in columns if c.max_length is not None}
    examples = []
    for row in range(rows):
        features = {}
        for column in columns:
            low, high = row, row + 1
            if column.max_length is not None:
                low, high = offsets[column.length_key][row : row + 2]
            features[column.key] = _feature(column.kind, values[column.key][low:high])
        examples.append(_example(features))
    return examples


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def _feature(kind: str, values: np.ndarray | list) -> tf.train.Feature:
    # A list of Python numbers goes into a protocol buffer faster than an array does (measured: 1.4 times).
    plain = values if isinstance(values, list) else values.tolist()
    if kind == "int":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=plain))
    return tf.train.Feature(float_list=tf.train.FloatList(value=plain))


def _example(features: dict[str, tf.train.Feature]) -> bytes:
    # Deterministic: the same rows give the same bytes, so that a resumed conversion equals an uninterrupted one.
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)
