"""How cost grows with rows, fields, embedding rows, experts, tasks and batch size: a curve and fits for each.

    python benchmarks/scale_curves.py [--axis rows fields embedding_rows experts tasks batch_size] [--rounds 3]
        [--steps 100] [--seconds 10] [--name main] [--plot docs/images/scale_curves.png] [--smoke]

The base is MMoE with 4 experts 256-128, towers 64, 23 fields of width 16, 100 thousand embedding rows, click and ctcvr,
batches of 4,096, LazyAdam, metrics on, trained by `fit` from TFRecords. One thing is changed at a time. Ids follow
Zipf's law; fields share the embedding rows in equal parts; a further task is a further kind of conversion. With `rows`
a raw log grows: Parquet to blocks (`pipelines.convert`), and shuffled epochs of the training split that comes of it,
nine tenths of the rows.

A point is a process of its own. In every second round the points of an axis run in the other order. Of a training step
it is the median wall clock, from the end of one step to the end of the next, after 5 that do not count; CPU time is the
mean over the same steps, all threads together, so the reading is in it. Of epochs it is the mean of three after one
that does not count. Peak memory is that of the process, TensorFlow included.

The fits: a line by least squares through the medians over rounds (fixed cost, and cost per unit), and the local
exponent p of cost ~ value^p over the upper half of the values, in each round, with the 95 % interval over rounds.

Every run is written to `benchmarks/results/scale_curves.json` as it ends, by machine, settings and `--name`, then by
axis, value and round. The same command again does what is not there yet; Ctrl-C loses the run in progress alone.
`--smoke` does two small points of each axis with tiny models, all in one process, a point of several axes once, and
keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from kept import commit, machine
from rich.console import Console
from scale_point import Point, in_process, perform
from scale_table import AXES, CURVES, fits_in_words, measured_values, run_key, scale_figure, shown, table_of

RESULTS = Path(__file__).resolve().parent / "results" / "scale_curves.json"
_SMOKE = Point(
    fields=6,
    embedding_rows=600,
    experts=2,
    tasks=2,
    batch_size=256,
    impressions=4096,
    expert_units=(8,),
    tower_units=(4,),
    embedding_dim=2,
    warmup=2,
    steps=3,
)
_SMOKE_VALUES = {"rows": (2_048, 4_096), "embedding_rows": (600, 1_200)}


@dataclass
class Session:
    """One call of this program.

    Attributes:
        options: Of the command line.
        base: What is changed one thing at a time.
        values: By axis.
        results: The file.
        work: A directory for logs, gone afterwards.
        console: Where progress goes.
        execute: Does a piece of work.
        failed: Runs that failed.
    """

    options: argparse.Namespace
    base: Point
    values: Mapping[str, Sequence[int]]
    results: Path
    work: Path
    console: Console
    execute: Callable[[str, Point, Path], dict[str, Any]] = in_process
    failed: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Of the entry in the file: machine, settings and name."""
        return json.dumps({"machine": machine(), "name": self.options.name, **asdict(self.base)}, sort_keys=True)

    def runs(self) -> dict[str, Any]:
        """Runs so far."""
        return self._kept().get(self.key, {})

    def keep(self, name: str, run: dict[str, Any]) -> None:
        """Adds a run to the file, by rename."""
        kept = self._kept()
        kept.setdefault(self.key, {})[name] = run
        temporary = self.results.with_name(self.results.name + ".new")
        temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        os.replace(temporary, self.results)

    def _kept(self) -> dict[str, Any]:
        return json.loads(self.results.read_text(encoding="utf-8")) if self.results.is_file() else {}


def plan(session: Session, runs: Mapping[str, Any]) -> Iterator[tuple[int, str, int]]:
    """Round, axis and value of the runs that are not there, in order."""
    for turn in range(session.options.rounds):
        for axis in session.options.axis:
            for value in session.values[axis][:: -1 if turn % 2 else 1]:
                if run_key(axis, value, turn) not in runs:
                    yield turn, axis, value


