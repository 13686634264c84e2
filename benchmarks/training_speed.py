"""The table of training speed: this project's models beside those of other libraries, on the same log.

    python benchmarks/peers/environments.py          # once: an environment for each peer
    python benchmarks/training_speed.py [--rows 100000 2000000 20000000] [--modes documented matched]
        [--peers ours torch_rechub deepctr keras_textbook tfrs] [--rounds 5] [--steps 100] [--seconds 15]
        [--ids zipf|uniform] [--model mmoe|shared_bottom|ple] [--dtype mixed_bfloat16] [--name main]
        [--plot docs/images/training_speed.png] [--smoke]

MMoE with 4 experts 256-128, towers 64, 23 fields, embeddings of 16, batch 4096, Adam, click and ctcvr; or another model
that the peers have (`peers/measuring.py` says with which sizes; TFRS has a program for MMoE alone). Each run is a
process of its own (`benchmarks/peers/train_PEER.py`, whose head says how the peer is configured in both modes). Within
a round the peers run one after the other, in every second round in the other order, and a ratio is taken within a
round. The machine's limits (`machine_limits.py`) are measured in each round, before the runs of each size.

What counts: the median over a run's steps, each from the end of one to the end of the next, after `--warmup` steps;
then the median over rounds. This project reads TFRecords from disk all the while; the peers have the log in memory.
"mean over time" has all steps, the slow ones too. "of sgemm" is the rate at which the model's matrix products are done,
as a part of what TensorFlow reaches with nothing else to do: with large square matrices, and at the model's shapes.

Every run is written to `benchmarks/results/training_speed.json` as it ends, by machine, settings and `--name`. The same
command again does what is not there yet; after Ctrl-C too. The peers of one size, mode and round are measured together
or not at all: where one is missing, the others run again beside it. After a change of this project another `--name`
keeps both states. `--smoke` sees in seconds that it works, and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kept import commit, machine
from machine_limits import SMOKE_SIZES, measure, write_log
from peers.environments import COMMAND, python_of
from peers.measuring import Job, table_sizes
from rich.console import Console
from training_figure import training_figure
from training_table import OURS, growth, limits_key, run_key, spread, table_of

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "training_speed.json"
PEERS = (OURS, "torch_rechub", "deepctr", "keras_textbook", "tfrs")
MODES = ("documented", "matched")
MODELS = ("mmoe", "shared_bottom", "ple")
_RUN_SECONDS = 3600  # a program that takes longer hangs
_SMOKE = {"rows": [2_300], "peers": [OURS, "keras_textbook"], "modes": ["matched"], "rounds": 1}
_SMOKE_JOB: dict[str, Any] = {
    "batch": 256,
    "experts": 2,
    "expert_units": (16, 8),
    "tower_units": (8,),
    "warmup": 2,
    "steps": 3,
}


@dataclass
class Session:
    """One call of this program: what is to be run, and where results are.

    Attributes:
        options: Of the command line.
        job: What every run has in common; `mode`, `data` and `sizes` are filled in for each.
        results: The file.
        work: A directory for logs and what programs write, gone afterwards.
        console: Where progress goes.
        failed: Runs that failed.
    """

    options: argparse.Namespace
    job: Job
    results: Path
    work: Path
    console: Console
    failed: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Of the entry in the file: name, settings and machine."""
        settings = {k: v for k, v in self.job.as_json().items() if k not in ("mode", "data", "sizes")}
        more = {"name": self.options.name, "ids": self.options.ids, "machine": machine()}
        return json.dumps(settings | more, sort_keys=True)

    def entry(self) -> dict[str, Any]:
        """Runs and limits so far."""
        kept = json.loads(self.results.read_text(encoding="utf-8")) if self.results.is_file() else {}
        return kept.get(self.key, {"runs": {}, "limits": {}})

    def keep(self, kind: str, name: str, value: dict[str, Any]) -> None:
        """Adds a run or a round's limits to the file, by rename."""
        kept = json.loads(self.results.read_text(encoding="utf-8")) if self.results.is_file() else {}
        kept.setdefault(self.key, {"runs": {}, "limits": {}})[kind][name] = value
        temporary = self.results.with_name(self.results.name + ".new")
        temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        os.replace(temporary, self.results)

    def log(self, rows: int) -> Path:
        """The log with tables of so many rows, written when it is first asked for."""
        folder = self._folder(rows)
        if not folder.is_dir():
            self.console.print(f"writing {self.job.impressions:,} impressions for {rows:,} embedding rows")
            write_log(folder, rows, self.job.impressions, self.options.ids)
        return folder

    def config(self, rows: int, mode: str) -> Path:
        """The job of one run as a file."""
        path = self.work / f"{mode}-{rows}.json"
        self.log(rows)
        path.write_text(json.dumps(self.job_of(rows, mode).as_json()), encoding="utf-8")
        return path

    def job_of(self, rows: int, mode: str) -> Job:
        """The job of one run."""
        return replace(self.job, mode=mode, data=str(self._folder(rows)), sizes=table_sizes(rows))

    def _folder(self, rows: int) -> Path:
        return self.work / f"log-{rows}"


