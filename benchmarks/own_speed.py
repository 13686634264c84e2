"""What `compare_revisions.py` measures: one kind of work, in a process of its own, with the sources on PYTHONPATH.

    python own_speed.py prepare|measure KIND --config sizes.json --data DIR --out result.json

train      a step of `fit` from shuffled TFRecords, metrics on: MMoE as `peers/train_ours.py` has it ("matched"), any
           other model with its defaults (in scoring likewise, MMoE as there)
read       an impression of shuffled batches from blocks (`read_speed.py`)
convert    an impression from Parquet to blocks (`convert_speed.py`)
score      an impression into a Parquet file, the first batch, which traces, left out (`score_speed.py`)

`prepare` writes what is worked on into DIR, which must not exist yet; each state of the sources writes its own, so a
change of what lies on disk is part of what is compared. `measure` counts the seconds of one step or impression: by the
wall clock the median over steps or repeats; of CPU, all threads together, the mean over them, since what is read ahead
comes in bursts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HERE = Path(__file__).resolve().parent
PACKAGES = ("mtlzoo", "pipelines")
LOG, RAW = "log", "log.parquet"
Seconds = dict[str, float]  # "wall" and "cpu"


@dataclass(frozen=True)
class Sizes:
    """How much work.

    Attributes:
        model: Name of the model that is trained or scores.
        impressions: Of the log that is read, converted or scored.
        embedding_rows: Of all tables of the model together.
        batch: Impressions of a batch, in training, reading and scoring.
        warmup: Training steps that do not count.
        steps: Training steps that count, at most.
        seconds: No further step is begun when those that count have taken so long, unless they are too few.
        repeats: Times that the log is read, converted or scored, beside a first time that does not count.
        experts: Of MMoE in training.
        expert_units: Widths of their layers.
    """

    model: str = "mmoe"
    impressions: int = 500_000
    embedding_rows: int = 2_000_000
    batch: int = 4096
    warmup: int = 5
    steps: int = 60
    seconds: float = 15.0
    repeats: int = 5
    experts: int = 4
    expert_units: tuple[int, ...] = (256, 128)

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--config`."""
        return asdict(self)


def prepare_train(data: Path, sizes: Sizes) -> None:
    """The log of `training_data.py`, a batch for each step."""
    from training_data import write

    write(data / LOG, rows=sizes.embedding_rows, impressions=_job(data, sizes).impressions, kind="zipf", seed=0)


def measure_train(data: Path, sizes: Sizes) -> Seconds:
    """Seconds of a training step."""
    job = _job(data, sizes)  # before the imports: it says where they are found
    import keras
    import train_ours
    from measuring import StepClock, keras_callback

    from mtlzoo.models import create
    from pipelines import open_dataset

    class BothClocks(StepClock):
        """Takes the CPU time at the end of every step too."""

        def __init__(self) -> None:
            super().__init__(job)
            self.cpu_marks: list[float] = []

        def tick(self, steps: int = 1) -> bool:
            self.cpu_marks.append(time.process_time())
            return super().tick(steps)

    keras.utils.set_random_seed(job.seed)
    dataset, clock = open_dataset(data / LOG / "dataset"), BothClocks()
    if sizes.model == "mmoe":
        model = train_ours.model_of(job, dataset.schema)
    else:
        model = create(sizes.model, dataset.schema)
        model.compile()
    batches = dataset.read("train", job.batch, shuffle=True, seed=job.seed, repeat=True)
    timing = keras_callback(keras.callbacks.Callback, clock)
    steps = job.warmup + job.steps + 1
    model.fit(batches, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0, callbacks=[timing])
    counted = len(clock.step_seconds)
    cpu = clock.cpu_marks[-1] - clock.cpu_marks[-1 - counted]
    return {"wall": statistics.median(clock.step_seconds), "cpu": cpu / counted}


