"""A small realistic impression log with every kind of feature, converted once per session into both layouts."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import pipelines
from pipelines.schema import Schema

# What tests/serving/contract asks: TF Serving's own binary where it is given, else the development server.
SERVER = os.environ.get("TENSORFLOW_MODEL_SERVER") or "mtlzoo serve"

# Graphs are millions of objects that stay: to look through them as often as by default takes 3 % of the suite's time.
gc.set_threshold(20_000, 20, 20)

ROWS = 6_000
ITEMS, USERS = 150, 400
CITIES = ["", "unknown", "Berlin", "Łódź", "São Paulo", "東京", "Lagos", "Quito"]
DEVICES = [f"device-{i}" for i in range(40)]
TAGS = ["new", "sale", "red", "blue", "green", "kids", "home", "garden", "sport"]

DEMO = {
    "features": [
        {"name": "item", "type": "categorical", "min_count": 2, "max_size": 120},
        {
            "name": "previous_item",
            "type": "categorical",
            "column": "prev",
            "table": "item",
            "min_count": 2,
            "max_size": 120,
        },
        {"name": "category", "type": "categorical", "dtype": "int", "missing_values": [-1]},
        {"name": "city", "type": "categorical", "missing_values": ["", "unknown"]},
        {"name": "device", "type": "categorical", "hash_buckets": 16},
        {"name": "age", "type": "numeric"},
        {"name": "price", "type": "numeric", "transform": "log1p", "missing": "mean", "indicator": True},
        {"name": "dwell", "type": "numeric", "buckets": 8, "missing": "mean"},
        {"name": "tags", "type": "multi_categorical", "max_length": 4},
        {
            "name": "history",
            "type": "multi_categorical",
            "dtype": "int",
            "max_length": 3,
            "keep": "last",
            "combiner": "sum",
            "weights": "history_strength",
        },
    ],
    "labels": [{"name": "click"}, {"name": "conversion", "parent": "click"}],
    "keys": {"group": "user_id"},
    "split": {"by": "hash", "key": "user_id", "valid": 0.2, "test": 0.2},
}


@dataclass(frozen=True)
class RawLog:
    """The raw log as files and as a table."""

    parquet: Path
    csv: Path
    table: pa.Table


def pytest_report_header() -> str:
    return f"contract tests of serving ask: {SERVER}"


@pytest.fixture(scope="module", autouse=True)
def seeded() -> None:
    """A file's unseeded models are the same in every run, whatever ran before it."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def demo_schema() -> Schema:
    return Schema.model_validate(DEMO)


@pytest.fixture(scope="session")
def raw_log(tmp_path_factory) -> RawLog:
    folder = tmp_path_factory.mktemp("raw")
    table = impressions(ROWS, seed=5)
    pa.parquet.write_table(table, folder / "log.parquet")
    write_csv(table, folder / "log.csv")
    return RawLog(folder / "log.parquet", folder / "log.csv", table)


@pytest.fixture(scope="session")
def dataset(raw_log, demo_schema, tmp_path_factory) -> pipelines.Dataset:
    out = tmp_path_factory.mktemp("converted") / "blocks"
    return pipelines.open_dataset(pipelines.convert([raw_log.parquet], demo_schema, out, shards=3))


@pytest.fixture(scope="session")
def rows_dataset(raw_log, demo_schema, tmp_path_factory) -> pipelines.Dataset:
    out = tmp_path_factory.mktemp("converted") / "rows"
    return pipelines.open_dataset(pipelines.convert([raw_log.parquet], demo_schema, out, layout="rows", shards=3))


def impressions(rows: int, seed: int) -> pa.Table:
    """Impressions whose clicks and conversions (about 20 % each) depend on most features."""
    random = np.random.default_rng(seed)
    item, previous = (np.minimum(random.zipf(1.3, rows), ITEMS) - 1 for _ in range(2))
    category = random.integers(-1, 12, rows)
    city = random.integers(0, len(CITIES), rows)
    price = np.round(random.lognormal(3.0, 1.0, rows), 2)
    dwell = np.where(random.random(rows) < 0.4, 0.0, np.round(random.exponential(20.0, rows), 1))
    age = random.integers(18, 80, rows).astype(float)
    history = [random.integers(1, 60, n).tolist() for n in random.integers(0, 6, rows)]
    effect = random.normal(size=(2, ITEMS)), random.normal(size=(2, 13)), random.normal(size=(2, len(CITIES)))
    signal = effect[0][:, item] + effect[1][:, category + 1] + 0.5 * effect[2][:, city] + 0.03 * dwell
    noise = random.random((2, rows))
    click = _chance(signal[0] - 0.02 * (age - 49)) > noise[0]
    conversion = click & (_chance(signal[1] - 0.5 * np.log(price)) > noise[1])
    some = random.random((3, rows)) < 0.05
    return pa.table(
        {
            "user_id": [f"user {n}" for n in random.integers(0, USERS, rows)],
            "item": pa.array([f"item/{n}" for n in item], mask=some[0]),
            "prev": [f"item/{n}" for n in previous],
            "category": category,
            "city": [CITIES[n] for n in city],
            "device": [DEVICES[n] for n in random.integers(0, len(DEVICES), rows)],
            "age": age,
            "price": pa.array(price, mask=some[1]),
            "dwell": pa.array(dwell, mask=some[2]),
            "tags": [random.choice(TAGS, n, replace=False).tolist() for n in random.integers(0, 7, rows)],
            "history": pa.array(history, pa.list_(pa.int64())),
            "history_strength": pa.array(
                [np.round(random.random(len(h)), 3).tolist() for h in history], pa.list_(pa.float64())
            ),
            "click": click.astype(np.int64),
            "conversion": conversion.astype(np.int64),
        }
    )


def _chance(logit: np.ndarray) -> np.ndarray:
    """Probabilities with a mean of about 20 %."""
    return 1.0 / (1.0 + np.exp(-(1.2 * (logit - logit.mean()) - 2.6)))


def write_csv(table: pa.Table, path: Path) -> None:
    """Writes a table as CSV, its lists as text parted by '|'."""
    columns = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_list(column.type):
            column = pa.array(["|".join(map(str, v or [])) for v in column.to_pylist()], pa.string())
        columns[name] = column
    pa.csv.write_csv(pa.table(columns), path)
