"""Batch scoring: the model's own probabilities, in the order of the log, in a file that is whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import mtlzoo.scoring
from mtlzoo.models import create
from mtlzoo.scoring import GROUP_ROWS, score
from mtlzoo.training.same_data import feature_differences
from pipelines import DataError, convert, open_dataset
from pipelines.hashing import GROUP_SPACE, hash_strings
from pipelines.schema import Schema

SPLITS = ("train", "valid", "test")
TASKS = ("click", "conversion", "ctcvr")
COLUMNS = ["split", "row", "group", "click", "conversion", "p_click", "p_conversion", "p_ctcvr"]
ARGUMENTS = {
    "shared_bottom": {"bottom_units": (16,), "tower_units": (8,)},
    "ncs4cvr": {"trunk_units": (32, 16), "tower_units": (8,)},
}


@pytest.fixture(scope="module")
def models(dataset):
    """Untrained, with weights so large that rows differ."""
    random = np.random.default_rng(0)
    made = {name: create(name, dataset.schema, embedding_dim=4, **given) for name, given in ARGUMENTS.items()}
    for model in made.values():
        for weight in model.trainable_weights:
            weight.assign_add(random.normal(scale=0.1, size=weight.shape))
    return made


@pytest.fixture(scope="module")
def scores(models, dataset, tmp_path_factory) -> Path:
    """All splits of `dataset` by Shared-Bottom."""
    out = tmp_path_factory.mktemp("scores") / "all.parquet"
    score(models["shared_bottom"], dataset, out, SPLITS, batch_size=700)
    return out


@pytest.mark.parametrize("layout", ["blocks", "rows"])
@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_probabilities_are_those_of_predict(name, layout, models, dataset, rows_dataset, tmp_path):
    """700 does not divide any split: every last batch is shorter."""
    data = dataset if layout == "blocks" else rows_dataset
    calls: list[tuple[int, int]] = []
    rows = score(
        models[name], data, tmp_path / "s.parquet", SPLITS, batch_size=700, progress=lambda *call: calls.append(call)
    )
    table = pa.parquet.read_table(tmp_path / "s.parquet")
    assert rows == table.num_rows == sum(map(data.rows, SPLITS)) == 6_000
    assert calls[0] == (700, rows)
    assert calls[-1] == (rows, rows)
    for split in SPLITS:
        of_split = table.filter(pa.compute.field("split") == split)
        assert data.rows(split) % 700
        assert of_split["row"].to_pylist() == list(range(data.rows(split)))
        expected = models[name].predict(data.read(split, batch_size=512), verbose=0)
        for task in TASKS:
            assert np.std(expected[task]) > 0.01, "rows must differ, or equality shows nothing"
            found = of_split[f"p_{task}"].to_numpy()
            np.testing.assert_allclose(found, expected[task][:, 0], rtol=0, atol=1e-6)


def test_rows_stand_in_the_order_of_the_log(scores, raw_log):
    """Labels and group keys of each split, against the raw log."""
    table = pa.parquet.read_table(scores)
    assert table.column_names == COLUMNS
    assert [str(table.schema.field(name).type) for name in COLUMNS] == [
        "string", "int64", "int64", "int8", "int8", "float", "float", "float",
    ]  # fmt: skip
    assert list(dict.fromkeys(table["split"].to_pylist())) == list(SPLITS)
    users = hash_strings(raw_log.table["user_id"].to_numpy(), GROUP_SPACE)
    for split in SPLITS:
        of_split = table.filter(pa.compute.field("split") == split)
        in_log = np.isin(users, of_split["group"].to_numpy())  # a user is in one split only
        np.testing.assert_array_equal(of_split["group"], users[in_log])
        for label in ("click", "conversion"):
            np.testing.assert_array_equal(of_split[label], raw_log.table[label].to_numpy()[in_log])


def test_one_split_is_a_part_of_all(scores, models, dataset, tmp_path):
    rows = score(models["shared_bottom"], dataset, tmp_path / "test.csv")
    assert rows == dataset.rows("test")
    expected = pa.parquet.read_table(scores).filter(pa.compute.field("split") == "test")
    found = pa.csv.read_csv(tmp_path / "test.csv")
    assert found.column_names == COLUMNS
    assert found["row"].to_pylist() == expected["row"].to_pylist()
    np.testing.assert_allclose(found["p_ctcvr"].to_numpy(), expected["p_ctcvr"].to_numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [90, 250, 6_000])
def test_row_groups_are_full_whatever_the_batch(batch_size, scores, models, dataset, tmp_path, monkeypatch):
    assert GROUP_ROWS > 100_000
    monkeypatch.setattr(mtlzoo.scoring, "GROUP_ROWS", 1_000)
    out = tmp_path / "s.parquet"
    score(models["shared_bottom"], dataset, out, SPLITS, batch_size)
    file = pa.parquet.ParquetFile(out)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sum(sizes) == 6_000
    assert max(sizes) <= 1_000
    expected = pa.parquet.read_table(scores)
    for name in COLUMNS[:5]:
        assert file.read()[name].to_pylist() == expected[name].to_pylist()


class Stop(BaseException):
    """What Ctrl-C raises."""


def _stop(done: int, total: int) -> None:
    if done > total / 2:
        raise Stop


def test_an_interruption_leaves_the_older_file(models, dataset, tmp_path):
    out = tmp_path / "s.parquet"
    score(models["shared_bottom"], dataset, out, "valid")
    before = out.read_bytes()
    with pytest.raises(Stop):
        score(models["shared_bottom"], dataset, out, SPLITS, batch_size=200, progress=_stop)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]


def test_what_fails_while_writing_ends_the_scoring(models, dataset, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mtlzoo.scoring, "GROUP_ROWS", 100)
    monkeypatch.setattr(pa.parquet.ParquetWriter, "write_batch", full)
    calls = []
    with pytest.raises(OSError, match="No space left"):
        score(models["shared_bottom"], dataset, tmp_path / "s.parquet", "train", 100, lambda *call: calls.append(call))
    assert len(calls) < 3
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_shard_is_named(models, raw_log, demo_schema, tmp_path):
    data = open_dataset(convert([raw_log.parquet], demo_schema, tmp_path / "data"))
    shard = tmp_path / "data" / data.manifest.splits["test"][0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{shard.name}: its content differs"):
        score(models["shared_bottom"], data, tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()


def test_other_features_are_named(models, dataset, demo_schema):
    wanted = dataset.schema
    assert feature_differences(wanted, wanted) == []
    assert feature_differences(wanted, wanted.select(without=["price", "city"])) == ["it lacks city, price"]
    assert feature_differences(wanted.select(without=["tags"]), wanted) == ["it has besides tags"]
    plain = wanted.to_dict()
    plain["features"].reverse()
    (order,) = feature_differences(wanted, Schema.model_validate(plain))
    assert order.startswith("they stand in another order: history, tags, ")
    plain = wanted.to_dict()
    plain["features"][4]["hash_buckets"] = 8
    plain["fitted"]["tables"]["item"] += 1
    plain["fitted"]["numeric"]["price"]["mean"] += 0.5
    assert feature_differences(wanted, Schema.model_validate(plain)) == [
        "declared otherwise: device",
        "another vocabulary: item, previous_item",
        "other mean, deviation or buckets: price",
    ]


def test_what_cannot_be_scored_is_one_message(models, dataset, demo_schema, raw_log, tmp_path):
    model, out = models["shared_bottom"], tmp_path / "s.parquet"
    with pytest.raises(DataError, match="than the model was trained with: it lacks price. Use the dataset"):
        score(model, dataset.select(without=["price"]), out)
    with pytest.raises(DataError, match="is a directory; name the file to write"):
        score(model, dataset, tmp_path)
    with pytest.raises(DataError, match="there is no directory"):
        score(model, dataset, tmp_path / "no" / "s.parquet")
    with pytest.raises(DataError, match=r"must end in one of \.parquet"):
        score(model, dataset, tmp_path / "scores.txt")
    with pytest.raises(DataError, match="has no split 'tset'; it has train, valid, test"):
        score(model, dataset, out, "tset")
    with pytest.raises(DataError, match="batch_size must be at least 1"):
        score(model, dataset, out, batch_size=0)
    with pytest.raises(ValueError, match="splits names no split"):
        score(model, dataset, out, [])
    plain = demo_schema.to_dict()
    plain["split"] |= {"valid": 0.5, "test": 0.0}
    no_test = open_dataset(convert([raw_log.parquet], Schema.model_validate(plain), tmp_path / "data"))
    own = create("shared_bottom", no_test.schema, embedding_dim=4)
    with pytest.raises(DataError, match="the split 'test' has no rows"):
        score(own, no_test, out, ("valid", "test"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_label_may_not_be_called_as_another_column(tmp_path):
    log = pa.table({"item": ["a", "b"] * 50, "row": [0, 1] * 50, "click": [0, 1] * 50})
    pa.parquet.write_table(log, tmp_path / "log.parquet")
    schema = Schema.model_validate(
        {
            "features": [{"name": "item", "type": "categorical"}],
            "labels": [{"name": "click"}, {"name": "row"}],
            "split": {"by": "hash", "key": "row", "valid": 0.0, "test": 0.5},
        }
    )
    data = open_dataset(convert([tmp_path / "log.parquet"], schema, tmp_path / "data"))
    with pytest.raises(DataError, match="the label 'row' has the name of another column"):
        score(create("shared_bottom", data.schema, embedding_dim=2), data, tmp_path / "s.parquet")
