"""What DCRNN costs beside two models of one task each, and beside other models of the zoo, in training and serving.

    python benchmarks/recurrent_cost.py [--batch 4096] [--rounds 7] [--steps 3] [--serve 1 512] [--clock wall|cpu]

23 integer features of width 16, click and conversion, defaults of every model. The two models of one task are DCRNN's
own, each with the whole state (384 units, tables of its own), and both are counted: weights, products and times of
the two are added. Both train on all impressions here; trained on clicked impressions alone, the conversion's would
cost as many times less as there are fewer of them.

FLOPs are those of the products of one impression's forward pass, 2 per multiplication and addition. A step is the
compiled training function of `fit` on batches from memory; a call is `serving_default` of the export with raw features,
in this process. The contenders take turns in rounds, and the ratio to the two models within a round is what counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pyarrow.parquet
import tensorflow as tf
from common import int_schema, write_int_log
from export_latency import LARGEST_FIELD, ROWS, milliseconds, request
from interaction_cost import flops, products_in, signature_of
from mask_cost import CLOCKS, batches, schema, stepper
from rich.console import Console
from rich.table import Table

import pipelines
from mtlzoo.models import create
from mtlzoo.serving import export
from pipelines.schema import Label, Schema

SEPARATE = "two models of one task"
_BOTH = ("click", "conversion")
_ALONE = {"sharing": 1.0, "transfer": False}
_OPEN = {"sharing": 1.0, "gates": "open", "tied": False, "transfer": False}
# By contender its models: which labels, which model, which arguments.
CONTENDERS: dict[str, list[tuple[tuple[str, ...], str, dict[str, Any]]]] = {
    SEPARATE: [(("click",), "dcrnn", _ALONE), (("conversion",), "dcrnn", _ALONE)],
    "DCRNN": [(_BOTH, "dcrnn", {})],
    "DCRNN, nothing shared": [(_BOTH, "dcrnn", {"sharing": 0.0, "transfer": False})],
    "DCRNN, everything shared": [(_BOTH, "dcrnn", {"sharing": 1.0})],
    "DCN-v2, shared": [(_BOTH, "dcrnn", _OPEN)],
    "MMoE": [(_BOTH, "mmoe", {})],
    "SharedBottom": [(_BOTH, "shared_bottom", {})],
}


def of_labels(whole: Schema, names: tuple[str, ...]) -> Schema:
    """A schema of some labels; one that stands alone has no parent."""
    labels = whole.labels if len(names) > 1 else (Label(name=names[0]),)
    return whole.model_copy(update={"labels": labels})


def training_data(size: int, names: tuple[str, ...]) -> tf.data.Dataset:
    """Batches from memory with the targets of some labels."""
    targets = names if len(names) == 1 else (*names, "ctcvr")

    def chosen(features: Any, labels: Any, weights: Any) -> tuple[Any, Any, Any]:
        return features, {t: labels[t] for t in targets}, {t: tf.ones_like(weights[t]) for t in targets}

    return batches(size).map(chosen).cache().repeat()


def trainers(batch: int, clock: Callable[[], float]) -> tuple[dict[str, Callable[[], float]], dict[str, list[str]]]:
    """By contender a function that does a step of all its models, and its weights and FLOPs as cells."""
    steps: dict[str, Callable[[], float]] = {}
    sizes: dict[str, list[str]] = {}
    for name, members in CONTENDERS.items():
        models = [create(kind, of_labels(schema(), labels), **arguments) for labels, kind, arguments in members]
        forward = sum(flops(products_in(model, signature_of(model, batch))) for model in models) / batch
        tables = sum(v.shape[0] * v.shape[1] for m in models for v in m.weights if v.name.startswith("embeddings"))
        weights = sum(model.count_params() for model in models) - tables
        sizes[name] = [f"{weights / 1e6:.2f} M", f"{forward / 1e6:.2f}"]
        run = [
            stepper(model, training_data(batch, labels), clock)
            for model, (labels, _, _) in zip(models, members, strict=True)
        ]
        steps[name] = partial(seconds_of, run)
    return steps, sizes


def seconds_of(run: Sequence[Callable[[], float]]) -> float:
    """A step of each model."""
    return sum(step() for step in run)


def milliseconds_of(members: Sequence[Any], asked: dict[str, tf.Tensor]) -> float:
    """A call of each model."""
    return sum(milliseconds(predict, asked) for predict in members)


def servers(folder: Path) -> tuple[dict[str, list[Any]], dict[tuple[str, ...], pipelines.Dataset], Path]:
    """By contender the signatures of its exports; the datasets by labels, and the raw log."""
    log = write_int_log(folder / "log.parquet", ROWS, largest=LARGEST_FIELD)
    data = {
        labels: pipelines.open_dataset(
            pipelines.convert([log], of_labels(int_schema(), labels), folder / "_".join(labels))
        )
        for labels in {labels for members in CONTENDERS.values() for labels, _, _ in members}
    }
    signatures = {}
    for number, (name, members) in enumerate(CONTENDERS.items()):
        signatures[name] = [
            tf.saved_model.load(
                str(export(create(kind, data[labels].schema, **arguments), folder / f"{number}_{i}", data[labels]))
            ).signatures["serving_default"]
            for i, (labels, kind, arguments) in enumerate(members)
        ]
    return signatures, data, log


def in_turn(run: dict[str, Callable[[], float]], rounds: int, steps: int) -> dict[str, list[float]]:
    """By contender the median of each round; who goes first alternates."""
    times: dict[str, list[float]] = {name: [] for name in run}
    for turn in range(rounds):
        for name in list(run)[:: -1 if turn % 2 else 1]:
            times[name].append(statistics.median(run[name]() for _ in range(steps)))
    return times


def ratio(times: dict[str, list[float]], name: str) -> str:
    """A contender's time as a part of that of the two models, round by round."""
    ratios = [a / b for a, b in zip(times[name], times[SEPARATE], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def table_of(
    sizes: dict[str, list[str]], trained: dict[str, list[float]], served: Sequence[dict[str, list[float]]], options: Any
) -> Table:
    """One row per contender."""
    table = Table(title=f"batch {options.batch:,}, 23 fields x 16, {options.clock} time of a step")
    table.add_column("")
    serving = [heading for batch in options.serve for heading in (f"call of {batch}, ms", "ratio")]
    for heading in ("weights, no tables", "MFLOP", "impressions/s", "step, ratio", *serving):
        table.add_column(heading, justify="right")
    for name, cells in sizes.items():
        calls = [cell for times in served for cell in (f"{statistics.median(times[name]):.2f}", ratio(times, name))]
        speed = f"{options.batch / statistics.median(trained[name]):,.0f}"
        table.add_row(name, *cells, speed, ratio(trained, name), *calls)
    return table


def main() -> None:
    """Measures training, then serving, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--serve", type=int, nargs="+", default=[1, 512])
    parser.add_argument("--calls", type=int, default=30, help="calls of each contender in a round")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    steps, sizes = trainers(options.batch, CLOCKS[options.clock])
    trained = in_turn(steps, options.rounds, options.steps)
    served = []
    with tempfile.TemporaryDirectory() as folder:
        signatures, data, log = servers(Path(folder))
        rows = pyarrow.parquet.read_table(log).combine_chunks().to_batches()[0]
        for batch in options.serve:
            asked = request(data[_BOTH], rows, batch)
            calls = {name: partial(milliseconds_of, members, asked) for name, members in signatures.items()}
            in_turn(calls, 1, options.calls)  # warms up
            served.append(in_turn(calls, options.rounds, options.calls))
    Console(width=160, highlight=False).print(table_of(sizes, trained, served, options))


if __name__ == "__main__":
    main()
