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
def test_ten_times_the_rows_take_no_more_memory(tmp_path):
    rows = 20 * ROWS
    samples = samples_of_conversion(tmp_path, rows)
    tenth = np.median([memory for phase, done, memory in samples if phase == "fit" and done <= 0.2 * rows])
    last = np.median([memory for phase, done, memory in samples if phase == "write" and done >= 0.8 * rows])
    # Full buffers and the allocator take some 20 MB until two million rows and no more; keeping the rows would add 80.
    assert last - tenth < 40
