"""The click history of a synthetic world: values in the order of time, whose effect on the logits depends on the order.

    z_history = sum_a 0.6**a E[h_a, c],        E = L R^T

`h_a` is the value of age a (0 the most recent), `c` the candidate's value of the same attribute. The means of L and R
over a sample are 0, so neither the history nor the candidate has a main effect. Our design.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.synthetic_numbers import on_grid

HISTORY = "click_history"
DECAY = 0.6

_LIKED = 8
_LIKED_SHARE = 0.75


class Tastes:
    """What each user clicks: mostly one of a few values that the user likes, sometimes any value.

    Args:
        cdf: Cumulative shares of the values; float64 `[size]`.
        users: Number of users.
        length: Longest history.
        rng: Draws the values that users like.
    """

    def __init__(self, cdf: np.ndarray, users: int, length: int, rng: np.random.Generator) -> None:
        self._cdf = cdf
        self._length = length
        self._liked = np.searchsorted(cdf, rng.random((users, _LIKED)), "right").astype(np.int32)

    def draw(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws a history per impression: the last of 0 to twice `length` clicks, each number of them equally likely.

        Args:
            users: The impressions' users; integers `[rows]`.
            rng: Draws the histories.

        Returns:
            int32 `[rows, length]`: column a is the value of age a, or `size` where the history is shorter.
        """
        shape = (len(users), self._length)
        values = np.take(self._liked, users[:, None] * _LIKED + rng.integers(0, _LIKED, shape, np.int32))
        other = rng.random(shape) >= _LIKED_SHARE
        values[other] = np.searchsorted(self._cdf, rng.random(np.count_nonzero(other)), "right")
        lengths = rng.integers(0, 2 * self._length, len(users), endpoint=True)
        values[np.arange(self._length) >= lengths[:, None]] = len(self._cdf)
        return values


@dataclass(frozen=True)
class HistoryTerm:
    """What the history and the candidate together add to the logits.

    Attributes:
        fields: Names of the history and of the candidate's field.
        recent: Per age, 0.6**age times the rows of L; float32 `[length, size + 1, factors]`, the last row zeros.
        candidates: Per task the rows of R; float64 `[size, factors]`.
    """

    fields: tuple[str, str]
    recent: np.ndarray
    candidates: tuple[np.ndarray, np.ndarray]

    def contributions(self, ids: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Per task, what is added to the logit: float64 `[rows]`, multiples of 2**-16."""
        states = _states(self.recent, ids[self.fields[0]])
        return tuple(on_grid(_products(states, c, ids[self.fields[1]])) for c in self.candidates)


def history_term(
    fields: tuple[str, str],
    sample: dict[str, np.ndarray],
    factors: tuple[np.ndarray, np.ndarray],
    correlation: float,
    strength: float,
) -> HistoryTerm:
    """Makes the effects of random factors: centred, scaled, and correlated between the tasks like a shared term's.

    Args:
        fields: Names of the history and of the candidate's field.
        sample: Drawn impressions, by field.
        factors: L and R before they are centred: float64 `[size, 2 * rank]` each. The first half of the columns makes
            click's table, the second half the one that conversion's mixes with it.
        correlation: Correlation of the two tasks' effects over the sample.
        strength: Standard deviation of either over the sample.
    """
    history, candidate = (sample[name] for name in fields)
    left, right = factors
    size, width = left.shape
    fading = DECAY ** np.arange(history.shape[1])
    seen = np.bincount(history.ravel(), np.tile(fading, len(history)), size + 1)[:size]
    left = np.append(left - seen @ left / seen.sum(), np.zeros((1, width)), axis=0)
    right = right - right[candidate].mean(axis=0)
    recent = on_grid(fading[:, None, None] * left).astype(np.float32)
    states = _states(recent, history)
    first_half = np.arange(width) < width // 2
    click, other = np.where(first_half, right, 0.0), np.where(first_half, 0.0, right)
    z_click, z_other = (_products(states, part, candidate) for part in (click, other))
    # As for the other terms: without the chance correlation of two draws it is the one that was asked for.
    common = np.cov(z_click, z_other)[0, 1] / z_click.var(ddof=1)
    click, other = click / z_click.std(), (other - common * click) / (z_other - common * z_click).std()
    conversion = correlation * click + np.sqrt(1.0 - correlation**2) * other
    return HistoryTerm(fields, recent, (on_grid(click, strength), on_grid(conversion, strength)))


def _states(recent: np.ndarray, history: np.ndarray) -> np.ndarray:
    """The sum over the ages: float32 `[rows, factors]`, exact."""
    states = np.zeros((len(history), recent.shape[2]), np.float32)
    for age, table in enumerate(recent):
        states += np.take(table, history[:, age], axis=0)
    return states


def _products(states: np.ndarray, candidates: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Dot products of the rows; exact where both are on the grid: multiples of 2**-32 in float64."""
    return np.einsum("ij,ij->i", states.astype(np.float64), np.take(candidates, candidate, axis=0))
