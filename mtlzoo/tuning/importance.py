"""How much each hyper-parameter mattered in a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import RandomForestRegressor

LEAST_TRIALS = 8
_TREES = 100
_GRID = 16
_SAMPLES = 256


def hyperparameter_importance(positions: np.ndarray, values: Sequence[float], seed: int = 0) -> np.ndarray | None:
    """The share of each hyper-parameter's main effect in the variance of the objective over the whole space.

    With f the mean prediction of a random forest fitted to the trials, and x uniform on the space,

        importance_j = Var_(x_j)[E f(x) given x_j] / Var f(x)

    What is missing to 1 are interactions. It says what mattered among the trials, and is no more certain than they
    are many.

    Args:
        positions: `[trials, hyper-parameters]`, each in [0, 1]: `Choice.position` and `Range.position`.
        values: Of the objective, one for each trial.
        seed: Of the forest and of the sample of the space.

    Returns:
        float64 `[hyper-parameters]`, each in [0, 1]; `None` for fewer than 8 trials, or where all are alike.

    Example:
        >>> positions = np.random.default_rng(0).random((200, 2))
        >>> hyperparameter_importance(positions, positions[:, 0]).round().tolist()
        [1.0, 0.0]

    Source: Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter importance" (ICML 2014):
    functional ANOVA of a random forest. Integrals by sampling instead of exactly, and main effects alone, are our
    design.
    """
    if len(values) < LEAST_TRIALS or np.ptp(values) == 0.0:
        return None
    forest = RandomForestRegressor(_TREES, random_state=seed).fit(positions, np.asarray(values))
    sample = np.random.default_rng(seed).random((_SAMPLES, positions.shape[1]))
    shares = []
    for column in range(positions.shape[1]):
        grid = np.repeat(sample[None], _GRID, axis=0)  # [grid, samples, hyper-parameters]
        grid[:, :, column] = ((np.arange(_GRID) + 0.5) / _GRID)[:, None]
        predicted = forest.predict(grid.reshape(-1, positions.shape[1])).reshape(_GRID, _SAMPLES)
        # Both variances over the same points: no share is above 1.
        variance = np.var(predicted)
        shares.append(np.var(predicted.mean(axis=1)) / variance if variance > 0.0 else 0.0)
    return np.array(shares)
