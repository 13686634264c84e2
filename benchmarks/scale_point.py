"""One point of `scale_curves.py`: logs are written, converted and read, a model is trained for some steps.

    python benchmarks/scale_point.py '{"kind": "step", "folder": "LOG", "point": {"experts": 8}}'

What was measured is the last line printed, as JSON behind `RESULT`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from peers.measuring import Job, StepClock, keras_callback, peak_megabytes

EPOCHS = 3
_RUN_SECONDS = 3600  # a process that takes longer hangs


@dataclass(frozen=True)
class Point:
    """What is measured; the names of the axes are fields of it.

    Attributes:
        rows: Of the raw log that is converted and read.
        fields: Single-valued fields of the log that is trained on.
        embedding_rows: Of all tables together.
        experts: Number of experts.
        tasks: Labels: a click, and kinds of conversion.
        batch_size: Impressions per step.
        impressions: Of the log that is trained on, again and again; whole batches, so that no step is traced anew.
        expert_units: Widths of each expert's layers.
        tower_units: Widths of each task's tower.
        embedding_dim: Width of an embedding.
        warmup: Steps that do not count.
        steps: Steps that count, at most.
        seconds: No further step is begun when those that count have taken so long.
    """

    rows: int = 125_000
    fields: int = 23
    embedding_rows: int = 100_000
    experts: int = 4
    tasks: int = 2
    batch_size: int = 4096
    impressions: int = 27 * 16_384
    expert_units: tuple[int, ...] = (256, 128)
    tower_units: tuple[int, ...] = (64,)
    embedding_dim: int = 16
    warmup: int = 5
    steps: int = 100
    seconds: float = 10.0


class CpuClock(StepClock):
    """A `StepClock` that adds up the CPU time of the steps that count, over all threads of the process."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.cpu_seconds = 0.0
        self._cpu = 0.0

    def tick(self, steps: int = 1) -> bool:
        """See `StepClock`."""
        cpu, counted = time.process_time(), len(self.step_seconds)
        enough = super().tick(steps)
        if len(self.step_seconds) > counted:
            self.cpu_seconds += cpu - self._cpu
        self._cpu = cpu
        return enough


def write_raw(point: Point, folder: Path) -> dict[str, Any]:
    """Writes the raw log that is converted."""
    from common import write_int_log

    folder.mkdir()
    write_int_log(folder / "log.parquet", point.rows)
    return {}


def write_log(point: Point, folder: Path) -> dict[str, Any]:
    """Writes the log that is trained on."""
    import training_data

    training_data.write(
        folder, point.embedding_rows, point.impressions, "zipf", 0, point.fields, point.tasks, arrays=False
    )
    return {}


def convert_log(point: Point, folder: Path) -> dict[str, Any]:
    """Converts the raw log."""
    from common import int_schema

    from pipelines import convert

    shutil.rmtree(folder / "dataset", ignore_errors=True)
    start, cpu = time.perf_counter(), time.process_time()
    out = convert([folder / "log.parquet"], int_schema(), folder / "dataset")
    costs = _costs(time.perf_counter() - start, time.process_time() - cpu, point.rows)
    return costs | {"shard_mb": sum(file.stat().st_size for file in out.glob("*.tfrecord")) / 1e6}


def read_epochs(point: Point, folder: Path) -> dict[str, Any]:
    """Reads the training split of what was converted."""
    from pipelines import open_dataset

    dataset = open_dataset(folder / "dataset")
    batches = dataset.read("train", point.batch_size, shuffle=True, seed=1)
    _read_once(batches)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(EPOCHS):
        _read_once(batches)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return _costs(seconds / EPOCHS, cpu_seconds / EPOCHS, dataset.rows("train"))


def _read_once(batches: Any) -> None:
    for _ in batches:
        pass


def train_steps(point: Point, folder: Path) -> dict[str, Any]:
    """Trains for some steps.

    Raises:
        RuntimeError: The loss is not finite.
    """
    import keras

    from mtlzoo.models import MMoE
    from pipelines import open_dataset

    keras.utils.set_random_seed(1)
    dataset = open_dataset(folder / "dataset")
    model = MMoE(
        dataset.schema,
        num_experts=point.experts,
        expert_units=point.expert_units,
        tower_units=point.tower_units,
        embedding_dim=point.embedding_dim,
        label_space="ctcvr",
    )
    model.compile()
    times = {"batch": point.batch_size, "warmup": point.warmup, "steps": point.steps, "seconds": point.seconds}
    clock = CpuClock(Job(mode="documented", data=str(folder), sizes=(), **times))
    batches = dataset.read("train", point.batch_size, shuffle=True, seed=1, repeat=True)
    timing = keras_callback(keras.callbacks.Callback, clock)
    model.fit(
        batches, steps_per_epoch=point.warmup + point.steps, epochs=1, shuffle=False, verbose=0, callbacks=[timing]
    )
    if not math.isfinite(clock.losses[-1]):
        raise RuntimeError(f"the loss became {clock.losses[-1]}")
    counted = len(clock.step_seconds)
    costs = _costs(statistics.median(clock.step_seconds), clock.cpu_seconds / counted, point.batch_size)
    return costs | {"steps": counted}


def _costs(seconds: float, cpu_seconds: float, impressions: int) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": peak_megabytes(),
        "impressions": impressions,
    }


_WORK: dict[str, Callable[[Point, Path], dict[str, Any]]] = {
    "raw": write_raw,
    "log": write_log,
    "convert": convert_log,
    "read": read_epochs,
    "step": train_steps,
}


def perform(kind: str, point: Point, folder: Path) -> dict[str, Any]:
    """Does a piece of work in this process."""
    return _WORK[kind](point, folder)


def in_process(kind: str, point: Point, folder: Path) -> dict[str, Any]:
    """Does a piece of work in a process of its own.

    Raises:
        RuntimeError: It failed, or found no end.
    """
    work = json.dumps({"kind": kind, "point": asdict(point), "folder": str(folder)})
    try:
        done = subprocess.run([sys.executable, __file__, work], capture_output=True, text=True, timeout=_RUN_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{kind}: no end after {_RUN_SECONDS} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no output"]
        killed = " (killed; is the memory large enough?)" if done.returncode == -9 else ""
        raise RuntimeError(f"{kind}: exit {done.returncode}{killed}: {lines[-1]}")
    return json.loads(done.stdout.rsplit("RESULT ", 1)[1])


def main() -> None:
    """The other side of `in_process`."""
    work = json.loads(sys.argv[1])
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in work["point"].items()}
    print("RESULT " + json.dumps(perform(work["kind"], Point(**plain), Path(work["folder"]))))


if __name__ == "__main__":
    main()
