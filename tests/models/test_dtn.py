"""DTN: its fusion against numpy, what gradients and predictions reach, any funnel by name, modules of one's own."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_schema import IDS, small_schema

from mtlzoo.models import DTN, MMoE
from mtlzoo.training.presets import preset_of
from pipelines import Label, Schema

FIELDS, ROWS = 4, 64
FUNNELS = {
    "none": (Label(name="income"), Label(name="married")),
    "two": (Label(name="click"), Label(name="conversion", parent="click")),
    # A funnel of three, with a label of none between: names count, not places.
    "three": (
        Label(name="click"),
        Label(name="like"),
        Label(name="cart", parent="click"),
        Label(name="purchase", parent="cart"),
    ),
    "single": (Label(name="click"),),
}
SMALL = {
    "interaction_units": 6,
    "interaction_settings": {
        "masknet": {"units": (8, 6), "mask_units": 8, "block_units": 5},
        "memonet": {"codebook_rows": 64},
    },
    "tower_units": (5,),
    "embedding_dim": 3,
    "dropout": 0.0,
}


def schema_of(labels: str = "two") -> Schema:
    return small_schema(FUNNELS[labels], FIELDS)


def dtn(labels: str = "two", **arguments) -> DTN:
    keras.utils.set_random_seed(4)
    return DTN(schema_of(labels), **{**SMALL, **arguments})


@pytest.fixture
def features():
    random = np.random.default_rng(1)
    return {
        "categorical": random.integers(0, IDS, (ROWS, FIELDS)).astype("int32"),
        "numeric": random.normal(size=(ROWS, 1)).astype("float32"),
    }


def targets(model, features, positive: float = 1.0):
    """Labels and weights of which every row counts for every task."""
    ones = {task.name: np.full((ROWS, 1), positive, "float32") for task in model.tasks}
    return features, ones, {task: np.ones((ROWS, 1), "float32") for task in ones}


def found_by(model, features) -> np.ndarray:
    """Outputs of all modules, `[rows, groups * modules, H]`."""
    shape = (len(model.groups) * len(model.module_names), SMALL["interaction_units"])
    outputs = [layer.output for layer in model.layers if tuple(layer.output.shape[1:]) == shape]
    return keras.Model(model.inputs, outputs[-1] if outputs else None)(features).numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def head(model, label: str, x: np.ndarray) -> np.ndarray:
    """Tower and logit by hand."""
    hidden = model.get_layer(f"{label}_tower").get_weights()
    x = np.maximum(x @ hidden[0] + hidden[1], 0.0)
    w, b = model.get_layer(f"{label}_logit").get_weights()
    return x @ w + b


def randomize_biases(model) -> None:
    rng = np.random.default_rng(8)
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:
            variable.assign(rng.normal(scale=0.3, size=variable.shape))


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("gate_input", ["features", "modules"])
def test_probabilities_are_those_of_the_figure_by_hand(features, fusion, gate_input):
    """Group by group in numpy: own modules, the others' scaled by the click's prediction, fusion, tower."""
    model = dtn(fusion=fusion, gate_input=gate_input, label_space="cvr_clicked")
    randomize_biases(model)
    found = found_by(model, features)
    weights = {
        task: np.stack([np.asarray(w) for w in by_module.values()], axis=1)
        for task, by_module in model.gate_weights(features).items()
    }
    modules = len(model.module_names)
    own = {"click": slice(0, modules), "conversion": slice(modules, 2 * modules)}
    p = {}
    for task in ("click", "conversion"):
        scale = np.ones((ROWS, 3 * modules, 1))
        if task == "conversion":
            scale[:, own["click"]] = p["click"][:, None]
        mixed = weights[task][:, :, None] * scale * found
        of_own = mixed[:, own[task]].sum(axis=1)
        of_others = mixed.sum(axis=1) - of_own
        fused = of_own + of_others if fusion == "sum" else np.concatenate([of_own, of_others], axis=1)
        p[task] = sigmoid(head(model, task, fused))
    predictions = model(features)
    for task, expected in p.items():
        np.testing.assert_allclose(predictions[task].numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize("gate_input", ["features", "modules"])
def test_gates_sum_to_one_over_own_and_over_others(features, gate_input):
    weights = dtn("three", gate_input=gate_input).gate_weights(features)
    assert list(weights) == ["click", "like", "cart", "purchase"]
    for task, by_module in weights.items():
        assert len(by_module) == 5 * 3
        own = sum(w for name, w in by_module.items() if name.startswith(f"{task}/"))
        others = sum(w for name, w in by_module.items() if not name.startswith(f"{task}/"))
        np.testing.assert_allclose(own, 1.0, rtol=1e-6)
        np.testing.assert_allclose(others, 1.0, rtol=1e-6)


def conversion_gradients(model, features, layers: list[str]) -> list[float]:
    """Size of the gradient that conversion's loss, on its own head, leaves in each layer."""
    variables = [v for name in layers for v in model.get_layer(name).trainable_variables]
    features, labels, weights = targets(model, features)
    with tf.GradientTape() as tape:
        loss = model.default_losses()["conversion"](
            labels["conversion"], model(features)["conversion"], sample_weight=weights["conversion"]
        )
    gradients = tape.gradient(loss, [v.value for v in variables])
    return [0.0 if g is None else float(np.abs(np.asarray(tf.convert_to_tensor(g))).max()) for g in gradients]


