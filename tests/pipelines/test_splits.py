from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml
from reference_encoding import read_all

import pipelines
from pipelines import DataError
from pipelines.raw import read_raw
from pipelines.schema import Schema
from pipelines.schema_file import load_schema
from pipelines.split import SPLITS, assign_split


def schema_of(split: dict, **changes) -> Schema:
    features = [{"name": "value", "type": "categorical"}, {"name": "x", "type": "numeric", "buckets": 4}]
    return Schema.model_validate({"features": features, "labels": [{"name": "click"}], "split": split} | changes)


def table(rows: int, **columns) -> pa.Table:
    random = np.random.default_rng(0)
    plain = {"value": ["v"] * rows, "x": random.random(rows), "click": random.integers(0, 2, rows)}
    return pa.table(plain | columns)


def write(folder, content: pa.Table, *names: str):
    files = []
    for name in names:
        writer = pa.csv.write_csv if name.endswith(".csv") else pa.parquet.write_table
        writer(content, folder / name)
        files.append(folder / name)
    return files


def splits_of(files, schema: Schema) -> np.ndarray:
    return np.concatenate([assign_split(raw, schema) for raw in read_raw(files, schema)])


DAYS = [datetime.date(2024, 1, 1) + datetime.timedelta(n) for n in range(10)]
AS_DAYS = np.array([0] * 6 + [1] * 2 + [2] * 2)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
@pytest.mark.parametrize(
    ("column", "moments"),
    [
        (list(range(10)), (6, 8)),
        ([n + 0.5 for n in range(10)], (6.5, 8.0)),
        ([d.isoformat() for d in DAYS], ("2024-01-07", "2024-01-09")),
        ([f"{d} 12:00:00" for d in DAYS], ("2024-01-07T12:00:00", "2024-01-09 00:00:00")),
        (DAYS, ("2024-01-07", "2024-01-09")),
    ],
    ids=["int", "float", "iso date", "iso time", "date"],
)
def test_time_split(name, column, moments, tmp_path):
    files = write(tmp_path, table(10, when=pa.array(column)), name)
    schema = schema_of({"by": "time", "column": "when", "valid_from": moments[0], "test_from": moments[1]})
    np.testing.assert_array_equal(splits_of(files, schema), AS_DAYS)


def test_unquoted_yaml_dates(tmp_path):
    data = yaml.safe_load(yaml.safe_dump(schema_of({"by": "hash", "key": "row"}).to_dict()))
    del data["split"]
    path = tmp_path / "schema.yaml"
    path.write_text(
        yaml.safe_dump(data) + "split: {by: time, column: when, valid_from: 2024-01-07, test_from: 2024-01-09}\n"
    )
    files = write(tmp_path, table(10, when=[d.isoformat() for d in DAYS]), "log.csv")
    np.testing.assert_array_equal(splits_of(files, load_schema(path)), AS_DAYS)


def test_a_moment_with_a_zone_is_compared_in_utc(tmp_path):
    times = pa.array([datetime.datetime(2024, 1, 1, hour) for hour in range(4)], pa.timestamp("ms", "UTC"))
    files = write(tmp_path, table(4, when=times), "log.parquet")
    moments = {"valid_from": "2024-01-01T03:00:00+02:00", "test_from": "2024-01-01T03:00:00Z"}
    np.testing.assert_array_equal(splits_of(files, schema_of({"by": "time", "column": "when"} | moments)), [0, 1, 1, 2])


def test_a_time_that_is_also_a_feature(tmp_path):
    features = [{"name": "when", "type": "categorical"}]
    moments = {"valid_from": "2024-01-07", "test_from": "2024-01-09"}
    schema = schema_of({"by": "time", "column": "when"} | moments, features=features)
    files = write(tmp_path, table(10, when=[d.isoformat() for d in DAYS]), "log.csv", "log.parquet")
    np.testing.assert_array_equal(splits_of(files, schema), np.tile(AS_DAYS, 2))
    numbers = schema_of({"by": "time", "column": "when"} | moments, features=[features[0] | {"dtype": "int"}])
    with pytest.raises(DataError, match="column 'when' is read as int64 by feature 'when'.*must be numbers"):
        splits_of(files, numbers)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_time_is_an_error_with_its_row(missing, tmp_path):
    files = write(tmp_path, table(3, when=pa.array([1.0, missing, 3.0])), "log.parquet")
    schema = schema_of({"by": "time", "column": "when", "valid_from": 2, "test_from": 3})
    with pytest.raises(DataError, match=r"log\.parquet, row 2: the time column 'when'"):
        splits_of(files, schema)


