"""What the programs that train one peer each have in common: the job, the clock, the result.

    python train_PEER.py --config config.json --out result.json

A program runs in the environment of its peer, so this file needs numpy and the standard library alone. The job is the
same for all: an MMoE, or the model that it names, over the fields of one log (`training_data.py`), two heads, click and
ctcvr (both labels on all impressions, each by binary cross-entropy), one optimizer of the Adam family at the same
learning rate, one pass over the log.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

LABELS = ("click", "ctcvr")
FIELDS = 23
LEAST_STEPS = 3  # measured, however long they take
_STARTED = time.perf_counter()


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and how long.

    Attributes:
        mode: `"documented"`: as the peer's documentation has it; `"matched"`: no batch normalisation, no
            regularisation, no dropout, and batches as they are fastest had from memory.
        data: Directory of the log: `ids.npy` int32 `[n, fields]`, `labels.npy` float32 `[n, 2]`, and the same
            impressions as a dataset of this project in `dataset/`.
        sizes: Rows of the embedding table of each field.
        embedding_dim: Width of an embedding.
        experts: Number of experts.
        expert_units: Widths of each expert's layers.
        tower_units: Widths of each task's tower.
        batch: Impressions per step.
        learning_rate: Of the optimizer.
        warmup: Steps that do not count.
        steps: Steps that count, at most.
        seconds: No further step is begun when those that count have taken so long, unless they are too few.
        seed: Of the initial weights.
        steps_per_execution: Of `compile`, for `ours`.
        model: `"mmoe"`; `"shared_bottom"`, whose trunk is as wide as one expert; or `"ple"`, on each level an expert of
            each task's own and as many shared ones as make `experts` in all.
        levels: Of PLE.
        dtype: Keras's dtype policy, for `ours` and `keras_textbook`; the other peers compute in float32.
    """

    mode: str
    data: str
    sizes: tuple[int, ...]
    embedding_dim: int = 16
    experts: int = 4
    expert_units: tuple[int, ...] = (256, 128)
    tower_units: tuple[int, ...] = (64,)
    batch: int = 4096
    learning_rate: float = 1e-3
    warmup: int = 5
    steps: int = 100
    seconds: float = 15.0
    seed: int = 1
    steps_per_execution: int = 1
    model: str = "mmoe"
    levels: int = 2
    dtype: str = "float32"

    @property
    def matched(self) -> bool:
        """Whether the peer does the same work as the others."""
        return self.mode == "matched"

    @property
    def shared_experts(self) -> int:
        """Experts that all tasks share on a level of PLE, where each task has one of its own."""
        return self.experts - len(LABELS)

    @property
    def impressions(self) -> int:
        """Impressions of the log that are used: a batch for each step."""
        return (self.warmup + self.steps) * self.batch

    @property
    def fields(self) -> list[str]:
        """Names of the fields."""
        return [f"field_{i:02d}" for i in range(len(self.sizes))]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 `[n, fields]` and labels float32 `[n, 2]` in memory."""
        ids, labels = (np.load(Path(self.data) / name) for name in ("ids.npy", "labels.npy"))
        return ids[: self.impressions], labels[: self.impressions]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--config`."""
        return asdict(self)


def table_sizes(rows: int, fields: int = FIELDS) -> tuple[int, ...]:
    """Rows of each field's table: equal parts, the first fields one more where they do not come out even."""
    each, over = divmod(rows, fields)
    return tuple(each + (i < over) for i in range(fields))


def job_and_out(description: str | None) -> tuple[Job, Path]:
    """The job of `--config`, and where `--out` wants the result."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the job as JSON")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes, as JSON")
    arguments = parser.parse_args()
    plain: dict[str, Any] = json.loads(arguments.config.read_text(encoding="utf-8"))
    lists = {key: tuple(value) for key, value in plain.items() if isinstance(value, list)}
    return Job(**(plain | lists)), arguments.out


class StepClock:
    """Seconds of each step, from the end of one to the end of the next: reading, forward, backward, update, metrics.

    Whoever trains calls `tick` when the weights of a step are updated. The first step always belongs to the warm-up: it
    has no end before it, and it traces and compiles.

    Args:
        job: Says how many steps count.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._last: float | None = None
        self._done = 0
        self.step_seconds: list[float] = []
        self.losses: list[float] = []

    def tick(self, steps: int = 1) -> bool:
        """One more execution of `steps` steps is done; returns whether they are enough."""
        now = time.perf_counter()
        if self._last is not None and self._done >= self._job.warmup:
            self.step_seconds += [(now - self._last) / steps] * steps
        self._last = now
        self._done += steps
        measured = len(self.step_seconds)
        long = sum(self.step_seconds) >= self._job.seconds and measured >= LEAST_STEPS
        return measured >= self._job.steps or long


