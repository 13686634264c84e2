"""How many impressions per second a model trains on."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import keras


@dataclass(frozen=True)
class _Execution:
    """One call of the training function: `steps` batches between two readings of the clock."""

    steps: int
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class Throughput(keras.callbacks.Callback):
    """Measures training impressions per second, and adds `impressions_per_second` to the logs of every epoch.

    Each execution of the training function (`steps_per_execution` batches) is timed from `on_train_batch_begin` to
    `on_train_batch_end`: reading the batch, forward, backward, update. Left out are

    - the first execution of `fit`, which traces and compiles;
    - the last execution of every epoch, whose last batch may be partial (Keras does not tell its size);
    - validation and other callbacks, which run between executions.

    An epoch of which nothing is left has NaN in the logs. The wall time around `fit` is no measure of the same thing:
    it holds tracing, validation, and the destruction of tf.data iterators.

    Args:
        batch_size: Impressions per batch, over all workers.

    Attributes:
        step_seconds: Seconds per batch of every timed execution, in order.

    Raises:
        ValueError: `batch_size` is no integer of at least 1.

    Example:
    >>> import numpy as np
    >>> model = keras.Sequential([keras.layers.Dense(1)])
    >>> model.compile(loss="mse")
    >>> throughput = Throughput(batch_size=8)
    >>> history = model.fit(np.ones((64, 2)), np.ones((64, 1)), batch_size=8, callbacks=[throughput], verbose=0)
    >>> len(throughput.step_seconds), throughput.impressions_per_second > 0
    (6, True)
    """

    def __init__(self, batch_size: int):
        super().__init__()
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"Throughput: `batch_size` must be an integer of at least 1, received {batch_size!r}")
        self.batch_size = batch_size
        self._forget()

    def _forget(self) -> None:
        self.step_seconds: list[float] = []
        self._epoch: list[_Execution] = []
        self._traced = False
        self._first_batch = 0
        self._begin = 0.0
        self._steps = 0
        self._seconds = 0.0
        self._loop_seconds = 0.0

    @property
    def impressions_per_second(self) -> float:
        """Impressions over seconds in all timed executions of the last `fit`; NaN if there are none."""
        return self._rate(self._steps, self._seconds)

    @property
    def median_step_ms(self) -> float:
        """Median milliseconds per batch; NaN if nothing was timed."""
        return 1000 * statistics.median(self.step_seconds) if self.step_seconds else float("nan")

    @property
    def step_share(self) -> float:
        """The executions' share of the training loop's time; the rest went to callbacks and to the loop itself."""
        return self._seconds / self._loop_seconds if self._loop_seconds else float("nan")

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets the previous `fit`."""
        self._forget()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts an epoch without executions."""
        self._epoch = []

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock of an execution; `batch` is its first batch."""
        self._first_batch = batch
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops the clock of an execution; `batch` is its last batch."""
        end = time.perf_counter()
        if self._traced:
            self._epoch.append(_Execution(batch - self._first_batch + 1, self._begin, end))
        self._traced = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the epoch to the totals, and its rate to the logs."""
        timed = self._epoch[:-1]
        steps, seconds = sum(e.steps for e in timed), sum(e.seconds for e in timed)
        if timed:
            self._steps += steps
            self._seconds += seconds
            self._loop_seconds += timed[-1].end - timed[0].begin
            self.step_seconds += [e.seconds / e.steps for e in timed]
        if logs is not None:
            logs["impressions_per_second"] = self._rate(steps, seconds)

    def _rate(self, steps: int, seconds: float) -> float:
        return steps * self.batch_size / seconds if seconds else float("nan")
