"""Encoded rows → TFRecord shards of one split, each closed before the next is begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from pipelines.manifest import Shard, file_sha256
from pipelines.records import BLOCK_ROWS, Encoded, Layout, columns_of, serialize_blocks, serialize_rows
from pipelines.schema import Schema


class SplitWriter:
    """Writes the rows of one split into shards whose sizes differ by one block at most, in order.

    Rows come in chunks that begin at a multiple of `BLOCK_ROWS`; a shard ends at a block's end, so that all blocks but
    the split's last are full.

    Args:
        folder: Where the shards go.
        split: `"train"`, `"valid"` or `"test"`.
        schema: Fitted schema.
        layout: `"blocks"` or `"rows"`.
        rows: Rows that the split will have.
        shards: Wanted number of shards; fewer are written where there are fewer blocks.
        closed: Shards that an interrupted conversion has already closed.
        on_close: Called with all closed shards after each closing.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        schema: Schema,
        layout: Layout,
        rows: int,
        shards: int,
        closed: tuple[Shard, ...],
        on_close: Callable[[tuple[Shard, ...]], None],
    ) -> None:
        self._blocks = -(-rows // BLOCK_ROWS)
        self._shards = min(shards, self._blocks)
        self._folder, self._split, self._layout = folder, split, layout
        self._columns = columns_of(schema)
        self._labels = [label.name for label in schema.labels]
        self._rows_left = rows - sum(shard.rows for shard in closed)
        self._on_close = on_close
        self.closed = closed
        self._writer: Any = None  # tf.io.TFRecordWriter, while a shard is open
        self._open_rows = 0
        self._open_positives: dict[str, int] = {}

    def add(self, encoded: Encoded, rows: int) -> None:
        """Writes a chunk; only the split's last chunk may end within a block."""
        serialize = serialize_blocks if self._layout == "blocks" else serialize_rows
        examples = serialize(encoded, self._columns, rows)
        rows_per_example = BLOCK_ROWS if self._layout == "blocks" else 1
        for index, example in enumerate(examples):
            start = index * rows_per_example
            stop = min(start + rows_per_example, rows)
            if self._writer is None:
                self._open()
            self._writer.write(example)
            self._open_rows += stop - start
            for label in self._labels:
                self._open_positives[label] += int(encoded[label][start:stop].sum())
            if self._open_rows in (self._full_rows, self._rows_left):
                self._close()

    def abandon(self) -> None:
        """Closes the file of an unfinished shard; a resumed conversion writes it anew."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> None:
        self._writer = tf.io.TFRecordWriter(str(self._path))
        self._open_rows = 0
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
            sha256=file_sha256(path),
            positives=self._open_positives,
        )
        self.closed = (*self.closed, shard)
        self._rows_left -= shard.rows
        self._on_close(self.closed)
