"""Random streams that follow from a run's seed and the epoch alone."""

from __future__ import annotations

import keras
import numpy as np


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of an epoch's order of impressions and of its dropout."""
    return seed * 100_003 + epoch


def seed_dropout(model: keras.Model, seed: int) -> None:
    """Starts all random streams of a model anew; a saved Keras model does not remember where its streams stood."""
    states = [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
    for index, state in enumerate(states):
        (start,) = np.random.SeedSequence([seed, index]).generate_state(1)
        state.assign(np.array([start >> 1, 0], dtype=state.dtype))
