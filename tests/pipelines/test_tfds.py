from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines
from pipelines.schema import Categorical, HashSplit, Keys, Label, MultiCategorical, Numeric, Schema
from pipelines.tfds import write_tfds_metadata

ROWS = 2500

# Every kind of record key: plain, '#bucket', '#missing', '#weight', '#group', '#weight' of the impression.
SCHEMA = Schema(
    features=(
        Categorical(name="item", dtype="int"),
        Numeric(name="price", buckets=5, keep_value=True, missing="mean", indicator=True),
        MultiCategorical(name="tags", max_length=3, weights="tag_weights"),
    ),
    labels=(Label(name="click"), Label(name="conversion", parent="click")),
    keys=Keys(group="user", weight="importance"),
    split=HashSplit(key="row", valid=0.2, test=0.0),
)


@pytest.fixture(scope="module")
def raw_log(tmp_path_factory):
    random = np.random.default_rng(3)
    click = random.integers(0, 2, ROWS)
    price = random.normal(size=ROWS)
    lengths = random.integers(0, 5, ROWS)
    table = pa.table(
        {
            "item": random.integers(0, 40, ROWS),
            "price": pa.array(np.where(random.random(ROWS) < 0.1, np.nan, price), from_pandas=True),
            "tags": [[str(v) for v in random.integers(0, 9, length)] for length in lengths],
            "tag_weights": [random.random(length).tolist() for length in lengths],
            "click": click,
            "conversion": click * random.integers(0, 2, ROWS),
            "user": random.integers(0, 100, ROWS),
            "importance": random.random(ROWS),
        }
    )
    path = tmp_path_factory.mktemp("raw") / "log.parquet"
    pq.write_table(table, path)
    return path


def _through_tfds(folder, split):
    tfds = pytest.importorskip("tensorflow_datasets")
    # A cycle of one shard keeps the order of the log.
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    return list(tfds.as_numpy(tfds.builder_from_directory(folder).as_dataset(split, read_config=in_order)))


def _padded(values, length):
    return np.pad(values, (0, length - len(values)))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_tfds_reads_the_values_that_the_dataset_reads(raw_log, tmp_path, split):
    pipelines.convert([raw_log], SCHEMA, tmp_path / "My data-1", layout="rows", shards=2)
    dataset = pipelines.open_dataset(tmp_path / "My data-1")
    examples = _through_tfds(write_tfds_metadata(dataset), split)

    features, labels, weights, groups = next(iter(dataset.read(split, batch_size=ROWS, groups=True)))
    assert len(examples) == dataset.rows(split) == len(groups)

    def column(key):
        return np.stack([example[key] for example in examples])

    np.testing.assert_array_equal(column("item"), features["categorical"][:, 0])
    np.testing.assert_array_equal(column("price#bucket"), features["categorical"][:, 1])
    np.testing.assert_array_equal(column("price"), features["numeric"][:, 0])
    np.testing.assert_array_equal(column("price#missing"), features["numeric"][:, 1])
    np.testing.assert_array_equal(np.stack([_padded(e["tags"], 3) for e in examples]), features["tags"])
    np.testing.assert_array_equal(np.stack([_padded(e["tags#weight"], 3) for e in examples]), features["tags_weights"])
    np.testing.assert_array_equal(column("click"), labels["click"][:, 0])
    np.testing.assert_array_equal(column("conversion"), labels["conversion"][:, 0])
    np.testing.assert_array_equal(column("#weight"), weights["click"][:, 0])
    np.testing.assert_array_equal(column("#group"), groups)


def test_metadata_leaves_the_dataset_whole_and_movable(raw_log, tmp_path):
    pipelines.convert([raw_log], SCHEMA, tmp_path / "rows", layout="rows")
    write_tfds_metadata(pipelines.open_dataset(tmp_path / "rows"))
    moved = (tmp_path / "rows").rename(tmp_path / "elsewhere")

    pipelines.open_dataset(moved).verify()
    assert len(_through_tfds(moved, "train")) == pipelines.open_dataset(moved).rows("train")


def test_blocks_are_refused_with_what_to_do(raw_log, tmp_path):
    pipelines.convert([raw_log], SCHEMA, tmp_path / "blocks")
    with pytest.raises(pipelines.DataError, match="--layout rows"):
        write_tfds_metadata(pipelines.open_dataset(tmp_path / "blocks"))
