"""DCRNN: its graph by hand, the ends of its sharing ratio, what gradients reach, funnels by name, axes, histories."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from small_schema import IDS, small_schema

from mtlzoo.models import DCRNN
from pipelines import Categorical, Label, MultiCategorical, Schema
from pipelines.schema import Fitted, HashSplit

FIELDS, ROWS = 4, 64
CLICK = Label(name="click")
FUNNELS = {
    "single": (CLICK,),
    "two": (CLICK, Label(name="conversion", parent="click")),
    "none": (Label(name="income"), Label(name="married")),
    # A funnel of three, with a label of none between: names count, not places.
    "three": (CLICK, Label(name="like"), Label(name="cart", parent="click"), Label(name="purchase", parent="cart")),
}
SMALL = {"units": 8, "sharing": 0.5, "tower_units": (5,), "embedding_dim": 3, "history_units": 4, "dropout": 0.0}


def schema_of(labels: str = "two") -> Schema:
    return small_schema(FUNNELS[labels], FIELDS)


def history_schema(**arguments) -> Schema:
    """A list of bought items in the order of time, a candidate of its table, another field, a list without order."""
    history = MultiCategorical(
        name="bought", dtype="int", max_length=4, **{"table": "item", "keep": "last", "ordered": True, **arguments}
    )
    return Schema(
        features=(
            Categorical(name="user", dtype="int"),
            Categorical(name="item", dtype="int"),
            Categorical(name="last_item", dtype="int", table="item"),
            MultiCategorical(name="tags", dtype="int", max_length=3),
            history,
        ),
        labels=FUNNELS["two"],
        split=HashSplit(key="row"),
        fitted=Fitted(tables=dict.fromkeys(["user", "item", "tags", "bought"], IDS)),
    )


def dcrnn(schema: str | Schema = "two", **arguments) -> DCRNN:
    """A small model with biases that are not zero."""
    keras.utils.set_random_seed(4)
    model = DCRNN(schema_of(schema) if isinstance(schema, str) else schema, **{**SMALL, **arguments})
    random = np.random.default_rng(8)
    for variable in model.trainable_variables:
        if "bias" in variable.name:
            variable.assign(random.normal(scale=0.3, size=variable.shape))
    return model


def batch_of(schema: Schema) -> dict[str, np.ndarray]:
    """Random ids and numbers; lists hold two values or more, each once."""
    random = np.random.default_rng(1)
    ids = random.permuted(np.tile(np.arange(IDS), (ROWS, 1)), axis=1).astype("int32")
    batch = {"categorical": random.integers(0, IDS, (ROWS, len(schema.packed_categorical))).astype("int32")}
    if schema.packed_numeric:
        batch["numeric"] = random.normal(size=(ROWS, len(schema.packed_numeric))).astype("float32")
    for multi in schema.multis:
        lengths = random.integers(2, multi.max_length + 1, (ROWS, 1))
        batch[multi.name] = ids[:, : multi.max_length]
        batch[multi.weights_name] = (np.arange(multi.max_length) < lengths).astype("float32")
    return batch


FEATURES, HISTORIES = batch_of(schema_of()), batch_of(history_schema())


def tensors(model, **by_name):
    """The model up to some of its tensors, by name."""
    return keras.Model(model.inputs, by_name)


def logits(model, features) -> dict[str, np.ndarray]:
    heads = {label.name: model.get_layer(f"{label.name}_logit").output for label in model.schema.labels}
    return {label: logit.numpy() for label, logit in tensors(model, **heads)(features).items()}


def readouts(model, features) -> dict[str, np.ndarray]:
    """What each tower reads."""
    inputs = {label.name: model.get_layer(f"{label.name}_tower").input for label in model.schema.labels}
    return {label: x.numpy() for label, x in tensors(model, **inputs)(features).items()}


def names(model, ending: str) -> set[str]:
    """Layers whose name has this ending, without it."""
    return {layer.name.removesuffix(ending) for layer in model.layers if layer.name.endswith(ending)}


def projected(model, features) -> dict[str, np.ndarray]:
    """`P x` of each part, in numpy."""
    layer = model.get_layer("projections")
    x = tensors(model, x=layer.input)(features)["x"].numpy()
    shared = round(model.get_config()["sharing"] * model.get_config()["units"])
    widths = [shared if part == "shared" else model.get_config()["units"] - shared for part in model.parts]
    return dict(zip(model.parts, np.split(x @ layer.kernel.numpy(), np.cumsum(widths)[:-1], axis=1), strict=True))


def tower(model, label: str, x: np.ndarray) -> np.ndarray:
    kernel, bias = model.get_layer(f"{label}_tower").get_weights()
    return np.maximum(x @ kernel + bias, 0.0)


def head(model, label: str, x: np.ndarray) -> np.ndarray:
    kernel, bias = model.get_layer(f"{label}_logit").get_weights()
    return x @ kernel + bias


@pytest.mark.parametrize("sharing", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_logits_are_those_of_the_equations_by_hand(cell, sharing):
    """Products, towers and heads in numpy; the recurrences and the transfer by layers that have tests of their own."""
    model = dcrnn("three", cell=cell, sharing=sharing)
    u, states, shared, found = projected(model, FEATURES), [], [], {}
    if sharing:
        output, *states = model.get_layer("shared_cross")(u["shared"])
        shared = [output]
    for label in model.schema.labels:
        own = shared.copy()
        if sharing < 1.0:
            own.append(model.get_layer(f"{label.name}_cross")([u[label.name], *states]))
        v = tower(model, label.name, np.concatenate(own, axis=1))
        if label.parent:
            v = model.get_layer(f"{label.name}_transfer")((v, found[label.parent])).numpy()
        found[label.name] = v
    for label, logit in logits(model, FEATURES).items():
        np.testing.assert_allclose(logit, head(model, label, found[label]), rtol=1e-4, atol=1e-5)


def test_sharing_everything_is_hard_sharing_of_one_cross_network():
    model = dcrnn(sharing=1.0, gates="open", transfer=False)
    assert names(model, "_cross") == {"shared"}
    assert model.get_layer("click_tower").input is model.get_layer("conversion_tower").input
    layer, u = model.get_layer("shared_cross"), projected(model, FEATURES)["shared"]
    x = u
    for _ in range(3):
        x = u * (x @ layer.state_kernel.numpy()[0] + layer.bias.numpy()[0]) + x
    for label, logit in logits(model, FEATURES).items():
        np.testing.assert_allclose(logit, head(model, label, tower(model, label, x)), rtol=1e-4, atol=1e-5)


def test_sharing_nothing_is_a_cross_network_per_task():
    model = dcrnn(sharing=0.0, transfer=False)
    assert names(model, "_cross") == {"click", "conversion"}
    before = logits(model, FEATURES)
    cross = model.get_layer("conversion_cross")
    cross.set_weights([weight + 0.1 for weight in cross.get_weights()])
    after = logits(model, FEATURES)
    np.testing.assert_array_equal(after["click"], before["click"])
    assert np.mean(after["conversion"] != before["conversion"]) > 0.5


@pytest.mark.parametrize("axis", ["depth", "field"])
def test_every_task_reads_the_same_shared_state(axis):
    """It is computed once: a layer that is called several times has no `output`."""
    model = dcrnn("three", axis=axis)
    shared = tensors(model, shared=model.get_layer("shared_cross").output[0])(FEATURES)["shared"].numpy()
    for x in readouts(model, FEATURES).values():
        np.testing.assert_array_equal(x[:, : shared.shape[1]], shared)


@pytest.mark.parametrize("labels", FUNNELS)
@pytest.mark.parametrize("sharing", [0, 0.25, 0.5, 0.75, 1.0])
def test_parts_have_the_widths_of_the_ratio_for_any_funnel(labels, sharing):
    model = dcrnn(labels, sharing=sharing, steps=1)
    of_tasks = [label.name for label in FUNNELS[labels]] if sharing < 1 else []
    assert model.parts == (["shared"] if sharing else []) + of_tasks
    widths = {part: model.get_layer(f"{part}_cross").bias.shape[1] / 3 for part in model.parts}
    assert widths == {part: 8 * sharing if part == "shared" else 8 * (1 - sharing) for part in model.parts}
    assert names(model, "_transfer") == {label.name for label in FUNNELS[labels] if label.parent}
    for label in FUNNELS[labels]:
        assert model.get_layer(f"{label.name}_tower").input.shape == (None, 8)


def test_transfer_follows_the_funnel_by_name():
    reached = {"click": {"click", "cart", "purchase"}, "like": {"like"}, "cart": {"cart", "purchase"}}
    for transfer in (True, False):
        model = dcrnn("three", transfer=transfer)
        before = logits(model, FEATURES)
        for label in reached:
            bias = model.get_layer(f"{label}_tower").trainable_variables[-1]
            value = bias.numpy()
            bias.assign(value + 1.0)
            moved = {name for name, logit in logits(model, FEATURES).items() if np.any(logit != before[name])}
            assert moved == (reached[label] if transfer else {label})
            bias.assign(value)


def reached_by(model, features, label: str) -> set[str]:
    """Layers with weights that the gradient of a label's logit reaches."""
    graph = tensors(model, logit=model.get_layer(f"{label}_logit").output)
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        logit = tf.reduce_sum(graph(features)["logit"])
    gradients = zip(variables, tape.gradient(logit, [v.value for v in variables]), strict=True)
    return {v.path.split("/")[0] for v, g in gradients if g is not None and np.any(tf.convert_to_tensor(g) != 0)}


