"""Saving, loading and cloning a model of layers under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np


def assert_saved_and_cloned(model: keras.Model, x: Any, folder: Path) -> None:
    """The model read from a file, and a clone with its weights, have its layers' settings and its outputs."""
    model.save(folder / "m.keras")
    again, clone = keras.models.load_model(folder / "m.keras"), keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (again, clone):
        assert [layer.get_config() for layer in other.layers[1:]] == [layer.get_config() for layer in model.layers[1:]]
        np.testing.assert_array_equal(other(x), model(x))
