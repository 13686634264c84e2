"""A converted dataset: one directory with its schema, vocabularies, manifest and shards."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from pipelines.errors import DataError
from pipelines.manifest import SCHEMA, VOCABULARIES, Manifest, file_sha256, load_manifest
from pipelines.read import ReadOptions, read_split
from pipelines.schema import Schema
from pipelines.schema_file import load_schema
from pipelines.vocabulary import Vocabulary, load_vocabularies


def open_dataset(folder: str | Path) -> Dataset:
    """Opens a dataset directory.

    Args:
        folder: What `pipelines.convert` or `mtlzoo data convert` wrote.

    Returns:
        The dataset; nothing but its schema and manifest is read yet.

    Raises:
        DataError: It is no complete dataset, or a shard is missing, truncated or not known to its manifest.

    Example:
        >>> dataset = open_dataset("data/demo")
        >>> dataset.rows("train")
        80000
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    schema = load_schema(folder / SCHEMA)
    if schema.digest() != manifest.schema_digest:
        raise DataError(f"{folder / SCHEMA}: differs from the schema that the shards were written with; convert again")
    return Dataset(folder, schema, manifest)


class Dataset:
    """A converted dataset.

    Attributes:
        folder: Its directory.
        schema: Its fitted schema.
        manifest: Its shards, rows and label counts.
    """

    def __init__(self, folder: Path, schema: Schema, manifest: Manifest) -> None:
        self.folder = folder
        self.schema = schema
        self.manifest = manifest

    @functools.cached_property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """The vocabulary of each fitted table, by table name."""
        names = {f.table_name for f in self.schema.categoricals if f.hash_buckets is None}
        return load_vocabularies(names, self.folder / VOCABULARIES, self._digests)

    def select(self, features: Sequence[str] | None = None, without: Sequence[str] = ()) -> Dataset:
        """The same impressions with some of their features; the others are not parsed.

        Args:
            features: Names of the features to keep; `None`: all.
            without: Names of those among them to leave out.

        Returns:
            A dataset of the same directory, whose schema has these features alone.

        Raises:
            DataError: A name that is no feature, or no feature is left.

        Example:
            >>> model = MMoE(dataset.select(without=["user_id"]).schema)
        """
        try:
            return Dataset(self.folder, self.schema.select(features, without), self.manifest)
        except ValueError as error:
            raise DataError(f"{self.folder}: {error}") from None

    def rows(self, split: str) -> int:
        """Impressions in a split."""
        return self.manifest.rows(self._known(split))

    def read(
        self,
        split: str,
        batch_size: int = 4096,
        shuffle: bool = False,
        seed: int | None = None,
        drop_remainder: bool = False,
        repeat: bool = False,
        cache: bool = False,
        worker: tuple[int, int] = (0, 1),
        groups: bool = False,
    ) -> tf.data.Dataset:
        """Reads a split as batches `(features, labels, sample_weight)`.

        Args:
            split: `"train"`, `"valid"` or `"test"`.
            batch_size: Impressions per batch; the last batch is shorter unless `drop_remainder`.
            shuffle: Mix shards, then blocks (up to 256 MiB of them, at most 2 million impressions), then the
                impressions of each window of 256 blocks (up to 64 MiB). In another order every epoch. Without it the
                rows come in the order of the log.
            seed: Makes the order of every epoch the same in every run.
            drop_remainder: Leave out a last batch that is not full.
            repeat: Go on for ever.
            cache: Keep the records in memory, serialized (about a third of the size of parsed ones).
            worker: `(index, count)`: read only this worker's share: whole shards if there are enough, else every
                count-th record. Shares of workers may differ by a few rows: use `repeat` and `steps_per_epoch`.
            groups: Yield `(features, labels, sample_weight, groups)`, with the group key (for GAUC) int64 `[batch]`.

        Returns:
            A `tf.data.Dataset`. Features: `categorical` int32 `[batch, n]`, `numeric` float32 `[batch, m]`, and per
            multi-valued feature its ids int32 `[batch, length]` and `<name>_weights` float32 `[batch, length]`, 0 at
            the padding. Labels and sample weights: dicts by target name, float32 `[batch, 1]`; the weight is 0 outside
            the target's population.

        Raises:
            DataError: Unknown or empty split, an argument out of range, or `groups` without a group key.

        Example:
            >>> for features, labels, weights in dataset.read("train", batch_size=4096, shuffle=True, seed=1):
            ...     pass
        """
        options = ReadOptions(batch_size, shuffle, seed, drop_remainder, repeat, cache, worker, groups)
        _check(options)
        rows = self.rows(split)
        if rows == 0:
            raise DataError(f"{self.folder}: the split {split!r} has no rows")
        if drop_remainder and rows < batch_size:
            raise DataError(
                f"{self.folder}: the split {split!r} has {rows} rows, fewer than one batch of {batch_size}, and "
                f"drop_remainder leaves none; use a smaller batch"
            )
        if groups and self.schema.keys.group is None:
            raise DataError(
                f"{self.folder}: its schema names no group key; set `keys: {{group: <column>}}` and convert again"
            )
        return read_split(self.folder, self.schema, self.manifest, split, options)

    def verify(self, splits: tuple[str, ...] | None = None) -> None:
        """Reads every shard and compares its checksum with the manifest's; vocabularies with the schema's digests.

        TensorFlow says of a damaged shard no more than "corrupted record at 1028": this names it.

        Args:
            splits: The shards of which splits; `None`: all shards, and the vocabularies whose digests are known.

        Raises:
            DataError: A shard or a vocabulary is missing or its content is not what was written; the message names it.
        """
        for split in splits or tuple(self.manifest.splits):
            for shard in self.manifest.splits[self._known(split)]:
                path = self.folder / shard.file
                try:
                    whole = file_sha256(path) == shard.sha256
                except OSError as error:
                    raise DataError(
                        f"{path}: not readable ({error.strerror}); restore it or convert the log again"
                    ) from None
                if not whole:
                    raise DataError(
                        f"{path}: its content differs from what was written (checksum); restore it or convert again"
                    )
        if splits is None and self._digests:
            load_vocabularies(self._digests, self.folder / VOCABULARIES, self._digests)

    @contextmanager
    def damaged_shards_named(self, *splits: str) -> Iterator[None]:
        """Finds out which shard is damaged or gone when reading fails inside the block.

        TensorFlow says of a damaged record only "corrupted record at 1028". Comparing all checksums before every epoch
        would cost a pass over the data; comparing them once something has failed costs nothing before.

        Args:
            *splits: The splits that are read inside the block; none: all.

        Raises:
            DataError: In place of TensorFlow's error: the shard whose content is not what was written.

        Example:
            >>> with dataset.damaged_shards_named("train"):
            ...     history = model.fit(dataset.read("train", batch_size=512))
        """
        try:
            yield
        except (tf.errors.DataLossError, tf.errors.NotFoundError):
            self.verify(splits or None)
            raise

    @property
    def _digests(self) -> dict[str, str]:
        """The known digests of the vocabularies, by table name."""
        return self.schema.fitted.vocabularies if self.schema.fitted is not None else {}

    def _known(self, split: str) -> str:
        if split not in self.manifest.splits:
            raise DataError(f"{self.folder}: has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        return split


def _check(options: ReadOptions) -> None:
    index, count = options.worker
    if options.batch_size < 1:
        raise DataError(f"batch_size must be at least 1, is {options.batch_size}")
    if not 0 <= index < count:
        raise DataError(f"worker must be (index, count) with 0 <= index < count, is {options.worker}")
