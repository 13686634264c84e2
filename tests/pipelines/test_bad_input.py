from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from reference_encoding import read_all

import pipelines
from pipelines import DataError
from pipelines.check import check
from pipelines.schema import Schema


@pytest.fixture
def copy(dataset, tmp_path):
    """A dataset directory to break."""
    return shutil.copytree(dataset.folder, tmp_path / "copy")


def shard(folder, number: int = 0):
    return sorted(folder.glob("train-*.tfrecord"))[number]


def flip_bit(path, position: int = 5_000) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_a_truncated_shard_is_named_on_opening(copy):
    path = shard(copy, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{path}: has .* bytes, the manifest says .*truncated"):
        pipelines.open_dataset(copy)


def test_a_missing_shard_is_named_on_opening(copy):
    shard(copy, 1).unlink()
    with pytest.raises(
        DataError, match=r"train-00001-of-00003\.tfrecord: the manifest lists this shard, but it is missing"
    ):
        pipelines.open_dataset(copy)


def test_an_unknown_shard_is_named_on_opening(copy):
    shutil.copy(shard(copy), copy / "train-00007-of-00008.tfrecord")
    with pytest.raises(DataError, match=r"train-00007-of-00008\.tfrecord: the manifest does not know this shard"):
        pipelines.open_dataset(copy)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_flipped_bit_stops_reading_and_verify_names_its_shard(copy, shuffle):
    flip_bit(shard(copy, 1))
    broken = pipelines.open_dataset(copy)
    with pytest.raises(tf.errors.DataLossError, match="corrupted record"):
        read_all(broken, "train", shuffle=shuffle)
    with pytest.raises(DataError, match=r"train-00001-of-00003\.tfrecord: its content differs .*checksum"):
        broken.verify()
    broken.verify(("valid", "test"))
    for reading in (lambda: list(broken.read("train", 64, shuffle=shuffle)), lambda: check(broken)):
        with pytest.raises(DataError, match="checksum"), broken.damaged_shards_named("train"):
            reading()


def test_a_shard_that_vanishes_after_opening_is_named(copy):
    opened = pipelines.open_dataset(copy)
    shard(copy).unlink()
    with pytest.raises(tf.errors.NotFoundError, match="train-00000-of-00003"):
        read_all(opened, "train")
    with pytest.raises(DataError, match=r"train-00000-of-00003\.tfrecord: not readable"):
        opened.verify()


@pytest.mark.parametrize("content", [None, "", "{}", '{"format_version": 2}', "not json", b"\xff\xfe"])
def test_a_directory_without_a_good_manifest_is_no_dataset(copy, content):
    manifest = copy / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=str(copy)):
        pipelines.open_dataset(copy)


def test_a_changed_schema_is_noticed(copy):
    path = copy / "schema.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("transform: log1p", "transform: symlog"), encoding="utf-8")
    with pytest.raises(DataError, match="differs from the schema that the shards were written with"):
        pipelines.open_dataset(copy)


def test_there_is_no_dataset_where_there_is_nothing(tmp_path):
    with pytest.raises(DataError, match="there is no such dataset directory"):
        pipelines.open_dataset(tmp_path / "nowhere")


def test_an_id_beyond_its_table_can_be_read(tmp_path, raw_log, demo_schema):
    """Records of a dataset whose vocabulary was cut by hand afterwards: reading hands the ids on, the model clamps."""
    folder = pipelines.convert([raw_log.parquet], demo_schema, tmp_path / "out")
    whole = pipelines.open_dataset(folder)
    tables = dict(whole.schema.fitted.tables, item=5)
    smaller = whole.schema.model_copy(update={"fitted": whole.schema.fitted.model_copy(update={"tables": tables})})
    pipelines.save_schema(smaller, folder / "schema.yaml")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(whole.schema.digest(), smaller.digest()))
    ids = read_all(pipelines.open_dataset(folder), "train")["categorical"]
    assert ids[:, 0].max() > 5
    np.testing.assert_array_equal(ids, read_all(whole, "train")["categorical"])


# ---- raw files ----


def log(**changes) -> dict[str, list]:
    rows = {
        "item": ["a", "b", "c", "d"],
        "code": [1, 2, 3, 4],
        "price": [1.0, 2.0, 3.0, 4.0],
        "tags": ["x|y", "x", "", "z"],
        "strength": ["1|0.5", "1", "", "2"],
        "click": [0, 1, 1, 0],
        "conversion": [0, 0, 1, 0],
        "importance": [1.0, 1.0, 1.0, 0.5],
    }
    return {name: values for name, values in (rows | changes).items() if values is not None}