@pytest.mark.parametrize("gate_input", ["features", "modules"])
def test_conversion_leaves_a_detached_click_tower_alone(features, gate_input):
    of_click = ["click_tower", "click_logit"]
    for detach in (True, False):
        model = dtn(gate_input=gate_input, tsn_detach=detach, label_space="cvr_clicked")
        assert (max(conversion_gradients(model, features, of_click)) == 0) is detach
        assert min(conversion_gradients(model, features, ["conversion_logit"])) > 0


def test_a_click_prediction_of_zero_removes_the_clicks_group(features):
    """Whatever the click's modules give, conversion stays what it is."""
    own = keras.layers.Dense(6, activation="relu", name="dense")
    for pairs, reaches in (("funnel", False), ((), True)):
        model = dtn(interactions=[own], interaction_settings={}, tsn_pairs=pairs)
        model.get_layer("click_logit").bias.assign([-500.0])
        before = model(features)
        assert np.all(before["click"].numpy() == 0)
        click_module = model.get_layer("dense_0")
        click_module.bias.assign(click_module.bias + 3.0)
        moved = model(features)["conversion"].numpy() != before["conversion"].numpy()
        assert moved.any() == reaches


def test_pairs_follow_the_funnel_by_name(features):
    """Cart is sensitive to click, purchase to both, and like, which stands between them, to nothing."""

    def gates(model) -> set[str]:
        return {layer.name for layer in model.layers if "_sensitive_to_" in layer.name}

    assert gates(dtn("three")) == {
        "cart_sensitive_to_click",
        "purchase_sensitive_to_click",
        "purchase_sensitive_to_cart",
    }
    assert gates(dtn("three", tsn_pairs=["purchase:click"])) == {"purchase_sensitive_to_click"}
    assert gates(dtn("three", tsn_pairs=[])) == set()
    assert gates(dtn("none")) == set()
    model = dtn("three", label_space="cvr_clicked", interactions=["gdcn"], interaction_settings={})
    # A prediction of 0 for cart cuts cart's group off purchase; one of 1 for click changes nothing.
    model.get_layer("cart_logit").bias.assign([-500.0])
    model.get_layer("click_logit").bias.assign([500.0])
    biases = model.get_layer("gdcn").trainable_variables[-1]  # the projection's, one part per group
    before = model(features)["purchase"].numpy()
    for group in range(5):
        value = biases.numpy()
        biases.assign(value + np.eye(5)[group].reshape(-1, *[1] * (value.ndim - 1)))
        moves = np.any(model(features)["purchase"].numpy() != before)
        assert moves == (model.groups[group] != "cart"), model.groups[group]
        biases.assign(value)


def test_census_like_tasks_without_a_funnel_train(features):
    model = dtn("none", tsn_pairs=["married:income"])
    model.compile()
    before = model.train_on_batch(*targets(model, features), return_dict=True)["loss"]
    for _ in range(20):
        after = model.train_on_batch(*targets(model, features), return_dict=True)["loss"]
    assert after < before


def test_a_single_label_needs_no_others(features):
    model = dtn("single")
    assert list(model(features)) == ["click"]
    assert list(model.gate_weights(features)["click"])[:2] == ["click/masknet", "click/gdcn"]


def test_without_task_groups_only_the_shared_modules_are_mixed(features):
    model = dtn(task_groups=False)
    weights = model.gate_weights(features)
    assert list(weights["conversion"]) == ["shared/masknet", "shared/gdcn", "shared/memonet"]
    np.testing.assert_allclose(sum(weights["conversion"].values()), 1.0, rtol=1e-6)
    assert model.count_params() < dtn().count_params()


def test_one_kind_three_times_is_three_different_modules(features):
    model = dtn(interactions=["gdcn"] * 3, interaction_settings={})
    assert model.module_names == ["gdcn_1", "gdcn_2", "gdcn_3"]
    found = found_by(model, features)
    assert found.shape == (ROWS, 9, 6)
    for i in range(9):
        for j in range(i):
            assert not np.allclose(found[:, i], found[:, j])