@pytest.mark.parametrize("axis", ["depth", "field"])
@pytest.mark.parametrize("transfer", [False, True])
def test_gradients_stay_within_the_own_and_the_shared_part(transfer, axis):
    model = dcrnn(transfer=transfer, axis=axis)
    common = {"embedding_3", "shared_cross"} | ({"projections"} if axis == "depth" else {"numeric_field"})
    click = {"click_cross", "click_tower"}
    conversion = {"conversion_cross", "conversion_tower", "conversion_logit"}
    assert reached_by(model, FEATURES, "click") == common | click | {"click_logit"}
    through = click | {"conversion_transfer"} if transfer else set()
    assert reached_by(model, FEATURES, "conversion") == common | conversion | through


def test_depth_costs_no_parameters_and_a_task_what_its_private_part_says():
    """`d_p D + d_p (5 d_p + 3 d_s) + 3 d_p`, tower and head."""
    assert dcrnn(steps=1).count_params() == dcrnn(steps=5).count_params() < dcrnn(steps=5, tied=False).count_params()
    for sharing, shared, private in ((0.25, 2, 6), (0.75, 6, 2)):
        two, one = (dcrnn(labels, sharing=sharing).count_params() for labels in ("none", "single"))
        cross = private * (FIELDS * 3 + 1) + private * (5 * private + 3 * shared) + 3 * private
        assert two - one == cross + (8 * 5 + 5) + (5 + 1)


