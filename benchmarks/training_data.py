"""Writes the log that training speed is measured on, for the peers as arrays and for this project as TFRecords.

    python benchmarks/training_data.py OUT --rows 2000000 [--impressions 430080] [--ids zipf|uniform] [--seed 0]

23 fields of one id each whose tables have `--rows` rows together, in equal parts. Ids follow Zipf's law with exponent 1
over a field's rows, the frequent ones first, as a vocabulary orders them; `uniform` is the worst case: nearly every
looked-up row is then another one, and far from the last. Clicks (about 3 %) and conversions (about 10 % of the clicks)
depend on the ids, so that there is something to learn.

`OUT/ids.npy` (int32 `[n, 23]`) and `OUT/labels.npy` (float32 `[n, 2]`: click, and click with conversion) hold what
`OUT/dataset` has as TFRecords. Ids are encoded before: a vocabulary fitted on so few impressions would have as many
rows as they name, not as many as are wanted. Everything else about the dataset is what `pipelines.convert` writes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from peers.measuring import table_sizes

from pipelines import Categorical, Label, Schema
from pipelines.convert import SCHEMA
from pipelines.manifest import MANIFEST, Manifest
from pipelines.records import BLOCK_ROWS
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


def draw_labels(random: np.random.Generator, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Click and conversion, bool `[impressions]`: logistic in a fixed effect of each id."""
    salted = ids.astype(np.uint64) + np.arange(ids.shape[1], dtype=np.uint64) * np.uint64(97)
    mixed = (salted * np.uint64(_MIXER) >> np.uint64(8)) % np.uint64(_MIXED)
    effect = mixed.astype(np.float32) / _MIXED - 0.5
    click = random.random(len(ids)) < _logistic(effect.sum(axis=1) - 4.2)
    conversion = random.random(len(ids)) < _logistic(effect[:, ::2].sum(axis=1) - 3.4)
    return click, click & conversion


def _logistic(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))


def schema_of(sizes: Sequence[int]) -> Schema:
    """Fitted schema: one categorical feature per field, click and conversion."""
    names = [f"field_{i:02d}" for i in range(len(sizes))]
    return Schema(
        features=tuple(Categorical(name=name, dtype="int") for name in names),
        labels=(Label(name="click"), Label(name="conversion", parent="click")),
        split=HashSplit(key="row"),
        fitted=Fitted(tables=dict(zip(names, sizes, strict=True))),
    )


def write_dataset(
    folder: Path, sizes: Sequence[int], ids: np.ndarray, click: np.ndarray, conversion: np.ndarray
) -> None:
    """Encoded impressions as a dataset whose only split with rows is `train`."""
    folder.mkdir(parents=True)
    schema = schema_of(sizes)
    writer = SplitWriter(folder, "train", schema, "blocks", len(ids), SHARDS, (), lambda closed: None)
    for start in range(0, len(ids), _CHUNK_ROWS):
        chunk = slice(start, min(start + _CHUNK_ROWS, len(ids)))
        encoded = {f"field_{i:02d}": ids[chunk, i] for i in range(len(sizes))}
        encoded |= {"click": click[chunk].astype(np.int64), "conversion": conversion[chunk].astype(np.int64)}
        writer.add(encoded, chunk.stop - chunk.start)
    save_schema(schema, folder / SCHEMA)
    manifest = Manifest(
        layout="blocks",
        schema_digest=schema.digest(),
        sources=(),
        dropped_rows=0,
        splits={"train": writer.closed, "valid": (), "test": ()},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def write(out: Path, rows: int, impressions: int, kind: str, seed: int) -> None:
    """Writes the log; see the file's head."""
    random, sizes = np.random.default_rng(seed), table_sizes(rows)
    ids = draw_ids(random, sizes, impressions, kind)
    click, conversion = draw_labels(random, ids)
    write_dataset(out / "dataset", sizes, ids, click, conversion)
    np.save(out / "ids.npy", ids)
    np.save(out / "labels.npy", np.stack([click, conversion], axis=1).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a directory that does not exist yet")
    parser.add_argument("--rows", type=int, default=2_000_000, help="of all embedding tables together")
    parser.add_argument("--impressions", type=int, default=430_080)
    parser.add_argument("--ids", choices=("zipf", "uniform"), default="zipf")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; name a new directory")
    write(arguments.out, arguments.rows, arguments.impressions, arguments.ids, arguments.seed)


if __name__ == "__main__":
    main()
