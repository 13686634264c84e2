"""How the cost of a training step grows with the rows of the embedding tables.

    python benchmarks/embedding_rows.py [--rows 100000 2000000 20000000] [--ids zipf|uniform] [--steps 30]

MMoE (4 experts 256-128, towers 64, 23 fields, width 16, batch 4096) with LazyAdam, fed from memory, metrics on. The
sizes take turns in rounds, and the ratio of each round is what counts: machines drift, pairs do not. Ids follow Zipf's
law with exponent 1 over each field's values, as ids of users and items roughly do; `uniform` is the worst case: nearly
every looked-up row is then another one, and far from the last.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

FIELDS, BATCH = 23, 4096


def measure(rows: int, steps: int, kind: str) -> None:
    """Prints the median milliseconds of a training step, in a process of its own (called by `main`)."""
    import numpy as np
    import tensorflow as tf

    import mtlzoo
    from pipelines import Categorical, Label, Schema
    from pipelines.schema import Fitted, HashSplit

    names = [f"f{i}" for i in range(FIELDS)]
    schema = Schema(
        features=tuple(Categorical(name=name, dtype="int") for name in names),
        labels=(Label(name="click"), Label(name="conversion", parent="click")),
        split=HashSplit(key="row"),
        fitted=Fitted(tables=dict.fromkeys(names, rows // FIELDS)),
    )
    rng = np.random.default_rng(0)
    batches = 2 * steps  # every step gets ids of its own, so that rows are met for the first time throughout
    size, chance = rows // FIELDS, rng.random((batches * BATCH, FIELDS))
    ids = (size**chance - 1 if kind == "zipf" else size * chance).astype(np.int32)
    click = (rng.random((batches * BATCH, 1)) < 0.04).astype(np.float32)
    conversion = click * (rng.random(click.shape) < 0.05).astype(np.float32)
    labels = {"click": click, "conversion": conversion, "ctcvr": conversion}
    weights = {"click": np.ones_like(click), "conversion": click, "ctcvr": np.ones_like(click)}
    data = tf.data.Dataset.from_tensor_slices(({"categorical": ids}, labels, weights)).batch(BATCH)
    options = tf.data.Options()
    options.autotune.enabled = False

    model = mtlzoo.models.MMoE(schema, num_experts=4, expert_units=(256, 128), tower_units=(64,), embedding_dim=16)
    model.compile()
    throughput = mtlzoo.callbacks.Throughput(BATCH)
    model.fit(data.with_options(options), shuffle=False, verbose=0, callbacks=[throughput])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"RESULT {throughput.median_step_ms} {peak}")


def main() -> None:
    """Runs the sizes in turn and prints a table."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 2_000_000, 20_000_000])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ids", choices=("zipf", "uniform"), default="zipf")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure, arguments.steps, arguments.ids)
        return
    times: dict[int, list[float]] = {rows: [] for rows in arguments.rows}
    peaks: dict[int, float] = {}
    console, start = Console(), time.perf_counter()
    for turn in range(arguments.rounds):
        for rows in arguments.rows:
            command = [sys.executable, __file__, "--measure", str(rows), "--steps", str(arguments.steps)]
            command += ["--ids", arguments.ids]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            )
            step, peak = map(float, done.stdout.split("RESULT")[1].split())
            times[rows].append(step)
            peaks[rows] = peak
            console.print(
                f"round {turn + 1}: {rows:,} rows, {step:.0f} ms/step ({time.perf_counter() - start:.0f} s so far)"
            )
    smallest = arguments.rows[0]
    table = Table(
        title=f"training step of MMoE, batch {BATCH}, {arguments.ids} ids, medians of {arguments.rounds} rounds"
    )
    for heading in ("embedding rows", "ms/step", "impressions/s", f"ratio to {smallest:,} (min-max)", "peak GiB"):
        table.add_column(heading, justify="right")
    for rows, values in times.items():
        ratios = [a / b for a, b in zip(values, times[smallest], strict=True)]
        median = statistics.median(values)
        table.add_row(
            f"{rows:,}",
            f"{median:.0f}",
            f"{BATCH / median * 1000:,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{peaks[rows]:.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