def plan(options: argparse.Namespace, runs: Mapping[str, Any]) -> Iterator[tuple[int, int, str, str]]:
    """Round, rows, mode and peer of the runs to do, in order: those whose neighbours are not all there."""
    for turn in range(options.rounds):
        for rows in options.rows:
            for mode in options.modes:
                if any(run_key(rows, mode, peer, turn) not in runs for peer in options.peers):
                    for peer in options.peers[:: -1 if turn % 2 else 1]:
                        yield turn, rows, mode, peer


def run(session: Session, rows: int, mode: str, peer: str) -> dict[str, Any] | None:
    """Runs a peer's program; `None` if it failed, of which a line is printed."""
    out = session.work / "result.json"
    out.unlink(missing_ok=True)
    command = [str(python_of(peer)), str(HERE / "peers" / f"train_{peer}.py")]
    command += ["--config", str(session.config(rows, mode)), "--out", str(out)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=session.work, env=environment, timeout=_RUN_SECONDS
        )
    except subprocess.TimeoutExpired:
        _failure(session, f"{mode} {peer}, {rows:,} rows: no end after {_RUN_SECONDS} s")
        return None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        _failure(session, f"{mode} {peer}, {rows:,} rows: {lines[-1]}", "\n".join(lines[-15:-1]))
        return None
    return json.loads(out.read_text(encoding="utf-8"))


def _failure(session: Session, line: str, more: str = "") -> None:
    session.failed.append(line)
    if more:
        session.console.print(more, style="dim", markup=False)
    session.console.print(f"failed: {line}", style="red", markup=False)


def run_all(session: Session) -> None:
    """Does every run that is left to do, and measures the limits before those of a size in a round."""
    options = session.options
    todo = list(plan(options, session.entry()["runs"]))
    session.console.print(f"{len(todo)} of {len(list(plan(options, {})))} runs to do, on {machine()}")
    state, start, measured = commit(), time.perf_counter(), set()
    for done, (turn, rows, mode, peer) in enumerate(todo, start=1):
        if (rows, turn) not in measured:
            measured.add((rows, turn))
            measure_limits(session, rows, mode, turn)
        result = run(session, rows, mode, peer)
        if result is None:
            continue
        session.keep("runs", run_key(rows, mode, peer, turn), result | {"commit": state})
        spent = time.perf_counter() - start
        speed = result["impressions_per_second"]["median"]
        session.console.print(
            f"{done}/{len(todo)}, round {turn + 1}, {rows:,} rows, {mode}, {peer}: {speed / 1e3:.1f} k impressions/s, "
            f"{1e3 * session.job.batch / speed:.0f} ms/step; {spent / 60:.0f} min so far, about "
            f"{spent / done * (len(todo) - done) / 60:.0f} to go"
        )


