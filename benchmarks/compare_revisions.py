"""Whether this project has become slower: its own speed at two states of the sources, in paired runs.

    python benchmarks/compare_revisions.py OLD [NEW] [--what train read convert score] [--model mmoe] [--rounds 6]
        [--clock cpu|wall] [--tolerance 1.03] [--smoke]
    python benchmarks/compare_revisions.py main~3 --what train

OLD and NEW are git revisions; NEW is the working tree if it is not given. `mtlzoo` and `pipelines` of both are put into
a temporary directory, and the working tree's `own_speed.py`, whose head says what is measured, runs on each: every run
is a process of its own, on data that its sources wrote. Within a round both run one after the other, in every second
round in the other order, and the ratio NEW / OLD of the times is taken within a round: machines drift, rounds do not.

The verdict is on the 95 % interval of the mean of the ratios' logarithms (Student's t over rounds):

slower               the whole interval lies above `--tolerance`
faster               the whole interval lies below 1 / `--tolerance`
no difference seen   else; an interval that is wide has seen little, and more rounds make it narrower

The clock that is judged is CPU time, all threads together, since other processes disturb it less; the wall clock stands
beside it. Counts of instructions would be steadier still, but they need a counter of the processor
(`perf_event_open`) that virtual machines mostly do not hand through; paired runs work everywhere, so they are all
there is. Exit code: 0; 1 if something is slower; 2 if something could not be measured; 130 after Ctrl-C. `--smoke` sees
in seconds that it works: one round, tiny sizes, nothing judged.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kept import commit, machine
from own_speed import KINDS, PACKAGES, Seconds, Sizes
from paired import Interval, mean_interval
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
CLOCKS = ("cpu", "wall")
SLOWER, FASTER, UNSEEN, UNJUDGED = "slower", "faster", "no difference seen", "not judged: one round"
Pair = tuple[Seconds, Seconds]  # of OLD and NEW in one round
_RUN_SECONDS = 1800  # a run that takes longer hangs
_LAST_LINES = 15
_SMOKE = Sizes(
    impressions=3_000, embedding_rows=2_300, batch=256, warmup=2, steps=3, repeats=1, experts=2, expert_units=(16, 8)
)


class ComparisonError(RuntimeError):
    """Something that could not be compared: one line, and the end of a program's output where there is one."""

    def __init__(self, line: str, output: str = "") -> None:
        super().__init__(line)
        self.output = "\n".join(output.strip().splitlines()[-_LAST_LINES:])


@dataclass(frozen=True)
class State:
    """One state of the sources.

    Attributes:
        name: As the command line has it.
        commit: What that is.
        folder: Where its packages and its data are put.
    """

    name: str
    commit: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name} ({self.commit})" if self.commit else self.name


