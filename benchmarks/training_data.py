"""Writes the log that training speed is measured on, for the peers as arrays and for this project as TFRecords.

    python benchmarks/training_data.py OUT --rows 2000000 [--impressions 430080] [--ids zipf|uniform] [--seed 0]
        [--fields 23] [--tasks 2]

23 fields of one id each whose tables have `--rows` rows together, in equal parts. Ids follow Zipf's law with exponent 1
over a field's rows, the frequent ones first, as a vocabulary orders them; `uniform` is the worst case: nearly every
looked-up row is then another one, and far from the last. Clicks (about 3 %) and conversions (about 10 % of the clicks)
depend on the ids, so that there is something to learn. More tasks are further kinds of conversion, each drawn by
itself; one task is the click alone.

`OUT/ids.npy` (int32 `[n, fields]`) and `OUT/labels.npy` (float32 `[n, tasks]`: click, and click with each conversion)
hold what `OUT/dataset` has as TFRecords. Ids are encoded before: a vocabulary fitted on so few impressions would have
as many rows as they name, not as many as are wanted. Everything else about the dataset is what `pipelines.convert`
writes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from peers.measuring import FIELDS, table_sizes

from pipelines import Categorical, Label, Schema
from pipelines.convert import SCHEMA
from pipelines.manifest import MANIFEST, Manifest
from pipelines.records import BLOCK_ROWS, Storage
from pipelines.schema import Fitted, HashSplit
from pipelines.schema_file import save_schema
from pipelines.write import SplitWriter

SHARDS = 8
_CHUNK_ROWS = 64 * BLOCK_ROWS
_MIXER, _MIXED = 2_654_435_761, 1 << 10  # Knuth's multiplicative hash


def draw_ids(random: np.random.Generator, sizes: Sequence[int], impressions: int, kind: str) -> np.ndarray:
    """Ids int32 `[impressions, fields]`, each below its table's rows."""
    chance = random.random((impressions, len(sizes)))
    rows = np.array(sizes, np.float64)
    ids = rows**chance - 1.0 if kind == "zipf" else rows * chance
    return np.minimum(ids, rows - 1.0).astype(np.int32)


def draw_labels(random: np.random.Generator, ids: np.ndarray, tasks: int = 2) -> np.ndarray:
    """Click and conversions, bool `[impressions, tasks]`: logistic in a fixed effect of each id."""
    salted = ids.astype(np.uint64) + np.arange(ids.shape[1], dtype=np.uint64) * np.uint64(97)
    mixed = (salted * np.uint64(_MIXER) >> np.uint64(8)) % np.uint64(_MIXED)
    # Scaled, so that labels are as rare with many fields as with few.
    effect = (mixed.astype(np.float32) / _MIXED - 0.5) * np.float32(np.sqrt(FIELDS / ids.shape[1]))
    click = random.random(len(ids)) < _logistic(effect.sum(axis=1) - 4.2)
    chance = _logistic(effect[:, ::2].sum(axis=1) - 3.4)
    return np.stack([click, *(click & (random.random(len(ids)) < chance) for _ in range(1, tasks))], axis=1)


def _logistic(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))


def label_names(tasks: int) -> list[str]:
    """Names of the labels: click, conversion, then conversion_2 and so on."""
    return ["click", "conversion", *(f"conversion_{i}" for i in range(2, tasks))][:tasks]


def schema_of(sizes: Sequence[int], tasks: int = 2) -> Schema:
    """Fitted schema: one categorical feature per field, click and the conversions that follow it."""
    names = [f"field_{i:02d}" for i in range(len(sizes))]
    return Schema(
        features=tuple(Categorical(name=name, dtype="int") for name in names),
        labels=tuple(Label(name=name, parent="click" if i else None) for i, name in enumerate(label_names(tasks))),
        split=HashSplit(key="row"),
        fitted=Fitted(tables=dict(zip(names, sizes, strict=True))),
    )


def write_dataset(folder: Path, sizes: Sequence[int], ids: np.ndarray, labels: np.ndarray) -> None:
    """Encoded impressions as a dataset whose only split with rows is `train`."""
    folder.mkdir(parents=True)
    schema = schema_of(sizes, labels.shape[1])
    writer = SplitWriter(folder, "train", schema, Storage(shards=SHARDS), len(ids), (), lambda closed: None)
    for start in range(0, len(ids), _CHUNK_ROWS):
        chunk = slice(start, min(start + _CHUNK_ROWS, len(ids)))
        encoded = {feature.name: ids[chunk, i] for i, feature in enumerate(schema.features)}
        encoded |= {label.name: labels[chunk, i].astype(np.int64) for i, label in enumerate(schema.labels)}
        writer.add(writer.records(encoded, chunk.stop - chunk.start))
    save_schema(schema, folder / SCHEMA)
    manifest = Manifest(
        layout="blocks",
        schema_digest=schema.digest(),
        sources=(),
        dropped_rows=0,
        splits={"train": writer.closed, "valid": (), "test": ()},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def write(
    out: Path,
    rows: int,
    impressions: int,
    kind: str,
    seed: int,
    fields: int = FIELDS,
    tasks: int = 2,
    arrays: bool = True,
) -> None:
    """Writes the log; see the file's head. Without `arrays` the dataset alone."""
    random, sizes = np.random.default_rng(seed), table_sizes(rows, fields)
    ids = draw_ids(random, sizes, impressions, kind)
    labels = draw_labels(random, ids, tasks)
    write_dataset(out / "dataset", sizes, ids, labels)
    if arrays:
        np.save(out / "ids.npy", ids)
        np.save(out / "labels.npy", labels.astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a directory that does not exist yet")
    parser.add_argument("--rows", type=int, default=2_000_000, help="of all embedding tables together")
    parser.add_argument("--impressions", type=int, default=430_080)
    parser.add_argument("--ids", choices=("zipf", "uniform"), default="zipf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fields", type=int, default=FIELDS)
    parser.add_argument("--tasks", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; name a new directory")
    words = (arguments.rows, arguments.impressions, arguments.ids, arguments.seed, arguments.fields, arguments.tasks)
    write(arguments.out, *words)


if __name__ == "__main__":
    main()
