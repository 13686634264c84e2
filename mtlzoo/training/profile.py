"""Where the time of a training step goes.

Some steps of the real `fit` are traced by TensorFlow, and every operation of a step is counted to a part of it by its
place in the graph. At each moment the running operations share the time equally; a moment at which none runs is
waiting, if the next batch has been asked for and is not there, else the rest. So the parts add up to the step.

The other way, compiling the parts of a step one by one and subtracting their times, was not taken: it compiles five
functions in place of one, a part's time is a difference of two noisy ones, and operations that run side by side in the
step do not in its parts.

What is profiled is a copy: a training afterwards ends with the weights that it would have ended with.
"""

from __future__ import annotations

import functools
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from mtlzoo import backend, models
from mtlzoo.layers import EmbeddingTable
from mtlzoo.training.run import RunConfig, dataset_of
from mtlzoo.training.seeds import epoch_seed
from mtlzoo.training.trace import Trace, Tracer, sees_gpu
from mtlzoo.training.train import check_trainable, compile_as_configured
from pipelines import alternate_tasks

INPUT, LOOKUPS, DENSE, REST = "input", "lookups", "dense", "rest"
OPTIMIZER_DENSE, OPTIMIZER_ROWS, METRICS = "optimizer_dense", "optimizer_rows", "metrics"
PARTS = (INPUT, LOOKUPS, DENSE, OPTIMIZER_DENSE, OPTIMIZER_ROWS, METRICS, REST)

PROFILE = "profile.json"
STEPS, INPUT_ALONE = "steps", "input alone"

_MOST_STEPS = 50
_LEAST_STEPS = 3
_WARM_UP_STEPS = 3
_SECONDS = 5.0
_SECONDS_OF_INPUT = 3.0

# Scopes that a profiled model gets, so that the names of its operations tell the part.
_OPTIMIZER_SCOPE, _METRICS_SCOPE = "profiled.optimizer", "profiled.metrics"
_SPARSE_SCOPE, _ROWS_SCOPE = "profiled.sparse", "profiled.rows"

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class StepProfile:
    """Where the time of some steps went.

    Attributes:
        steps: How many were timed, and then as many traced.
        step_ms: Mean milliseconds of a step without the tracer, from the begin of one to the begin of the next.
        traced_step_ms: The same with the tracer.
        shares: Share of each of `PARTS` in the traced steps; they add up to 1.
    """

    steps: int
    step_ms: float
    traced_step_ms: float
    shares: dict[str, float]

    @property
    def largest(self) -> str:
        """The part that takes most of the step."""
        return max(self.shares, key=lambda part: self.shares[part])


