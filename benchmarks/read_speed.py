"""How fast a dataset is read: impressions/s of packed batches, 23 integer features and 2 labels.

    python benchmarks/read_speed.py [--rows 2000000] [--batch-size 4096] [--repeats 5] [--smoke]

Every row of the table reads the training split to its end, several times; the ways take turns, so that a machine whose
speed drifts does not decide between them. Wall clock and CPU time (all threads) are kept. `raw` is what TensorFlow
needs for the records alone: TFRecords read in order and dropped, not parsed.

Results are kept in `benchmarks/results/read_speed.json`, one entry per setting and machine, which a new run replaces.
`--smoke` sees in seconds that it works, and keeps nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from common import FIELDS, int_schema, write_int_log
from kept import keep_result
from rich.console import Console
from rich.table import Table
from training_table import spread

import pipelines
from pipelines.records import compression_type

RESULTS = Path(__file__).parent / "results" / "read_speed.json"
LOG = "log.parquet"
ROWS_LAYOUT_SHARE = 10  # rows are parsed a tenth as fast and written slower still
HALF = [f"field_{i:02d}" for i in range(FIELDS // 2)]


@dataclass(frozen=True)
class Way:
    """A way to read.

    Attributes:
        name: In the table.
        dataset: Which of the datasets.
        shuffle: Whether impressions are mixed.
        features: Names of those that are parsed; `None`: all.
        raw: Whether records are only read.
        wanted: Impressions/s on two cores.
    """

    name: str
    dataset: str
    shuffle: bool = False
    features: tuple[str, ...] | None = None
    raw: bool = False
    wanted: int | None = None


WAYS = (
    Way("raw records", "blocks", raw=True),
    Way("blocks", "blocks", wanted=2_000_000),
    Way("blocks, shuffled", "blocks", shuffle=True, wanted=1_800_000),
    Way(f"blocks, shuffled, {len(HALF)} of {FIELDS} features", "blocks", shuffle=True, features=tuple(HALF)),
    Way("raw records, gzip", "gzip", raw=True),
    Way("blocks, shuffled, gzip", "gzip", shuffle=True),
    Way("rows", "rows"),
    Way("rows, shuffled", "rows", shuffle=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing kept")
    options = parser.parse_args()
    smoke = vars(options).pop("smoke")  # what is left is the setting
    if smoke:
        vars(options).update(rows=20_000, batch_size=256, repeats=1)
    console = Console(width=120, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        with console.status(f"writing {options.rows:,} impressions"):
            datasets = datasets_of(Path(folder), options.rows)
        rates = measured(datasets, options.batch_size, options.repeats, console)
    result = {way: {"wall": rates[way]["wall"], "cpu": rates[way]["cpu"]} for way in rates}
    result["bytes_per_impression"] = {name: bytes_per_row(dataset) for name, dataset in datasets.items()}
    if not smoke:
        keep_result(RESULTS, vars(options), result)
    console.print(table_of(result))


def datasets_of(folder: Path, rows: int) -> dict[str, pipelines.Dataset]:
    """The same log as plain blocks, compressed blocks, and a tenth of it in the layout `rows`."""
    blocks = blocks_of(folder, rows)
    short = write_int_log(folder / "short.parquet", max(rows // ROWS_LAYOUT_SHARE, 1))
    made = {
        "blocks": blocks,
        "gzip": pipelines.convert([folder / LOG], int_schema(), folder / "gzip", compression="gzip"),
        "rows": pipelines.convert([short], int_schema(), folder / "rows", layout="rows"),
    }
    return {name: pipelines.open_dataset(path) for name, path in made.items()}


def blocks_of(folder: Path, rows: int) -> Path:
    """Writes a log as `folder / LOG`, and the dataset of plain blocks."""
    return pipelines.convert([write_int_log(folder / LOG, rows)], int_schema(), folder / "blocks")


def bytes_per_row(dataset: pipelines.Dataset) -> float:
    """Size on disk of an impression of the training split."""
    shards = dataset.manifest.splits["train"]
    return sum(shard.bytes for shard in shards) / sum(shard.rows for shard in shards)


def reader(dataset: pipelines.Dataset, way: Way, batch_size: int) -> Iterable[object]:
    """What is read to its end."""
    if way.raw:
        files = [str(dataset.folder / shard.file) for shard in dataset.manifest.splits["train"]]
        records = tf.data.TFRecordDataset(files, compression_type(dataset.manifest.compression), buffer_size=1 << 20)
        return records.batch(64)
    chosen = dataset if way.features is None else dataset.select(list(way.features))
    return chosen.read("train", batch_size, shuffle=way.shuffle, seed=1)


def measured(
    datasets: dict[str, pipelines.Dataset], batch_size: int, repeats: int, console: Console
) -> dict[str, dict[str, list[float]]]:
    """By way its impressions/s in each repeat, by the wall clock and by CPU time; the first reading does not count."""
    readers = {way: reader(datasets[way.dataset], way, batch_size) for way in WAYS}
    rates: dict[str, dict[str, list[float]]] = {way.name: {"wall": [], "cpu": []} for way in WAYS}
    for turn in range(repeats + 1):
        for way, batches in readers.items():
            with console.status(f"round {turn} of {repeats}: {way.name}"):
                wall, cpu = exhausted(batches)
            rows = datasets[way.dataset].rows("train")
            if turn:
                rates[way.name]["wall"].append(rows / wall)
                rates[way.name]["cpu"].append(rows / cpu)
    return rates


def exhausted(batches: Iterable[object]) -> tuple[float, float]:
    """Seconds of reading to the end, by the wall clock and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    return time.perf_counter() - wall, time.process_time() - cpu


def table_of(result: dict[str, dict[str, list[float]]]) -> Table:
    """One row per way."""
    table = Table(title="Reading packed batches", title_justify="left")
    for heading in ("way", "thousand impressions/s (range)", "per s of CPU time", "bytes each", "wanted"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way in WAYS:
        wall, cpu = ([rate / 1e3 for rate in result[way.name][clock]] for clock in ("wall", "cpu"))
        size = result["bytes_per_impression"][way.dataset]
        wanted = "" if way.wanted is None else f"{way.wanted / 1e3:,.0f}"
        table.add_row(way.name, spread(wall, 0), spread(cpu, 0), f"{size:.1f}", wanted)
    return table


if __name__ == "__main__":
    main()