SCHEMA = {
    "features": [
        {"name": "item", "type": "categorical"},
        {"name": "code", "type": "categorical", "dtype": "int"},
        {"name": "price", "type": "numeric"},
        {"name": "tags", "type": "multi_categorical", "max_length": 2, "weights": "strength"},
    ],
    "labels": [{"name": "click"}, {"name": "conversion", "parent": "click"}],
    "keys": {"weight": "importance"},
    "split": {"by": "files", "train": "*"},
}


def write(path, columns: dict[str, list]):
    lines = [",".join(columns)]
    lines += [",".join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def attempt(files, tmp_path, **schema) -> str:
    """Converts, which must fail and leave nothing; returns the message."""
    before = set(tmp_path.iterdir())
    with pytest.raises(DataError) as caught:
        pipelines.convert(files, Schema.model_validate(SCHEMA | schema), tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
    return str(caught.value)


FAULTS = {
    "missing column": ({"price": None}, r"log\.csv: lacks the column 'price' of feature 'price'"),
    "renamed column": ({"price": None, "prices": [1] * 4}, r"lacks the column 'price' .* renamed to 'prices'\?"),
    "missing label": ({"click": None}, r"lacks the column 'click' of label 'click'"),
    "badly typed": ({"price": [1, "two", 3, 4]}, r"log\.csv, row 2: column 'price': .*invalid value 'two'"),
    "badly typed id": ({"code": [1, 2, 3, "x"]}, r"log\.csv, row 4: column 'code': .*invalid value 'x'"),
    "label 2": ({"click": [0, 1, 2, 0]}, r"row 3: label 'click' \(column 'click'\) is 2\.0; it must be 0 or 1"),
    "label missing": ({"click": [0, None, 1, 0]}, r"row 2: label 'click' .* is None"),
    "no click": (
        {"click": [0, 1, 0, 0]},
        r"row 3: conversion is 1 but its parent click is 0 .*funnel_violations: drop",
    ),
    "missing number": ({"price": [1, None, 3, 4]}, r"row 2: column 'price' is empty: fill it, or set `missing: mean`"),
    "infinite": ({"price": [1, 2, "-inf", 4]}, r"row 3: column 'price' is -inf: it must be finite"),
    "beyond float32": ({"price": [1, 2, 3, 1e300]}, r"row 4: column 'price' is 1e\+300: it must be finite"),
    "bad weight": ({"importance": [1, 1, -1, 1]}, r"row 3: column 'importance' is -1\.0: it must be a finite weight"),
    "weights too few": (
        {"strength": ["1", "1", "", "2"]},
        r"row 1: 2 values in column 'tags' but 1 weights in 'strength'",
    ),
    "weight not finite": (
        {"strength": ["1|1", "1", "", "inf"]},
        r"row 4: column 'strength' .* must hold finite weights",
    ),
    "weight no number": ({"strength": ["1|1", "1", "", "w"]}, r"row 4: column 'strength' is 'w'; it must hold weights"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_in_a_raw_file_is_named(case, tmp_path):
    changes, message = FAULTS[case]
    file = write(tmp_path / "log.csv", log(**changes))
    found = attempt([file], tmp_path)
    assert found.startswith(str(file))
    assert re.search(message, found), found


def test_rows_are_counted_within_the_file_that_has_the_fault(tmp_path):
    good = write(tmp_path / "a.csv", log())
    bad = write(tmp_path / "b.csv", log(click=[0, 1, 1, 5]))
    assert f"{bad}, row 4" in attempt([good, bad], tmp_path)


def parquet(path, **columns):
    pa.parquet.write_table(pa.table(log(**columns)), path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"code": ["1", "2", "x", "4"]}, "row 3: column 'code' of feature 'code' must be int64, is string"),
        ({"code": [1.0, 2.5, 3.0, 4.0]}, "row 2: column 'code' of feature 'code' must be int64, is double"),
        ({"price": [[1.0]] * 4}, "column 'price' of feature 'price' must be double, is list"),
        ({"price": [1.0, math.nan, 3.0, 4.0]}, "row 2: column 'price' is empty: fill it"),
        ({"strength": [[1.0, math.nan], [1.0], [], [1.0]], "tags": [["x", "y"], ["x"], [], ["z"]]}, "row 1: column"),
    ],
)
def test_a_badly_typed_parquet_column_is_named(columns, message, tmp_path):
    assert message in attempt([parquet(tmp_path / "log.parquet", **columns)], tmp_path)


def test_log1p_of_what_has_none(tmp_path):
    features = [{"name": "price", "type": "numeric", "transform": "log1p"}]
    file = write(tmp_path / "log.csv", log(price=[1, 2, -0.99999999999, 4]))
    assert "row 3: column 'price' is -0.99999999999: it must be above -1" in attempt(
        [file], tmp_path, features=features
    )


def test_a_whole_number_is_asked_for_where_a_feature_is_an_integer(tmp_path):
    features = [SCHEMA["features"][2], {"name": "p", "type": "categorical", "dtype": "int", "column": "price"}]
    file = write(tmp_path / "log.csv", log(price=[1, 2, 3.5, 4]))
    assert "row 3: column 'price' is 3.5: it must be whole" in attempt([file], tmp_path, features=features)


def test_files_that_are_no_logs(tmp_path):
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "header.csv").write_text(",".join(log()) + "\n")
    (tmp_path / "log.txt").write_text("x")
    (tmp_path / "log.parquet").write_bytes(b"PAR1 no PAR1")
    (tmp_path / "log.csv.gz").write_bytes(b"no gzip")
    (tmp_path / "ragged.csv").write_text(",".join(log()) + "\n1,2\n")
    (tmp_path / "twice.csv").write_text(",".join([*log(), "price"]) + "\n" + ",".join("1" * 9) + "\n")
    messages = {
        "empty.csv": "is empty",
        "header.csv": "has no rows",
        "log.txt": "must end in one of .csv",
        "log.parquet": "not readable as Parquet",
        "log.csv.gz": "",
        "ragged.csv": "row 1: Expected 8 columns, got 2",
        "twice.csv": "has the column 'price' of feature 'price' 2 times",
        "nowhere.csv": "there is no such raw file",
    }
    for name, message in messages.items():
        found = attempt([tmp_path / name], tmp_path)
        assert found.startswith(str(tmp_path / name))
        assert message in found


