"""How fast a dataset is scored beside how fast the same model trains on it.

    python benchmarks/score_speed.py [--rows 2000000] [--embedding-rows 2000000] [--rounds 7] [--steps 50]
        [--score-batch 16384] [--smoke]

MMoE, 4 experts 256-128, towers 64, 23 fields of width 16, click and conversion. `--rows` impressions with Zipf's law in
every field are converted once; the fields are hashed into tables of equal size, `--embedding-rows` rows together. Both
work on the training split, from TFRecords:

    training    `fit` as `mtlzoo train` does it: shuffled batches of 4096, LazyAdam, AUC of every task; `--steps` steps
                a round, the first, which traces, left out
    scoring     `mtlzoo.scoring.score` of the whole split into a Parquet file, the first batch, which traces, left out;
                `whole` is the call from beginning to end

They take turns in rounds, and the ratio within a round is what counts: machines drift, rounds do not. Wanted: scoring
at 4 times the rate of training or more. Results are kept in `benchmarks/results/score_speed.json`, one entry per
setting and machine, which a new run replaces. `--smoke` sees in seconds that it works, and keeps nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from common import FIELDS, int_schema, write_int_log
from kept import keep_result
from rich.console import Console
from rich.table import Table

import pipelines
from mtlzoo.callbacks import Throughput
from mtlzoo.models import MMoE
from mtlzoo.scoring import score
from pipelines.schema import Schema

RESULTS = Path(__file__).resolve().parent / "results" / "score_speed.json"
BATCH, WANTED = 4096, 4.0
DATA = "data"
_SMOKE = {"rows": 6_000, "embedding_rows": 2_300, "rounds": 1, "steps": 3, "score_batch": 1_024}
Rates = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="impressions in the log; 9 in 10 train")
    parser.add_argument("--embedding-rows", type=int, default=2_000_000, help="of all fields together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50, help="training steps in a round")
    parser.add_argument("--score-batch", type=int, default=16_384)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing kept")
    options = parser.parse_args()
    smoke = vars(options).pop("smoke")  # what is left is the setting
    if smoke:
        vars(options).update(_SMOKE)
    if options.steps < 3 or options.rows < 3 * options.score_batch:
        parser.error("rates need 3 training steps, and 3 batches of --score-batch in --rows")
    console = Console()
    keras.utils.set_random_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with console.status(f"writing {options.rows:,} impressions"):
            dataset = dataset_of(Path(folder), options.rows, options.embedding_rows)
        model = model_of(dataset.schema)
        model.compile()
        rates = _measured(model, dataset, Path(folder) / "scores.parquet", options, console)
    result = {**summary(rates), "rates": rates, "parameters": model.count_params(), "cores": os.cpu_count()}
    if not smoke:
        keep_result(RESULTS, vars(options), result)
    console.print(_table(result, options))


def dataset_of(folder: Path, rows: int, embedding_rows: int) -> pipelines.Dataset:
    """A dataset of so many impressions with hashed fields, written as `folder / DATA`."""
    plain = int_schema().to_dict()
    for feature in plain["features"]:
        feature["hash_buckets"] = max(embedding_rows // FIELDS, 1)
    log = write_int_log(folder / "log.parquet", rows)
    return pipelines.open_dataset(pipelines.convert([log], Schema.model_validate(plain), folder / DATA))


def model_of(schema: Schema) -> MMoE:
    """The model, not compiled."""
    return MMoE(schema, num_experts=4, expert_units=(256, 128), tower_units=(64,), embedding_dim=16)


def _measured(
    model: keras.Model, dataset: pipelines.Dataset, out: Path, options: argparse.Namespace, console: Console
) -> Rates:
    """Impressions/s in each round."""
    rates: Rates = {"training": [], "scoring": [], "whole": []}

    def train() -> None:
        rates["training"].append(training_rate(model, dataset, options.steps))

    def infer() -> None:
        steady, whole = scoring_rates(model, dataset, out, options.score_batch)
        rates["scoring"].append(steady)
        rates["whole"].append(whole)

    works: list[Callable[[], None]] = [train, infer]
    for turn in range(options.rounds):
        with console.status(f"round {turn + 1} of {options.rounds}"):
            for work in works[:: -1 if turn % 2 else 1]:  # who goes first alternates
                work()
    return rates


def training_rate(model: keras.Model, dataset: pipelines.Dataset, steps: int) -> float:
    """Impressions/s of `fit`, tracing left out."""
    batches = dataset.read("train", BATCH, shuffle=True, seed=1, repeat=True, drop_remainder=True)
    throughput = Throughput(BATCH)
    model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0, callbacks=[throughput])
    return throughput.impressions_per_second


def scoring_rates(
    model: keras.Model,
    dataset: pipelines.Dataset,
    out: Path,
    batch_size: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Impressions/s of `score`: behind the first batch, and of the whole call."""
    marks: list[tuple[int, float]] = []
    start = clock()
    rows = score(model, dataset, out, "train", batch_size, lambda done, total: marks.append((done, clock())))
    end = clock()
    done, first = marks[0]
    return (rows - done) / (end - first), rows / (end - start)


def summary(rates: Rates) -> dict[str, Any]:
    """Medians and quartiles of each rate, and of scoring over training within a round."""
    rates = {**rates, "ratio": [s / t for s, t in zip(rates["scoring"], rates["training"], strict=True)]}
    return {name: _spread(values) for name, values in rates.items()}


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high, "least": min(values), "most": max(values)}


def _table(result: dict[str, Any], options: argparse.Namespace) -> Table:
    table = Table(title=f"{options.embedding_rows:,} embedding rows, {options.rounds} rounds", title_justify="left")
    for heading in ("impressions/s", "median", "quartiles", "least-most"):
        table.add_column(heading, justify="left" if heading == "impressions/s" else "right")
    names = {"training": "training", "scoring": "scoring", "whole": "scoring, the whole call"}
    for key, name in (*names.items(), ("ratio", f"scoring / training (wanted: {WANTED:g})")):
        spread = {part: f"{value:.2f}" if key == "ratio" else f"{value:,.0f}" for part, value in result[key].items()}
        quartiles = f"{spread['lower_quartile']}-{spread['upper_quartile']}"
        table.add_row(name, spread["median"], quartiles, f"{spread['least']}-{spread['most']}")
    return table


if __name__ == "__main__":
    main()
