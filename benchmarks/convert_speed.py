"""How fast a raw log becomes a dataset, and in how much memory: 23 integer features and 2 labels, to blocks.

    python benchmarks/convert_speed.py [--rows 2000000] [--repeats 3] [--processes 1 2 4] [--smoke]

Every run is a process of its own, so that its peak memory is its own, TensorFlow included. Parquet and CSV are
converted whole; a tenth of the Parquet log stands beside it, to show that memory does not follow the rows. Then as many
processes as `--processes` says convert the log side by side, each into a dataset of its own with the vocabularies of
the first one (`like`), as the parts of a large log are converted; the rate is that of all together. Kinds take turns.

Results are kept in `benchmarks/results/convert_speed.json`, one entry per setting and machine, which a new run
replaces. `--smoke` sees in seconds that it works, and keeps nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pyarrow.csv
import pyarrow.parquet
from common import int_schema, write_int_log
from kept import keep_result
from peers.measuring import peak_megabytes
from rich.console import Console
from rich.table import Table
from training_table import spread

import pipelines

RESULTS = Path(__file__).parent / "results" / "convert_speed.json"
WANTED = {"parquet": 300_000, "csv": 150_000}
# Each kind is a process that imports TensorFlow, which takes longer than all the rest; these two meet all of the code.
SMOKE_KINDS = ("csv", "parquet like another, processes: 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing kept")
    parser.add_argument("--one", type=Path, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        log, out, like = options.one
        print(convert_seconds(log, out, like if like.is_dir() else None), peak_megabytes())
        return
    smoke, _ = vars(options).pop("smoke"), vars(options).pop("one")
    if smoke:
        vars(options).update(rows=20_000, repeats=1, processes=[1])
    console = Console(width=120, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        result = measured(Path(folder), options, console, SMOKE_KINDS if smoke else None)
    if not smoke:
        keep_result(RESULTS, vars(options), result)
    console.print(table_of(result))


def measured(
    folder: Path, options: argparse.Namespace, console: Console, chosen: tuple[str, ...] | None
) -> dict[str, Any]:
    """By kind of conversion, those of `chosen` or all, the rows, and of each repeat rows/s and megabytes."""
    with console.status(f"writing {options.rows:,} rows"):
        whole = write_int_log(folder / "log.parquet", options.rows)
        tenth = write_int_log(folder / "tenth.parquet", max(options.rows // 10, 1))
        text = as_csv(whole, folder / "log.csv")
        like = pipelines.convert([whole], int_schema(), folder / "like")
    kinds: dict[str, tuple[Path, int, int, Path | None]] = {
        "parquet, a tenth": (tenth, options.rows // 10, 1, None),
        "parquet": (whole, options.rows, 1, None),
        "csv": (text, options.rows, 1, None),
    }
    for count in options.processes:
        kinds[f"parquet like another, processes: {count}"] = (whole, options.rows, count, like)
    kinds = {kind: what for kind, what in kinds.items() if chosen is None or kind in chosen}
    result: dict[str, Any] = {kind: {"rows": rows, "rate": [], "mb": []} for kind, (_, rows, *_) in kinds.items()}
    for turn in range(options.repeats):
        for kind, (log, rows, count, source) in kinds.items():
            with console.status(f"round {turn + 1} of {options.repeats}: {kind}"):
                seconds, megabytes = side_by_side(log, folder, source, count)
            result[kind]["rate"].append(rows * count / seconds)
            result[kind]["mb"].append(megabytes)
    return result


def as_csv(log: Path, path: Path) -> Path:
    """The same log as CSV, labels as 0 and 1."""
    table = pyarrow.parquet.read_table(log)
    columns = [column.cast("int8") if column.type == "bool" else column for column in table.columns]
    pyarrow.csv.write_csv(pyarrow.table(columns, names=table.column_names), path)
    return path


def side_by_side(log: Path, folder: Path, like: Path | None, count: int) -> tuple[float, float]:
    """Converts a log in so many processes at once: the longest conversion's seconds, the largest one's megabytes."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        commands = [
            [sys.executable, __file__, "--one", str(log), f"{out}/{i}", str(like or f"{out}/none")]
            for i in range(count)
        ]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
        printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a conversion failed, see above")
    seconds, megabytes = zip(*(map(float, text.split()[-2:]) for text in printed), strict=True)
    return max(seconds), max(megabytes)


def convert_seconds(log: Path, out: Path, like: Path | None = None) -> float:
    """Wall time of converting a log once."""
    start = time.perf_counter()
    pipelines.convert([log], int_schema(), out, like=like)
    return time.perf_counter() - start


def table_of(result: dict[str, Any]) -> Table:
    """One row per kind."""
    table = Table(title="Raw log to blocks", title_justify="left")
    for heading in ("", "rows", "thousand rows/s (range)", "wanted", "peak MB of a process"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for kind, found in result.items():
        wanted = f"{WANTED[kind] / 1e3:,.0f}" if kind in WANTED else ""
        rates = spread([rate / 1e3 for rate in found["rate"]], 0)
        table.add_row(kind, f"{found['rows']:,}", rates, wanted, spread(found["mb"], 0))
    return table


if __name__ == "__main__":
    main()
