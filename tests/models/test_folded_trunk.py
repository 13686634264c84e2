"""The folded model beside the one it comes from: probabilities, widths, what it holds and what it leaves alone."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest
from small_schema import IDS, small_schema

from mtlzoo.layers import EmbeddingTable, MaskedDense
from mtlzoo.models import MODELS, NCS4CVR, create
from mtlzoo.models.folded_trunk import with_folded_masks
from mtlzoo.tasks import LABEL_SPACES
from pipelines import Label, Schema

FIELDS, ROWS = 5, 300
TRUNK = (48, 40, 24)
FUNNELS = {
    "two": (Label(name="click"), Label(name="conversion", parent="click")),
    "four": (
        Label(name="like"),
        Label(name="click"),
        Label(name="cart", parent="click"),
        Label(name="purchase", parent="cart"),
    ),
}
KINDS = {
    "hard_concrete": {"mask": "learned", "estimator": "hard_concrete"},
    "straight_through": {"mask": "learned", "estimator": "straight_through"},
    "fixed": {"mask": "lottery"},
}


def schema_of(labels) -> Schema:
    return small_schema(labels, FIELDS)


@pytest.fixture
def features():
    random = np.random.default_rng(1)
    return {
        "categorical": random.integers(0, IDS, (ROWS, FIELDS)).astype("int32"),
        "numeric": random.normal(size=(ROWS, 1)).astype("float32"),
    }


def masked_layers(model) -> list[MaskedDense]:
    return [layer for layer in model.layers if isinstance(layer, MaskedDense)]


def sparse_model(kind="hard_concrete", labels="two", density=0.05, **arguments) -> NCS4CVR:
    """A model whose tasks each have open connections of about the density, and weights that make rows differ."""
    keras.utils.set_random_seed(2)
    arguments = {"trunk_units": TRUNK, "embedding_dim": 4, **KINDS[kind], **arguments}
    model = NCS4CVR(schema_of(FUNNELS[labels]), **arguments)
    random = np.random.default_rng(3)
    for layer in masked_layers(model):
        layer.kernel.assign(random.normal(size=layer.kernel.shape))
        layer.bias.assign(random.normal(size=layer.bias.shape))
        shape = (layer.num_tasks, *layer.kernel.shape)
        is_open = random.random(shape) < density
        if kind == "fixed":
            layer.set_masks(is_open)
        else:
            # Open ones from hardly to fully open, closed ones from just closed to far gone.
            log_alpha = np.where(is_open, random.uniform(-2.3, 4.0, shape), random.uniform(-8.0, -2.5, shape))
            log_alpha += 2.4 * (kind == "straight_through")  # which opens from 0 on, not from -2.4
            layer.gates.assign(log_alpha / layer.gate_scale)
    for layer in model.layers:
        if isinstance(layer, EmbeddingTable):
            layer.embeddings.assign(random.normal(size=layer.embeddings.shape))
    return model


def predictions(model, features) -> dict[str, np.ndarray]:
    return {task: np.asarray(p) for task, p in model(features, training=False).items()}


def assert_same(a, b, tolerance=1e-6) -> None:
    assert list(a) == list(b)
    for task in a:
        assert a[task].dtype == b[task].dtype == np.float32
        np.testing.assert_allclose(a[task], b[task], rtol=0, atol=tolerance, err_msg=task)


def open_widths(masks) -> list[int]:
    """For each trunk layer of a task its neurons on an open path; behind the last layer all connections are open."""
    reached = [np.ones(masks[0].shape[0], bool)]
    for mask in masks:
        reached.append((mask[reached[-1]] > 0).any(axis=0))
    leading = [np.ones(masks[-1].shape[1], bool)]
    for mask in reversed(masks[1:]):
        leading.insert(0, (mask[:, leading[0]] > 0).any(axis=1))
    return [int((a & b).sum()) for a, b in zip(reached[1:], leading, strict=True)]


@pytest.mark.parametrize("label_space", LABEL_SPACES)
@pytest.mark.parametrize("labels", list(FUNNELS))
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_folded_model_gives_the_same_probabilities(kind, labels, label_space, features):
    model = sparse_model(kind, labels, label_space=label_space)
    shares = np.array([np.mean(np.asarray(layer.masks()) > 0) for layer in masked_layers(model)])
    assert np.all((shares > 0.02) & (shares < 0.1))
    served = model.for_serving()
    expected = predictions(model, features)
    assert list(expected) == [target.name for target in model.schema.targets]
    trained = [task.name for task in model.tasks if task.trained]
    assert all(np.ptp(expected[task]) > 0.01 for task in trained), "the rows must differ, or equality shows nothing"
    assert_same(predictions(served, features), expected)
    assert {name: (x.shape, x.dtype) for name, x in served.input.items()} == {
        name: (x.shape, x.dtype) for name, x in model.input.items()
    }


@pytest.mark.parametrize("arguments", [{"tower_units": (20, 8)}, {"pairwise_dots": True}, {"trunk_units": (40,)}])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_towers_and_pairwise_dots_are_served_too(arguments, density, features):
    model = sparse_model(density=density, **arguments)
    assert_same(predictions(model.for_serving(), features), predictions(model, features))


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_float16", 0.01), ("mixed_bfloat16", 0.05)])
def test_it_computes_in_the_policy_of_the_model(policy, tolerance, features):
    model = sparse_model(dtype=policy, density=0.2)
    served = model.for_serving()
    assert_same(predictions(served, features), predictions(model, features), tolerance)
    dense = [layer for layer in served.layers if isinstance(layer, keras.layers.Dense)]
    assert {layer.compute_dtype for layer in dense} == {policy.removeprefix("mixed_")}
    assert {layer.kernel.dtype for layer in dense} == {"float32"}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("density", [0.03, 0.05, 0.9])
def test_dead_neurons_are_dropped_up_to_a_multiple_of_16(kind, density):
    model = sparse_model(kind, density=density)
    served = model.for_serving()
    masks = [np.asarray(layer.masks()) for layer in masked_layers(model)]
    for t, label in enumerate(model.schema.labels):
        alive = open_widths([mask[t] for mask in masks])
        expected = [min(width, max(1, -(-n // 16) * 16)) for n, width in zip(alive, TRUNK, strict=True)]
        assert [served.get_layer(f"{label.name}_folded_{i}").units for i in range(3)] == expected
        assert (expected == list(TRUNK)) == (density == 0.9)


def test_without_any_open_connection_the_probabilities_are_constant_and_right(features):
    model = sparse_model("fixed", density=0.0)
    served = model.for_serving()
    p = predictions(served, features)
    assert_same(p, predictions(model, features))
    assert all(np.ptp(of_task) < 1e-6 for of_task in p.values())
    assert {served.get_layer(f"{label}_folded_{i}").units for label in ("click", "conversion") for i in range(3)} == {1}


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_shares_the_embeddings_and_holds_no_masks(kind):
    model = sparse_model(kind, "four", density=1.0)
    served = model.for_serving()
    (table,) = [layer for layer in model.layers if isinstance(layer, EmbeddingTable)]
    assert sum(v is table.embeddings for v in served.variables) == 1
    widths = (FIELDS * 4 + 1, *TRUNK, 1)
    chain = sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))
    assert served.count_params() == FIELDS * IDS * 4 + 4 * chain
    assert len(served.variables) == 1 + 4 * 2 * 4


def test_later_training_does_not_reach_the_kernels(features):
    model = sparse_model()
    served = model.for_serving()
    before = predictions(served, features)
    for layer in masked_layers(model):
        layer.kernel.assign(2.0 * layer.kernel)
    assert_same(predictions(served, features), before, tolerance=0)
    assert any(np.any(p != before[task]) for task, p in predictions(model, features).items())


def test_the_trained_model_is_left_as_it_is(features):
    model = sparse_model()
    before, weights = predictions(model, features), [w.copy() for w in model.get_weights()]
    keras.utils.set_random_seed(7)
    drawn = np.asarray(keras.random.uniform((4,)))
    keras.utils.set_random_seed(7)
    served = model.for_serving()
    np.testing.assert_array_equal(keras.random.uniform((4,)), drawn)
    assert_same(predictions(model, features), before, tolerance=0)
    for a, b in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    # A training that exports after every epoch must not keep all the exports in memory.
    layer = weakref.ref(served.get_layer("click_folded_0"))
    del served
    gc.collect()
    assert layer() is None


def test_a_loaded_model_and_the_folded_one_itself_go_through_a_file(features, tmp_path):
    model = sparse_model()
    model.save(tmp_path / "model.keras")
    served = keras.models.load_model(tmp_path / "model.keras").for_serving()
    assert_same(predictions(served, features), predictions(model, features))
    served.save(tmp_path / "served.keras")
    again = keras.models.load_model(tmp_path / "served.keras")
    assert_same(predictions(again, features), predictions(served, features), tolerance=0)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ncs4cvr"])
def test_other_models_are_served_as_they_are(name):
    model = create(name, schema_of(FUNNELS["two"]), embedding_dim=4)
    assert model.for_serving() is model


def test_what_cannot_be_folded_is_named():
    model = sparse_model()
    with pytest.raises(ValueError, match="ncs4cvr: there is no masked layer to fold"):
        with_folded_masks(model, [])
    first = masked_layers(model)[0]
    first.activation = keras.activations.tanh
    with pytest.raises(ValueError, match="trunk_0: only relu layers can be folded, has activation 'tanh'"):
        model.for_serving()
    first.activation = keras.activations.relu
    first.kernel.assign(np.full(first.kernel.shape, np.nan))
    with pytest.raises(ValueError, match="layer 0 holds a weight that is not finite: the training diverged"):
        model.for_serving()
