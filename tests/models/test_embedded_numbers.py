"""Embeddings of numbers in models: which numbers get one, with which knots, and that every model takes them."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mtlzoo.inspection import field_sharing, input_columns
from mtlzoo.layers import PeriodicEmbedding, PiecewiseLinearEmbedding
from mtlzoo.models import MODELS, NCS4CVR, create
from mtlzoo.models.inputs import embedded_numbers, fields_by_width
from pipelines import Categorical, Label, Numeric, Schema
from pipelines.schema import Fitted, FittedNumeric, HashSplit

KINDS = {"piecewise_linear": PiecewiseLinearEmbedding, "periodic": PeriodicEmbedding}
LABELS = (Label(name="click"), Label(name="conversion", parent="click"))
SCHEMA = Schema(
    features=(
        Categorical(name="item", dtype="int"),
        Categorical(name="place", dtype="int"),
        Numeric(name="age", missing="mean", indicator=True, standardize=False),
        Numeric(name="price", transform="log1p", buckets=4, keep_value=True),
        Numeric(name="stock", buckets=2),
        Numeric(name="weight", buckets=3, keep_value=True, embedding_dim=4),
    ),
    labels=LABELS,
    split=HashSplit(key="row"),
    fitted=Fitted(
        tables={"item": 30, "place": 20, "price": 6, "stock": 4, "weight": 5},
        numeric={
            "age": FittedNumeric(mean=40.0, std=10.0),
            "price": FittedNumeric(mean=1.0, std=0.5, edges=(1.0, 2.0, 9.0)),
            "stock": FittedNumeric(mean=5.0, std=1.0, edges=(3.0,)),
            "weight": FittedNumeric(mean=2.0, std=2.0, edges=(0.0, 4.0)),
        },
    ),
)


def batch(rows: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "categorical": rng.integers(2, 4, size=(rows, 5)).astype("int32"),
        "numeric": rng.normal(size=(rows, 4)).astype("float32"),  # age, age:missing, price, weight
    }


def layers_of(model: keras.Model, kind: str) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, KINDS[kind])]


def one_width(name: str) -> Schema:
    """DCRNN crosses fields of one width."""
    features = [f.model_copy(update={"embedding_dim": None}) for f in SCHEMA.features]
    return SCHEMA.model_copy(update={"features": tuple(features)}) if name == "dcrnn" else SCHEMA


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_takes_them_and_keeps_them_through_its_configuration(name, kind):
    model = create(name, one_width(name), numeric_embedding=kind)
    assert layers_of(model, kind)
    again = type(model).from_config(model.get_config())
    again.set_weights(model.get_weights())
    found, expected = again(batch()), model(batch())
    for task in expected:
        assert np.all(np.isfinite(expected[task]))
        np.testing.assert_array_equal(found[task], expected[task])
    assert not any(layers_of(create(name, one_width(name)), kind) for kind in KINDS)


def test_knots_are_the_edges_in_the_scale_of_the_input():
    (price,), (weight,) = (
        layer.knots
        for layer in layers_of(create("mmoe", SCHEMA, numeric_embedding="piecewise_linear"), "piecewise_linear")
    )
    np.testing.assert_allclose(price, (np.log1p([1.0, 2.0, 9.0]) - 1.0) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(weight, [-1.0, 1.0])


def test_edges_that_the_transform_makes_equal_are_one_knot():
    far = FittedNumeric(mean=0.0, std=1.0, edges=(1e9, 1e9 + 64.0, 4e9))
    fitted = SCHEMA.fitted.model_copy(update={"numeric": {**SCHEMA.fitted.numeric, "price": far}})
    model = create("mmoe", SCHEMA.model_copy(update={"fitted": fitted}), numeric_embedding="piecewise_linear")
    assert len(layers_of(model, "piecewise_linear")[0].knots[0]) == 2


def test_which_numbers_and_in_which_groups():
    names = {kind: [f.name for f in embedded_numbers(SCHEMA, kind)] for kind in (None, *KINDS)}
    assert names == {None: [], "piecewise_linear": ["price", "weight"], "periodic": ["age", "price", "weight"]}
    assert fields_by_width(SCHEMA, 8, "periodic") == {
        8: ["item", "place", "price", "stock", "age:value", "price:value"],
        4: ["weight", "weight:value"],
    }


def test_the_right_column_reaches_the_right_number():
    """Moving one number moves the embedding of that number alone."""
    model = create("mmoe", SCHEMA, numeric_embedding="periodic")
    layers = layers_of(model, "periodic")
    outputs = keras.Model(model.inputs, {layer.name: layer.output for layer in layers})
    before, moved = batch(), batch()
    moved["numeric"][:, 2] += 1.0  # price
    a, b = outputs(before), outputs(moved)
    differs = {name: np.any(np.abs(a[name] - b[name]) > 1e-6, axis=(0, 2)).tolist() for name in a}
    assert differs == {"numbers_16": [False, True], "numbers_4": [False]}


def test_names_of_masked_inputs():
    model = NCS4CVR(SCHEMA, embedding_dim=2, numeric_embedding="piecewise_linear")
    columns = input_columns(model)
    assert columns[8:12] == ["price:value[0]", "price:value[1]", "weight[0]", "weight[1]"]
    assert [sharing.name for sharing in field_sharing(model)] == [
        "item", "place", "price", "stock", "weight", "age",
    ]  # fmt: skip


def test_without_numbers_nothing_is_embedded():
    schema = SCHEMA.model_copy(update={"features": SCHEMA.features[:2]})
    model = create("mmoe", schema, numeric_embedding="periodic")
    assert not layers_of(model, "periodic")
    assert "numeric" not in {tensor.name for tensor in model.inputs}


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="'piecewise_linear', 'periodic', is 'spline'"):
        create("mmoe", SCHEMA, numeric_embedding="spline")
