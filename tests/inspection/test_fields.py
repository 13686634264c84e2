"""Names of the first layer's inputs, against what really flows into the layer."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mtlzoo.callbacks.mask_density import masked_layers
from mtlzoo.inspection import field_sharing, input_columns, input_fields
from mtlzoo.layers import MaskedDense
from mtlzoo.models import NCS4CVR, SharedBottom
from pipelines.schema import Schema

ROWS = 6


@pytest.fixture(scope="module")
def schema(dataset) -> Schema:
    """Fields of two widths that take turns, a number that is bucketed and fed too, and one with an indicator."""
    plain = dataset.schema.to_dict()
    for feature in plain["features"]:
        feature |= {"embedding_dim": 3} if feature["name"] in ("city", "tags") else {}
        feature |= {"keep_value": True} if feature["name"] == "dwell" else {}
    return Schema.model_validate(plain)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dots"])
def model(request, schema):
    keras.utils.set_random_seed(1)
    return NCS4CVR(schema, trunk_units=(16, 4), mask="lottery", embedding_dim=2, pairwise_dots=request.param)


@pytest.fixture(scope="module")
def features(schema) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    features = {
        "categorical": np.zeros((ROWS, len(schema.packed_categorical)), "int32"),
        "numeric": rng.normal(size=(ROWS, len(schema.packed_numeric))).astype("float32"),
    }
    for feature in schema.multis:
        features[feature.name] = np.zeros((ROWS, feature.max_length), "int32")
        features[feature.weights_name] = np.ones((ROWS, feature.max_length), "float32")
    return features


@pytest.fixture(scope="module")
def flow(model):
    """From features to the inputs of the first masked layer."""
    return keras.Model(model.input, masked_layers(model)[0].input)


def changed_columns(flow, features, changed) -> list[int]:
    before, after = (flow.predict_on_batch(x) for x in (features, changed))
    return np.flatnonzero((before != after).any(axis=0)).tolist()


def named(columns: list[str], *names: str) -> list[int]:
    """Columns in whose name one of the fields stands."""

    def parts(column: str) -> list[str]:
        return [part.split("[")[0] for part in column.split(" * ")]

    return [i for i, column in enumerate(columns) if set(parts(column)) & set(names)]


def test_a_change_of_a_field_changes_the_columns_of_its_name(model, schema, features, flow):
    columns = input_columns(model)
    assert len(columns) == len(set(columns))
    for place, feature in enumerate(schema.packed_categorical):
        changed = {**features, "categorical": features["categorical"].copy()}
        changed["categorical"][:, place] = 1
        expected = named(columns, feature.name)
        expected = [i for i in expected if columns[i] != feature.name]  # the float of the same feature stays
        assert changed_columns(flow, features, changed) == expected, feature.name
    for feature in schema.multis:
        changed = {**features, feature.name: np.ones_like(features[feature.name])}
        assert changed_columns(flow, features, changed) == named(columns, feature.name), feature.name


def test_columns_hold_what_they_are_named_for(model, schema, features, flow):
    columns = input_columns(model)
    values = dict(zip(columns, flow.predict_on_batch(features).T, strict=True))
    for place, name in enumerate(schema.packed_numeric):
        np.testing.assert_array_equal(values[name], features["numeric"][:, place])
    assert {"price", "price:missing", "age", "dwell", "dwell[0]"} <= values.keys()
    embedded = {
        name: np.stack([values[f"{name}[{k}]"] for k in range(width)]) for name, width in widths(schema).items()
    }
    dots = [column for column in columns if " * " in column]
    assert bool(dots) == model.get_config()["pairwise_dots"]
    assert dots[:2] == (["item * item", "item * previous_item"] if dots else [])  # symmetric in value, not in place
    for column in dots:
        f, g = column.split(" * ")
        np.testing.assert_allclose(values[column], (embedded[f] * embedded[g]).sum(axis=0), rtol=1e-4, atol=1e-6)


def widths(schema: Schema) -> dict[str, int]:
    return {f.name: 3 if f.name in ("city", "tags") else 2 for f in (*schema.packed_categorical, *schema.multis)}


def test_fields_gather_their_columns(model):
    pairs = list(zip(input_columns(model), input_fields(model), strict=True))
    assert {field for column, field in pairs if column.startswith("price")} == {"price"}
    assert {field for column, field in pairs if column.startswith("dwell") and "*" not in column} == {"dwell"}
    assert all(field == f"{column.split(' * ')[0]} * all" for column, field in pairs if "*" in column)


def test_sharing_of_a_field_is_that_of_its_rows(model):
    layer = masked_layers(model)[0]
    masks = np.random.default_rng(3).random(layer.binary_masks.shape) < 0.5
    layer.set_masks(masks)
    fields = input_fields(model)
    found = field_sharing(model)
    assert [part.name for part in found] == list(dict.fromkeys(fields))
    for part in found:
        rows = [i for i, field in enumerate(fields) if field == part.name]
        assert part.connections == len(rows) * 16
        assert part.density == {"click": masks[0, rows].mean(), "conversion": masks[1, rows].mean()}
        assert part.shares["shared"] == (masks[0, rows] & masks[1, rows]).mean()
    assert sum(part.connections for part in found) == masks[0].size


def test_inputs_without_names_are_refused(dataset):
    x = keras.Input((3,))
    masked = keras.Model(x, MaskedDense(4, num_tasks=2)(x), name="own")
    with pytest.raises(ValueError, match="own: its inputs have no names"):
        input_columns(masked)
    plain = SharedBottom(dataset.schema, bottom_units=(4,), tower_units=(4,), embedding_dim=2)
    with pytest.raises(ValueError, match="shared_bottom: its inputs have no names"):
        input_columns(plain)
