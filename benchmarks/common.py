"""What the benchmarks share: a raw log of Ali-CCP's shape, and medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pipelines.schema import Schema

FIELDS = 23
LARGEST_FIELD = 500_000
_CHUNK_ROWS = 1 << 18


def int_schema() -> Schema:
    """23 integer features, click and conversion, one split in three by a hash of the row's number."""
    features = [{"name": f"field_{i:02d}", "type": "categorical", "dtype": "int"} for i in range(FIELDS)]
    labels = [{"name": "click"}, {"name": "conversion", "parent": "click"}]
    split = {"by": "hash", "key": "row", "valid": 0.05, "test": 0.05}
    return Schema.model_validate({"features": features, "labels": labels, "split": split})


def cardinalities(largest: int = LARGEST_FIELD) -> np.ndarray:
    """Distinct values of the 23 fields: from 3 to `largest`, evenly spaced in their logarithm."""
    return np.geomspace(3, largest, FIELDS).astype(np.int64)


def write_int_log(path: Path, rows: int, seed: int = 0, largest: int = LARGEST_FIELD) -> Path:
    """Writes a Parquet log of `int_schema`: Zipf-distributed values, clicks 4 %, conversions 3 % of the clicks.

    Args:
        path: The file to write.
        rows: Number of impressions.
        seed: Of the random numbers.
        largest: Distinct values of the largest field.

    Returns:
        The path.
    """
    random = np.random.default_rng(seed)
    cumulated = [np.cumsum(1.0 / np.arange(1, size + 1)) for size in cardinalities(largest)]
    writer: pa.parquet.ParquetWriter | None = None
    for start in range(0, rows, _CHUNK_ROWS):
        count = min(_CHUNK_ROWS, rows - start)
        columns = {f"field_{i:02d}": _zipf(random, c, count) for i, c in enumerate(cumulated)}
        click = random.random(count) < 0.04
        table = pa.table(columns | {"click": click, "conversion": click & (random.random(count) < 0.03)})
        if writer is None:
            writer = pa.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return path


def _zipf(random: np.random.Generator, cumulated: np.ndarray, count: int) -> np.ndarray:
    ranks = np.searchsorted(cumulated, random.random(count) * cumulated[-1])
    # Spread, so that a value says nothing of its rank.
    return ranks * 7_919 + 11


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of `work` over `repeats` calls, after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