def _job(data: Path, sizes: Sizes) -> Any:
    """The job of the training programs, which find each other in their own directory."""
    peers = str(HERE / "peers")
    if peers not in sys.path:
        sys.path.append(peers)
    from measuring import Job, table_sizes

    names = ("batch", "warmup", "steps", "seconds", "experts", "expert_units")
    same = {name: getattr(sizes, name) for name in names}
    return Job(mode="matched", data=str(data / LOG), sizes=table_sizes(sizes.embedding_rows), **same)


def prepare_read(data: Path, sizes: Sizes) -> None:
    """The dataset of `read_speed.py`, in blocks."""
    from read_speed import blocks_of

    blocks_of(data, sizes.impressions)


def measure_read(data: Path, sizes: Sizes) -> Seconds:
    """Seconds of an impression read."""
    from read_speed import exhausted

    from pipelines import open_dataset

    dataset = open_dataset(data / "blocks")
    batches = dataset.read("train", sizes.batch, shuffle=True, seed=1)
    return _each(lambda: exhausted(batches), sizes.repeats, dataset.rows("train"))


def prepare_convert(data: Path, sizes: Sizes) -> None:
    """The raw log of `convert_speed.py`."""
    from common import write_int_log

    write_int_log(data / RAW, sizes.impressions)


def measure_convert(data: Path, sizes: Sizes) -> Seconds:
    """Seconds of an impression converted."""
    from convert_speed import convert_seconds

    def convert() -> None:
        with tempfile.TemporaryDirectory(dir=data) as folder:
            convert_seconds(data / RAW, Path(folder) / "out")

    return _each(convert, sizes.repeats, sizes.impressions)


def prepare_score(data: Path, sizes: Sizes) -> None:
    """The dataset of `score_speed.py`."""
    from score_speed import dataset_of

    dataset_of(data, sizes.impressions, sizes.embedding_rows)


def measure_score(data: Path, sizes: Sizes) -> Seconds:
    """Seconds of an impression scored."""
    from score_speed import DATA, model_of, scoring_rates

    from mtlzoo.models import create
    from pipelines import open_dataset

    dataset = open_dataset(data / DATA)
    model = model_of(dataset.schema) if sizes.model == "mmoe" else create(sizes.model, dataset.schema)
    out = data / "scores.parquet"

    def seconds(clock: Callable[[], float]) -> list[float]:
        return [1.0 / scoring_rates(model, dataset, out, sizes.batch, clock)[0] for _ in range(sizes.repeats)]

    scoring_rates(model, dataset, out, sizes.batch)
    return {"wall": statistics.median(seconds(time.perf_counter)), "cpu": statistics.fmean(seconds(time.process_time))}


def _each(work: Callable[[], object], repeats: int, parts: int) -> Seconds:
    """Seconds of one of the parts that `work` consists of, after one call that does not count."""
    work()
    times, cpu = [], time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return {"wall": statistics.median(times) / parts, "cpu": (time.process_time() - cpu) / repeats / parts}


PREPARE = {"train": prepare_train, "read": prepare_read, "convert": prepare_convert, "score": prepare_score}
MEASURE = {"train": measure_train, "read": measure_read, "convert": measure_convert, "score": measure_score}
KINDS = tuple(MEASURE)


def sources() -> list[str]:
    """Directories that modules of the packages were imported from, each once; one, if all is well."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    found = {
        Path(file).resolve().parents[name.count(".") + (Path(file).name == "__init__.py")]
        for name, file in files.items()
        if file and name.split(".")[0] in PACKAGES
    }
    return sorted(map(str, found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("prepare", "measure"))
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--config", type=Path, required=True, help="the sizes as JSON")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the result goes, as JSON")
    arguments = parser.parse_args()
    plain: dict[str, Any] = json.loads(arguments.config.read_text(encoding="utf-8"))
    sizes = Sizes(**(plain | {"expert_units": tuple(plain["expert_units"])}))
    result: dict[str, Any] = {}
    if arguments.action == "prepare":
        arguments.data.mkdir(parents=True)
        PREPARE[arguments.kind](arguments.data, sizes)
    else:
        result |= MEASURE[arguments.kind](arguments.data, sizes)
    arguments.out.write_text(json.dumps(result | {"sources": sources()}), encoding="utf-8")


if __name__ == "__main__":
    main()
