"""What TensorFlow's tracer saw of some training steps.

TensorFlow itself is imported here as in `mtlzoo.backend`: Keras starts traces, but cannot read them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

_MARK = "mtlzoo.step"
_WAIT = "IteratorGetNextOp::DoCompute"
# Keras calls what it does with a batch as a function; TensorFlow inlines that, and names its operations for the call.
_STEP = "StatefulPartitionedCall/"
# Operations that run others, which are in the trace themselves.
_CALLS = frozenset(("StatefulPartitionedCall", "PartitionedCall", "If", "StatelessIf", "While", "StatelessWhile"))
_OF_INPUT = "tf_data"


@dataclass(frozen=True)
class Span:
    """One thing from its begin to its end, in seconds.

    Attributes:
        name: Path of the operation in the graph; empty where there is none.
        begin: When it began, counted from the first step.
        end: When it ended.
    """

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Trace:
    """Some training steps.

    Attributes:
        steps: When each step began, and when the last ended: one number more than steps.
        operations: Every operation of the steps, on whatever thread.
        waits: From the moment that the next batch was asked for until it was there.
    """

    steps: list[float]
    operations: list[Span]
    waits: list[Span]


class Tracer:
    """Traces the training steps of this process; there can be one at a time.

    Raises:
        tf.errors.AlreadyExistsError: At `start`: another trace is running.

    Example:
        >>> tracer = Tracer()
        >>> tracer.start()
        >>> tracer.mark()
        >>> tracer.mark()
        >>> len(tracer.stop().steps)
        2

    Source: our design, on `tf.profiler.experimental`.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        """Starts tracing the threads of the processor, Python's own calls left out."""
        folder = tempfile.TemporaryDirectory()
        options = tf.profiler.experimental.ProfilerOptions(
            host_tracer_level=2, python_tracer_level=0, device_tracer_level=0
        )
        tf.profiler.experimental.start(folder.name, options)
        self._folder = folder

    def mark(self) -> None:
        """Says that a step begins, or that the last has ended."""
        with tf.profiler.experimental.Trace(_MARK):
            pass

    def stop(self) -> Trace:
        """Stops, and reads what was seen."""
        assert self._folder is not None, "start comes first"
        tf.profiler.experimental.stop()
        folder, self._folder = self._folder, None
        with folder:
            (file,) = Path(folder.name).rglob("*.xplane.pb")
            return _read(file.read_bytes())

    def close(self) -> None:
        """Stops a trace that was not stopped, as after an error."""
        if self._folder is not None:
            tf.profiler.experimental.stop(save=False)
            self._folder.cleanup()
            self._folder = None


def sees_gpu() -> bool:
    """Whether steps may run on a GPU, of which the trace has only the launching of operations."""
    return bool(tf.config.list_physical_devices("GPU"))


def _read(serialized: bytes) -> Trace:
    space = xplane_pb2.XSpace()
    space.ParseFromString(serialized)
    events = [found for plane in space.planes for line in plane.lines for found in _events(plane, line)]
    start = min((begin for kind, _, begin, _ in events if kind == _MARK), default=0)
    # Whole picoseconds since 1970 are beyond what a float resolves; those since the first step are not.
    spans: dict[str, list[Span]] = {_MARK: [], _WAIT: [], _STEP: []}
    for kind, name, begin, duration in events:
        spans[kind].append(Span(name, (begin - start) * 1e-12, (begin - start + duration) * 1e-12))
    return Trace(sorted(mark.begin for mark in spans[_MARK]), spans[_STEP], spans[_WAIT])


def _events(plane: Any, line: Any) -> Iterator[tuple[str, str, int, int]]:
    """Of the events of a thread those of a known kind: kind, path, begin and duration in picoseconds."""
    kinds = {key: _kind(description) for key, description in plane.event_metadata.items()}
    of_input = line.name.startswith(_OF_INPUT)
    for event in line.events:
        kind = kinds[event.metadata_id]
        if kind is None or (kind == _STEP and of_input):
            continue
        path = plane.event_metadata[event.metadata_id].name.rpartition(":")[0] if kind == _STEP else ""
        yield kind, path, line.timestamp_ns * 1000 + event.offset_ps, event.duration_ps


def _kind(description: Any) -> str | None:
    """What of the three a kind of event is, if any; operations are named `path:Type` and displayed as `Type`."""
    if description.name in (_MARK, _WAIT):
        return description.name
    is_operation = _STEP in description.name and description.display_name and description.display_name not in _CALLS
    return _STEP if is_operation else None
