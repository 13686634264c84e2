"""A smoke version of every table of speed: whether each benchmark still runs. No time is judged.

    python benchmarks/smoke.py [NAME ...] [--jobs 2]        (make smoke)

The programs run, `--jobs` at a time, on a copy of the project in a temporary directory, so that nothing is left in
`benchmarks/results`; it is a failure if something is left in the copy's. The copy is a git repository of one commit,
which `compare_revisions.py` needs. Of each program that fails, the end of its output is printed, and its name last.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

PROJECT = Path(__file__).resolve().parents[1]
COPIED = ("benchmarks", "mtlzoo", "pipelines")
# `machine_limits.py` is run by `training_speed.py`. The longest come first, so that no core waits long for the last.
COMMANDS = {
    "training_speed": "--smoke",
    "compare_revisions": "HEAD --what train --smoke",
    "scale_curves": "--smoke",
    "convert_speed": "--smoke",
    "input_cost": "--smoke",
    "embedding_rows": "--rows 2300 --steps 2 --rounds 1",
    "score_speed": "--smoke",
    "read_speed": "--smoke",
}
GIT = shutil.which("git")
_NEEDS_GIT = "compare_revisions"
# Keras imports it for wrappers that no benchmark uses, wherever it is installed: a tenth of the smoke's time.
_LEFT_OUT = ("sklearn.py", "raise ImportError('the smoke of the benchmarks runs without scikit-learn')\n")
_LAST_LINES = 25
_RUN_SECONDS = 1200  # a program that takes longer hangs, however busy the machine is


def names() -> list[str]:
    """The programs that can run here."""
    return [name for name in COMMANDS if GIT or name != _NEEDS_GIT]


def environment(folder: Path) -> dict[str, str]:
    """That of this process, but for the sources of `folder` and no other repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"PYTHONPATH": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"}


def copy_project(folder: Path) -> Path:
    """Copies the sources, without results, environments and scikit-learn, and commits them where git is there.

    Args:
        folder: A directory that does not exist yet.

    Returns:
        `folder`.
    """
    left_out = shutil.ignore_patterns("__pycache__", ".*", "results")
    for name in COPIED:
        shutil.copytree(PROJECT / name, folder / name, ignore=left_out)
    (folder / "benchmarks" / "results").mkdir()
    name, text = _LEFT_OUT
    (folder / name).write_text(text, encoding="utf-8")
    if GIT:
        settings = ("user.name=smoke", "user.email=smoke@localhost", "commit.gpgsign=false", "core.hooksPath=.none")
        git = [GIT, *(word for setting in settings for word in ("-c", setting))]
        for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "copy")):
            subprocess.run([*git, *words], cwd=folder, env=environment(folder), check=True)
    return folder


def run(name: str, folder: Path) -> str:
    """Runs a program of the copy in `folder`; the end of its output if it failed, else the empty string."""
    command = [sys.executable, str(folder / "benchmarks" / f"{name}.py"), *COMMANDS[name].split()]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment(folder),
            timeout=_RUN_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {_RUN_SECONDS} s"
    if done.returncode != 0:
        return "\n".join([*done.stdout.strip().splitlines()[-_LAST_LINES:], f"exit {done.returncode}"])
    return ""


def left_over(folder: Path) -> list[str]:
    """What the programs left in the copy's results."""
    return sorted(path.name for path in (folder / "benchmarks" / "results").iterdir())


def run_all(chosen: Sequence[str], folder: Path, jobs: int, console: Console) -> list[str]:
    """Runs programs, so many at a time; the names of those that failed."""
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_timed, name, folder): name for name in chosen}
        try:
            for future in as_completed(futures):
                name, (problem, seconds) = futures[future], future.result()
                if problem:
                    failed.append(name)
                    console.print(problem, style="dim", markup=False)
                console.print(f"{name}: {'failed' if problem else 'works'}, {seconds:.0f} s")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _timed(name: str, folder: Path) -> tuple[str, float]:
    start = time.perf_counter()
    return run(name, folder), time.perf_counter() - start


def main() -> int:
    """Runs the programs; 1 if one failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(COMMANDS)}; none: all")
    parser.add_argument("--jobs", type=int, default=2, help="programs at a time")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(COMMANDS))
    if unknown:
        parser.error(f"no such program: {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    console, start = Console(width=120, highlight=False), time.perf_counter()
    if not GIT:
        console.print(f"git is not there: {_NEEDS_GIT} cannot run")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = copy_project(Path(scratch) / "project")
            failed = run_all(options.names or names(), folder, options.jobs, console)
        except KeyboardInterrupt:
            console.print("stopped")
            return 130
        left = left_over(folder)
    console.print(f"{time.perf_counter() - start:.0f} s")
    if left:
        console.print(f"failed: {', '.join(left)} was left in benchmarks/results", style="red")
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
    return int(bool(failed or left))


if __name__ == "__main__":
    sys.exit(main())
