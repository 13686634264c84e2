"""Encoded rows → TFRecord shards of one split, each closed before the next is begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.manifest import Shard, file_sha256
from pipelines.records import (
    BLOCK_ROWS,
    Encoded,
    Storage,
    columns_of,
    compression_type,
    serialize_blocks,
    serialize_rows,
)
from pipelines.schema import Schema


class Record(NamedTuple):
    """A serialized Example, its impressions, and by label how many of them have it at 1."""

    example: bytes
    rows: int
    positives: dict[str, int]


class SplitWriter:
    """Writes the rows of one split into shards whose sizes differ by one block at most, in order.

    Rows come in chunks that begin at a multiple of `BLOCK_ROWS`; a shard ends at a block's end, so that all blocks but
    the split's last are full.

    Args:
        folder: Where the shards go.
        split: `"train"`, `"valid"` or `"test"`.
        schema: Fitted schema.
        storage: Layout, compression, and the wanted number of shards; fewer are written where there are fewer blocks.
        rows: Rows that the split will have.
        closed: Shards that an interrupted conversion has already closed.
        on_close: Called with all closed shards after each closing.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        schema: Schema,
        storage: Storage,
        rows: int,
        closed: tuple[Shard, ...],
        on_close: Callable[[tuple[Shard, ...]], None],
    ) -> None:
        self._blocks = -(-rows // BLOCK_ROWS)
        self._shards = min(storage.shards, self._blocks)
        self._folder, self._split, self._storage = folder, split, storage
        self._columns = columns_of(schema)
        self._labels = [label.name for label in schema.labels]
        self._rows_left = rows - sum(shard.rows for shard in closed)
        self._on_close = on_close
        self.closed = closed
        self._writer: Any = None  # tf.io.TFRecordWriter, while a shard is open
        self._open_rows = self._open_bytes = 0
        self._open_positives: dict[str, int] = {}

    def records(self, encoded: Encoded, rows: int) -> list[Record]:
        """The records of a chunk; only the split's last chunk may end within a block. Any thread may call it."""
        blocks = self._storage.layout == "blocks"
        examples = (serialize_blocks if blocks else serialize_rows)(encoded, self._columns, rows)
        rows_per_example = BLOCK_ROWS if blocks else 1
        starts = np.arange(0, rows, rows_per_example)
        positives = {label: np.add.reduceat(encoded[label], starts).tolist() for label in self._labels} if rows else {}
        return [
            Record(example, min(rows_per_example, rows - start), {label: positives[label][i] for label in self._labels})
            for i, (start, example) in enumerate(zip(starts.tolist(), examples, strict=True))
        ]

    def add(self, records: Iterable[Record]) -> None:
        """Writes the records of the next chunk."""
        for record in records:
            if self._writer is None:
                self._open()
            self._writer.write(record.example)
            self._open_rows += record.rows
            self._open_bytes += len(record.example)
            for label, count in record.positives.items():
                self._open_positives[label] += count
            if self._open_rows in (self._full_rows, self._rows_left):
                self._close()

    def abandon(self) -> None:
        """Closes the file of an unfinished shard; a resumed conversion writes it anew."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> None:
        # Level 1: level 6 makes shards 2 to 12 % smaller, and conversion and reading slower.
        options = tf.io.TFRecordOptions(
            compression_type=compression_type(self._storage.compression), compression_level=1
        )
        self._writer = tf.io.TFRecordWriter(str(self._path), options)
        self._open_rows = self._open_bytes = 0
        self._open_positives = dict.fromkeys(self._labels, 0)

    @property
    def _full_rows(self) -> int:
        """Rows of the open shard when it is full: the first shards take the blocks that are over."""
        each, over = divmod(self._blocks, self._shards)
        return (each + (len(self.closed) < over)) * BLOCK_ROWS

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._split}-{len(self.closed):05d}-of-{self._shards:05d}.tfrecord"

    def _close(self) -> None:
        path = self._path
        self._writer.close()
        self._writer = None
        shard = Shard(
            file=path.name,
            rows=self._open_rows,
            bytes=path.stat().st_size,
            record_bytes=self._open_bytes,
            sha256=file_sha256(path),
            positives=self._open_positives,
        )
        self.closed = (*self.closed, shard)
        self._rows_left -= shard.rows
        self._on_close(self.closed)