@dataclass(frozen=True)
class TrainingProfile:
    """Where the time of a training goes.

    Attributes:
        config: The training.
        step: Its step.
        impressions_per_second: What it trains on now, without the tracer.
        input_impressions_per_second: What reading alone delivers in 3 seconds behind the first batch, with nothing else
            to do.
        first_batch_seconds: How long reading alone takes to the first batch of an epoch, which is not in the step.
    """

    config: RunConfig
    step: StepProfile
    impressions_per_second: float
    input_impressions_per_second: float
    first_batch_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `profile.json`: `parts` gives milliseconds and share of each part."""
        step = self.step
        return {
            "model": self.config.model,
            "batch_size": self.config.batch_size,
            "steps": step.steps,
            "step_ms": step.step_ms,
            "traced_step_ms": step.traced_step_ms,
            "impressions_per_second": self.impressions_per_second,
            "input_impressions_per_second": self.input_impressions_per_second,
            "first_batch_seconds": self.first_batch_seconds,
            "parts": {part: {"ms": share * step.step_ms, "share": share} for part, share in step.shares.items()},
            "largest": step.largest,
        }


def profile_training(config: RunConfig, progress: Progress = lambda phase, done, total: None) -> TrainingProfile:
    """Profiles the training that `mtlzoo.training.train` would do, on a model of its own.

    The steps are those of `fit` on the training split, shuffled, in a fresh model. Validation, checkpoints and what
    callbacks do once an epoch are not in them. Of `ncs4cvr` with `mask=lottery` it is the step of the final training.

    Args:
        config: The training.
        progress: Called with a phase (`STEPS`, `INPUT_ALONE`), what of it is done, and its total (`None`: unknown).

    Returns:
        The profile: of 3 to 50 steps, as many as fit into 5 seconds, timed; then as many traced; then reading alone.

    Raises:
        DataError: The dataset is unusable.
        ValueError: Unknown model or argument, or there is a GPU.

    Example:
        >>> profile = profile_training(RunConfig(model="mmoe", data="data/demo"))
        >>> profile.step.largest
        'dense'
    """
    dataset = dataset_of(config)
    check_trainable(dataset)
    keras.utils.set_random_seed(config.seed)
    model = models.create(config.model, dataset.schema, **config.arguments)
    compile_as_configured(model, config)
    trained = [task.name for task in model.tasks if task.trained]
    turns = len(trained) if config.alternate else 1
    batches = dataset.read("train", config.batch_size, shuffle=True, seed=epoch_seed(config.seed, 0), repeat=True)
    size_of = functools.partial(_size, dataset.rows("train"), config.batch_size)
    with dataset.damaged_shards_named("train"):
        step = profile_steps(model, alternate_tasks(batches, trained) if config.alternate else batches, progress)
        input_alone, first_batch = _input_alone(batches, size_of, progress)
    timed = range(_WARM_UP_STEPS, _WARM_UP_STEPS + step.steps)
    impressions = sum(size_of(i // turns) / turns for i in timed) / step.steps
    return TrainingProfile(config, step, 1000 * impressions / step.step_ms, input_alone, first_batch)


def profile_steps(
    model: keras.Model, batches: Any, progress: Progress = lambda phase, done, total: None
) -> StepProfile:
    """Profiles `model.fit(batches)`.

    Args:
        model: A compiled model. It is trained on the way, and its operations get other names: use a copy.
        batches: A `tf.data.Dataset` of 110 batches, or without end.
        progress: As in `profile_training`.

    Returns:
        The profile.

    Raises:
        ValueError: There is a GPU, the model is compiled by XLA, or the batches were too few.

    Example:
        >>> profile_steps(model, dataset.read("train", 512, shuffle=True, repeat=True)).shares["dense"]
        0.71

    Source: our design; see the module for how it counts.
    """
    if sees_gpu():
        raise ValueError(
            "a profile shows steps on the processor alone, and TensorFlow sees a GPU; train without --profile, or hide "
            "the GPU with CUDA_VISIBLE_DEVICES=-1"
        )
    if model.jit_compile:
        raise ValueError("a step that XLA compiles is one operation; compile the model with jit_compile=False")
    _name_parts(model)
    stopwatch = _Stopwatch(progress)
    try:
        model.fit(batches, callbacks=[stopwatch], shuffle=False, verbose=0)
    finally:
        stopwatch.tracer.close()
    if stopwatch.trace is None:
        raise ValueError(
            f"the batches ended after {stopwatch.begun} steps, before enough were traced; give more, or "
            "dataset.repeat()"
        )
    tables = [layer.name for layer in model._flatten_layers() if isinstance(layer, EmbeddingTable)]
    seconds = time_by_part(stopwatch.trace, functools.cache(lambda path: part_of(path, tables)))
    traced = sum(seconds.values())
    return StepProfile(
        steps=stopwatch.steps,
        step_ms=1000 * stopwatch.seconds / stopwatch.steps,
        traced_step_ms=1000 * traced / stopwatch.steps,
        shares={part: value / traced for part, value in seconds.items()},
    )


class _Stopwatch(keras.callbacks.Callback):
    """Lets some steps pass, times some, traces as many, and ends the training."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.tracer = Tracer()
        self.trace: Trace | None = None
        self.steps = 0
        self.seconds = 0.0
        self.begun = 0
        self._progress = progress
        self._start = 0.0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Here one step ends and the next begins."""
        now = time.perf_counter()
        self._progress(STEPS, self.begun, None)
        self.begun += 1
        done = self.begun - 1 - _WARM_UP_STEPS
        if done == 0:
            self._start = now
        elif done > 0 and not self.steps:
            self.seconds = now - self._start
            if done >= _MOST_STEPS or (done >= _LEAST_STEPS and self.seconds >= _SECONDS):
                self.steps = done
                self.tracer.start()
        if self.steps and self.trace is None:
            self.tracer.mark()
            if done == 2 * self.steps:
                self.trace = self.tracer.stop()
                self.model.stop_training = True


def time_by_part(trace: Trace, part_of: Callable[[str], str]) -> dict[str, float]:
    """Seconds of each part between the begin of the first step and the end of the last.

    At each moment the running operations share the time equally. While none runs, it counts as waiting for input if a
    batch is awaited, else as the rest.

    Args:
        trace: Some steps.
        part_of: From the path of an operation to its part, one of `PARTS`.

    Returns:
        Seconds by part; they add up to all the time.

    Example:
        >>> trace = Trace([0.0, 4.0], operations=[Span("a", 0.0, 2.0), Span("b", 1.0, 2.0)], waits=[])
        >>> seconds = time_by_part(trace, {"a": "dense", "b": "metrics"}.get)
        >>> seconds["dense"], seconds["metrics"], seconds["rest"]
        (1.5, 0.5, 2.0)

    Source: our design.
    """
    begin, end = trace.steps[0], trace.steps[-1]
    spans = [(part_of(span.name), span) for span in trace.operations] + [(INPUT, span) for span in trace.waits]
    changes = []
    for part, span in spans:
        first, last = max(span.begin, begin), min(span.end, end)
        if first < last:
            changes += [(first, 1, part), (last, -1, part)]
    seconds = dict.fromkeys(PARTS, 0.0)
    running: Counter[str] = Counter()
    now = begin
    for moment, change, part in [*sorted(changes), (end, 0, REST)]:
        for sharer, share in _sharers(running).items():
            seconds[sharer] += share * (moment - now)
        running[part] += change
        now = moment
    return seconds


def _sharers(running: Counter[str]) -> dict[str, float]:
    """How the parts share a moment, by the number of operations that each has running."""
    working = {part: count for part, count in running.items() if count and part != INPUT}
    if not working:
        return {INPUT if running[INPUT] else REST: 1.0}
    total = sum(working.values())
    return {part: count / total for part, count in working.items()}


def part_of(path: str, tables: list[str]) -> str:
    """The part of the step to which an operation counts.

    Args:
        path: Path of the operation in the graph of a profiled model, its scopes joined by `/`.
        tables: Names of the layers that are embedding tables.

    Returns:
        `lookups` for the layers of tables, gathers from other variables (codebooks), their gradients, and the summing
        of a row's gradients; one of the optimizer's, or `metrics`; `dense` for all else: forward, losses, backward.

    Example:
        >>> part_of("gradient_tape/mmoe_1/embedding_16_1/Gather/Reshape", ["embedding_16"])
        'lookups'
    """
    scopes = set(path.split("/"))
    # A scope that is entered again gets a number.
    scopes |= {re.sub(r"_\d+$", "", scope) for scope in scopes}
    if _METRICS_SCOPE in scopes:
        return METRICS
    if _ROWS_SCOPE in scopes:
        return OPTIMIZER_ROWS
    if _SPARSE_SCOPE in scopes:
        return LOOKUPS
    if _OPTIMIZER_SCOPE in scopes:
        return OPTIMIZER_DENSE
    # What `mtlzoo.backend.gather_rows` reads is a ResourceGather, named Gather; other gathers are named GatherV2.
    return DENSE if scopes.isdisjoint(("Gather", *tables)) else LOOKUPS


def _name_parts(model: keras.Model) -> None:
    """Puts what the model, its optimizer and its tables' updates do in scopes of their own."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    update = optimizer.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        named = _in_scope(_SPARSE_SCOPE, update) if backend.is_row_sparse(gradient) else update
        named(gradient, variable, learning_rate)

    optimizer.update_step = update_step
    if hasattr(optimizer, "_update_rows"):
        optimizer._update_rows = _in_scope(_ROWS_SCOPE, optimizer._update_rows)
    model.optimizer.apply = _in_scope(_OPTIMIZER_SCOPE, model.optimizer.apply)
    model.compute_metrics = _in_scope(_METRICS_SCOPE, model.compute_metrics)
    # A step that is traced already has its names.
    model.train_function = None


def _in_scope(scope: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def named(*args: Any, **kwargs: Any) -> Any:
        with keras.name_scope(scope):
            return function(*args, **kwargs)

    return named


def _size(rows: int, batch_size: int, batch: int) -> int:
    """Impressions in a batch, counted on from epoch to epoch; the last of an epoch may be shorter."""
    batches = -(-rows // batch_size)
    return min(batch_size, rows - batch % batches * batch_size)


def _input_alone(batches: Any, size_of: Callable[[int], int], progress: Progress) -> tuple[float, float]:
    """Impressions per second of endless batches when nothing else runs, and the seconds until the first batch."""
    begin = time.perf_counter()
    iterator = iter(batches)
    next(iterator)
    first = now = time.perf_counter()
    read = batch = 0
    while now - first < _SECONDS_OF_INPUT:
        next(iterator)
        now = time.perf_counter()
        batch += 1
        read += size_of(batch)
        progress(INPUT_ALONE, batch, None)
    return read / (now - first), first - begin
