"""How fast a dataset is read: impressions/s of both layouts, with 23 integer features and 2 labels.

python benchmarks/read_speed.py [--rows 2000000] [--batch-size 4096] [--repeats 5]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import int_schema, median_seconds, write_int_log
from rich.console import Console
from rich.table import Table

import pipelines

# Rows are parsed a tenth as fast and written slower still.
ROWS_LAYOUT_SHARE = 10
TARGETS = {("blocks", False): 1_200_000, ("blocks", True): 900_000, ("rows", False): 150_000, ("rows", True): None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    console = Console()
    results = Table("layout", "shuffle", "impressions", "impressions/s", "wanted", title="Reading packed batches")
    with tempfile.TemporaryDirectory() as folder:
        datasets = {}
        for layout, rows in (("blocks", arguments.rows), ("rows", arguments.rows // ROWS_LAYOUT_SHARE)):
            with console.status(f"writing {rows:,} impressions as {layout}"):
                datasets[layout] = dataset_of(Path(folder), layout, rows)
        for (layout, shuffle), target in TARGETS.items():
            dataset = datasets[layout]
            batches = dataset.read("train", arguments.batch_size, shuffle=shuffle, seed=1)
            with console.status(f"reading {layout}, shuffle={shuffle}"):
                seconds = median_seconds(lambda batches=batches: exhaust(batches), arguments.repeats)
            read = dataset.rows("train")
            wanted = "" if target is None else f"{target:,}"
            results.add_row(layout, str(shuffle), f"{read:,}", f"{read / seconds:,.0f}", wanted)
    console.print(results)


def dataset_of(folder: Path, layout: str, rows: int) -> pipelines.Dataset:
    """A dataset of so many impressions, written as `folder / layout`."""
    log = write_int_log(folder / f"{layout}.parquet", rows)
    return pipelines.open_dataset(pipelines.convert([log], int_schema(), folder / layout, layout=layout))


def exhaust(batches) -> None:
    for _ in batches:
        pass


if __name__ == "__main__":
    main()
