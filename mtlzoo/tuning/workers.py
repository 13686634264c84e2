"""Several workers on one search: KerasTuner's own chief and worker service, on the loopback address.

The process that the user started runs no trial. It starts a chief, which holds the oracle, and the workers, and looks
after them; when it ends, by whatever cause, they end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mtlzoo.tuning.search import LOGS, Search

_ADDRESS = "127.0.0.1"
_POLL_SECONDS = 0.3
_GRACE_SECONDS = 15.0
_CHIEF = "chief"


def run_workers(
    search: Search,
    trials: int,
    workers: int,
    max_minutes: float | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> None:
    """Runs trials in several processes, behind those that the directory has.

    Args:
        search: The search.
        trials: Most trials, with those that the directory has.
        workers: How many trials run at a time; they share the cores of the machine.
        max_minutes: After that no trial is begun.
        on_change: Called about three times a second.

    Raises:
        ValueError: A process ended with an error; the message has what it said last, and where its log is. The others
            have been stopped, and the same call goes on.

    Example:
        >>> run_workers(search, trials=20, workers=2)

    Source: our design around KerasTuner's service.
    """
    logs = search.folder / LOGS
    logs.mkdir(exist_ok=True)
    port = str(_free_port())
    names = [_CHIEF, *(f"worker-{number}" for number in range(1, workers + 1))]
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in names:
            processes[name] = _start(name, port, search.folder, trials, max_minutes, workers)
        # The chief ends when nothing is left, and does not wait for a worker that is still starting.
        while processes[_CHIEF].poll() != 0 and any(
            process.poll() is None for name, process in processes.items() if name != _CHIEF
        ):
            _check(processes, logs)
            on_change()
            time.sleep(_POLL_SECONDS)
        _check(processes, logs)
        on_change()
    finally:
        _stop(list(processes.values()))


def _start(
    name: str, port: str, folder: Path, trials: int, max_minutes: float | None, workers: int
) -> subprocess.Popen[bytes]:
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {
        "KERASTUNER_TUNER_ID": name,
        "KERASTUNER_ORACLE_IP": _ADDRESS,
        "KERASTUNER_ORACLE_PORT": port,
        "TF_NUM_INTRAOP_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # one worker would take all of an accelerator's memory
        "CUDA_VISIBLE_DEVICES": "-1" if name == _CHIEF else os.environ.get("CUDA_VISIBLE_DEVICES"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "no_grpc_proxy": _ADDRESS,
    }
    minutes = "none" if max_minutes is None else str(max_minutes)
    with (folder / LOGS / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mtlzoo.tuning", str(folder), str(trials), minutes],
            env={**os.environ, **{key: value for key, value in environment.items() if value is not None}},
            stdin=subprocess.PIPE,  # it ends when this process does: see __main__.py
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal reaches this process alone, which tells the others
        )


def _check(processes: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    """Raises an error for a process that ended as it should not."""
    for name, process in processes.items():
        code = process.poll()
        if not code:
            continue
        log = logs / f"{name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise ValueError(f"{name} {how}; it said last: {lines[-1]} (all in {log}). The same command goes on")


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Asks processes to end, and ends those that do not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_ADDRESS, 0))
        return int(probe.getsockname()[1])