def test_a_damaged_parquet_file_is_named(tmp_path):
    file = parquet(tmp_path / "log.parquet", item=[f"item {n}" for n in range(4)])
    content = bytearray(file.read_bytes())
    content[4:80] = b"\x55" * 76
    file.write_bytes(content)
    assert f"{file}: the Parquet data is damaged" in attempt([file], tmp_path)


def test_conversions_without_clicks_can_be_dropped(tmp_path):
    schema = Schema.model_validate(SCHEMA | {"funnel_violations": "drop"})
    file = write(tmp_path / "log.csv", log(click=[0, 1, 0, 0]))
    dataset = pipelines.open_dataset(pipelines.convert([file], schema, tmp_path / "out"))
    assert dataset.manifest.dropped_rows == 1
    found = read_all(dataset, "train")
    assert found["label/click"][:, 0].tolist() == [0, 1, 0]
    assert found["weight/click"][:, 0].tolist() == [1, 1, 0.5]
    assert dataset.vocabularies["item"].values.to_pylist() == ["a", "b", "d"]


def test_no_training_rows(tmp_path):
    file = write(tmp_path / "log.csv", log(click=[0, 0, 0, 0], conversion=[1, 1, 1, 1]))
    assert "no training rows" in attempt([file], tmp_path, funnel_violations="drop")
    found = attempt([file], tmp_path, split={"by": "files", "train": "x*", "valid": "log*"}, funnel_violations="drop")
    assert "no training rows" in found


def test_a_task_without_positives_converts(tmp_path):
    file = write(tmp_path / "log.csv", log(click=[0] * 4, conversion=[0] * 4))
    dataset = pipelines.open_dataset(pipelines.convert([file], Schema.model_validate(SCHEMA), tmp_path / "out"))
    assert dataset.manifest.positives("train") == {"click": 0, "conversion": 0}
    np.testing.assert_array_equal(read_all(dataset, "train")["weight/conversion"], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": []}, "no raw files"),
        ({"layout": "columns"}, "layout must be 'blocks' or 'rows', is 'columns'"),
        ({"shards": 0}, "at least 1, is 0"),
    ],
)
def test_arguments_of_convert(arguments, message, raw_log, demo_schema, tmp_path):
    with pytest.raises(DataError, match=message):
        pipelines.convert(**{"files": [raw_log.csv], "schema": demo_schema, "out": tmp_path / "out"} | arguments)
    assert list(tmp_path.iterdir()) == []


def test_convert_overwrites_no_directory_that_is_no_dataset(raw_log, demo_schema, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="home: exists and is no dataset"):
        pipelines.convert([raw_log.csv], demo_schema, tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
