"""What NCS4CVR costs to serve: latency of its export beside the exports of Shared-Bottom.

    python benchmarks/export_latency.py [--trunk 512 256 128] [--batches 1 64 1024] [--density 0.2] [--rounds 20]

23 integer features of width 16, untrained weights, float32. Each model is exported and its SavedModel loaded; a call
is `serving_default` with raw features, lookups included. The models take turns in random order, and the ratio of the
medians of each round is what counts: machines drift, pairs do not. They are compared with what they should not be
slower than: Shared-Bottom without a shared part and with towers of the trunk's widths.

    dense masks     NCS4CVR as it starts, all connections open for every task: the most that it can cost
    random masks    of `--density`; fewer connections open, but no layer narrower unless neurons die of it
    one trunk       Shared-Bottom with the trunk shared and no towers: the least that any of them can cost
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pyarrow.parquet
import tensorflow as tf
from common import int_schema, write_int_log
from rich.console import Console
from rich.table import Table

import pipelines
from mtlzoo.layers import MaskedDense
from mtlzoo.models import NCS4CVR, SharedBottom
from mtlzoo.serving import export, request_of

ROWS, LARGEST_FIELD, EMBEDDING_DIM = 20_000, 5_000, 16
REFERENCE = "Shared-Bottom, a tower per task"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", type=int, nargs="+", default=[512, 256, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=40, help="calls of each model in a round")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        log = write_int_log(Path(folder) / "log.parquet", ROWS, largest=LARGEST_FIELD)
        dataset = pipelines.open_dataset(pipelines.convert([log], int_schema(), Path(folder) / "data"))
        exports = {
            name: export(model, Path(folder) / f"model_{i}", dataset)
            for i, (name, model) in enumerate(_models(dataset, tuple(arguments.trunk), arguments.density).items())
        }
        sizes = {name: _size(target) for name, target in exports.items()}
        loaded = {name: tf.saved_model.load(str(target)) for name, target in exports.items()}
        rows = pyarrow.parquet.read_table(log).combine_chunks().to_batches()[0]
        tables = [
            _table(_measure(loaded, request(dataset, rows, batch), arguments.rounds, arguments.calls), batch, sizes)
            for batch in arguments.batches
        ]
    console = Console()
    for table in tables:
        console.print(table)


def _models(dataset: pipelines.Dataset, trunk: tuple[int, ...], density: float) -> dict[str, keras.Model]:
    schema = dataset.schema
    sparse = NCS4CVR(schema, trunk_units=trunk, embedding_dim=EMBEDDING_DIM)
    _open_at_random(sparse, density)
    return {
        REFERENCE: SharedBottom(schema, bottom_units=(), tower_units=trunk, embedding_dim=EMBEDDING_DIM),
        "NCS4CVR, dense masks": NCS4CVR(schema, trunk_units=trunk, embedding_dim=EMBEDDING_DIM),
        f"NCS4CVR, random masks of {density:.0%}": sparse,
        "Shared-Bottom, one trunk": SharedBottom(
            schema, bottom_units=trunk, tower_units=(), embedding_dim=EMBEDDING_DIM
        ),
    }


def _open_at_random(model: keras.Model, density: float) -> None:
    """Opens each connection of each task with probability `density`, and shuts the others."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, MaskedDense):
            is_open = random.random(layer.gates.shape) < density
            layer.gates.assign(np.where(is_open, 10.0, -10.0) / layer.gate_scale)


def _size(target: Path) -> tuple[int, float]:
    """Parameters that are served, and megabytes of all files."""
    card = json.loads((target / "assets.extra" / "model_card.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return card.get("served_parameters", card["parameters"]), size / 1e6


def request(dataset: pipelines.Dataset, rows: pyarrow.RecordBatch, batch: int) -> dict[str, tf.Tensor]:
    """The first rows of a log as a request."""
    return {name: tf.constant(array) for name, array in request_of(dataset.schema, rows.slice(0, batch)).items()}


def _measure(loaded: dict[str, Any], request: dict[str, tf.Tensor], rounds: int, calls: int) -> dict[str, list[float]]:
    """Median milliseconds of a call in each round, by model."""
    medians: dict[str, list[float]] = {name: [] for name in loaded}
    predict = {name: servable.signatures["serving_default"] for name, servable in loaded.items()}
    random = Random(0)
    for turn in range(rounds + 1):
        times: dict[str, list[float]] = {name: [] for name in loaded}
        for _ in range(calls):
            # Any fixed order would favour a model: what the one before it leaves in the caches differs.
            for name in random.sample(list(predict), len(predict)):
                times[name].append(milliseconds(predict[name], request))
        if turn:  # the first round warms up
            for name in medians:
                medians[name].append(statistics.median(times[name]))
    return medians


def milliseconds(predict: Callable[..., dict[str, tf.Tensor]], request: dict[str, tf.Tensor]) -> float:
    """How long a call takes until its probabilities can be read."""
    start = time.perf_counter()
    for probability in predict(**request).values():
        probability.numpy()
    return (time.perf_counter() - start) * 1000.0


def _table(times: dict[str, list[float]], batch: int, sizes: dict[str, tuple[int, float]]) -> Table:
    rounds = len(times[REFERENCE])
    table = Table(title=f"serving_default, batch of {batch}, {rounds} rounds")
    table.add_column("export")
    for heading in ("parameters", "MB", "ms (median)", "ratio to the first (lowest-highest)"):
        table.add_column(heading, justify="right")
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times[REFERENCE], strict=True)]
        table.add_row(
            name,
            f"{sizes[name][0]:,}",
            f"{sizes[name][1]:.1f}",
            f"{statistics.median(values):.2f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        )
    return table


if __name__ == "__main__":
    main()