def keras_callback(base: type, clock: StepClock, mean_loss: bool = True) -> Any:
    """A callback that ticks behind each execution, keeps the losses, and stops `fit` when it is enough.

    A callback of its own at the batch's end makes Keras wait for the values of the logs, so no work is left over.

    Args:
        base: The `Callback` of the Keras in use.
        clock: What ticks.
        mean_loss: Whether the loss in the logs is the mean over the epoch so far, not that of the step.
    """

    class Timing(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._steps, self._mean = 0, 0.0

        def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
            steps = batch + 1
            if clock.tick(steps - self._steps):
                self.model.stop_training = True
            loss = float((logs or {})["loss"])
            if mean_loss:
                clock.losses.append((loss * steps - self._mean * self._steps) / (steps - self._steps))
            else:
                clock.losses.append(loss)
            self._steps, self._mean = steps, loss

    return Timing()


def peak_megabytes() -> float:
    """Largest resident memory of this process, in MB (10**6 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike getrusage, this forgets what the process was before it ran this program.
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def rate(step_seconds: Sequence[float], batch: int) -> dict[str, Any]:
    """Impressions per second: median and quartiles over the steps, and the mean over all their time."""
    speeds = sorted(batch / seconds for seconds in step_seconds)
    low, median, high = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
    mean = batch * len(step_seconds) / sum(step_seconds)
    return {"median": median, "quartiles": [low, high], "mean": mean}


def write_result(
    out: Path,
    peer: str,
    job: Job,
    clock: StepClock,
    parameters: Mapping[str, int],
    threads: Mapping[str, Any],
    packages: Sequence[str],
) -> None:
    """Writes what was measured.

    Args:
        out: The file.
        peer: Name of the peer.
        job: What was trained.
        clock: What was timed.
        parameters: Number of weights of the embedding tables and of the rest.
        threads: The framework's thread settings.
        packages: Whose versions are kept.

    Raises:
        SystemExit: Too few steps were done, or the loss did not fall: then there is nothing to compare.
    """
    if len(clock.step_seconds) == 0:
        raise SystemExit(f"{peer}: no step was measured; the log must hold more batches than the warm-up")
    first, last = clock.losses[0], clock.losses[-1]
    if not last < first:
        raise SystemExit(f"{peer}: the loss went from {first:.4f} to {last:.4f}: it does not learn")
    result = {
        "peer": peer,
        "mode": job.mode,
        "impressions_per_second": rate(clock.step_seconds, job.batch),
        "step_seconds": [round(seconds, 6) for seconds in clock.step_seconds],
        "loss": {"first": first, "last": last, "steps": len(clock.losses)},
        "parameters": dict(parameters),
        "peak_mb": peak_megabytes(),
        "process_seconds": time.perf_counter() - _STARTED,
        "threads": {**threads, "cores": os.cpu_count(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def tensorflow_threads(tf: Any) -> dict[str, Any]:
    """TensorFlow's thread settings; 0 means one for each core."""
    threading = tf.config.threading
    return {
        "intra_op": threading.get_intra_op_parallelism_threads(),
        "inter_op": threading.get_inter_op_parallelism_threads(),
    }


def keras_parameters(model: Any, tables: Sequence[Any]) -> dict[str, int]:
    """Number of trained weights of the embedding tables and of the rest of a Keras model."""
    count = {id(v): int(np.prod(v.shape)) for v in model.trainable_variables}
    in_tables = sum(int(np.prod(table.shape)) for table in tables)
    return {"tables": in_tables, "rest": sum(count.values()) - in_tables}
