"""How fast a raw log becomes a dataset, and in how much memory: Parquet to blocks, 23 integer features and 2 labels.

python benchmarks/convert_speed.py [--rows 2000000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import int_schema, peak_megabytes, write_int_log
from rich.console import Console
from rich.table import Table

import pipelines

WANTED_ROWS_PER_SECOND = 150_000
WANTED_MEGABYTES = 1_500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(convert_seconds(arguments.one), peak_megabytes())
        return
    console = Console()
    results = Table("rows", "rows/s", "wanted", "peak MB", "wanted", title="Parquet to blocks")
    with tempfile.TemporaryDirectory() as folder:
        # A tenth beside it, to show that memory does not follow the rows.
        for rows in (arguments.rows // 10, arguments.rows):
            with console.status(f"{rows:,} rows"):
                log = write_int_log(Path(folder) / f"{rows}.parquet", rows)
                runs = [_in_own_process(log) for _ in range(arguments.repeats)]
            seconds, megabytes = (statistics.median(values) for values in zip(*runs, strict=True))
            speed = f"{rows / seconds:,.0f}"
            results.add_row(
                f"{rows:,}", speed, f"{WANTED_ROWS_PER_SECOND:,}", f"{megabytes:,.0f}", f"< {WANTED_MEGABYTES:,}"
            )
    console.print(results)


def _in_own_process(log: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, "--one", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = done.stdout.split()[-2:]
    return float(seconds), float(megabytes)


def convert_seconds(log: Path) -> float:
    """Wall time of converting a log once; the dataset is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pipelines.convert([log], int_schema(), Path(folder) / "out")
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