def old_state(revision: str, folder: Path) -> State:
    """Puts the packages of a revision into a directory.

    Raises:
        ComparisonError: There is no git, no checkout, no such revision, or it has no such packages.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top.returncode != 0 or Path(os.fsdecode(top.stdout.strip())).resolve() != PROJECT:
        raise ComparisonError(f"{PROJECT} is not a git checkout, so it has no revisions to compare; clone the project")
    found = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if found.returncode != 0:
        raise ComparisonError(
            f"git knows no revision {revision!r} here; `git log --oneline` lists those of this branch"
        )
    name = found.stdout.decode().strip()
    packed = _git("archive", "--format=zip", name, *PACKAGES)
    if packed.returncode != 0:
        raise ComparisonError(f"{revision} cannot be compared: {packed.stderr.decode(errors='replace').strip()}")
    zipfile.ZipFile(io.BytesIO(packed.stdout)).extractall(folder)
    return State(revision, name[:10], folder)


def working_tree(folder: Path) -> State:
    """Puts the packages of the working tree into a directory, so that edits meanwhile change nothing."""
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return State("the working tree", commit(), folder)


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *words], capture_output=True, cwd=PROJECT)
    except FileNotFoundError:
        raise ComparisonError("git is not there; revisions are taken from it") from None


def run(state: State, action: str, kind: str, sizes: Sizes) -> Seconds:
    """Runs `own_speed.py` on a state; the seconds of `measure`, nothing of `prepare`.

    Raises:
        ComparisonError: It failed, took too long, or ran on other sources.
    """
    config, out = state.folder / "sizes.json", state.folder / "result.json"
    config.write_text(json.dumps(sizes.as_json()), encoding="utf-8")
    out.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "own_speed.py"), action, kind, "--config", str(config)]
    command += ["--data", str(state.folder / f"data-{kind}"), "--out", str(out)]
    path = os.pathsep.join(filter(None, (str(state.folder), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    what = f"{action} {kind} with the sources of {state}"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=state.folder, env=environment, timeout=_RUN_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ComparisonError(f"{what}: no end after {_RUN_SECONDS} s") from None
    if done.returncode != 0:
        output = done.stderr.strip() or done.stdout.strip() or "no output"
        raise ComparisonError(f"{what}: exit {done.returncode}: {output.splitlines()[-1]}", output)
    result = json.loads(out.read_text(encoding="utf-8"))
    used = {Path(folder) for folder in result.pop("sources")}
    if used != {state.folder.resolve()}:
        others = ", ".join(map(str, sorted(used - {state.folder.resolve()})))
        raise ComparisonError(f"{what}: modules came from {others}; they may not be there in these sources")
    return result


def measure_all(
    states: Sequence[State], options: argparse.Namespace, sizes: Sizes, console: Console, pairs: dict[str, list[Pair]]
) -> None:
    """Runs every round; `pairs` gets each pair as it ends, by kind."""
    for kind in options.what:
        for state in states:
            console.print(f"{kind}: data of {state}", markup=False)
            run(state, "prepare", kind, sizes)
    start, total = time.perf_counter(), options.rounds * len(options.what)
    for turn in range(options.rounds):
        for kind in options.what:
            order = (0, 1)[:: -1 if turn % 2 else 1]  # who goes first alternates
            found = {i: run(states[i], "measure", kind, sizes) for i in order}
            pairs.setdefault(kind, []).append((found[0], found[1]))
            done, spent = sum(map(len, pairs.values())), time.perf_counter() - start
            ratio = ratios(pairs[kind], options.clock)[-1]
            console.print(
                f"{done}/{total}, round {turn + 1}, {kind}: {ratio:.3f} of the old {options.clock} time; "
                f"{spent / 60:.0f} min so far, about {spent / done * (total - done) / 60:.0f} to go"
            )


def ratios(pairs: Sequence[Pair], clock: str) -> list[float]:
    """NEW / OLD by round."""
    return [new[clock] / old[clock] for old, new in pairs]


def judge(values: Sequence[float], tolerance: float) -> tuple[Interval, str]:
    """The mean ratio with its 95 % interval, and the verdict.

        exp(mean_interval(log r_1, ..., log r_n)),   slower: low > tolerance,   faster: high < 1 / tolerance

    Args:
        values: A ratio NEW / OLD for each round.
        tolerance: Largest ratio that is no regression; at least 1.

    Example:
        >>> judge([1.10, 1.11, 1.10, 1.09], 1.03)[1], judge([0.8, 1.2, 1.3, 1.0], 1.03)[1]
        ('slower', 'no difference seen')

    Source: our design.
    """
    logs = mean_interval([math.log(value) for value in values])
    interval = Interval(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high))
    if len(values) == 1:
        return interval, UNJUDGED
    if interval.low > tolerance:
        return interval, SLOWER
    return interval, FASTER if interval.high < 1.0 / tolerance else UNSEEN


def table_of(states: Sequence[State], pairs: dict[str, list[Pair]], clock: str, tolerance: float) -> Table:
    """Two rows per kind, the clock that is judged first."""
    table = Table(title=f"old: {states[0]}; new: {states[1]}; ratio from which it is slower: {tolerance:g}")
    for heading in ("", "old", "new", "new/old (range)", "95 % interval of the mean", "verdict"):
        table.add_column(heading, justify="left" if heading in ("", "verdict") else "right")
    for kind, found in pairs.items():
        for name in sorted(CLOCKS, key=lambda name: name != clock):
            unit, scale = ("ms/step", 1e3) if kind == "train" else ("us/impression", 1e6)
            medians = [f"{scale * statistics.median(pair[i][name] for pair in found):.3g}" for i in (0, 1)]
            values = ratios(found, name)
            interval, verdict = judge(values, tolerance)
            spread = f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"
            limits = "" if verdict == UNJUDGED else f"{interval.low:.3f}-{interval.high:.3f}"
            table.add_row(f"{kind}, {name}, {unit}", *medians, spread, limits, verdict if name == clock else "")
    return table


def parse(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, Sizes]:
    """The command line; what `--smoke` sets wins over the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD", help="a git revision")
    parser.add_argument("new", metavar="NEW", nargs="?", help="a git revision; none: the working tree")
    parser.add_argument("--what", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--model", default=Sizes.model, help="what is trained, and what scores")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="which is judged")
    parser.add_argument("--tolerance", type=float, default=1.03, help="largest ratio that is no regression")
    parser.add_argument("--impressions", type=int, default=Sizes.impressions, help="read, converted or scored")
    parser.add_argument("--embedding-rows", type=int, default=Sizes.embedding_rows, help="of all fields together")
    parser.add_argument("--batch", type=int, default=Sizes.batch)
    parser.add_argument("--steps", type=int, default=Sizes.steps, help="training steps of a run, at most")
    parser.add_argument("--seconds", type=float, default=Sizes.seconds, help="of these steps, but at least 3 steps")
    parser.add_argument("--repeats", type=int, default=Sizes.repeats, help="of reading, converting, scoring in a run")
    parser.add_argument("--smoke", action="store_true", help="one round, tiny sizes, nothing judged")
    options = parser.parse_args(words)
    options.what = list(dict.fromkeys(options.what))
    if not options.smoke and options.rounds < 2:
        parser.error("--rounds must be at least 2: one round has no interval")
    if options.tolerance < 1.0:
        parser.error("--tolerance must be at least 1, such as 1.03")
    if options.smoke:
        options.rounds = 1
        return options, replace(_SMOKE, model=options.model)
    names = ("model", "impressions", "embedding_rows", "batch", "steps", "seconds", "repeats")
    return options, Sizes(**{name: getattr(options, name) for name in names})


def main(words: Sequence[str] | None = None) -> int:
    """Measures, prints the table, and returns the exit code."""
    options, sizes = parse(words)
    console = Console(width=160, highlight=False)
    states: list[State] = []
    pairs: dict[str, list[Pair]] = {}
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            states.append(old_state(options.old, Path(folder) / "old"))
            new = Path(folder) / "new"
            states.append(working_tree(new) if options.new is None else old_state(options.new, new))
            console.print(f"old: {states[0]}; new: {states[1]}; on {machine()}", markup=False)
            measure_all(states, options, sizes, console, pairs)
        except KeyboardInterrupt:
            console.print("stopped; judged is what was measured")
            code = 130
        except ComparisonError as error:
            if error.output:
                console.print(error.output, style="dim", markup=False)
            console.print(f"failed: {error}", style="red", markup=False)
            code = 2
    if pairs:
        console.print(table_of(states, pairs, options.clock, options.tolerance))
    slower = [
        kind for kind, found in pairs.items() if judge(ratios(found, options.clock), options.tolerance)[1] == SLOWER
    ]
    return code or int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
