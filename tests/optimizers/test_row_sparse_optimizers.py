"""LazyAdam and RowSparseAdagrad: equal to Keras where dense, to a numpy reference where row-sparse."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import EmbeddingTable, Probability
from mtlzoo.losses import BinaryCrossentropy
from mtlzoo.optimizers import LazyAdam, RowSparseAdagrad, RowSparseLossScaleOptimizer

PAIRS = [(LazyAdam, keras.optimizers.Adam), (RowSparseAdagrad, keras.optimizers.Adagrad)]
OURS = [LazyAdam, RowSparseAdagrad]
ROWS, WIDTH = 6, 3


def table(seed: int = 0) -> keras.Variable:
    return keras.Variable(np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype("float32"))


def slices(ids, values) -> tf.IndexedSlices:
    values = tf.reshape(tf.constant(values, tf.float32), (len(ids), WIDTH))
    return tf.IndexedSlices(values, tf.constant(ids, tf.int32), tf.constant([ROWS, WIDTH], tf.int64))


def random_steps(count: int, ids_per_step: int = 5, seed: int = 1):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, ROWS, ids_per_step), rng.normal(size=(ids_per_step, WIDTH))) for _ in range(count)]


def dense(ids, values) -> np.ndarray:
    gradient = np.zeros((ROWS, WIDTH), "float32")
    np.add.at(gradient, ids, values)
    return gradient


class NumpyLazyAdam:
    def __init__(self, w, lr, b1=0.9, b2=0.999, eps=1e-7, sum_before_squaring=False):
        self.w, self.m, self.v, self.t = w.astype("float64"), np.zeros(w.shape), np.zeros(w.shape), 0
        self.lr, self.b1, self.b2, self.eps = lr, b1, b2, eps
        self.sum_before_squaring = sum_before_squaring

    def step(self, ids, values):
        self.t += 1
        g, squares = (dense(ids, x).astype("float64") for x in (values, values**2))
        self.move(set(ids), g, g**2 if self.sum_before_squaring else squares)

    def move(self, places, g, squares):
        rate = self.lr * np.sqrt(1 - self.b2**self.t) / (1 - self.b1**self.t)
        for i in places:
            self.m[i] = self.b1 * self.m[i] + (1 - self.b1) * g[i]
            self.v[i] = self.b2 * self.v[i] + (1 - self.b2) * squares[i]
            self.w[i] -= rate * self.m[i] / (np.sqrt(self.v[i]) + self.eps)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"clipnorm": 0.5}, {"use_ema": True}])
def test_dense_gradients_are_keras_s_own_step(ours, theirs, options):
    a, b = table(), table()
    ours, theirs = ours(0.05, **options), theirs(0.05, **options)
    for ids, values in random_steps(30):
        gradient = tf.constant(dense(ids, values))
        ours.apply([gradient], [a])
        theirs.apply([gradient], [b])
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-7)
    for x, y in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("sum_before_squaring", [False, True])
def test_lazy_adam_against_numpy_with_repeated_ids(in_graph, sum_before_squaring):
    variable, optimizer = table(), LazyAdam(0.05, sum_before_squaring=sum_before_squaring)
    reference = NumpyLazyAdam(variable.numpy(), 0.05, sum_before_squaring=sum_before_squaring)
    optimizer.build([variable])

    def apply(ids, values):
        optimizer.apply([tf.IndexedSlices(values, ids, tf.constant([ROWS, WIDTH]))], [variable])

    apply = tf.function(apply) if in_graph else apply
    for ids, values in random_steps(25):
        apply(tf.constant(ids), tf.constant(values, tf.float32))
        reference.step(ids, values)
    np.testing.assert_allclose(variable.numpy(), reference.w, atol=1e-5)  # float32 rounds 1 - beta_2^t


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    "options",
    [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.3}, {"weight_decay": 0.1}, {"use_ema": True}],
)
def test_when_every_row_is_touched_it_is_keras_s_step_on_the_dense_gradient(ours, theirs, options):
    a, b = table(), table()
    ours, theirs = ours(0.05, sum_before_squaring=True, **options), theirs(0.05, **options)
    for _, values in random_steps(20, ids_per_step=2 * ROWS):
        ids = [*range(ROWS), *range(ROWS)]  # each row twice: clipping must see the sum
        ours.apply([slices(ids, values)], [a])
        theirs.apply([tf.constant(dense(ids, values))], [b])
    ours.finalize_variable_values([a])
    theirs.finalize_variable_values([b])
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_when_every_row_is_touched_it_is_keras_s_step_on_the_row_sparse_gradient(ours, theirs):
    """Keras squares occurrence by occurrence."""
    a, b = table(), table()
    ours, theirs = ours(0.05), theirs(0.05)
    for _, values in random_steps(20, ids_per_step=2 * ROWS):
        gradient = slices([*range(ROWS), *range(ROWS)], values)
        ours.apply([gradient], [a])
        theirs.apply([gradient], [b])
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm"])
def test_clipping_by_a_norm_scales_occurrences_by_what_the_summed_gradient_needs(ours, option):
    clipped, scaled = table(), table()
    ids, ((_, values),) = [0, 2, 2, 2], random_steps(1, ids_per_step=4)
    norm = np.linalg.norm(dense(ids, values))
    ours(0.05, **{option: norm / 4}).apply([slices(ids, values)], [clipped])
    ours(0.05).apply([slices(ids, values / 4)], [scaled])
    np.testing.assert_allclose(clipped.numpy(), scaled.numpy(), rtol=1e-6)
    assert np.any(clipped.numpy() != table().numpy())


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm"])
def test_a_gradient_of_zeros_survives_clipping_by_a_norm(ours, option):
    variable = table()
    ours(0.05, **{option: 1.0}).apply([slices([1, 1], np.zeros((2, WIDTH)))], [variable])
    np.testing.assert_array_equal(variable.numpy(), table().numpy())


@pytest.mark.parametrize("sum_before_squaring", [False, True])
def test_adagrad_on_some_rows_is_keras_s_step(sum_before_squaring):
    a, b = table(), table()
    ours = RowSparseAdagrad(0.05, sum_before_squaring=sum_before_squaring)
    theirs = keras.optimizers.Adagrad(0.05)
    for ids, values in random_steps(20, ids_per_step=3):
        ours.apply([slices(ids, values)], [a])
        theirs.apply([tf.constant(dense(ids, values)) if sum_before_squaring else slices(ids, values)], [b])
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("sum_before_squaring", "squares"), [(False, 1.0 + 4.0), (True, 9.0)])
def test_first_adagrad_step_by_hand(sum_before_squaring, squares):
    variable = keras.Variable(np.ones((ROWS, WIDTH), "float32"))
    optimizer = RowSparseAdagrad(0.5, 0.0, epsilon=0.0, sum_before_squaring=sum_before_squaring)
    optimizer.apply([slices([2, 2], [[1.0] * WIDTH, [2.0] * WIDTH])], [variable])
    np.testing.assert_allclose(variable.numpy()[:, 0], [1, 1, 1 - 0.5 * 3 / np.sqrt(squares), 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"clipnorm": 0.5}])
def test_untouched_rows_keep_weights_and_state(ours, options):
    variable, optimizer = table(), ours(0.05, **options)
    optimizer.apply([slices([0, 1], np.ones((2, WIDTH)))], [variable])
    before = [v.numpy() for v in [variable, *optimizer.variables] if v.shape == (ROWS, WIDTH)]
    optimizer.apply([slices([0, 3], np.ones((2, WIDTH)))], [variable])
    after = [v.numpy() for v in [variable, *optimizer.variables] if v.shape == (ROWS, WIDTH)]
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x[[1, 2, 4, 5]], y[[1, 2, 4, 5]])
        assert np.all(x[[0, 3]] != y[[0, 3]])


def test_weight_decay_can_be_excluded():
    variable, plain = table(), table()
    decayed, undecayed = LazyAdam(0.05, weight_decay=0.5), LazyAdam(0.05)
    decayed.exclude_from_weight_decay(var_list=[variable])
    decayed.apply([slices([0], np.ones(WIDTH))], [variable])
    undecayed.apply([slices([0], np.ones(WIDTH))], [plain])
    np.testing.assert_array_equal(variable.numpy(), plain.numpy())


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("option", [{"gradient_accumulation_steps": 2}, {"loss_scale_factor": 8.0}])
def test_options_that_are_unsound_on_sparse_rows_are_refused(ours, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}=.*row-sparse.*leave it out"):
        ours(0.05, **option).apply([slices([0], np.ones(WIDTH))], [table()])
    ours(0.05, **option).apply([tf.ones((ROWS, WIDTH))], [table()])  # dense gradients may have it


def test_amsgrad_is_refused():
    with pytest.raises(ValueError, match="amsgrad"):
        LazyAdam(amsgrad=True)


@pytest.mark.parametrize("ours", OURS)
def test_a_schedule_sets_the_rate_of_each_step(ours):
    scheduled, constant = table(), table()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.05, 0.0])
    with_schedule, without = ours(schedule), ours(0.05)
    with_schedule.apply([slices([0], np.ones(WIDTH))], [scheduled])
    without.apply([slices([0], np.ones(WIDTH))], [constant])
    np.testing.assert_allclose(scheduled.numpy(), constant.numpy())
    with_schedule.apply([slices([0], np.ones(WIDTH))], [scheduled])  # iteration 1 is still on the first piece
    frozen = scheduled.numpy()
    with_schedule.apply([slices([0], np.ones(WIDTH))], [scheduled])
    np.testing.assert_array_equal(scheduled.numpy(), frozen)


@pytest.mark.parametrize(
    "optimizer",
    [
        LazyAdam(0.01, beta_1=0.8, clipnorm=1.0, sum_before_squaring=True),
        RowSparseAdagrad(0.1, initial_accumulator_value=0.2, weight_decay=0.01),
        RowSparseAdagrad(sum_before_squaring=True),
    ],
)
def test_serialization(optimizer):
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == pytest.approx(optimizer.get_config())


# In a model


def small_model(dtype=None) -> keras.Model:
    keras.utils.set_random_seed(0)
    ids = keras.Input((2,), dtype="int32")
    x = keras.layers.Flatten()(EmbeddingTable([50, 30], [0, 1], 4, dtype=dtype)(ids))
    model = keras.Model(ids, Probability(name="click")(keras.layers.Dense(1, dtype=dtype)(x)))
    model.dtype_policy = keras.dtype_policies.get(dtype)
    return model


def small_data():
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 20, size=(256, 2)).astype("int32")
    return ids, (ids[:, :1] % 2).astype("float32")


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("ours", OURS)
def test_sparse_gradients_reach_the_optimizer_in_fit(ours, run_eagerly):
    seen = []

    class Spy(ours):
        def update_step(self, gradient, variable, learning_rate):
            seen.append((variable.shape[0], isinstance(gradient, tf.IndexedSlices)))
            super().update_step(gradient, variable, learning_rate)

    model = small_model()
    model.compile(optimizer=Spy(0.1), loss=BinaryCrossentropy(), run_eagerly=run_eagerly)
    assert not model.jit_compile
    before = model.layers[1].embeddings.numpy()
    history = model.fit(*small_data(), batch_size=64, epochs=8 if run_eagerly else 20, verbose=0).history["loss"]
    assert set(seen) == {(80, True), (8, False), (1, False)}
    assert history[-1] < 0.8 * history[0]
    after = model.layers[1].embeddings.numpy()
    changed = np.any(before != after, axis=1)
    assert set(np.flatnonzero(changed)) == set(range(2, 20)) | set(range(52, 70))


@pytest.mark.parametrize(
    ("policy", "wrap"),
    [
        ("mixed_bfloat16", lambda optimizer: optimizer),
        ("mixed_float16", lambda optimizer: optimizer),  # Keras wraps it in its own loss scaling
        ("mixed_float16", RowSparseLossScaleOptimizer),
    ],
)
def test_mixed_precision_fit(policy, wrap):
    model = small_model(policy)
    model.compile(optimizer=wrap(LazyAdam(0.1)), loss=BinaryCrossentropy())
    if policy == "mixed_float16":
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    history = model.fit(*small_data(), batch_size=64, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    assert all(weight.dtype == "float32" for weight in model.weights)


def test_loss_scaling_skips_a_step_whose_rows_are_not_finite_and_serializes():
    variable = table()
    before = variable.numpy()
    optimizer = RowSparseLossScaleOptimizer(LazyAdam(0.1), initial_scale=8.0)
    optimizer.apply([slices([0], [np.nan] * WIDTH)], [variable])
    np.testing.assert_array_equal(variable.numpy(), before)
    assert float(optimizer.dynamic_scale) == 4.0
    optimizer.apply([slices([0], [4.0] * WIDTH)], [variable])
    np.testing.assert_allclose(variable.numpy()[0], before[0] - 0.1, atol=1e-5)  # Adam's first step is lr
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, RowSparseLossScaleOptimizer)
    assert isinstance(again.inner_optimizer, LazyAdam)


@pytest.mark.parametrize("ours", OURS)
def test_training_goes_on_from_a_saved_model_as_if_never_stopped(ours, tmp_path):
    ids, labels = small_data()
    model = small_model()
    model.compile(optimizer=ours(0.05), loss=BinaryCrossentropy())
    model.fit(ids, labels, batch_size=64, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, ours)
    for m in (model, again):
        m.fit(ids, labels, batch_size=64, shuffle=False, verbose=0)
    for x, y in zip(model.weights + model.optimizer.variables, again.weights + again.optimizer.variables, strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=1e-6, atol=1e-7)


def test_skip_zeros_leaves_elements_without_gradient_alone():
    """Against numpy, element by element; decay of a weight included."""
    variable = table()
    optimizer = LazyAdam(0.05, skip_zeros=True, weight_decay=0.1)
    reference, rng = NumpyLazyAdam(variable.numpy().reshape(-1, 1), lr=0.05), np.random.default_rng(2)
    for _ in range(20):
        gradient = rng.normal(size=(ROWS, WIDTH)).astype("float32") * (rng.random((ROWS, WIDTH)) < 0.5)
        optimizer.apply([tf.constant(gradient)], [variable])
        moved = np.flatnonzero(gradient)
        reference.w[moved] *= 1 - 0.05 * 0.1
        reference.t += 1
        reference.move(moved, gradient.reshape(-1, 1), gradient.reshape(-1, 1) ** 2)
    np.testing.assert_allclose(variable.numpy().reshape(-1, 1), reference.w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optimizer._momentums[0].numpy().reshape(-1, 1), reference.m, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optimizer._velocities[0].numpy().reshape(-1, 1), reference.v, rtol=1e-5, atol=1e-6)


def test_skip_zeros_is_adam_where_no_gradient_is_zero():
    variables = [table(), table()]
    optimizers = [LazyAdam(0.05, skip_zeros=True), keras.optimizers.Adam(0.05)]
    for ids, values in random_steps(10, ids_per_step=60):
        for optimizer, variable in zip(optimizers, variables, strict=True):
            optimizer.apply([tf.constant(dense(ids, values))], [variable])
    np.testing.assert_allclose(variables[0].numpy(), variables[1].numpy(), rtol=1e-6)
    assert LazyAdam.from_config(optimizers[0].get_config()).skip_zeros
