"""TFRecord shards → batches of packed tensors.

    files → (shuffled, interleaved) records → (shuffled) → parse → (rows permuted in a window) → batch → unpack

Parsing packs all integers of an impression into one int32 row and all floats into one float32 row, so that permuting
and batching move two tensors instead of one per feature; only the finished batch is cut into features, labels and
weights. tf.data's autotune is off throughout: in TensorFlow 2.21 it delays the end of every epoch by seconds (its
thread holds the iterator), and two parses in parallel already outrun any model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from pipelines.manifest import Manifest, Shard
from pipelines.records import (
    BLOCK_ROWS,
    GROUP_KEY,
    WEIGHT_KEY,
    Column,
    Compression,
    bucket_key,
    columns_of,
    compression_type,
    missing_key,
    weight_key,
)
from pipelines.schema import Categorical, MultiCategorical, Schema

_WINDOW_BLOCKS = 256
_WINDOW_BYTES = 64 << 20
_SHUFFLE_BYTES = 256 << 20
_MOST_SHUFFLED_BLOCKS = 2048
_INTERLEAVED_SHARDS = 16
_READ_BUFFER_BYTES = 1 << 20
_PREFETCHED_BATCHES = 4
_PARALLEL = max(2, min(os.cpu_count() or 2, 8))


@dataclass(frozen=True)
class ReadOptions:
    """How a split is read; the arguments of `Dataset.read`."""

    batch_size: int
    shuffle: bool = False
    seed: int | None = None
    drop_remainder: bool = False
    repeat: bool = False
    cache: bool = False
    worker: tuple[int, int] = (0, 1)
    groups: bool = False


class Packing:
    """Which column of the packed int32 and float32 rows holds what."""

    def __init__(self, schema: Schema, groups: bool) -> None:
        self.schema = schema
        self.groups = groups
        columns = {column.key: column for column in columns_of(schema)}
        self.columns = [c for key, c in columns.items() if key != GROUP_KEY or self.groups]
        self._ints: dict[str, slice] = {}
        self._floats: dict[str, slice] = {}
        for column in self.columns:
            if column.key != GROUP_KEY:
                self._place(column)

    @property
    def row_bytes(self) -> int:
        """Bytes of one packed impression."""
        return 4 * sum(place.stop - place.start for place in (*self._ints.values(), *self._floats.values()))

    def _place(self, column: Column) -> None:
        places = self._ints if column.kind == "int" else self._floats
        start = max((place.stop for place in places.values()), default=0)
        places[column.key] = slice(start, start + (column.max_length or 1))
        if column.max_length is not None and column.kind == "int":
            places[column.length_key] = slice(start + column.max_length, start + column.max_length + 1)

    def pack(self, by_key: dict[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        """Columns `[n]` or `[n, length]` by key → `(ints [n, i], floats [n, f])`, and groups int64 `[n]` if wanted."""
        packed = [
            _side_by_side([by_key[key] for key in self._ints], tf.int32),
            _side_by_side([by_key[key] for key in self._floats], tf.float32),
        ]
        packed = [part for part in packed if part is not None]
        return (*packed, by_key[GROUP_KEY]) if self.groups else tuple(packed)

    def unpack(self, *packed: tf.Tensor) -> tuple[Any, ...]:
        """A packed batch → `(features, labels, sample_weight)`, and the groups if wanted."""
        ints, *rest = packed
        floats = rest[0] if self._floats else None
        features = self._features(ints, floats)
        labels, weights = self._targets(ints, floats)
        return (features, labels, weights, rest[-1]) if self.groups else (features, labels, weights)

    def _features(self, ints: tf.Tensor, floats: Any) -> dict[str, tf.Tensor]:
        schema, features = self.schema, {}
        ids = [f.name if isinstance(f, Categorical) else bucket_key(f.name) for f in schema.packed_categorical]
        if ids:
            features["categorical"] = _columns(ints, [self._ints[key] for key in ids])
        numbers = [
            missing_key(name.removesuffix(":missing")) if name.endswith(":missing") else name
            for name in schema.packed_numeric
        ]
        if numbers:
            features["numeric"] = _columns(floats, [self._floats[key] for key in numbers])
        for multi in schema.multis:
            features[multi.name] = ints[:, self._ints[multi.name]]
            features[multi.weights_name] = self._list_weights(multi, ints, floats)
        return features

    def _list_weights(self, multi: MultiCategorical, ints: tf.Tensor, floats: Any) -> tf.Tensor:
        if multi.weights is not None:
            return floats[:, self._floats[weight_key(multi.name)]]
        length = ints[:, self._ints[f"{multi.name}#length"]]
        return tf.cast(tf.range(multi.max_length)[None, :] < length, tf.float32)

    def _targets(self, ints: tf.Tensor, floats: Any) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        happened = {label.name: tf.cast(ints[:, self._ints[label.name]], tf.float32) for label in self.schema.labels}
        one = tf.ones_like(next(iter(happened.values())))
        base = floats[:, self._floats[WEIGHT_KEY]] if self.schema.keys.weight is not None else one
        labels, weights = {}, {}
        for target in self.schema.targets:
            label, weight = one, base
            for name in target.positive:
                label = label * happened[name]
            for name in target.given:
                weight = weight * happened[name]
            labels[target.name], weights[target.name] = label, weight
        return labels, weights


def read_split(folder: Path, schema: Schema, manifest: Manifest, split: str, options: ReadOptions) -> tf.data.Dataset:
    """Batches of one split; see `Dataset.read`."""
    shards, part_of_records = _shards_of_worker(manifest.splits[split], options.worker)
    packing = Packing(schema, options.groups)
    files = [str(folder / shard.file) for shard in shards]
    if part_of_records is not None:
        # In the order of the log, which is the same for all workers: each takes other records, and mixes them after.
        index, count = part_of_records
        records = _records(files, manifest.compression, shuffle=False, seed=None).shard(count, index)
    else:
        records = _records(files, manifest.compression, options.shuffle, options.seed)
    if options.cache:
        records = records.cache()
    if manifest.layout == "blocks":
        packed = _from_blocks(records, packing, shards, options)
    else:
        packed = _from_rows(records, packing, shards, options)
    batches = packed.map(packing.unpack, num_parallel_calls=1)
    if part_of_records is None:
        rows = sum(shard.rows for shard in shards)
        count = rows // options.batch_size if options.drop_remainder else -(-rows // options.batch_size)
        batches = batches.apply(tf.data.experimental.assert_cardinality(count))
    if options.repeat:
        batches = batches.repeat()
    return batches.prefetch(_PREFETCHED_BATCHES).with_options(_tf_options())


def _tf_options() -> tf.data.Options:
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def _shards_of_worker(shards: Sequence[Shard], worker: tuple[int, int]) -> tuple[list[Shard], tuple[int, int] | None]:
    """Whole shards where there are enough for all workers, else every n-th record of all shards."""
    index, count = worker
    if len(shards) >= count:
        return list(shards[index::count]), None
    return list(shards), (index, count)


def _records(files: list[str], compression: Compression, shuffle: bool, seed: int | None) -> tf.data.Dataset:
    kind = compression_type(compression)
    if not shuffle:
        return tf.data.TFRecordDataset(files, kind, buffer_size=_READ_BUFFER_BYTES)
    interleaved = min(len(files), _INTERLEAVED_SHARDS)
    return (
        tf.data.Dataset.from_tensor_slices(files)
        .shuffle(len(files), seed=seed)
        .interleave(
            lambda file: tf.data.TFRecordDataset(file, kind, buffer_size=_READ_BUFFER_BYTES),
            cycle_length=interleaved,
            block_length=1,
            num_parallel_calls=min(interleaved, 2),
        )
    )


def _from_blocks(
    blocks: tf.data.Dataset, packing: Packing, shards: Sequence[Shard], options: ReadOptions
) -> tf.data.Dataset:
    if options.shuffle:
        blocks = blocks.shuffle(_shuffled_blocks(shards), seed=options.seed)
    packed = blocks.map(_block_parser(packing), num_parallel_calls=_PARALLEL)
    if options.shuffle:
        window = min(_WINDOW_BLOCKS * BLOCK_ROWS, _WINDOW_BYTES // packing.row_bytes)
        window = max(-(-window // options.batch_size), 1) * options.batch_size
        seeds = tf.data.Dataset.random(seed=options.seed, rerandomize_each_iteration=True).batch(2)
        windows = tf.data.Dataset.zip(packed.rebatch(window), seeds)
        packed = windows.map(_permuted, num_parallel_calls=2)
    return packed.rebatch(options.batch_size, drop_remainder=options.drop_remainder)


def _from_rows(
    rows: tf.data.Dataset, packing: Packing, shards: Sequence[Shard], options: ReadOptions
) -> tf.data.Dataset:
    if options.shuffle:
        rows = rows.shuffle(_shuffled_blocks(shards) * BLOCK_ROWS, seed=options.seed)
    batches = rows.batch(options.batch_size, drop_remainder=options.drop_remainder)
    return batches.map(_row_parser(packing), num_parallel_calls=_PARALLEL)


def _shuffled_blocks(shards: Sequence[Shard]) -> int:
    """As many blocks as fit into the shuffle buffer's bytes, so that wide schemas do not exhaust memory."""
    rows = sum(shard.rows for shard in shards)
    block_bytes = sum(shard.record_bytes or shard.bytes for shard in shards) * BLOCK_ROWS // max(rows, 1)
    return max(16, min(_MOST_SHUFFLED_BLOCKS, _SHUFFLE_BYTES // max(block_bytes, 1)))


def _block_parser(packing: Packing) -> Any:
    spec = {}
    for column in packing.columns:
        spec[column.key] = tf.io.FixedLenSequenceFeature([], _dtype(column), allow_missing=True)
        if column.max_length is not None:
            spec[column.length_key] = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, ...]:
        by_key = dict(tf.io.parse_single_example(serialized, spec))
        for column in packing.columns:
            if column.max_length is not None:
                lists = tf.RaggedTensor.from_row_lengths(by_key[column.key], by_key[column.length_key], validate=False)
                by_key[column.key] = lists.to_tensor(shape=[None, column.max_length])
        return packing.pack(by_key)

    return parse


def _row_parser(packing: Packing) -> Any:
    spec = {
        c.key: tf.io.FixedLenFeature([], _dtype(c)) if c.max_length is None else tf.io.RaggedFeature(_dtype(c))
        for c in packing.columns
    }

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, ...]:
        by_key = dict(tf.io.parse_example(serialized, spec))
        for column in packing.columns:
            if column.max_length is not None:
                lists = by_key[column.key]
                by_key[column.length_key] = lists.row_lengths()
                by_key[column.key] = lists.to_tensor(shape=[None, column.max_length])
        return packing.pack(by_key)

    return parse


def _dtype(column: Column) -> tf.DType:
    return tf.int64 if column.kind == "int" else tf.float32


def _side_by_side(columns: list[tf.Tensor], dtype: tf.DType) -> tf.Tensor | None:
    if not columns:
        return None
    if all(column.shape.rank == 1 for column in columns):
        return tf.stack([tf.cast(column, dtype) for column in columns], axis=1)
    wide = [column[:, None] if column.shape.rank == 1 else column for column in columns]
    return tf.concat([tf.cast(column, dtype) for column in wide], axis=1)


def _permuted(packed: tuple[tf.Tensor, ...], seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
    order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(packed[0])[0]), seed=seed)
    return tuple(tf.gather(part, order) for part in packed)


def _columns(packed: tf.Tensor, places: list[slice]) -> tf.Tensor:
    """Columns of a packed tensor; one slice where they lie side by side, as they do unless the schema mixes kinds."""
    if all(a.stop == b.start for a, b in zip(places, places[1:], strict=False)):
        return packed[:, places[0].start : places[-1].stop]
    return tf.gather(packed, [column for place in places for column in range(place.start, place.stop)], axis=1)
