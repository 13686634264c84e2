"""A dataset read with some of its features: the same values, and nothing of the others."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipelines import Categorical, DataError, Dataset

SPLIT = "test"


def first_batch(dataset: Dataset) -> tuple:
    return next(iter(dataset.read(SPLIT, batch_size=500)))


@pytest.mark.parametrize("layout", ["blocks", "rows"])
@pytest.mark.parametrize(
    "names",
    [
        ["city"],
        ["price"],
        ["dwell", "item"],
        ["history", "age", "device"],
        ["tags"],
    ],
)
def test_values_labels_and_weights_are_those_of_all_features(names, layout, request):
    whole = request.getfixturevalue("dataset" if layout == "blocks" else "rows_dataset")
    part = whole.select(names)
    assert [feature.name for feature in part.schema.features] == [
        feature.name for feature in whole.schema.features if feature.name in names
    ]
    all_features, *all_targets = first_batch(whole)
    features, *targets = first_batch(part)
    columns = [feature.name for feature in whole.schema.packed_categorical]
    wanted = [columns.index(feature.name) for feature in part.schema.packed_categorical]
    if wanted:
        np.testing.assert_array_equal(features["categorical"], np.array(all_features["categorical"])[:, wanted])
    wanted = [whole.schema.packed_numeric.index(name) for name in part.schema.packed_numeric]
    if wanted:
        np.testing.assert_array_equal(features["numeric"], np.array(all_features["numeric"])[:, wanted])
    for multi in part.schema.multis:
        for key in (multi.name, multi.weights_name):
            np.testing.assert_array_equal(features[key], all_features[key])
    packed = {"categorical", "numeric"} & set(features)
    lists = {key for multi in part.schema.multis for key in (multi.name, multi.weights_name)}
    assert set(features) == packed | lists
    for found, expected in zip(targets, all_targets, strict=True):
        assert set(found) == set(expected)
        for task in expected:
            np.testing.assert_array_equal(found[task], expected[task])


def test_the_rest_is_not_parsed(dataset):
    """A feature that the records lack is in nobody's way who does not select it."""
    schema, fitted = dataset.schema, dataset.schema.fitted
    ghost = Categorical(name="ghost", dtype="int")
    haunted = schema.model_copy(
        update={
            "features": (*schema.features, ghost),
            "fitted": fitted.model_copy(update={"tables": {**fitted.tables, "ghost": 9}}),
        }
    )
    with_ghost = Dataset(dataset.folder, haunted, dataset.manifest)
    with pytest.raises(tf.errors.InvalidArgumentError, match="[Ss]hape"):
        first_batch(with_ghost)
    features, *_ = first_batch(with_ghost.select(without=["ghost"]))
    np.testing.assert_array_equal(features["categorical"], first_batch(dataset)[0]["categorical"])
    assert with_ghost.select(without=["ghost"]).schema == schema


def test_the_order_is_the_schemas_and_both_arguments_go_together(dataset):
    part = dataset.select(["price", "item", "city"], without=["price"])
    assert [feature.name for feature in part.schema.features] == ["item", "city"]
    assert set(part.schema.fitted.tables) == {"item", "city"}
    assert set(part.schema.fitted.vocabularies) == {"item", "city"}
    assert part.schema.fitted.numeric == {}
    assert part.rows(SPLIT) == dataset.rows(SPLIT)
    assert part.select(["city"]).schema == dataset.select(["city"]).schema


def test_bad_names_are_listed_with_the_known_ones(dataset):
    with pytest.raises(DataError, match=r"no feature prize; the features are item, previous_item"):
        dataset.select(["prize"])
    with pytest.raises(DataError, match=r"no feature itm;"):
        dataset.select(without=["itm"])
    with pytest.raises(DataError, match="no feature is left"):
        dataset.select(["city"], without=["city"])
