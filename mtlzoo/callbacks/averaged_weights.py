"""A model that is evaluated and kept with a running average of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from mtlzoo import backend

# With fewer steps than that behind it, an average is over most of them (see `AveragedWeights`).
_WARMUP = 10


class AveragedWeights(keras.callbacks.Callback):
    """Validates, and leaves behind, an exponential moving average of the trainable weights.

        a_0 = w_0,   a_t = m_t a_(t-1) + (1 - m_t) w_t,   m_t = min(momentum, (1 + t) / (10 + t))

    with w_t the weights after step t; to be cheap, w_t stands for the `every` steps up to it, whose m_t are multiplied.
    Training itself goes on from w: averaging changes no step. It takes out what the
    last steps' batches left in the weights, as a learning rate that falls to 0 would, without a schedule that must know
    when training ends. A momentum of .99 averages over about 100 steps; what pays is a part of an epoch.

    While `fit` validates and when it has ended, the model has the averages: `evaluate`, `predict` and `save` take them.
    A further `fit` with the same callback goes on from w. (Keras's `use_ema` of an optimizer overwrites w with the
    averages when `fit` ends.) With `steps_per_execution` above 1 averages move at the end of an execution.

    It keeps a second copy of the trainable weights; moving it is a pass over both, whole embedding tables too.

    Args:
        momentum: m, in [0, 1); 0 is the weights themselves. Defaults to 0.99.
        every: Steps from one move of the averages to the next. Defaults to 8.

    Attributes:
        momentum: m.
        every: Steps between moves.
        steps: Steps that have been averaged over.

    Raises:
        ValueError: A momentum or a number of steps out of range. In `fit`: a distribution strategy.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(1)])
        >>> model.compile(loss="mse")
        >>> averaged = AveragedWeights(momentum=0.9)
        >>> history = model.fit(np.ones((64, 2)), np.ones((64, 1)), batch_size=8, callbacks=[averaged], verbose=0)
        >>> averaged.steps
        8

    Source: Polyak and Juditsky (1992); the m_t of the first steps is that of `tf.train.ExponentialMovingAverage`.
    """

    def __init__(self, momentum: float = 0.99, every: int = 8) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"AveragedWeights: `momentum` must be in [0, 1), received {momentum!r}")
        if every < 1:
            raise ValueError(f"AveragedWeights: `every` must be at least 1, received {every!r}")
        self.momentum = float(momentum)
        self.every = int(every)
        self.steps = 0
        self._others: list[Any] = []  # the averages, or while the model has those, its own weights
        self._model_has_averages = False
        self._move: Any = None
        self._last_batch = -1
        self._waiting, self._kept = 0, 1.0  # steps since the last move, and the product of their m_t

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the averages; in a further `fit`, puts the model's own weights back."""
        if backend.is_distributed(self.model):
            raise ValueError("AveragedWeights does not work under a distribution strategy; leave it out")
        if not self._others:
            # A Variable made of another's value alone would be that other one.
            copies = [keras.ops.copy(w.value) for w in self.model.trainable_variables]
            self._others = [keras.Variable(copy, trainable=False) for copy in copies]
        elif self._model_has_averages:
            self._swap()
        if self._move is None:
            self._move = backend.mover(self._others, self.model.trainable_variables)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Batches count anew."""
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the averages, where it is time."""
        for _ in range(batch - self._last_batch):
            self.steps += 1
            self._waiting += 1
            self._kept *= min(self.momentum, (1 + self.steps) / (_WARMUP + self.steps))
        self._last_batch = batch
        if self._waiting >= self.every:
            self._catch_up()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Validation sees the averages."""
        if self._others and not self._model_has_averages:
            self._swap()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Training goes on from the model's own weights."""
        if self._others and self._model_has_averages:
            self._swap()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the averages in the model."""
        if not self._model_has_averages:
            self._swap()

    def save(self, path: str | Path) -> None:
        """Writes what a further `fit` needs besides the model: its own weights, and the number of steps (`.npz`).

        Raises:
            ValueError: No `fit` has ended.
        """
        if not self._model_has_averages:
            raise ValueError("AveragedWeights: there is nothing to save before `fit` has ended")
        weights = {f"weights_{i}": keras.ops.convert_to_numpy(other) for i, other in enumerate(self._others)}
        with Path(path).open("wb") as file:
            np.savez(file, steps=self.steps, **weights)

    def restore(self, path: str | Path) -> None:
        """Reads what `save` wrote; the next `fit` must be that of the model that was saved beside it."""
        with np.load(path) as kept:
            self.steps = int(kept["steps"])
            weights = [kept[f"weights_{i}"] for i in range(len(kept.files) - 1)]
        self._others = [keras.Variable(w, trainable=False) for w in weights]
        self._model_has_averages = True

    def _catch_up(self) -> None:
        if self._waiting:
            self._move(1.0 - self._kept)
        self._waiting, self._kept = 0, 1.0

    def _swap(self) -> None:
        if not self._model_has_averages:
            self._catch_up()
        for weight, other in zip(self.model.trainable_variables, self._others, strict=True):
            was = keras.ops.copy(weight.value)
            weight.assign(other)
            other.assign(was)
        self._model_has_averages = not self._model_has_averages
