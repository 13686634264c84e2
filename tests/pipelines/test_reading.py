from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from reference_encoding import read_all

import pipelines
from pipelines import DataError, read
from pipelines.schema import Schema

ROWS = 20_000
NUMBERED = Schema.model_validate(
    {
        "features": [{"name": "number", "type": "numeric", "standardize": False}],
        "labels": [{"name": "click"}],
        "split": {"by": "files", "train": "*"},
    }
)


def numbered(folder, rows: int, shards: int, layout: str = "blocks") -> pipelines.Dataset:
    """Rows that carry their number, sorted by their label: first all 0, then one in five 1."""
    number = np.arange(rows)
    pa.parquet.write_table(pa.table({"number": number, "click": number >= rows * 4 // 5}), folder / "log.parquet")
    out = pipelines.convert([folder / "log.parquet"], NUMBERED, folder / "out", layout, shards)
    return pipelines.open_dataset(out)


@pytest.fixture(scope="module", params=["blocks 1", "blocks 5", "rows 3"])
def in_order(request, tmp_path_factory) -> pipelines.Dataset:
    layout, shards = request.param.split()
    return numbered(tmp_path_factory.mktemp("numbered"), ROWS, int(shards), layout)


def numbers(batches) -> np.ndarray:
    return np.concatenate([features["numeric"][:, 0].numpy() for features, *_ in batches]).astype(int)


def test_unshuffled_is_the_order_of_the_log(in_order):
    batches = in_order.read("train", batch_size=3_000)
    for _ in range(2):
        np.testing.assert_array_equal(numbers(batches), np.arange(ROWS))


def test_a_seed_fixes_the_order_of_every_epoch_and_epochs_differ(in_order):
    first, again = (in_order.read("train", batch_size=999, shuffle=True, seed=3) for _ in range(2))
    epochs = [numbers(first) for _ in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(epoch, numbers(again))
        np.testing.assert_array_equal(np.sort(epoch), np.arange(ROWS))
    assert (epochs[0] == epochs[1]).mean() < 0.01
    assert (epochs[1] == epochs[2]).mean() < 0.01
    assert (numbers(in_order.read("train", shuffle=True, seed=4)) == epochs[0]).mean() < 0.01


def test_without_a_seed_each_reader_has_its_own_order(in_order):
    first, second = (numbers(in_order.read("train", shuffle=True)) for _ in range(2))
    assert (first == second).mean() < 0.01
    np.testing.assert_array_equal(np.sort(first), np.sort(second))


def assert_well_mixed(order: np.ndarray, batch_size: int) -> None:
    """A random permutation passes all three; an order shuffled in windows of a fifth of the rows fails each."""
    rows = len(order)
    position = np.arange(rows)
    # Correlation of place and number: standard deviation 1 / sqrt(rows) for a permutation.
    assert abs(np.corrcoef(position, order)[0, 1]) < 5 / np.sqrt(rows)
    # Means of the batches' labels against the noise of drawing them without replacement.
    whole = order[: rows // batch_size * batch_size].reshape(-1, batch_size)
    share = (order >= rows * 4 // 5).mean()
    noise = np.sqrt(share * (1 - share) / batch_size)
    assert np.abs((whole >= rows * 4 // 5).mean(axis=1) - share).max() < 5 * noise
    # Neighbours in the log must not stay close: for a permutation they are a third of the rows apart on average.
    place = np.empty(rows)
    place[order] = position
    assert np.abs(np.diff(place)).mean() == pytest.approx(rows / 3, rel=0.05)


def test_a_sorted_dataset_comes_out_well_mixed(in_order):
    for epoch in range(2):
        order = numbers(in_order.read("train", batch_size=500, shuffle=True, seed=epoch))
        assert_well_mixed(order, 500)


def test_the_criterion_of_the_shuffle_can_fail():
    random = np.random.default_rng(0)
    assert_well_mixed(random.permutation(ROWS), 500)
    in_windows = np.concatenate([random.permutation(part) for part in np.split(np.arange(ROWS), 5)])
    whole_blocks = random.permutation(np.arange(ROWS).reshape(-1, 500)).reshape(-1)
    for bad in (np.arange(ROWS), in_windows, whole_blocks):
        with pytest.raises(AssertionError):
            assert_well_mixed(bad, 500)


@pytest.mark.parametrize("shards", [1, 4])
def test_a_dataset_larger_than_the_window_is_mixed_throughout(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_WINDOW_BLOCKS", 16)
    dataset = numbered(tmp_path, 100_000, shards)
    order = numbers(dataset.read("train", batch_size=1_000, shuffle=True, seed=1))
    np.testing.assert_array_equal(np.sort(order), np.arange(100_000))
    position = np.arange(100_000)
    # Whole blocks meet in a window, so that the noise is that of drawing about 16 of 98 blocks, not single rows.
    assert abs(np.corrcoef(position, order)[0, 1]) < 5 / np.sqrt(98)
    share = (order.reshape(100, -1) >= 80_000).mean(axis=1)
    assert share.std() < 1.5 * np.sqrt(0.16 / 16)
    place = np.empty(100_000)
    place[order] = position
    assert np.abs(np.diff(place)).mean() > 16 * 1024 / 3 * 0.9


def test_window_memory_is_bounded_for_wide_rows(in_order, monkeypatch):
    monkeypatch.setattr(read, "_WINDOW_BYTES", 1)
    order = numbers(in_order.read("train", batch_size=700, shuffle=True, seed=1))
    np.testing.assert_array_equal(np.sort(order), np.arange(ROWS))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("drop", "batches", "rows"), [(False, 7, ROWS), (True, 6, 18_000)])
def test_batches_are_full_and_counted(in_order, shuffle, drop, batches, rows):
    dataset = in_order.read("train", batch_size=3_000, shuffle=shuffle, drop_remainder=drop)
    sizes = [len(labels["click"]) for _, labels, _ in dataset]
    assert int(dataset.cardinality()) == len(dataset) == len(sizes) == batches
    assert sum(sizes) == rows
    assert set(sizes[:-1]) == {3_000}
    assert len(set(numbers(dataset))) == rows


def test_repeat_goes_on_in_new_orders(in_order):
    dataset = in_order.read("train", batch_size=5_000, shuffle=True, seed=2, repeat=True)
    seen = numbers(dataset.take(12)).reshape(3, ROWS)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(ROWS))
    assert (seen[0] == seen[1]).mean() < 0.01


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_cached_dataset_reads_its_files_once(shuffle, tmp_path):
    dataset = numbered(tmp_path, 5_000, 2)
    batches = dataset.read("train", batch_size=800, shuffle=shuffle, seed=1, cache=True)
    first = numbers(batches)
    for shard in dataset.folder.glob("*.tfrecord"):
        shard.unlink()
    second = numbers(batches)
    np.testing.assert_array_equal(np.sort(first), np.sort(second))
    assert (first == second).all() == (not shuffle)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_share_the_rows_without_overlap(in_order, workers, shuffle):
    parts = [
        numbers(in_order.read("train", batch_size=512, shuffle=shuffle, worker=(index, workers)))
        for index in range(workers)
    ]
    assert all(len(part) for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(ROWS))


def test_a_shuffled_batch_keeps_its_rows_together(dataset):
    """Features, labels and groups of a row move as one: every row is found in the unshuffled split."""

    def rows(**options):
        columns = read_all(dataset, "train", groups=True, **options)
        wide = [value.reshape(len(value), -1).astype(np.float64) for _, value in sorted(columns.items())]
        table = np.concatenate(wide, axis=1)
        return table[np.lexsort(table.T)]

    np.testing.assert_array_equal(rows(shuffle=True, seed=1), rows())


def test_shapes_and_types_are_known_before_reading(dataset):
    features, labels, weights = dataset.read("train", batch_size=64, drop_remainder=True).element_spec
    assert features["categorical"].shape.as_list() == [64, 6]
    assert features["numeric"].shape.as_list() == [64, 3]
    assert features["tags"].shape.as_list() == features["tags_weights"].shape.as_list() == [64, 4]
    assert {name: spec.dtype.name for name, spec in features.items()} == {
        "categorical": "int32",
        "numeric": "float32",
        "tags": "int32",
        "tags_weights": "float32",
        "history": "int32",
        "history_weights": "float32",
    }
    assert set(labels) == set(weights) == {"click", "conversion", "ctcvr"}
    assert all(spec.shape.as_list() == [64, 1] for spec in (*labels.values(), *weights.values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "has no split 'dev'; it has train, valid, test"),
        ({"split": "valid"}, "'valid' has no rows"),
        ({"split": "train", "batch_size": 0}, "batch_size must be at least 1, is 0"),
        ({"split": "train", "worker": (2, 2)}, r"worker must be .* is \(2, 2\)"),
        ({"split": "train", "groups": True}, "names no group key"),
        ({"split": "train", "batch_size": ROWS + 1, "drop_remainder": True}, "fewer than one batch"),
    ],
)
def test_what_cannot_be_read_is_said(in_order, options, message):
    with pytest.raises(DataError, match=message):
        in_order.read(**options)


def test_a_dataset_can_move(in_order, tmp_path):
    shutil.copytree(in_order.folder, tmp_path / "elsewhere")
    moved = pipelines.open_dataset(tmp_path / "elsewhere")
    np.testing.assert_array_equal(numbers(moved.read("train")), np.arange(ROWS))