def test_settings_reach_the_modules():
    plain = dtn(interactions=["gdcn"], interaction_settings={})
    deep = dtn(interactions=["gdcn"], interaction_settings={"gdcn": {"num_layers": 4}})
    assert deep.count_params() > plain.count_params()


def test_a_layer_of_ones_own_is_copied_for_each_group(features, tmp_path):
    own = keras.layers.Dense(6, activation="relu", name="mine")
    model = dtn(interactions=["gdcn", own], interaction_settings={})
    assert list(model.gate_weights(features)["click"])[:2] == ["click/gdcn", "click/mine"]
    assert [layer.name for layer in model.layers if layer.name.startswith("mine")] == ["mine_0", "mine_1", "mine_2"]
    model.save(tmp_path / "dtn.keras")
    loaded = keras.models.load_model(tmp_path / "dtn.keras")
    for task, p in model(features).items():
        np.testing.assert_array_equal(loaded(features)[task].numpy(), p.numpy())


def test_codebooks_get_row_sparse_gradients(features):
    model = dtn()
    with tf.GradientTape() as tape:
        p = model(features)["ctcvr"]
    codebooks = model.get_layer("memonet").codebooks
    assert [codebook.shape for codebook in codebooks] == [(64, 3)] * 3
    for gradient in tape.gradient(p, [codebook.value for codebook in codebooks]):
        assert isinstance(gradient, tf.IndexedSlices)


def test_experts_of_mmoe_may_be_the_same_modules(features, tmp_path):
    settings = {"masknet": {"units": (8, 6), "mask_units": 8, "block_units": 5}, "memonet": {"codebook_rows": 64}}
    model = MMoE(
        schema_of(),
        expert_units=(6,),
        experts=("masknet", "gdcn", "memonet"),
        expert_settings=settings,
        embedding_dim=3,
    )
    assert tuple(model.get_layer("gate").output.shape) == (None, 2, 6)
    assert model.get_layer("gate").num_experts == 3
    model.compile()
    assert np.isfinite(model.train_on_batch(*targets(model, features), return_dict=True)["loss"])
    model.save(tmp_path / "mmoe.keras")
    loaded = keras.models.load_model(tmp_path / "mmoe.keras")
    for task, p in model.predict_on_batch(features).items():
        np.testing.assert_array_equal(loaded.predict_on_batch(features)[task], p)


def test_preset_paper_is_the_released_code(features):
    """A sum of own and others, gates from modules, weighted positives, ctcvr on a head of its own."""
    arguments = {**preset_of("dtn", "paper").arguments, **SMALL, "tower_units": (5,)}
    model = DTN(schema_of(), **arguments)
    assert {task.name for task in model.tasks if task.trained} == {"click", "ctcvr"}
    model.get_layer("click_logit").kernel.assign(np.zeros((5, 1)))
    loss = model.default_losses()["click"]
    features, labels, weights = targets(model, features)
    np.testing.assert_allclose(loss(labels["click"], model(features)["click"]), 200.0 * np.log(2.0), rtol=1e-6)
    model.compile()
    assert np.isfinite(model.train_on_batch(features, labels, sample_weight=weights, return_dict=True)["loss"])


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="no interaction module 'fm'; known: masknet, gdcn, memonet"):
        dtn(interactions=["fm"])
    with pytest.raises(ValueError, match=r"module narrow gives outputs of shape \(None, 5\).*must give \[batch, 6\]"):
        dtn(interactions=["gdcn", keras.layers.Dense(5, name="narrow")], interaction_settings={})
    with pytest.raises(ValueError, match="interaction_settings names masknet"):
        dtn(interactions=["gdcn"], interaction_settings={"masknet": {}})
    with pytest.raises(ValueError, match="at least one module"):
        dtn(interactions=[], interaction_settings={})
    with pytest.raises(ValueError, match="'conversion:clik'; the labels are click, conversion"):
        dtn(tsn_pairs=["conversion:clik"])
    with pytest.raises(ValueError, match=r"pairs TASK:OTHER of two labels, has \('conversion', 'click'\)"):
        dtn(tsn_pairs=[("conversion", "click")])
    with pytest.raises(ValueError, match="in a circle: .*click"):
        dtn(tsn_pairs=["conversion:click", "click:conversion"])
    with pytest.raises(ValueError, match="fusion must be one of concat, sum, is 'mean'"):
        dtn(fusion="mean")
    with pytest.raises(ValueError, match="gate_input must be one of features, modules, is 'x'"):
        dtn(gate_input="x")
    one_field = schema_of().model_copy(update={"features": schema_of().features[:1]})
    with pytest.raises(ValueError, match="fewer than two; leave memonet out"):
        DTN(one_field, **SMALL)
