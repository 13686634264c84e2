"""MaskDensity: densities in the history, against masks that the test sets and the gates' closed form."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mtlzoo.callbacks import MaskDensity
from mtlzoo.callbacks.mask_density import masked_layers, task_names
from mtlzoo.layers import MaskedDense
from mtlzoo.models import NCS4CVR, SharedBottom


def of_two_layers(**arguments) -> keras.Model:
    """Two tasks through 3 x 4 and 4 x 5 connections."""
    x = keras.Input((3,))
    hidden = MaskedDense(5, num_tasks=2, **arguments)(MaskedDense(4, num_tasks=2, **arguments)(x))
    model = keras.Model(x, keras.layers.Concatenate()(hidden))
    model.compile(loss="mse")
    return model


def history_of(model: keras.Model, *callbacks, epochs: int = 2) -> dict[str, list[float]]:
    x, y = np.ones((8, 3), "float32"), np.ones((8, model.output_shape[-1]), "float32")
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), verbose=0).history


def test_layers_weigh_by_their_connections():
    model = of_two_layers(mask="fixed")
    first, second = masked_layers(model)
    masks = [np.zeros((2, 3, 4)), np.ones((2, 4, 5))]
    masks[0][0, 0] = 1  # 4 of 12 for the first task, none for the second
    masks[1][1, :, 0] = 0  # 16 of 20 for the second
    first.set_masks(masks[0])
    second.set_masks(masks[1])
    history = history_of(model, MaskDensity())
    np.testing.assert_allclose(history["task_1_density"], [24 / 32] * 2, rtol=1e-6)
    np.testing.assert_allclose(history["task_2_density"], [16 / 32] * 2, rtol=1e-6)


def test_hard_concrete_gates_by_their_closed_form():
    model = of_two_layers(estimator="hard_concrete", l0=0.01)
    history = history_of(model, MaskDensity())
    open_probability = [
        1 / (1 + np.exp(-(gate_values(layer) - 2 / 3 * np.log(0.1 / 1.1)))) for layer in masked_layers(model)
    ]
    for task in range(2):
        expected = np.concatenate([p[task].ravel() for p in open_probability]).mean()
        assert history[f"task_{task + 1}_density"][-1] == pytest.approx(expected, rel=1e-5)
    assert history["task_1_density"][1] < history["task_1_density"][0] < 0.95


def gate_values(layer: MaskedDense) -> np.ndarray:
    return layer.gate_scale * layer.gates.numpy().astype("float64")


def test_tasks_have_the_names_of_the_labels(dataset):
    model = NCS4CVR(dataset.schema, trunk_units=(4,), embedding_dim=2)
    assert task_names(model) == ("click", "conversion")
    assert task_names(keras.models.clone_model(model)) == ("task_1", "task_2")  # a clone has no schema
    model.compile()
    history = model.fit(dataset.read("train", 1024), callbacks=[MaskDensity()], shuffle=False, verbose=0).history
    assert len(history["click_density"]) == len(history["conversion_density"]) == 1


def test_a_model_without_masks_is_left_alone(dataset):
    model = SharedBottom(dataset.schema, bottom_units=(4,), tower_units=(4,), embedding_dim=2)
    assert task_names(model) == ()
    logs = {"loss": 1.0}
    callback = MaskDensity()
    callback.set_model(model)
    callback.on_epoch_end(0, logs)
    callback.on_epoch_end(0)
    assert logs == {"loss": 1.0}


def test_layers_of_different_tasks_are_refused():
    x = keras.Input((3,))
    outputs = [*MaskedDense(4, num_tasks=2)(x), *MaskedDense(4, num_tasks=3)(x)]
    with pytest.raises(ValueError, match=r"must have the same tasks; they have \[2, 3\] tasks"):
        masked_layers(keras.Model(x, outputs))
