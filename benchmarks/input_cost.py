"""What reading costs training: steps fed from TFRecords on disk beside the same steps fed from memory.

    python benchmarks/input_cost.py [--rounds 9] [--steps 40] [--impressions 225280] [--embedding-rows 100000] [--smoke]

MMoE with 4 experts 256-128, towers 64, 23 fields of width 16, batch 4096, LazyAdam, metrics on, no dropout. One model,
one process; in every round `fit` runs once on `read("train", shuffle=True)`, which reads, parses and shuffles all the
while, and once on finished batches that lie in memory, in turns who comes first. What counts is the median over a
run's steps, and the ratio of the two within a round. Wanted: at most 1.03.

Results are kept in `benchmarks/results/input_cost.json`, one entry per setting and machine, which a new run replaces.
`--smoke` sees in seconds that it works, and keeps nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from kept import keep_result
from peers.measuring import Job, StepClock, keras_callback
from rich.console import Console
from rich.table import Table
from training_data import write
from training_table import spread

from mtlzoo.models import MMoE
from mtlzoo.optimizers import LazyAdam
from pipelines import open_dataset

RESULTS = Path(__file__).resolve().parent / "results" / "input_cost.json"
BATCH, WARMUP, WANTED = 4096, 5, 1.03
SOURCES = ("disk", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--impressions", type=int, default=55 * BATCH)
    parser.add_argument("--embedding-rows", type=int, default=100_000)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing kept")
    options = parser.parse_args()
    smoke = vars(options).pop("smoke")  # what is left is the setting
    if smoke:
        vars(options).update(rounds=1, steps=3, impressions=2 * BATCH, embedding_rows=2_300)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with console.status(f"writing {options.impressions:,} impressions"):
            write(log, options.embedding_rows, options.impressions, "zipf", seed=0, arrays=False)
        found = measured(log / "dataset", options, console)
    if not smoke:
        keep_result(RESULTS, vars(options), found)
    console.print(table_of(found))


def measured(folder: Path, options: argparse.Namespace, console: Console) -> dict[str, list[float]]:
    """By source the milliseconds of a step in each round."""
    dataset = open_dataset(folder)
    keras.utils.set_random_seed(1)
    model = MMoE(dataset.schema, expert_units=(256, 128), tower_units=(64,), dropout=0.0, label_space="ctcvr")
    model.compile(LazyAdam(1e-3))
    disk = dataset.read("train", BATCH, shuffle=True, seed=1, drop_remainder=True, repeat=True)
    count = dataset.rows("train") // BATCH
    memory = disk.take(count).cache()
    for _ in memory:  # a cache is filled by reading it to its end
        pass
    batches: dict[str, Any] = {"disk": disk, "memory": memory.repeat().prefetch(2)}
    found: dict[str, list[float]] = {source: [] for source in SOURCES}
    for turn in range(options.rounds):
        for source in SOURCES[:: -1 if turn % 2 else 1]:
            with console.status(f"round {turn + 1} of {options.rounds}: {source}"):
                found[source].append(step_milliseconds(model, batches[source], options.steps))
    return found


def step_milliseconds(model: keras.Model, batches: Any, steps: int) -> float:
    """Median over the steps behind the first ones."""
    clock = StepClock(Job(mode="matched", data="", sizes=(), warmup=WARMUP, steps=steps, seconds=1e9))
    timing = keras_callback(keras.callbacks.Callback, clock)
    model.fit(batches, steps_per_epoch=WARMUP + steps + 1, epochs=1, shuffle=False, verbose=0, callbacks=[timing])
    return 1e3 * statistics.median(clock.step_seconds)


def table_of(found: dict[str, list[float]]) -> Table:
    """Milliseconds of both, and the ratio."""
    table = Table(title=f"A training step, rounds: {len(found['disk'])}", title_justify="left")
    table.add_column("")
    table.add_column("median (range)", justify="right")
    for source in SOURCES:
        table.add_row(f"fed from {source}, ms", spread(found[source], 1))
    ratios = [disk / memory for disk, memory in zip(found["disk"], found["memory"], strict=True)]
    table.add_row(f"ratio (wanted: {WANTED})", spread(ratios, 3))
    return table


if __name__ == "__main__":
    main()
