"""AveragedWeights: the recursion in numpy, what validation sees, and going on as if nothing had been averaged."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.callbacks import AveragedWeights

STEPS, BATCH = 12, 8
X = np.random.default_rng(1).normal(size=(STEPS * BATCH, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32") + 0.3


class Weights(keras.callbacks.Callback):
    """All weights after each step."""

    def __init__(self):
        super().__init__()
        self.seen: list[list[np.ndarray]] = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights())


def model_of(steps_per_execution=1) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), loss="mse", steps_per_execution=steps_per_execution)
    return model


def fit(model, *callbacks, epochs=1, **settings):
    return model.fit(
        X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **settings
    )


def average_of(first, seen, momentum, moves=None):
    """The recursion; `moves` are the steps whose weights stand for all since the one before. `None`: every step."""
    average, kept = [w.astype("float64") for w in first], 1.0
    for t, weights in enumerate(seen, 1):
        kept *= min(momentum, (1 + t) / (10 + t))
        if moves is None or t in moves:
            average = [kept * a + (1 - kept) * w for a, w in zip(average, weights, strict=True)]
            kept = 1.0
    return average


def assert_same(weights, expected, **tolerance):
    for w, e in zip(weights, expected, strict=True):
        np.testing.assert_allclose(w, e, **(tolerance or {"rtol": 1e-5, "atol": 1e-6}))


@pytest.mark.parametrize("momentum", [0.0, 0.4, 0.999])
def test_a_fit_leaves_the_average_of_the_recursion(momentum):
    model, seen = model_of(), Weights()
    first = model.get_weights()
    averaged = AveragedWeights(momentum, every=1)
    fit(model, averaged, seen, epochs=2)
    assert averaged.steps == len(seen.seen) == 2 * STEPS
    assert_same(model.get_weights(), average_of(first, seen.seen, momentum))
    assert momentum == 0.0 or np.abs(model.get_weights()[0] - seen.seen[-1][0]).max() > 1e-3


def test_averages_move_every_so_many_steps_and_before_they_are_used():
    model, seen = model_of(), Weights()
    first = model.get_weights()
    averaged = AveragedWeights(0.7, every=5)
    fit(model, averaged, seen, epochs=2, validation_data=(X, Y))
    # 12 steps an epoch; each validation asks for what has been seen so far.
    assert_same(model.get_weights(), average_of(first, seen.seen, 0.7, moves=[5, 10, 12, 17, 22, 24]))


def test_training_goes_on_as_if_nothing_were_averaged():
    plain, model = model_of(), model_of()
    for _ in range(3):
        fit(plain)
    seen, averaged = Weights(), AveragedWeights(0.9, every=1)
    first = model.get_weights()
    for _ in range(3):
        fit(model, averaged, seen, validation_data=(X, Y))
    assert_same(seen.seen[-1], plain.get_weights(), rtol=0, atol=0)
    assert_same(model.get_weights(), average_of(first, seen.seen, 0.9))


def test_validation_is_that_of_the_average():
    model, averaged = model_of(), AveragedWeights(0.9)
    for _ in range(2):
        history = fit(model, averaged, validation_data=(X, Y)).history
        assert history["val_loss"][0] == pytest.approx(model.evaluate(X, Y, batch_size=BATCH, verbose=0), rel=1e-5)


def test_an_execution_of_several_steps_moves_as_far_as_they_would():
    single, several, seen = model_of(), model_of(steps_per_execution=4), Weights()
    first = single.get_weights()
    averaged = AveragedWeights(0.6, every=4)
    fit(several, averaged, seen)
    assert (averaged.steps, len(seen.seen)) == (STEPS, STEPS // 4)
    expected = [w.astype("float64") for w in first]
    for i, weights in enumerate(seen.seen):
        kept = np.prod([min(0.6, (1 + t) / (10 + t)) for t in range(4 * i + 1, 4 * i + 5)])
        expected = [kept * a + (1 - kept) * w for a, w in zip(expected, weights, strict=True)]
    assert_same(several.get_weights(), expected)


def test_a_saved_one_goes_on_with_the_saved_model(tmp_path):
    whole, averaged = model_of(), AveragedWeights(0.8)
    fit(whole, averaged)
    whole.save(tmp_path / "model.keras")
    averaged.save(tmp_path / "averaged.npz")
    fit(whole, averaged)
    again, restored = keras.models.load_model(tmp_path / "model.keras"), AveragedWeights(0.8)
    restored.restore(tmp_path / "averaged.npz")
    fit(again, restored)
    assert restored.steps == 2 * STEPS
    assert_same(again.get_weights(), whole.get_weights(), rtol=0, atol=0)


def test_an_interrupted_fit_goes_on_from_the_weights(monkeypatch):
    class Interrupt(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            raise KeyboardInterrupt

    model, seen, averaged = model_of(), Weights(), AveragedWeights(0.9)
    with pytest.raises(KeyboardInterrupt):
        fit(model, Interrupt(), averaged, seen, validation_data=(X, Y))
    model.stop_training = False
    learned = seen.seen[-1]
    seen.seen.clear()
    fit(model, averaged, seen)
    plain = model_of()
    fit(plain)
    assert_same(learned, plain.get_weights(), rtol=0, atol=0)
    fit(plain)
    assert_same(seen.seen[-1], plain.get_weights(), rtol=0, atol=0)


def test_bad_use_is_refused():
    for momentum in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\), received"):
            AveragedWeights(momentum)
    with pytest.raises(ValueError, match="`every` must be at least 1, received 0"):
        AveragedWeights(every=0)
    with pytest.raises(ValueError, match="nothing to save before `fit` has ended"):
        AveragedWeights().save("never.npz")
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = model_of()
    with pytest.raises(ValueError, match="does not work under a distribution strategy"):
        fit(model, AveragedWeights())
