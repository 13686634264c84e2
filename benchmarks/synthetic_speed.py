"""How fast the synthetic log is written, and how much memory that takes: `python benchmarks/synthetic_speed.py`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


def measure(preset: str, rows: int) -> None:
    """Runs in a process of its own, so that the peak memory is this run's alone."""
    import resource

    from pipelines.synthetic import SyntheticFunnel

    unit = 1 if sys.platform == "darwin" else 1024
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    funnel = SyntheticFunnel(preset)
    start = time.perf_counter()
    _ = funnel.world
    built = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        funnel.write(out, rows)
        written = time.perf_counter()
        size = sum(file.stat().st_size for file in Path(out).iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps([built - start, written - built, size, imported, peak]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--measure", metavar="PRESET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.rows[0])
        return
    table = Table("preset", "rows", "world, s", "write, s", "k rows/s", "bytes/row", "imports, MB", "peak, MB")
    for preset in ("small", "ali_ccp"):
        for rows in options.rows:
            command = [sys.executable, __file__, "--measure", preset, "--rows", str(rows)]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE)
            world, seconds, size, imported, peak = json.loads(done.stdout.splitlines()[-1])
            speed = f"{rows / seconds / 1e3:,.0f}"
            memory = (f"{imported / 1e6:,.0f}", f"{peak / 1e6:,.0f}")
            table.add_row(preset, f"{rows:,}", f"{world:.2f}", f"{seconds:.2f}", speed, f"{size / rows:.0f}", *memory)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
