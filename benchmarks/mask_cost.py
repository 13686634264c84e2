"""What masks cost in training: a step of NCS4CVR against the same trunk once per task without masks.

    python benchmarks/mask_cost.py [--batches 4096 1024] [--trunk 512 256 128] [--rounds 11] [--steps 5]
                                   [--clock wall|cpu]

The rival has the same shared embeddings and one dense trunk per task: SharedBottom without a bottom, its towers the
trunk. It multiplies as much and has twice the trunk's weights, but neither masks nor gates to update. A step is the
compiled training function of `fit` (reading, forward, backward, LazyAdam, metrics) on batches from memory, 23 fields
of width 16, click and conversion. The models take turns in rounds of some steps, and the ratio of a round's medians is
what counts: machines drift, rounds do not. Wanted: at most 1.15. `--clock cpu` takes the process's seconds on all cores
together, which other processes on the machine disturb far less than the wall's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from common import FIELDS
from rich.console import Console
from rich.table import Table

import mtlzoo
from pipelines import Categorical, Label, Schema
from pipelines.schema import Fitted, HashSplit

RIVAL = "dense trunk per task"
WANTED = 1.15
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_ROWS = 100_000
_BATCHES = 8  # different ones, met again and again


def schema() -> Schema:
    """23 fields of equal size, click and conversion."""
    names = [f"f{i}" for i in range(FIELDS)]
    return Schema(
        features=tuple(Categorical(name=name, dtype="int") for name in names),
        labels=(Label(name="click"), Label(name="conversion", parent="click")),
        split=HashSplit(key="row"),
        fitted=Fitted(tables=dict.fromkeys(names, _ROWS // FIELDS)),
    )


def batches(size: int) -> tf.data.Dataset:
    """Batches from memory without end; ids follow Zipf's law with exponent 1."""
    rng = np.random.default_rng(0)
    chance = rng.random((_BATCHES * size, FIELDS))
    ids = ((_ROWS // FIELDS) ** chance - 1).astype(np.int32)
    click = (rng.random((len(ids), 1)) < 0.04).astype(np.float32)
    conversion = click * (rng.random(click.shape) < 0.05).astype(np.float32)
    labels = {"click": click, "conversion": conversion, "ctcvr": conversion}
    weights = {"click": np.ones_like(click), "conversion": click, "ctcvr": np.ones_like(click)}
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensor_slices(({"categorical": ids}, labels, weights)).batch(size)
    return data.cache().repeat().with_options(options)


def models(trunk: tuple[int, ...]) -> dict[str, Any]:
    """The rival first, then NCS4CVR by kind of mask."""
    towers = mtlzoo.models.SharedBottom(schema(), bottom_units=(), tower_units=trunk)
    masked = {
        kind: mtlzoo.models.NCS4CVR(schema(), trunk_units=trunk, **arguments)
        for kind, arguments in {
            "learned, hard_concrete": {"mask": "learned", "estimator": "hard_concrete"},
            "learned, straight_through": {"mask": "learned", "estimator": "straight_through"},
            "fixed (lottery)": {"mask": "lottery"},
        }.items()
    }
    return {RIVAL: towers, **masked}


def stepper(model: Any, data: tf.data.Dataset, clock: Callable[[], float]) -> Callable[[], float]:
    """A function that does one training step and returns its seconds; two steps that trace and warm up are done."""
    model.compile()
    model.make_train_function()
    iterator = iter(data)

    def step() -> float:
        start = clock()
        logs = model.train_function(iterator)
        float(tf.reduce_sum(logs["loss"]))  # the step is over when its loss can be read
        return clock() - start

    step()
    step()
    return step


def rounds(size: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Per model the median milliseconds of a step, round by round."""
    data = batches(size)
    clock = CLOCKS[options.clock]
    steppers = {name: stepper(model, data, clock) for name, model in models(tuple(options.trunk)).items()}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(options.rounds):
        for name in list(steppers)[:: -1 if turn % 2 else 1]:  # who goes first alternates
            times[name].append(1000.0 * statistics.median(steppers[name]() for _ in range(options.steps)))
    return times


def main() -> None:
    """Measures each batch size and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 1024])
    parser.add_argument("--trunk", type=int, nargs="+", default=[512, 256, 128])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    trunk = "-".join(map(str, options.trunk))
    table = Table(
        title=f"training step, trunk {trunk}, {FIELDS} fields x 16, {options.clock} time, {options.rounds} rounds"
    )
    table.add_column("batch", justify="right")
    table.add_column("masks")
    for heading in ("ms/step", "ratio: median (lowest-highest)", "wanted"):
        table.add_column(heading, justify="right")
    for size in options.batches:
        times = rounds(size, options)
        for name, values in times.items():
            ratios = [a / b for a, b in zip(values, times[RIVAL], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            shown = ("1", "") if name == RIVAL else (spread, f"<= {WANTED}")
            table.add_row(f"{size:,}", name, f"{statistics.median(values):.0f}", *shown)
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    main()
