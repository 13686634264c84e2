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
# VmHWM and not ru_maxrss, which a child inherits from the parent that it was forked from.
CONVERT = """
import sys
import pipelines
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
before = peak()
pipelines.convert([sys.argv[1]], pipelines.load_schema(sys.argv[2]), sys.argv[3])
print(before, peak() - before)
"""


def megabytes_of_conversion(folder, rows: int) -> float:
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
    return int(done.stdout.split()[-1]) / 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ten_times_the_rows_take_no_more_memory(tmp_path):
    small, large = (megabytes_of_conversion(tmp_path, rows) for rows in (ROWS, 10 * ROWS))
    # Of the conversion alone, without the libraries' several hundred megabytes; keeping the rows would add about 90.
    assert large < 1.3 * small
