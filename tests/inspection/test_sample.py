"""Samples of populations: who is in them, and that weights make them stand for the whole split."""

from __future__ import annotations

import numpy as np
import pytest

import pipelines
from mtlzoo.inspection.permuting import donor_rows
from mtlzoo.inspection.sample import draw_samples, shares_of
from mtlzoo.tasks import tasks_of
from pipelines.schema import Schema


def whole_split(dataset: pipelines.Dataset, split: str):
    ((features, labels, weights),) = dataset.read(split, batch_size=100_000)
    return ({name: values.numpy() for name, values in part.items()} for part in (features, labels, weights))


def rows_of(features: dict[str, np.ndarray]) -> list[bytes]:
    """Each row as bytes, all its features side by side."""
    columns = [features[name].astype("float64") for name in sorted(features)]
    return [row.tobytes() for row in np.concatenate(columns, axis=1)]


@pytest.fixture(scope="module")
def weighted(raw_log, demo_schema, tmp_path_factory) -> pipelines.Dataset:
    """Rows that weigh as much as their `age`."""
    features = [f for f in demo_schema.to_dict()["features"] if f["name"] != "age"]
    plain = {**demo_schema.to_dict(), "features": features, "keys": {"group": "user_id", "weight": "age"}}
    out = tmp_path_factory.mktemp("weighted") / "data"
    return pipelines.open_dataset(pipelines.convert([raw_log.parquet], Schema.model_validate(plain), out, shards=3))


def test_a_split_that_fits_is_taken_whole(dataset):
    features, labels, weights = whole_split(dataset, "train")
    everyone, clicked = draw_samples(dataset, tasks_of(dataset.schema, "esmm_product"), "train", 10_000)
    assert (everyone.population, clicked.population) == ((), ("click",))
    for sample, task in ((everyone, "click"), (clicked, "conversion")):
        members = weights[task][:, 0] > 0
        assert sample.rows == len(sample.weights) == members.sum()
        for name, values in features.items():
            np.testing.assert_array_equal(sample.features[name], values[members])
        np.testing.assert_array_equal(sample.weights, 1.0)
        for name, happened in sample.labels.items():
            np.testing.assert_array_equal(happened, labels[name][members, 0] == 1)
            assert sample.positives[name] == happened.sum()
    assert set(everyone.labels) == {"click", "ctcvr"}


@pytest.mark.parametrize("layout", ["dataset", "rows_dataset"])
def test_a_small_sample_has_each_outcome_and_weighs_as_the_split(layout, request):
    dataset = request.getfixturevalue(layout)
    features, labels, _ = whole_split(dataset, "train")
    sample, _ = draw_samples(dataset, tasks_of(dataset.schema, "esmm_product"), "train", 301, seed=3)
    assert len(sample.weights) == 301
    outcome = 2 * sample.labels["ctcvr"] + sample.labels["click"]
    seen = 2 * (labels["ctcvr"][:, 0] == 1) + (labels["click"][:, 0] == 1)
    for kind in (0, 1, 3):
        assert np.sum(outcome == kind) in (100, 101)
        assert sample.weights[outcome == kind].sum() == pytest.approx(np.sum(seen == kind))
    known = dict(zip(rows_of(features), seen, strict=True))
    drawn = rows_of(sample.features)
    assert len(set(drawn)) == 301, "no row twice"
    assert [known[row] for row in drawn] == outcome.tolist()


def test_sample_weights_count(weighted):
    features, _, weights = whole_split(weighted, "train")
    everyone, clicked = draw_samples(weighted, tasks_of(weighted.schema, "esmm_product"), "train", 10_000)
    for sample, task in ((everyone, "click"), (clicked, "conversion")):
        of_members = weights[task][weights[task][:, 0] > 0, 0]
        np.testing.assert_array_equal(sample.weights, of_members)
    small, _ = draw_samples(weighted, tasks_of(weighted.schema, "esmm_product"), "train", 1_500)
    assert small.weights.sum() == pytest.approx(weights["click"].sum(), rel=0.02)


def test_every_row_has_the_same_chance(dataset):
    """The chance to be drawn differs between outcomes only."""
    features, labels, _ = whole_split(dataset, "valid")
    place = {row: i for i, row in enumerate(rows_of(features))}
    drawn = np.zeros(len(place))
    tasks = tasks_of(dataset.schema, "esmm_product")
    for seed in range(20):
        sample, _ = draw_samples(dataset, tasks, "valid", 300, seed)
        drawn[[place[row] for row in rows_of(sample.features)]] += 1
    seen = 2 * labels["ctcvr"][:, 0] + labels["click"][:, 0]
    for kind in (0, 1):
        own = drawn[seen == kind]
        chance = own.mean() / 20
        assert own.var() == pytest.approx(20 * chance * (1 - chance), rel=0.25)
        thirds = [part.mean() for part in np.array_split(own, 3)]
        assert max(thirds) - min(thirds) < 0.25 * own.mean()


def test_shares_are_equal_and_what_is_left_goes_on():
    assert shares_of({0: 1_000, 1: 40, 3: 5}, 300) == {3: 5, 1: 40, 0: 255}
    assert shares_of({0: 1_000, 1: 900, 3: 800}, 300) == {3: 100, 1: 100, 0: 100}
    assert shares_of({0: 10, 1: 20}, 300) == {0: 10, 1: 20}
    assert shares_of({}, 300) == {}


def test_a_population_without_rows_is_an_empty_sample(raw_log, demo_schema, tmp_path):
    plain = demo_schema.to_dict()
    plain["labels"][0] |= {"column": "age", "positive": -1.0}
    plain["labels"][1] |= {"column": "age", "positive": -1.0}
    plain["features"] = [f for f in plain["features"] if f["name"] != "age"]
    out = pipelines.convert([raw_log.parquet], Schema.model_validate(plain), tmp_path / "data")
    data = pipelines.open_dataset(out)
    _, clicked = draw_samples(data, tasks_of(data.schema, "esmm_product"), "valid", 300)
    assert (clicked.rows, len(clicked.weights), clicked.positives) == (0, 0, {"conversion": 0})


def test_donors_are_a_permutation_where_weights_are_equal():
    for count in (1, 2, 1_000, 99_999):
        donors = donor_rows(np.full(count, 0.3), np.random.default_rng(count))
        assert sorted(donors.tolist()) == list(range(count))
    assert donor_rows(np.empty(0), np.random.default_rng(0)).tolist() == []


def test_donors_come_as_often_as_they_weigh():
    weights = np.random.default_rng(0).exponential(size=500)
    expected = 500 * weights / weights.sum()
    counts = np.bincount(donor_rows(weights, np.random.default_rng(1)), minlength=500)
    assert np.all(np.abs(counts - expected) <= 1.0)
    mean = np.mean(
        [np.bincount(donor_rows(weights, np.random.default_rng(s)), minlength=500) for s in range(400)], axis=0
    )
    np.testing.assert_allclose(mean, expected, atol=0.12)
