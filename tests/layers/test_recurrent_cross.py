"""Recurrent crosses against numpy, keras's cells and other cross networks; padding, gradients, precision, saving."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import GatedCross, RecurrentCross

RNG = np.random.default_rng(0)
CELLS = ("gru", "lstm", "vanilla")
ORDER = {"gru": ("reset", "update"), "lstm": ("input", "forget", "output"), "vanilla": ()}
U = RNG.normal(size=(6, 5)).astype("float32")
STATES = list(RNG.normal(size=(3, 6, 4)).astype("float32"))
FIELDS = RNG.normal(size=(6, 4, 3)).astype("float32")
FIELD_STATES = list(RNG.normal(size=(4, 6, 2)).astype("float32"))
CANDIDATE = RNG.normal(size=(6, 2)).astype("float32")
# Full lists, padding in the middle, in front and at the end, one value, none.
WEIGHTS = [[1, 1, 1, 1], [1, 0, 0, 1], [0, 0.3, 2, 7], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
WEIGHTS = np.array(WEIGHTS, "float32")
KINDS = {
    "depth": ({}, U),
    "depth that reads": ({"tied": False}, [U, *STATES]),
    "open": ({"gates": "open"}, U),
    "field": ({"axis": "field", "units": 5}, FIELDS),
    "field that reads": ({"axis": "field", "units": 5}, [FIELDS, *FIELD_STATES]),
    "sequence": ({"axis": "sequence", "units": 5}, [FIELDS, WEIGHTS, CANDIDATE]),
    "task": ({"axis": "task", "steps": 3}, U),
}


def randomised(layer: RecurrentCross, inputs) -> RecurrentCross:
    """The layer, built, with random weights, biases too."""
    layer(inputs)
    layer.set_weights([RNG.normal(scale=0.4, size=weight.shape) for weight in layer.weights])
    return layer


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def by_gate(layer: RecurrentCross, name: str, place: int = 0) -> dict[str, np.ndarray]:
    """A weight of one step, cut into those of gates and candidate; empty if the layer has none of that name."""
    if not hasattr(layer, name):
        return {}
    value = getattr(layer, name).numpy()
    value = value[place if len(value) > 1 else 0]
    gates = ORDER[layer.cell] if layer.gates == "learned" else ()
    names = gates if name == "input_kernel" and layer.axis == "depth" else (*gates, "candidate")
    return dict(zip(names, np.split(value, len(names), axis=-1), strict=True))


def step_by_formula(layer, place, read, h, c, cross=None):
    """Hidden state, memory and update gate behind a step; `read`: by kernel what it is multiplied with."""

    def sums(gate, state):
        found = by_gate(layer, "bias", place)[gate] + state @ by_gate(layer, "state_kernel", place)[gate]
        for kernel, value in read.items():
            if gate in (parts := by_gate(layer, kernel, place)):
                found = found + value @ parts[gate]
        return found

    def opened(gate):
        return sigmoid(sums(gate, h)) if layer.gates == "learned" else np.ones_like(h)

    if layer.cell == "gru":
        z, candidate = opened("update"), sums("candidate", opened("reset") * h)
        h = (1 - z) * h + z * (np.tanh(candidate) if cross is None else h + cross * candidate)
        return h, h, z
    candidate = sums("candidate", h)
    if layer.cell == "lstm":
        i = opened("input")
        c = opened("forget") * c + i * (np.tanh(candidate) if cross is None else cross * candidate)
        return opened("output") * np.tanh(c), c, i
    h = np.tanh(candidate if cross is None else cross * candidate + h)
    return h, h, None


def steps_by_formula(layer, u, contexts=()):
    """Over depth or tasks: states `[steps + 1][B, d]` and update gates `[steps][B, d]`."""
    h, c, states, gates = u, u, [u], []
    for i in range(layer.steps):
        read = {"input_kernel": u} | ({"context_kernel": contexts[i]} if len(contexts) else {})
        h, c, z = step_by_formula(layer, i, read, h, c, cross=u if layer.axis == "depth" else None)
        states.append(h)
        gates.append(z)
    return states, gates


def row_by_formula(layer, items, contexts=(), candidate=None):
    """Output, states and update gates of one row, `items` `[n, e]` without padding."""
    h = c = np.zeros(layer.units)
    states, gates, products = [h], [], []
    for i, item in enumerate(items):
        right = h @ layer.cross_kernel.numpy()[0]
        if candidate is not None:
            right = right + candidate @ layer.candidate_kernel.numpy()[0]
        products.append(item * right)
        read = {"input_kernel": item, "product_kernel": products[-1]}
        read |= {"context_kernel": contexts[i]} if len(contexts) else {}
        h, c, z = step_by_formula(layer, 0, read, h, c)
        states.append(h)
        gates.append(z)
    mean = np.mean(products, axis=0) if products else np.zeros(items.shape[1])
    return np.concatenate([h, mean]), states, gates


def assert_close(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("gates", ["learned", "open"])
@pytest.mark.parametrize("cell", CELLS)
def test_depth_by_its_formula(cell, gates, reads, tied):
    inputs = [U, *STATES] if reads else U
    layer = randomised(RecurrentCross(cell=cell, gates=gates, tied=tied, return_states=True), inputs)
    output, *states = layer(inputs)
    expected, expected_gates = steps_by_formula(layer, U, STATES if reads else ())
    assert_close([*states, output], expected)
    if gates == "learned" and cell != "vanilla":
        found = np.array(layer.update_gates(inputs))
        assert_close(found, expected_gates)
        assert np.all((found > 0) & (found < 1))


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("kind", ["field", "field that reads", "sequence"])
@pytest.mark.parametrize("cell", CELLS)
def test_fields_and_lists_by_their_formula_without_the_padding(cell, kind, in_graph):
    arguments, inputs = KINDS[kind]
    layer = randomised(RecurrentCross(cell=cell, return_states=True, **arguments), inputs)
    output, *states = (tf.function(layer) if in_graph else layer)(inputs)
    for row in range(6):
        there = WEIGHTS[row] > 0 if kind == "sequence" else np.full(4, True)
        contexts = [state[row] for state in FIELD_STATES] if kind == "field that reads" else ()
        candidate = CANDIDATE[row] if kind == "sequence" else None
        expected, expected_states, expected_gates = row_by_formula(layer, FIELDS[row][there], contexts, candidate)
        assert_close(output[row], expected)
        assert_close([state[row] for state in states], np.array(expected_states)[np.cumsum(there) - there])
        if cell != "vanilla":
            gates = np.array(layer.update_gates(inputs))[:, row]
            assert_close(gates[there], np.reshape(expected_gates, (-1, 5)))
            np.testing.assert_array_equal(gates[~there], 0.0)


@pytest.mark.parametrize("cell", CELLS)
def test_tasks_by_their_formula(cell):
    layer = randomised(RecurrentCross(axis="task", cell=cell, steps=3), U)
    states, gates = steps_by_formula(layer, U)
    assert_close(layer(U), np.stack(states[1:], axis=1))
    if cell != "vanilla":
        assert_close(layer.update_gates(U), gates)


@pytest.mark.parametrize("cell", CELLS)
def test_tasks_are_steps_of_keras_own_cells(cell):
    """Keras's update gate is the share of the old state that stays: ours with the opposite sign."""
    layer = randomised(RecurrentCross(axis="task", cell=cell, steps=3), U)
    kinds = {"gru": keras.layers.GRUCell, "lstm": keras.layers.LSTMCell, "vanilla": keras.layers.SimpleRNNCell}
    order = {"gru": ("update", "reset", "candidate"), "lstm": ("input", "forget", "candidate", "output")}
    states = [U] * (2 if cell == "lstm" else 1)
    for task, expected in enumerate(np.moveaxis(layer(U).numpy(), 1, 0)):
        own = kinds[cell](5, **({"reset_after": False} if cell == "gru" else {}))
        own.build(U.shape)
        weights = []
        for name in ("input_kernel", "state_kernel", "bias"):
            parts = by_gate(layer, name, task)
            parts |= {"update": -parts["update"]} if cell == "gru" else {}
            weights.append(np.concatenate([parts[gate] for gate in order.get(cell, ("candidate",))], axis=-1))
        own.set_weights(weights)
        hidden, states = own(U, states)
        np.testing.assert_allclose(expected, hidden, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_with_open_gates_it_is_dcn_v2_tied_over_depth(steps):
    layer = randomised(RecurrentCross(gates="open", steps=steps), U)
    w, b = layer.state_kernel.numpy()[0], layer.bias.numpy()[0]
    x = U
    for _ in range(steps):
        x = U * (x @ w + b) + x
    np.testing.assert_allclose(layer(U), x, rtol=1e-4, atol=1e-5)
    learned = randomised(RecurrentCross(steps=steps), U)
    learned.input_kernel.assign(np.zeros((1, 5, 10)))
    learned.state_kernel.assign(np.concatenate([np.zeros((1, 5, 10)), w[None]], axis=2))
    learned.bias.assign(np.concatenate([np.full((1, 10), 40.0), b[None]], axis=1))
    np.testing.assert_array_equal(learned(U), layer(U))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_a_gate_on_the_state_alone_it_is_the_gated_cross_of_gdcn(steps):
    layer = randomised(RecurrentCross(steps=steps), U)
    cross_kernel, gate_kernel, bias = RNG.normal(size=(5, 5)), RNG.normal(size=(5, 5)), RNG.normal(size=5)
    layer.input_kernel.assign(np.zeros((1, 5, 10)))
    layer.state_kernel.assign(np.concatenate([np.zeros((5, 5)), gate_kernel, cross_kernel], axis=1)[None])
    layer.bias.assign(np.concatenate([np.full(5, 40.0), np.zeros(5), bias])[None])
    cross = GatedCross()
    cross.build((None, 5))
    cross.set_weights([np.concatenate([cross_kernel, gate_kernel], axis=1), bias])
    x = U
    for _ in range(steps):
        x = cross((U, x))
    np.testing.assert_allclose(layer(U), x, rtol=1e-4, atol=1e-5)


def parameters(steps: int, reads: int = 0, **arguments) -> int:
    layer = RecurrentCross(steps=steps, **arguments)
    layer.build([(None, 6), *[(None, reads)] * (steps if reads else 0)])
    return layer.count_params()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reads", [0, 4])
def test_depth_costs_parameters_only_where_weights_are_not_tied(reads, cell):
    one = parameters(1, reads=reads, cell=cell)
    for steps in (3, 8):
        assert parameters(steps, reads=reads, cell=cell) == one
        assert parameters(steps, reads=reads, cell=cell, tied=False) == steps * one


def test_number_of_parameters():
    assert parameters(3, reads=4) == 5 * 6**2 + 3 * 4 * 6 + 3 * 6
    assert parameters(3) == 5 * 6**2 + 3 * 6
    assert parameters(3, gates="open") == parameters(3, cell="vanilla") == 6**2 + 6
    assert parameters(3, cell="lstm") == 7 * 6**2 + 4 * 6
    assert parameters(4, axis="task") - parameters(3, axis="task") == 3 * 6  # a task costs its vector tau


@pytest.mark.parametrize("cell", CELLS)
def test_who_reads_is_moved_by_the_shared_weights_and_does_not_move_them(cell):
    shared = randomised(RecurrentCross(cell=cell, return_states=True), U)
    own = RNG.normal(size=(6, 4)).astype("float32")
    private = randomised(RecurrentCross(cell=cell), [own, *shared(U)[1:]])
    with tf.GradientTape(persistent=True) as tape:
        output, *states = shared(U)
        read = private([own, *states])
    shared_weights, private_weights = ([w.value for w in layer.weights] for layer in (shared, private))
    assert all(np.all(gradient != 0) for gradient in tape.gradient(read, private_weights))
    assert all(np.any(gradient != 0) for gradient in tape.gradient(read, shared_weights))
    assert all(np.all(gradient != 0) for gradient in tape.gradient(read, states))
    assert tape.gradient(output, private_weights) == [None] * len(private_weights)


# GRU's product of nine inputs of scale 3 does not fit into float16.
RANGES = [("float32", 1.0), ("float32", 3.0), ("mixed_bfloat16", 1.0), ("mixed_bfloat16", 3.0), ("mixed_float16", 1.0)]


@pytest.mark.parametrize(("policy", "scale"), RANGES)
@pytest.mark.parametrize("cell", CELLS)
def test_depth_eight_starts_finite(cell, policy, scale):
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    u, own = (tf.constant(scale * random.normal(size=(64, width)), "float32") for width in (32, 16))
    shared = RecurrentCross(steps=8, cell=cell, return_states=True, dtype=policy)
    private = RecurrentCross(steps=8, cell=cell, dtype=policy)
    with tf.GradientTape() as tape:
        tape.watch([u, own])
        output, *states = shared(u)
        read = private([own, *states])
        loss = sum(tf.reduce_mean(tf.cast(x, "float32")) for x in (output, read))
    for x in (output, read, *tape.gradient(loss, [w.value for w in (*shared.weights, *private.weights)] + [u, own])):
        assert np.all(np.isfinite(tf.cast(x, "float32")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, cell, kind):
    arguments, inputs = KINDS[kind]
    exact = randomised(RecurrentCross(cell=cell, **arguments), inputs)
    layer = RecurrentCross(cell=cell, **arguments, return_states=True, dtype=policy)
    layer(inputs)
    layer.set_weights(exact.get_weights())
    outputs = layer(inputs)
    assert {out.dtype.name for out in outputs} == {policy.removeprefix("mixed_")}
    assert all(weight.dtype == "float32" for weight in layer.weights)
    if cell != "vanilla" and kind != "open":
        half = tf.nest.map_structure(lambda x: tf.cast(x, layer.compute_dtype), inputs)
        assert {gate.dtype.name for gate in layer.update_gates(half)} == {"float32"}
    expected = exact(inputs)
    np.testing.assert_allclose(tf.cast(outputs[0], "float32"), expected, atol=0.05 * np.max(np.abs(expected)))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_mask_may_be_boolean(policy):
    layer = RecurrentCross(axis="sequence", units=5, dtype=policy)
    np.testing.assert_array_equal(
        layer([FIELDS, WEIGHTS > 0, CANDIDATE]), layer([FIELDS, (WEIGHTS > 0).astype("float32"), CANDIDATE])
    )


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_at_the_padding_matters_and_nothing_reaches_it(cell):
    layer = randomised(RecurrentCross(axis="sequence", cell=cell, units=5), [FIELDS, WEIGHTS, CANDIDATE])
    items = tf.constant(FIELDS)
    with tf.GradientTape() as tape:
        tape.watch(items)
        output = layer([items, WEIGHTS, CANDIDATE])
    gradient = tape.gradient(output, items).numpy()
    assert np.all(gradient[WEIGHTS == 0] == 0)
    assert np.all(gradient[WEIGHTS > 0] != 0)
    other = np.where(WEIGHTS[:, :, None] > 0, FIELDS, 1e3 * RNG.normal(size=FIELDS.shape)).astype("float32")
    np.testing.assert_array_equal(layer([other, WEIGHTS, CANDIDATE]), output)
    np.testing.assert_array_equal(layer([items, 5.0 * WEIGHTS, CANDIDATE]), output)
    np.testing.assert_array_equal(output[5], np.zeros(8))  # the empty list


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ["field", "sequence"])
def test_order_matters(kind, cell):
    arguments, inputs = KINDS[kind]
    layer = randomised(RecurrentCross(cell=cell, **arguments), inputs)
    rest = [np.ones((6, 4), "float32"), CANDIDATE] if kind == "sequence" else []
    there, back = (layer([items, *rest]) for items in (FIELDS, FIELDS[:, ::-1]))
    assert np.all(np.max(np.abs(there - back), axis=1) > 1e-3)


@pytest.mark.parametrize("arguments", [{"cell": "vanilla"}, {"gates": "open"}])
def test_without_gates_there_are_none_to_show(arguments):
    with pytest.raises(ValueError, match=r"cell '.*' with gates='.*' has no gates to look at"):
        RecurrentCross(**arguments).update_gates(U)


@pytest.mark.parametrize("axis", ["depth", "field", "task"])
def test_biases_start_as_declared_and_kernels_different_with_their_own_fans(axis):
    arguments = {"steps": 2} if axis != "field" else {"units": 40}
    seeded = keras.initializers.GlorotUniform(seed=3)
    layer = RecurrentCross(axis=axis, cell="lstm", kernel_initializer=seeded, **arguments)
    layer.build((None, 4, 40) if axis == "field" else (None, 40))
    starts = {gate: np.unique(value).tolist() for gate, value in by_gate(layer, "bias").items()}
    input_gate, forget, output = (3.0, 3.0, 3.0) if axis == "depth" else (0.0, 1.0, 0.0)
    assert starts == {"input": [input_gate], "forget": [forget], "output": [output], "candidate": [0.0]}
    names = ("input_kernel", "product_kernel", "state_kernel")
    kernels = [part for name in names for part in by_gate(layer, name).values()]
    for i, kernel in enumerate(kernels):
        assert 0.95 * np.sqrt(6 / 80) < np.max(np.abs(kernel)) <= np.sqrt(6 / 80)
        assert all(np.any(kernel != other) for other in kernels[:i])


@pytest.mark.parametrize("kind", KINDS)
def test_save_load_and_batches_of_any_size(kind, tmp_path):
    arguments, inputs = KINDS[kind]
    others = {"cell": "lstm", "return_states": True, "gate_bias": -2.0, "kernel_initializer": "he_normal"}
    arguments = {**arguments, **others}
    inputs = inputs if isinstance(inputs, list) else [inputs]
    layer = RecurrentCross(**arguments)
    symbolic = [keras.Input(x.shape[1:]) for x in inputs]
    model = keras.Model(symbolic, layer(symbolic if len(inputs) > 1 else symbolic[0]))
    eager = model(inputs)
    shapes = layer.compute_output_shape([x.shape for x in inputs])
    assert [tuple(x.shape) for x in eager] == shapes == [(6, *x.shape[1:]) for x in model.outputs]
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.layers[-1].get_config() == layer.get_config()
    given = {**arguments, "kernel_initializer": keras.initializers.serialize(layer.kernel_initializer)}
    assert {key: layer.get_config()[key] for key in given} == given
    in_graph = tf.function(model, input_signature=[[tf.TensorSpec((None, *x.shape[1:])) for x in inputs]])
    predicted = model.predict(inputs, batch_size=4, verbose=0)
    for own, *others in zip(eager, again(inputs), in_graph(inputs), predicted, strict=True):
        for other in others:
            np.testing.assert_allclose(other, own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": "time"}, "axis must be one of depth, field, sequence, task, is 'time'"),
        ({"cell": "rnn"}, "cell must be one of gru, lstm, vanilla, is 'rnn'"),
        ({"gates": "shut"}, "gates must be 'learned' or 'open', is 'shut'"),
        ({"axis": "task", "steps": 2, "gates": "open"}, "gates='open' and tied=True are for axis='depth'"),
        ({"axis": "field", "units": 5, "tied": False}, "tied=False are for axis='depth', the axis is 'field'"),
        ({"units": 5}, "units=5: the axes 'field' and 'sequence' need it, the axis is 'depth'"),
        ({"axis": "task"}, "axis='task' needs steps, the number of tasks"),
        ({"steps": 0}, "steps.*0"),
        ({"axis": "field", "units": 5, "steps": 3}, "steps=3: over axis 'field' the input says how many"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RecurrentCross(**arguments)


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("depth", FIELDS, r"axis 'depth' needs an input \[batch, width\] of known sizes, has \(6, 4, 3\)"),
        ("field", U, r"axis 'field' needs an input \[batch, items, width\] of known sizes, has \(6, 5\)"),
        ("depth", [U, *STATES[:2]], "must read one state per step, 3, is given 2"),
        ("field", [FIELDS, *STATES], "must read one state per step, 4, is given 3"),
        ("task", [U, *STATES], "axis 'task' has one input, is given 4"),
        ("sequence", FIELDS, r"needs \[items \[batch, S, e\], mask \[batch, S\], candidate \[batch, c\]\]"),
        ("sequence", [FIELDS, WEIGHTS[:, :3], CANDIDATE], r"has the shapes \[\(6, 4, 3\), \(6, 3\), \(6, 2\)\]"),
    ],
)
def test_other_inputs_are_refused(kind, inputs, message):
    with pytest.raises(ValueError, match=message):
        RecurrentCross(**KINDS[kind][0])(inputs)
