from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines import Schema, save_schema

ROWS = 200_000
SCHEMA = {
    "features": [
        {"name": "text", "type": "categorical"},
        {"name": "code", "type": "categorical", "dtype": "int"},
        {"name": "x", "type": "numeric", "buckets": 10},
        {"name": "tags", "type": "multi_categorical", "max_length": 3},
    ],
    "labels": [{"name": "click"}],
    "split": {"by": "hash", "key": "row"},
}
# Anonymous memory while both passes run, sampled at every raw batch.
CONVERT = """
import sys
import pipelines
def anonymous():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
def sample(phase, done, total):
    print(phase, done, anonymous())
pipelines.convert([sys.argv[1]], pipelines.load_schema(sys.argv[2]), sys.argv[3], progress=sample)
"""


def samples_of_conversion(folder, rows: int) -> list[tuple[str, int, float]]:
    """Phase, rows done and megabytes of anonymous memory, in order."""
    random = np.random.default_rng(0)
    part = pa.table(
        {
            "text": [f"value {n}" for n in random.integers(0, 500, ROWS)],
            "code": random.integers(0, 500, ROWS),
            "x": random.normal(size=ROWS),
            "tags": [["a", "b"], ["c"]] * (ROWS // 2),
            "click": random.integers(0, 2, ROWS),
        }
    )
    # One row group, as large as the file: what a writer makes that holds the whole log in memory.
    pa.parquet.write_table(pa.concat_tables([part] * (rows // ROWS)), folder / f"{rows}.parquet", row_group_size=rows)
    save_schema(Schema.model_validate(SCHEMA), folder / "schema.yaml")
    command = [sys.executable, "-c", CONVERT, folder / f"{rows}.parquet", folder / "schema.yaml", folder / f"out{rows}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    words = [line.split() for line in done.stdout.splitlines()]
    return [(phase, int(rows_done), int(kilobytes) / 1024) for phase, rows_done, kilobytes in words]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_follow_the_rows(tmp_path):
    rows = 20 * ROWS
    samples = samples_of_conversion(tmp_path, rows)

    def median(phase: str, first: float, last: float) -> float:
        return float(np.median([m for p, done, m in samples if p == phase and first * rows <= done <= last * rows]))

    # Buffers and chunks under way are full by a fifth of the rows. Keeping the rows would add 50 MB from there.
    for phase in ("fit", "write"):
        assert median(phase, 0.8, 1.0) - median(phase, 0.2, 0.4) < 30