def test_positives_weigh_as_asked():
    model = dcrnn("three", pos_weight=(200.0, 30.0), label_space="ctcvr")
    for label in model.schema.labels:
        model.get_layer(f"{label.name}_logit").set_weights([np.zeros((5, 1)), np.zeros(1)])
    losses, predictions, ones = model.default_losses(), model(FEATURES), np.ones((ROWS, 1), "float32")
    trained = {"click": 200.0, "like": 200.0, "joint_cart": 30.0, "joint_purchase": 30.0}
    assert {task for task, loss in losses.items() if loss is not None} == set(trained)
    for task, weight in trained.items():
        np.testing.assert_allclose(losses[task](ones, predictions[task]), weight * np.log(2.0), rtol=1e-6)
        np.testing.assert_allclose(losses[task](0 * ones, predictions[task]), np.log(2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (schema_of("two"), {"axis": "field", "label_space": "esmm_product", "input_filter": 6}),
        (schema_of("two"), {"axis": "task", "label_space": "cvr_clicked", "cell": "lstm"}),
        (schema_of("none"), {"axis": "task", "label_space": "ctcvr", "sharing": 1.0}),
        (history_schema(), {"label_space": "ctcvr", "cell": "vanilla", "tied": False, "input_filter": 6}),
        (history_schema(), {"axis": "field", "histories": ["bought:user"], "cell": "lstm", "sharing": 1}),
    ],
)
def test_other_settings_predict_train_and_are_saved(schema, arguments, tmp_path):
    model, features = dcrnn(schema, **arguments), batch_of(schema)
    predicted = model.predict(features, batch_size=40, verbose=0)
    for task, p in model(features).items():
        np.testing.assert_allclose(predicted[task], p, rtol=1e-5)
    model.compile(weighted_metrics=None, run_eagerly=True)
    ones = {task.name: np.ones((ROWS, 1), "float32") for task in model.tasks}
    logs = [model.train_on_batch(features, ones, sample_weight=ones, return_dict=True) for _ in range(3)]
    assert logs[-1]["loss"] < logs[0]["loss"]
    model.save(tmp_path / "dcrnn.keras")
    loaded = keras.models.load_model(tmp_path / "dcrnn.keras")
    assert loaded.get_config() == model.get_config()
    for task, p in model(features).items():
        np.testing.assert_array_equal(loaded(features)[task], p)