def test_a_time_that_is_none_is_an_error_with_its_row(tmp_path):
    files = write(tmp_path, table(3, when=["2024-01-01", "soon", "2024-01-03"]), "log.csv")
    schema = schema_of({"by": "time", "column": "when", "valid_from": "2024-01-02", "test_from": "2024-01-03"})
    with pytest.raises(DataError, match=r"log\.csv, row 2: column 'when'.*'soon'"):
        splits_of(files, schema)
    schema = schema_of({"by": "time", "column": "when", "valid_from": "later", "test_from": "later"})
    with pytest.raises(DataError, match="'later' is neither a number nor an ISO 8601 time"):
        splits_of(write(tmp_path, table(1, when=["2024-01-01"]), "log.csv"), schema)


def test_hash_split_keeps_keys_together_whatever_the_format(tmp_path):
    random = np.random.default_rng(1)
    users = random.integers(0, 4_000, 30_000)
    files = write(tmp_path, table(30_000, user=users), "log.parquet", "log.csv")
    schema = schema_of({"by": "hash", "key": "user", "valid": 0.2, "test": 0.1})
    parquet, csv = (splits_of([file], schema) for file in files)
    np.testing.assert_array_equal(parquet, csv)
    assert all(len(set(parquet[users == user])) == 1 for user in range(200))
    distinct = np.array([parquet[users == user][0] for user in np.unique(users)])
    # Four standard deviations of a share of 4,000 keys.
    np.testing.assert_allclose(np.bincount(distinct) / len(distinct), [0.7, 0.2, 0.1], atol=4 * np.sqrt(0.21 / 4_000))
    salted = splits_of(files[:1], schema_of({"by": "hash", "key": "user", "valid": 0.2, "test": 0.1, "salt": "b"}))
    assert 0.2 < (salted != parquet).mean() < 0.7


def test_hash_of_the_row_number_counts_through_all_files(tmp_path):
    schema = schema_of({"by": "hash", "key": "row", "valid": 0.3, "test": 0.3})
    whole = splits_of(write(tmp_path, table(2_000), "whole.parquet"), schema)
    halves = write(tmp_path, table(2_000).slice(0, 700), "a.csv") + write(tmp_path, table(2_000).slice(700), "b.csv")
    np.testing.assert_array_equal(splits_of(halves, schema), whole)
    np.testing.assert_allclose(np.bincount(whole) / 2_000, [0.4, 0.3, 0.3], atol=4 * np.sqrt(0.24 / 2_000))


def test_file_split(tmp_path):
    files = write(tmp_path, table(1_000), "day1.csv", "day2.parquet", "last.csv")
    schema = schema_of({"by": "files", "train": "day1*", "valid": "day2*", "test": "last.*"})
    np.testing.assert_array_equal(splits_of(files, schema), np.repeat([0, 1, 2], 1_000))
    fraction = schema_of({"by": "files", "train": "day*", "test": "last.*", "valid_fraction": 0.25})
    found = splits_of(files, fraction)
    assert (found[:2_000] == 1).mean() == pytest.approx(0.25, abs=0.04)
    assert set(found[:2_000]) == {0, 1}
    assert set(found[2_000:]) == {2}


@pytest.mark.parametrize(("test", "found"), [("other.*", "no pattern"), ("*.csv", "the patterns of train and test")])
def test_a_file_of_no_split_or_of_two_is_refused(test, found, tmp_path):
    files = write(tmp_path, table(3), "day.csv" if test == "*.csv" else "odd.csv")
    with pytest.raises(DataError, match=f"matches {found}"):
        splits_of(files, schema_of({"by": "files", "train": "day*", "test": test}))


def test_vocabularies_and_statistics_come_from_training_rows_alone(tmp_path):
    train = table(60, value=["a"] * 40 + ["b"] * 20, x=np.linspace(0, 1, 60))
    later = table(60, value=["b"] * 30 + ["only later"] * 30, x=np.linspace(100, 200, 60))
    files = write(tmp_path, train, "train.csv") + write(tmp_path, later, "valid.csv")
    schema = schema_of({"by": "files", "train": "train*", "valid": "valid*"})
    dataset = pipelines.open_dataset(pipelines.convert(files, schema, tmp_path / "out"))
    assert dataset.vocabularies["value"].values.to_pylist() == ["a", "b"]
    assert dataset.schema.fitted.numeric["x"].mean == pytest.approx(0.5)
    assert max(dataset.schema.fitted.numeric["x"].edges) < 1.0
    ids = read_all(dataset, "valid")["categorical"]
    assert ids[:, 0].tolist() == [3] * 30 + [0] * 30
    assert set(ids[:, 1]) == {5}


def test_splits_partition_the_log(dataset, raw_log):
    assert sum(dataset.rows(split) for split in SPLITS) == raw_log.table.num_rows