def measure_limits(session: Session, rows: int, mode: str, turn: int) -> None:
    """The machine's limits, kept for a size in a round."""
    session.console.print(f"round {turn + 1}: the machine's limits")
    smoke = session.options.smoke
    sizes = SMOKE_SIZES if smoke else None
    limits = measure(session.config(rows, mode), session.log(rows) / "dataset", sizes, torch=not smoke)
    session.keep("limits", limits_key(rows, turn), limits)


def print_tables(session: Session) -> None:
    """One table for each size and mode that has runs, and how our step grows with the rows."""
    entry, options = session.entry(), session.options
    for rows in options.rows:
        for mode in options.modes:
            table = table_of(entry, rows, mode, options.peers, session.job_of(rows, mode).as_json())
            if table.row_count:
                session.console.print(table)
    if options.plot is not None and entry["runs"]:
        job = session.job_of(options.rows[0], options.modes[0]).as_json()
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        training_figure(entry, options.rows, options.modes, options.peers, job).savefig(options.plot, dpi=150)
        session.console.print(f"plot: {options.plot}")
    for mode in options.modes:
        for rows in options.rows[1:]:
            found = growth(entry["runs"], options.rows[0], rows, mode)
            if found:
                line = (
                    f"ours, {mode}: a step with {rows:,} rows takes {spread(found)} times that with {options.rows[0]:,}"
                )
                session.console.print(line)


def parse() -> argparse.Namespace:
    """The command line; what `--smoke` sets wins over the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 2_000_000, 20_000_000])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=5, help="steps of a run that do not count")
    parser.add_argument("--steps", type=int, default=100, help="steps of a run that count, at most")
    parser.add_argument("--seconds", type=float, default=15.0, help="of the steps that count, but at least 3 steps")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--ids", choices=("zipf", "uniform"), default="zipf")
    parser.add_argument("--steps-per-execution", type=int, default=1, help="of ours")
    parser.add_argument("--model", choices=MODELS, default="mmoe")
    parser.add_argument("--dtype", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--name", default="main", help="what the results stand under")
    parser.add_argument("--plot", type=Path, help="where the figure goes: a .png, .svg or .pdf file")
    parser.add_argument("--smoke", action="store_true", help="ours and keras_textbook, tiny, nothing kept")
    options = parser.parse_args()
    if options.warmup < 1:
        parser.error("--warmup must be at least 1: the first step traces and compiles")
    if options.smoke:
        vars(options).update(_SMOKE)
    if options.model != "mmoe":
        options.peers = [peer for peer in options.peers if peer != "tfrs"]
    return options


def with_environment(peers: list[str], console: Console) -> list[str]:
    """The peers that can run; of each of the others a line says what makes its environment."""
    for peer in peers:
        if python_of(peer) is None:
            console.print(f"{peer} is left out, it has no environment: run `{COMMAND} {peer}`")
    return [peer for peer in peers if python_of(peer) is not None]


def main() -> int:
    """Runs what is left to run and prints the tables; 1 if a run failed, 130 after Ctrl-C."""
    options, console = parse(), Console(width=160, highlight=False)
    options.peers = with_environment(options.peers, console)
    job = Job(
        mode="",
        data="",
        sizes=(),
        batch=options.batch,
        warmup=options.warmup,
        steps=options.steps,
        seconds=options.seconds,
        steps_per_execution=options.steps_per_execution,
        model=options.model,
        dtype=options.dtype,
    )
    interrupted = False
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.smoke:
            job = replace(job, **_SMOKE_JOB)
        session = Session(options, job, work / "smoke.json" if options.smoke else RESULTS, work, console)
        try:
            run_all(session)
        except KeyboardInterrupt:
            interrupted = True
            console.print("stopped; the same command goes on")
        except RuntimeError as error:
            _failure(session, str(error))
        print_tables(session)
    return 130 if interrupted else int(bool(session.failed))


if __name__ == "__main__":
    sys.exit(main())