def run(session: Session, axis: str, value: int) -> dict[str, Any]:
    """Measures a point, and writes its log before where it is not there yet.

    Raises:
        RuntimeError: A process failed.
    """
    point = replace(session.base, **{axis: value})
    raw = axis == "rows"
    name = f"raw-{point.rows}" if raw else f"log-{point.fields}-{point.embedding_rows}-{point.tasks}"
    folder = session.work / name
    if not folder.is_dir():
        session.execute("raw" if raw else "log", point, folder)
    return {curve: session.execute(curve, point, folder) for curve in AXES[axis].curves}


def run_all(session: Session) -> None:
    """Does every run that is left to do."""
    todo = list(plan(session, session.runs()))
    session.console.print(f"{len(todo)} of {len(list(plan(session, {})))} runs to do, on {machine()}")
    state, start = commit(), time.perf_counter()
    for done, (turn, axis, value) in enumerate(todo, start=1):
        try:
            result = run(session, axis, value)
        except RuntimeError as error:
            session.failed.append(f"{AXES[axis].label} {value:,}: {error}")
            session.console.print(f"failed: {session.failed[-1]}", style="red", markup=False)
            continue
        session.keep(run_key(axis, value, turn), result | {"commit": state})
        spent = time.perf_counter() - start
        session.console.print(
            f"{done}/{len(todo)}, round {turn + 1}, {AXES[axis].label} {value:,}: {_in_short(result)}; "
            f"{spent / 60:.0f} min so far, about {spent / done * (len(todo) - done) / 60:.0f} to go"
        )


def _in_short(result: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{CURVES[curve].label} {shown(CURVES[curve].scale * found['seconds'])} {CURVES[curve].unit} "
        f"in {found['peak_mb']:,.0f} MB"
        for curve, found in result.items()
    )


def report(session: Session) -> None:
    """Prints the table and the fits of each axis that has runs, and draws the figure."""
    runs, console = session.runs(), session.console
    for axis in session.options.axis:
        for curve in AXES[axis].curves if measured_values(runs, axis) else ():
            console.print(table_of(runs, axis, curve))
            for sentence in fits_in_words(runs, axis, curve):
                console.print(f"  {sentence}", soft_wrap=True)
    measured = [axis for axis in session.options.axis if len(measured_values(runs, axis)) > 1]
    if session.options.plot is not None and measured:
        session.options.plot.parent.mkdir(parents=True, exist_ok=True)
        scale_figure(runs, measured).savefig(session.options.plot, dpi=150)
        console.print(f"plot: {session.options.plot}")


def parse() -> argparse.Namespace:
    """The command line."""
    base = Point()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=base.steps, help="of a run that count, at most")
    parser.add_argument("--seconds", type=float, default=base.seconds, help="of the steps that count")
    parser.add_argument("--name", default="main", help="what the results stand under")
    parser.add_argument("--plot", type=Path, help="where the figure goes: a .png, .svg or .pdf file")
    parser.add_argument("--smoke", action="store_true", help="two tiny points of each axis, nothing kept")
    return parser.parse_args()


def main() -> int:
    """Runs what is left to run and prints tables and fits; 1 if a run failed, 130 after Ctrl-C."""
    options, console = parse(), Console(width=120, highlight=False)
    interrupted = False
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        values = {name: axis.values for name, axis in AXES.items()}
        base = replace(Point(), steps=options.steps, seconds=options.seconds)
        session = Session(options, base, values, RESULTS, work, console)
        if options.smoke:
            options.rounds = 1
            small = {name: of_axis[:2] for name, of_axis in values.items()} | _SMOKE_VALUES
            session = Session(options, _SMOKE, small, work / "smoke.json", work, console, cache(perform))
        try:
            run_all(session)
        except KeyboardInterrupt:
            interrupted = True
            console.print("stopped; the same command goes on")
        report(session)
    return 130 if interrupted else int(bool(session.failed))


if __name__ == "__main__":
    sys.exit(main())
