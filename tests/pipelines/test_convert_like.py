"""New logs with the vocabularies and statistics of an existing dataset."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference_encoding import read_all

import pipelines
from pipelines import DataError, convert, open_dataset
from pipelines.check import check
from pipelines.differences import feature_differences
from pipelines.hashing import GROUP_SPACE, hash_strings
from pipelines.schema import FileSplit, Keys, Label, Schema

ALL_TEST = FileSplit(train="none", test="*")
convert_module = sys.modules["pipelines.convert"]


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(table: pa.Table, path):
    pq.write_table(table, path)
    return path


def replaced(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def renamed(table: pa.Table) -> pa.Table:
    """The same log with another name for every item, so that all tables keep their sizes."""
    for name in ("item", "prev"):
        table = replaced(table, name, pa.compute.replace_substring(table[name], "item/", "ware/"))
    return table


def assert_same_vocabularies(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name, vocabulary in wanted.items():
        assert found[name].values.equals(vocabulary.values)
        assert found[name].counts.tolist() == vocabulary.counts.tolist()
        assert found[name].exact == vocabulary.exact


def without_digests(folder, copy):
    """A copy of a dataset as it was converted before there were digests."""
    shutil.copytree(folder, copy)
    dataset = open_dataset(copy)
    plain = dataset.schema.to_dict()
    assert set(plain["fitted"].pop("vocabularies")) == {"item", "category", "city", "tags", "history"}
    old = Schema.model_validate(plain)
    # The digest as it was computed then.
    assert old.digest() == hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
    pipelines.save_schema(old, copy / "schema.yaml")
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace(dataset.schema.digest(), old.digest()))
    return copy


@pytest.fixture(scope="module")
def held_out(raw_log, dataset, tmp_path_factory):
    """The raw rows of the split `test`: all of the users that it has."""
    users = hash_strings(raw_log.table["user_id"].to_numpy(), GROUP_SPACE)
    *_, groups = next(iter(dataset.read("test", 6_000, groups=True)))
    table = raw_log.table.filter(pa.array(np.isin(users, groups.numpy())))
    assert table.num_rows == dataset.rows("test")
    return written(table, tmp_path_factory.mktemp("log") / "test.parquet")


@pytest.fixture(scope="module")
def again(held_out, dataset, tmp_path_factory):
    """The test split converted again, like the dataset that it is from; train and valid are empty."""
    return open_dataset(convert([held_out], out=tmp_path_factory.mktemp("like") / "again", like=dataset.folder))


def test_a_split_converted_again_is_the_same_row_for_row(again, dataset):
    assert {split: again.rows(split) for split in again.manifest.splits} == {
        "train": 0,
        "valid": 0,
        "test": dataset.rows("test"),
    }
    assert again.schema == dataset.schema
    assert_same_vocabularies(again.vocabularies, dataset.vocabularies)
    assert feature_differences(dataset.schema, again.schema) == []
    found, wanted = read_all(again, "test"), read_all(dataset, "test")
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])
    again.verify()


def test_the_check_of_a_dataset_without_training_rows(again):
    report = check(again)
    kinds = {finding.kind for finding in report.findings}
    assert not kinds & {"leak", "drift", "label_drift", "constant", "sorted_rows"}
    assert {f.split for f in report.findings if f.kind == "empty_split"} == {"train", "valid"}
    assert report.features["item"].auc == report.features["item"].drift == {}
    assert set(report.features["item"].out_of_vocabulary) == {"test"}
    assert json.dumps(report.to_dict())
    with pytest.raises(DataError, match="the split 'train' has no rows"):
        again.read("train")


def test_new_values_are_out_of_vocabulary_and_the_statistics_are_the_old_ones(raw_log, dataset, tmp_path):
    table = replaced(renamed(raw_log.table), "age", pa.array(np.full(len(raw_log.table), 500.0)))
    schema = dataset.schema.model_copy(update={"split": ALL_TEST})
    new = open_dataset(
        convert([written(table, tmp_path / "new.parquet")], schema, tmp_path / "new", like=dataset.folder)
    )
    read = read_all(new, "test")
    column = [feature.name for feature in new.schema.packed_categorical].index("item")
    known = raw_log.table["item"].is_valid().to_numpy()
    assert set(read["categorical"][known, column]) == {0}
    assert set(read["categorical"][~known, column]) == {1}
    age = dataset.schema.fitted.numeric["age"]
    np.testing.assert_allclose(read["numeric"][:, 0], (500.0 - age.mean) / age.std, rtol=1e-6)
    findings = [f for f in check(new).findings if f.kind == "out_of_vocabulary" and f.feature == "item"]
    assert [f.severity for f in findings] == ["warning"]
    assert "train:" not in findings[0].message


def test_labels_keys_and_split_come_from_the_schema(raw_log, dataset, demo_schema, tmp_path):
    schema = demo_schema.model_copy(update={"labels": (Label(name="click"),), "keys": Keys(), "split": ALL_TEST})
    phases = []
    out = convert(
        [raw_log.csv], schema, tmp_path / "out", progress=lambda phase, *_: phases.append(phase), like=dataset.folder
    )
    new = open_dataset(out)
    assert new.schema == schema.model_copy(update={"fitted": dataset.schema.fitted})
    assert new.rows("test") == 6_000
    assert_same_vocabularies(new.vocabularies, dataset.vocabularies)
    assert list(dict.fromkeys(phases)) == ["count", "write"]
    every = [read_all(dataset, split)["categorical"] for split in ("train", "valid", "test")]
    found = read_all(new, "test")["categorical"]
    assert sorted(map(tuple, found)) == sorted(map(tuple, np.concatenate(every)))


def test_what_is_inexact_stays_so(held_out, dataset, tmp_path):
    old = shutil.copytree(dataset.folder, tmp_path / "old")
    (old / "vocabularies/inexact.json").write_text('["item"]')
    new = open_dataset(convert([held_out], out=tmp_path / "new", like=old))
    assert new.manifest.inexact_vocabularies == ("item",)
    assert_same_vocabularies(new.vocabularies, open_dataset(old).vocabularies)


def test_other_features_are_named(held_out, dataset, demo_schema, tmp_path):
    plain = demo_schema.to_dict()
    plain["features"] = [f | {"max_size": 99} if f.get("table", f["name"]) == "item" else f for f in plain["features"]]
    plain["features"] = [f for f in plain["features"] if f["name"] != "age"]
    message = (
        rf"{dataset.folder}: to convert like it, the schema must have its features: it lacks age; "
        r"declared otherwise: item, previous_item\. Take them from .*schema\.yaml, or leave the schema out"
    )
    with pytest.raises(DataError, match=message):
        convert([held_out], Schema.model_validate(plain), tmp_path / "new", like=dataset.folder)
    turned = demo_schema.model_copy(update={"features": demo_schema.features[::-1]})
    with pytest.raises(DataError, match="they stand in another order: history, tags"):
        convert([held_out], turned, tmp_path / "new", like=dataset.folder)
    assert os.listdir(tmp_path) == []


def test_arguments(held_out, demo_schema, dataset, tmp_path):
    with pytest.raises(DataError, match=r"give a schema .*, a dataset to convert like .*, or both"):
        convert([held_out], out=tmp_path / "new")
    with pytest.raises(DataError, match="`out`, the dataset directory to write, must be given"):
        convert([held_out], demo_schema)
    with pytest.raises(DataError, match="there is no such dataset directory"):
        convert([held_out], out=tmp_path / "new", like=tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("out", "like", "where"),
    [
        ("old", "old", "is that"),
        ("old/new", "old", "lies inside that"),
        ("home", "home/old", "holds that"),
        ("data", "data.old", "is that"),
        ("data", "data.partial", "is that"),
    ],
)
def test_the_old_dataset_is_never_written_to(out, like, where, held_out, dataset, tmp_path):
    if where == "holds that":
        shutil.copytree(dataset.folder, tmp_path / out)
    shutil.copytree(dataset.folder, tmp_path / like)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=f"{out}: cannot be written like .*{like}: .* {where} dataset"):
        convert([held_out], out=tmp_path / out, like=tmp_path / like)
    assert contents(tmp_path) == before


def test_all_rows_dropped(raw_log, dataset, tmp_path):
    table = raw_log.table.filter(pa.compute.equal(raw_log.table["conversion"], 1))
    table = replaced(table, "click", pa.array(np.zeros(len(table), np.int64)))
    schema = dataset.schema.model_copy(update={"funnel_violations": "drop"})
    with pytest.raises(DataError, match=f"no row is left: all {len(table)} have a label but not its parent"):
        convert([written(table, tmp_path / "log.parquet")], schema, tmp_path / "new", like=dataset.folder)
    assert os.listdir(tmp_path) == ["log.parquet"]


class Interrupting:
    """Breaks a conversion off when it closes its second shard, as Ctrl-C would."""

    def __init__(self, monkeypatch) -> None:
        self.left = 2
        self.save = convert_module._save_state
        monkeypatch.setattr(convert_module, "_save_state", self)

    def __call__(self, work, state) -> None:
        self.save(work, state)
        self.left -= bool(state.closed)
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("first", ["the same", "other vocabularies", "no dataset"])
def test_an_interrupted_conversion_goes_on_only_like_the_same_dataset(
    first, raw_log, dataset, demo_schema, tmp_path, monkeypatch
):
    other = convert([written(renamed(raw_log.table), tmp_path / "renamed.parquet")], demo_schema, tmp_path / "other")
    assert open_dataset(other).schema.fitted.tables == dataset.schema.fitted.tables
    wanted = contents(convert([raw_log.parquet], demo_schema, tmp_path / "whole", like=dataset.folder))
    old = {"the same": dataset.folder, "other vocabularies": other, "no dataset": None}[first]
    out = tmp_path / "new"
    with monkeypatch.context() as patch:
        Interrupting(patch)
        with pytest.raises(KeyboardInterrupt):
            convert([raw_log.parquet], demo_schema, out, like=old)
    phases = []
    convert([raw_log.parquet], demo_schema, out, progress=lambda name, *_: phases.append(name), like=dataset.folder)
    assert set(phases) == ({"write"} if first == "the same" else {"count", "write"})
    assert contents(out) == wanted


def test_the_digest_tells_tables_of_equal_sizes_apart(raw_log, dataset, demo_schema, tmp_path):
    log = written(renamed(raw_log.table), tmp_path / "log.parquet")
    other = open_dataset(convert([log], demo_schema, tmp_path / "other"))
    assert other.schema.fitted.tables == dataset.schema.fitted.tables
    digests, others = (data.schema.fitted.vocabularies for data in (dataset, other))
    assert {name for name in digests if digests[name] != others[name]} == {"item"}
    assert digests == {name: vocabulary.digest for name, vocabulary in dataset.vocabularies.items()}
    assert feature_differences(dataset.schema, other.schema) == ["another vocabulary: item, previous_item"]


def test_a_dataset_without_digests_stays_what_it_was(held_out, dataset, tmp_path):
    old = open_dataset(without_digests(dataset.folder, tmp_path / "old"))
    assert old.schema.fitted.vocabularies == {}
    assert feature_differences(old.schema, dataset.schema) == feature_differences(dataset.schema, old.schema) == []
    assert_same_vocabularies(old.vocabularies, dataset.vocabularies)
    old.verify()
    shutil.rmtree(tmp_path / "old/vocabularies")
    open_dataset(tmp_path / "old").verify()
    with pytest.raises(DataError, match=r"old/vocabularies/inexact\.json: the vocabularies are missing or damaged"):
        convert([held_out], out=tmp_path / "new", like=tmp_path / "old")
    new = open_dataset(convert([held_out], out=tmp_path / "new", like=without_digests(dataset.folder, tmp_path / "2")))
    assert new.schema == old.schema
    assert_same_vocabularies(new.vocabularies, dataset.vocabularies)


def test_a_vocabulary_of_other_values_is_named(held_out, dataset, tmp_path):
    copy = shutil.copytree(dataset.folder, tmp_path / "copy")
    file = copy / "vocabularies/city.parquet"
    table = pq.read_table(file)
    written(replaced(table, "value", table["value"][::-1]), file)
    broken = open_dataset(copy)
    for reading in (
        broken.verify,
        lambda: broken.vocabularies,
        lambda: convert([held_out], out=tmp_path / "x", like=copy),
    ):
        with pytest.raises(DataError, match=f"{file}: its values differ from what was written"):
            reading()
    broken.verify(("train", "valid", "test"))
    broken.select(without=["city"]).verify()
    file.unlink()
    with pytest.raises(DataError, match=f"{file}: the vocabularies are missing"):
        broken.verify()
