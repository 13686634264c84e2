"""A dataset in the layout `rows` as a TFDS dataset: metadata beside the shards, the shards themselves as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import DataError
from pipelines.records import Column, columns_of

if TYPE_CHECKING:
    from pipelines.dataset import Dataset

# How `pipelines.write` names shards, in the words of TFDS.
_SHARD_NAMES = "{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}"


def write_tfds_metadata(dataset: Dataset) -> Path:
    """Makes a dataset readable with TensorFlow Datasets, by `dataset_info.json` and `features.json` beside its shards.

    Every feature keeps its name in the record (see `pipelines.records`): `age`, `age#bucket`, `#group`. Values are the
    encoded ones, ids int64 and numbers float32; lists have their own length, not padded. The metadata holds no path, so
    the directory may be moved.

    Args:
        dataset: A dataset in the layout `rows`.

    Returns:
        The directory to give to `tfds.builder_from_directory`.

    Raises:
        DataError: The dataset is in the layout `blocks`, where an Example is no impression, or compressed.

    Example:
        >>> folder = write_tfds_metadata(open_dataset("data/rows"))
        >>> impressions = tfds.builder_from_directory(folder).as_dataset("train")
    """
    if dataset.manifest.layout != "rows":
        raise DataError(
            f"{dataset.folder}: has the layout {dataset.manifest.layout!r}, and TFDS reads one impression per Example; "
            f"convert the log again with `--layout rows`"
        )
    if dataset.manifest.compression != "none":
        raise DataError(
            f"{dataset.folder}: its shards are compressed ({dataset.manifest.compression}), which TFDS does not read; "
            f"convert the log again without `--compression`"
        )
    import tensorflow_datasets as tfds  # Here only: a heavy import that nothing else needs.

    names = tfds.core.ShardedFileTemplate(
        data_dir=dataset.folder, template=_SHARD_NAMES, dataset_name=_dataset_name(dataset.folder)
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.rows for shard in shards],
            num_bytes=sum(shard.bytes for shard in shards),
            filename_template=names,
        )
        for split, shards in dataset.manifest.splits.items()
        if shards
    ]
    columns = {column.key: _shape_and_dtype(column) for column in columns_of(dataset.schema)}
    tfds.folder_dataset.write_metadata(
        data_dir=dataset.folder,
        features={key: tfds.features.Tensor(shape=shape, dtype=dtype) for key, (shape, dtype) in columns.items()},
        split_infos=splits,
        filename_template=names,
        version="1.0.0",
        check_data=False,
        description=f"Impressions from {', '.join(dataset.manifest.sources)}, schema {dataset.manifest.schema_digest}",
        disable_shuffling=True,
    )
    return dataset.folder


def _shape_and_dtype(column: Column) -> tuple[tuple[None, ...], type]:
    return () if column.max_length is None else (None,), np.int64 if column.kind == "int" else np.float32


def _dataset_name(folder: Path) -> str:
    """The directory's name in the letters that TFDS allows."""
    return re.sub(r"\W+", "_", folder.resolve().name.lower()).strip("_") or "impressions"