def test_tasks_read_their_own_step_along_the_funnel():
    model = dcrnn("three", axis="task")
    walked = tensors(model, walked=model.get_layer("along_funnel").output)(FEATURES)["walked"].numpy()
    places = {}
    for label, x in readouts(model, FEATURES).items():
        same = [i for i in range(4) if np.array_equal(x[:, :4], walked[:, i])]
        assert len(same) == 1
        places[label] = same[0]
    assert sorted(places.values()) == [0, 1, 2, 3]
    assert places["click"] < places["cart"] < places["purchase"]


def test_a_filter_that_lets_nothing_in_leaves_nothing_to_tell_rows_apart():
    model = dcrnn(input_filter=6)
    model.get_layer("input_filter").factors.bias.assign(np.full(FIELDS * 3 + 1, -60.0))
    for logit in logits(model, FEATURES).values():
        np.testing.assert_allclose(logit, np.broadcast_to(logit[0], (ROWS, 1)), rtol=1e-6)


@pytest.mark.parametrize(("cell", "sharing"), [("gru", 0.5), ("lstm", 1.0)])
def test_update_gates_start_as_asked(cell, sharing):
    model = DCRNN(schema_of(), **{**SMALL, "cell": cell, "sharing": sharing, "gate_bias": 1.5})
    for part in model.parts:
        for kernel in [weight for weight in model.get_layer(f"{part}_cross").weights if weight.name != "bias"]:
            kernel.assign(ops.zeros_like(kernel))
    for gate in itertools.chain(*model.update_gates(FEATURES).values()):
        np.testing.assert_allclose(gate, np.full(gate.shape, 1.0 / (1.0 + np.exp(-1.5))), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("sharing", [0.0, 0.25, 1.0])
def test_update_gates_are_the_layers_own(sharing, dtype):
    model = dcrnn(sharing=sharing, dtype=dtype, dropout=0.3)
    gates = model.update_gates(FEATURES)
    assert list(gates) == model.parts
    u, states = projected(model, FEATURES), []
    for part in model.parts:
        layer = model.get_layer(f"{part}_cross")
        expected = layer.update_gates([u[part], *states])
        states = layer(u[part])[1:] if part == "shared" else states
        for gate, own in zip(gates[part], expected, strict=True):
            assert gate.dtype == "float32"
            assert gate.shape == u[part].shape
            np.testing.assert_allclose(gate, own, rtol=1e-5 if dtype == "float32" else 0.02)


def test_update_gates_over_fields_have_a_step_per_field():
    assert [len(steps) for steps in dcrnn(axis="field").update_gates(FEATURES).values()] == [FIELDS + 1] * 3
    model = dcrnn(history_schema(), axis="field")
    # Three single values, two pooled lists, and what was read of the one in order.
    assert [len(steps) for steps in model.update_gates(HISTORIES).values()] == [6] * 3
    with pytest.raises(ValueError, match="no gates to look at"):
        dcrnn(cell="vanilla").update_gates(FEATURES)


def test_transfer_weights_are_the_layers_attention():
    model = dcrnn("three")
    weights = model.transfer_weights(FEATURES)
    assert list(weights) == ["cart", "purchase"]
    own = {label: tower(model, label, x) for label, x in readouts(model, FEATURES).items()}
    expected = model.get_layer("cart_transfer").attention((own["cart"], own["click"]))
    np.testing.assert_allclose(weights["cart"], expected, rtol=1e-4)
    for without in (dcrnn("three", transfer=False), dcrnn("none")):
        assert without.transfer_weights(FEATURES) == {}


@pytest.mark.parametrize("axis", ["depth", "field", "task"])
def test_the_order_of_a_history_matters_where_it_is_read(axis):
    full = {**HISTORIES, "bought_weights": np.ones((ROWS, 4), "float32")}
    back = {**full, "bought": full["bought"][:, ::-1]}
    read, pooled = dcrnn(history_schema(), axis=axis), dcrnn(history_schema(), axis=axis, histories=())
    assert names(read, "_history") == {"bought"}
    assert names(pooled, "_history") == set()
    for label in ("click", "conversion"):
        assert np.mean(logits(read, full)[label] != logits(read, back)[label]) > 0.5
        np.testing.assert_allclose(logits(pooled, full)[label], logits(pooled, back)[label], rtol=1e-4, atol=1e-6)


def test_what_stands_at_the_padding_of_a_history_does_not_matter():
    model = dcrnn(history_schema())
    other = {**HISTORIES, "bought": np.where(HISTORIES["bought_weights"] == 0, 7, HISTORIES["bought"])}
    assert np.any(other["bought"] != HISTORIES["bought"])
    for label, logit in logits(model, other).items():
        np.testing.assert_array_equal(logit, logits(model, HISTORIES)[label])


def test_a_small_weight_is_no_padding_in_half_precision():
    model = dcrnn(history_schema(), dtype="mixed_float16")
    read = tensors(model, read=model.get_layer("bought_history").output)
    small = {**HISTORIES, "bought_weights": (HISTORIES["bought_weights"] > 0).astype("float32") * np.float32(1e-8)}
    np.testing.assert_array_equal(read(small)["read"], read(HISTORIES)["read"])


@pytest.mark.parametrize(
    ("given", "candidate"), [("ordered", 1), (["bought"], 1), ("bought:last_item", 2), (["bought:user"], 0)]
)
def test_a_history_is_crossed_with_the_feature_that_is_named(given, candidate):
    """By default with the first one of the same table; columns are user, item and last item."""
    model = dcrnn(history_schema(), histories=given)
    assert model.get_config()["histories"] == given
    graph = tensors(model, read=model.get_layer("bought_history").output)
    before = graph(HISTORIES)["read"].numpy()
    assert before.shape == (ROWS, 4 + 3)
    for column in range(3):
        moved = HISTORIES["categorical"].copy()
        moved[:, column] = (moved[:, column] + 1) % IDS
        after = graph({**HISTORIES, "categorical": moved})["read"].numpy()
        assert np.any(after != before) == (column == candidate)


@pytest.mark.parametrize(
    ("schema", "given", "message"),
    [
        ({}, ["basket"], "'basket' is no multi-valued feature; there are tags, bought"),
        ({}, "tags:user", "'tags' has no order; declare `ordered: true`"),
        ({"ordered": False}, ["bought:item"], "'bought' has no order"),
        ({}, ["bought:user", "bought:item"], "'bought' is there twice"),
        ({}, ["bought:price"], "'price' is no single-valued feature; there are user, item, last_item"),
        ({"table": None}, "ordered", "no single-valued feature shares the table 'bought' of 'bought'.*bought:FEATURE"),
    ],
)
def test_a_history_that_cannot_be_read_is_refused(schema, given, message):
    with pytest.raises(ValueError, match=message):
        dcrnn(history_schema(**schema), histories=given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": "sequence"}, "axis must be one of depth, field, task, is 'sequence'"),
        ({"sharing": 1.5}, "sharing must be a number from 0 .* to 1 .*, is 1.5"),
        ({"sharing": True}, "sharing must be a number from 0 .*, is True"),
        ({"sharing": 0.01}, "units=8 with sharing=0.01 leaves nothing to one of the two parts"),
        ({"axis": "task", "sharing": 0.0}, "sharing must be above 0"),
        ({"axis": "field", "gates": "open"}, "gates='open' and tied=True are for axis='depth'"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        dcrnn(**arguments)


def test_schemas_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a label cannot be called 'shared'"):
        dcrnn(small_schema((Label(name="shared"),), FIELDS))
    schema = schema_of()
    wide = schema.features[0].model_copy(update={"embedding_dim": 5})
    mixed = schema.model_copy(update={"features": (wide, *schema.features[1:])})
    numbers = schema.model_copy(update={"features": schema.features[FIELDS:]})
    with pytest.raises(ValueError, match="axis='field' needs embeddings, all of one width; the widths are: 5, 3"):
        dcrnn(mixed, axis="field")
    with pytest.raises(ValueError, match="widths are: none"):
        dcrnn(numbers, axis="field")
