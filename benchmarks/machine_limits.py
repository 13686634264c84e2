"""What this machine can do at best: matrix products, memory, raw TFRecords.

    python benchmarks/machine_limits.py [--batch 4096] [--impressions 430080] [--seconds 2]

sgemm      GFLOP/s of float32 products through TensorFlow, and through PyTorch where the environment of torch-rechub is
           there (`benchmarks/peers/environments.py`): of 2048 x 2048 matrices, and of the products that a training step
           of the MMoE consists of, one after the other
memory     GB/s of a copy and of the triad `a = b + s c`, two threads, over arrays of a GB together; the triad in pieces
           that stay in the cache between its two passes, reading and writing counted
TFRecord   MB/s of records read and counted, nothing parsed, from the page cache

`training_speed.py` measures the same in each of its rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers.environments import python_of
from peers.limits import flop_per_impression, median_seconds
from peers.measuring import Job, table_sizes
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "peers" / "limits.py"
THREADS = 2
_PIECE = 1 << 15  # floats; three pieces fit into a core's second-level cache
_SIZES = {"bytes_in_all": 10**9, "square": 2048, "seconds": 2.0}
SMOKE_SIZES = {"bytes_in_all": 10**7, "square": 128, "seconds": 0.02}


def _in_threads(work: Callable[[int, int], None], size: int) -> None:
    """Halves of the arrays, each in a thread of its own; numpy lets go of the interpreter's lock meanwhile."""
    bounds = np.linspace(0, size, THREADS + 1).astype(int)
    threads = [threading.Thread(target=work, args=part) for part in zip(bounds, bounds[1:], strict=False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def memory_bandwidth(bytes_in_all: int, seconds: float) -> dict[str, float]:
    """GB/s (10**9 bytes) of copy and triad."""
    size = bytes_in_all // 12
    a, b, c = (np.full(size, value, np.float32) for value in (0.0, 1.0, 2.0))

    def copy(start: int, stop: int) -> None:
        np.copyto(a[start:stop], b[start:stop])

    def triad(start: int, stop: int) -> None:
        for low in range(start, stop, _PIECE):
            piece = slice(low, min(low + _PIECE, stop))
            np.multiply(c[piece], np.float32(3.0), out=a[piece])
            np.add(a[piece], b[piece], out=a[piece])

    copied = median_seconds(lambda: _in_threads(copy, size), seconds)
    added = median_seconds(lambda: _in_threads(triad, size), seconds)
    return {"copy": 8 * size / copied / 1e9, "triad": 12 * size / added / 1e9}


def _of_framework(framework: str, python: Path, config: Path, words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "limits.json"
        command = [str(python), str(PROGRAM), "--framework", framework, "--config", str(config), "--out", str(out)]
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{PROGRAM.name} --framework {framework} failed:\n{done.stderr[-2000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def measure(config: Path, dataset: Path, sizes: dict[str, Any] | None = None, torch: bool = True) -> dict[str, Any]:
    """Measures all limits, each in a process of its own but for the memory's.

    Args:
        config: The job of a training program.
        dataset: Directory of the dataset whose shards are read.
        sizes: `bytes_in_all` of the memory test, `square`, `seconds` of each measurement.
        torch: Whether to measure PyTorch where its environment is there.

    Returns:
        `memory_gb_per_s`, `tensorflow` and maybe `torch` (as `peers/limits.py` writes them).

    Raises:
        RuntimeError: A program failed.
    """
    sizes = _SIZES | (sizes or {})
    words = ["--square", str(sizes["square"]), "--seconds", str(sizes["seconds"])]
    result = {"memory_gb_per_s": memory_bandwidth(sizes["bytes_in_all"], sizes["seconds"])}
    result["tensorflow"] = _of_framework(
        "tensorflow", Path(sys.executable), config, [*words, "--records", str(dataset)]
    )
    python = python_of("torch_rechub") if torch else None
    if python is not None:
        result["torch"] = _of_framework("torch", python, config, words)
    return result


def table_of(limits: dict[str, Any], job: dict[str, Any]) -> Table:
    """Limits, and what they mean for the model."""
    table = Table(title=f"limits of this machine; the model takes {flop_per_impression(job) / 1e6:.2f} MFLOP")
    table.add_column("")
    table.add_column("rate", justify="right")
    table.add_column("k impressions/s at best", justify="right")
    for framework in ("tensorflow", "torch"):
        if framework not in limits:
            continue
        for name, value in limits[framework]["gflops"].items():
            best = value * 1e9 / flop_per_impression(job) / 1e3
            table.add_row(f"sgemm, {framework}, {name}", f"{value:,.0f} GFLOP/s", f"{best:,.0f}")
    for name, value in limits["memory_gb_per_s"].items():
        table.add_row(f"memory, {name}", f"{value:.1f} GB/s", "")
    table.add_row("TFRecords, raw", f"{limits['tensorflow']['records_mb_per_s']:,.0f} MB/s", "")
    return table


def write_log(folder: Path, rows: int, impressions: int, ids: str = "zipf", seed: int = 0) -> Path:
    """The log of `training_data.py`, written by a process of its own, so that this one stays small."""
    command = [sys.executable, str(HERE / "training_data.py"), str(folder), "--rows", str(rows)]
    command += ["--impressions", str(impressions), "--ids", ids, "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"training_data.py failed:\n{done.stderr[-2000:]}")
    return folder


def main() -> None:
    """Measures once and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--impressions", type=int, default=430_080)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: to see that it works")
    arguments = parser.parse_args()
    sizes = SMOKE_SIZES if arguments.smoke else {"seconds": arguments.seconds}
    impressions, rows = (8192, 2300) if arguments.smoke else (arguments.impressions, 2_000_000)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = write_log(Path(folder) / "log", rows, impressions)
        batch = 256 if arguments.smoke else arguments.batch
        job = Job(mode="matched", data=str(log), sizes=table_sizes(rows), batch=batch).as_json()
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(job), encoding="utf-8")
        limits = measure(config, log / "dataset", sizes)
    console = Console(width=100, highlight=False)
    console.print(table_of(limits, job))
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
