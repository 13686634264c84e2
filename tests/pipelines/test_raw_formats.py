from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from reference_encoding import read_all

import pipelines
from pipelines.manifest import MANIFEST
from pipelines.raw import BATCH_ROWS, read_raw, unused_columns
from pipelines.split import SPLITS


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "csv.zst", "large types", "dictionary"])
def test_the_same_log_in_another_format_is_the_same_dataset(kind, raw_log, demo_schema, dataset, tmp_path):
    file = tmp_path / "log.parquet"
    text = raw_log.csv.read_bytes()
    if kind.startswith("csv"):
        file = tmp_path / f"log.{kind}"
        pack = {"csv": bytes, "csv.gz": gzip.compress, "csv.zst": zstandard.compress}[kind]
        file.write_bytes(pack(text))
    elif kind == "large types":
        larger = {"string": pa.large_string(), "list<element: string>": pa.large_list(pa.large_string())}
        table = pa.parquet.read_table(raw_log.parquet)
        fields = [field.with_type(larger.get(str(field.type), field.type)) for field in table.schema]
        pa.parquet.write_table(table.cast(pa.schema(fields)), file)
    else:
        table = raw_log.table
        for name in ("item", "city", "device"):
            table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
        pa.parquet.write_table(table, file)
    other = pipelines.open_dataset(pipelines.convert([file], demo_schema, tmp_path / "out", shards=3))
    assert other.schema == dataset.schema
    assert other.manifest.splits == dataset.manifest.splits  # rows, positives, bytes and checksums of every shard


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_several_files_are_one_log(kind, raw_log, demo_schema, dataset, tmp_path):
    files = []
    lines = raw_log.csv.read_bytes().splitlines(keepends=True)
    for index, (start, stop) in enumerate([(0, 1), (1, 2_500), (2_500, 6_000)]):
        file = tmp_path / f"part{index}.{kind}"
        if kind == "csv":
            file.write_bytes(b"".join([lines[0], *lines[1 + start : 1 + stop]]))
        else:
            pa.parquet.write_table(raw_log.table.slice(start, stop - start), file, row_group_size=777)
        files.append(file)
    other = pipelines.open_dataset(pipelines.convert(files, demo_schema, tmp_path / "out", shards=3))
    assert other.manifest.splits == dataset.manifest.splits


def test_columns_may_stand_in_another_order_beside_others(raw_log, demo_schema, dataset, tmp_path):
    table = raw_log.table.select(raw_log.table.column_names[::-1]).append_column("extra", [["?"] * 6_000])
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    other = pipelines.open_dataset(
        pipelines.convert([tmp_path / "log.parquet"], demo_schema, tmp_path / "out", shards=3)
    )
    assert other.manifest.splits == dataset.manifest.splits
    assert unused_columns([tmp_path / "log.parquet", raw_log.csv], demo_schema) == {tmp_path / "log.parquet": ["extra"]}


def test_batches_are_bounded_and_know_their_rows(tmp_path, demo_schema, raw_log):
    large = pa.concat_tables([raw_log.table] * 12)
    pa.parquet.write_table(large, tmp_path / "log.parquet", row_group_size=large.num_rows)
    batches = list(read_raw([tmp_path / "log.parquet", raw_log.csv], demo_schema))
    assert max(batch.batch.num_rows for batch in batches) <= BATCH_ROWS
    overall = np.cumsum([0] + [batch.batch.num_rows for batch in batches])
    assert [batch.first_row_overall for batch in batches] == overall[:-1].tolist()
    assert batches[-1].first_row == 0
    assert overall[-1] == 13 * 6_000


def test_one_column_as_integer_category_and_as_number(tmp_path):
    schema = pipelines.Schema.model_validate(
        {
            "features": [
                {"name": "size", "type": "categorical", "dtype": "int"},
                {"name": "size_value", "type": "numeric", "column": "size", "missing": "mean", "standardize": False},
            ],
            "labels": [{"name": "click"}],
            "split": {"by": "files", "train": "*"},
        }
    )
    table = pa.table({"size": pa.array([7, 5, None, 7]), "click": [True, False, False, True]})
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    dataset = pipelines.open_dataset(pipelines.convert([tmp_path / "log.parquet"], schema, tmp_path / "out"))
    found = read_all(dataset, "train")
    assert dataset.vocabularies["size"].values.equals(pa.array([7, 5]))
    assert found["categorical"][:, 0].tolist() == [2, 3, 1, 2]
    np.testing.assert_allclose(found["numeric"][:, 0], [7, 5, 19 / 3, 7], rtol=1e-6)
    assert found["label/click"][:, 0].tolist() == [1, 0, 0, 1]


def test_labels_by_their_positive_value(tmp_path):
    schema = {
        "features": [{"name": "item", "type": "categorical"}],
        "labels": [{"name": "rich", "column": "income", "positive": ">50K"}, {"name": "long", "positive": 2}],
        "split": {"by": "files", "train": "*"},
    }
    (tmp_path / "log.csv").write_text("item,income,long\na,>50K,2\nb,<=50K,0\nc,,2\n")
    out = pipelines.convert([tmp_path / "log.csv"], pipelines.Schema.model_validate(schema), tmp_path / "out")
    dataset = pipelines.open_dataset(out)
    found = read_all(dataset, "train")
    assert found["label/rich"][:, 0].tolist() == [1, 0, 0]
    assert found["label/long"][:, 0].tolist() == [1, 0, 1]
    assert dataset.manifest.positives("train") == {"rich": 1, "long": 2}


@pytest.mark.parametrize("kind", [Path, str])
def test_one_file_may_stand_without_a_list(kind, tmp_path):
    schema = {
        "features": [{"name": "item", "type": "categorical"}],
        "labels": [{"name": "click"}],
        "split": {"by": "files", "train": "*"},
    }
    (tmp_path / "log.csv").write_text("item,click\na,1\nb,0\n")
    file = kind(tmp_path / "log.csv")
    dataset = pipelines.open_dataset(pipelines.convert(file, pipelines.Schema.model_validate(schema), tmp_path / "out"))
    assert dataset.rows("train") == 2


def test_the_manifest_tells_the_truth(dataset, rows_dataset, raw_log):
    for converted in (dataset, rows_dataset):
        manifest = json.loads((converted.folder / MANIFEST).read_text())
        assert {shard["file"] for shards in manifest["splits"].values() for shard in shards} == {
            path.name for path in converted.folder.glob("*.tfrecord")
        }
        for split in SPLITS:
            labels = read_all(converted, split)
            positives = {name: int(labels[f"label/{name}"].sum()) for name in ("click", "conversion")}
            assert converted.manifest.positives(split) == positives
            assert converted.rows(split) == len(labels["label/click"])
        converted.verify()
    totals = [dataset.manifest.positives(split) for split in SPLITS]
    for label in ("click", "conversion"):
        assert sum(t[label] for t in totals) == int(np.sum(raw_log.table[label].to_numpy()))
