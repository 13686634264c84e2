"""`mtlzoo tune` as a user types it: killed and gone on with, with two workers, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtlzoo.cli import _run
from mtlzoo.training import open_run
from mtlzoo.tuning import Search, SearchConfig, TrialRecord, open_search, run_workers

MTLZOO = Path(sys.executable).with_name("mtlzoo")
FIXED = ["--set", "embedding_dim=4", "--set", "tower_units=4", "--search", "bottom_units,learning_rate"]


def command(dataset, out: Path, *more: object, model: str = "shared_bottom") -> list[str]:
    words = ["tune", model, "--data", dataset.folder, "--out", out, "--algorithm", "random", "--no-prune", *more]
    return [str(word) for word in words]


def code_of(words: list[str]) -> int:
    """What the command would exit with, without the seconds that a process takes to start."""
    try:
        return _run(words, debug=False)
    except SystemExit as ended:
        return int(ended.code or 0)


def begun(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen([MTLZOO, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen, out: Path, over: int) -> None:
    """Waits until that many trials are over and another is running."""
    deadline = time.monotonic() + 240
    while True:
        statuses = [json.loads(path.read_text())["status"] for path in (out / "trials").glob("*.json")]
        if statuses.count("finished") >= over and "running" in statuses:
            return
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, statuses
        time.sleep(0.02)


def records(out: Path) -> list[TrialRecord]:
    return open_search(out).records.all()


def children_of(pid: int) -> list[int]:
    """Processes that this one started and that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def test_a_killed_search_goes_on_and_trains_its_winner(dataset, tmp_path, capsys):
    out = tmp_path / "search"
    process = begun(command(dataset, out, *FIXED, "--epochs", 2, "--trials", 3))
    wait_for(process, out, over=1)
    process.kill()
    process.communicate(timeout=60)
    killed = records(out)
    assert [record.status for record in killed] == ["finished", "running"]
    first = (out / "trials/00001.json").read_bytes()

    assert code_of(command(dataset, out, *FIXED, "--epochs", 2, "--trials", 3)) == 0
    shown = capsys.readouterr()
    assert (out / "trials/00001.json").read_bytes() == first
    done = records(out)
    assert [record.status for record in done] == ["finished"] * 3
    assert done[1].values == killed[1].values
    assert "going on: 1 of 3 trials are over" in shown.err
    assert "trial 3 finished" in shown.err
    assert "trial 1 finished" not in shown.err

    search = open_search(out)
    best = max(done, key=lambda record: record.value)
    assert search.winner() == best
    assert f"*{best.number}" in shown.out
    assert "What mattered" in (out / "report.html").read_text()
    run = open_run(out / "best")
    assert run.config.learning_rate == best.values["learning_rate"]
    assert list(run.config.arguments["bottom_units"]) == list(best.values["bottom_units"])
    # The run trains as the trial did, so one of its epochs is the trial's.
    aucs = [epoch["val_ctcvr_auc"] for epoch in run.history]
    assert aucs == pytest.approx(best.curve, abs=1e-4)


def small_search(dataset, out: Path) -> Search:
    fixed = {"bottom_units": [8], "tower_units": [4], "embedding_dim": 4}
    search = {"search": ("learning_rate", "dropout"), "algorithm": "random", "prune": False}
    return Search(SearchConfig(model="shared_bottom", data=str(dataset.folder), epochs=1, fixed=fixed, **search), out)


def test_two_workers_share_a_search(dataset, tmp_path):
    search = small_search(dataset, tmp_path / "search")
    before = children_of(os.getpid())
    seen: set[int] = set()
    run_workers(search, trials=6, workers=2, on_change=lambda: seen.update(children_of(os.getpid())))
    assert len(seen - set(before)) == 3  # a chief and two workers
    assert children_of(os.getpid()) == before
    done = search.records.all()
    assert [record.status for record in done] == ["finished"] * 6
    assert {record.worker for record in done} == {"worker-1", "worker-2"}
    assert len({json.dumps(record.values) for record in done}) == 6
    state = json.loads((search.folder / "state.json").read_text())
    assert {trial["status"] for trial in state["trials"].values()} == {"COMPLETED"}
    assert search.winner().value == max(record.value for record in done)
    # One process goes on where two ended.
    search.run(trials=7)
    assert search.records.all()[:6] == done
    assert search.records.all()[6].status == "finished"


def test_workers_end_when_their_search_is_interrupted_or_one_of_them_dies(dataset, tmp_path):
    search = small_search(dataset, tmp_path / "search")
    before = children_of(os.getpid())

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_workers(search, trials=6, workers=2, on_change=interrupt)
    assert children_of(os.getpid()) == before

    def kill_one() -> None:
        os.kill(max(set(children_of(os.getpid())) - set(before)), signal.SIGKILL)

    with pytest.raises(ValueError, match=r"worker-2 was killed by SIGKILL; it said last: .*The same command goes on"):
        run_workers(search, trials=6, workers=2, on_change=kill_one)
    assert children_of(os.getpid()) == before


def test_bad_input_is_one_message(dataset, tmp_path, capsys):
    def refused(*more: object, model: str = "shared_bottom") -> str:
        assert code_of(command(dataset, tmp_path / "out", *more, model=model)) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        return " ".join(shown.err.split())

    assert "there is no model 'mmo'; did you mean 'mmoe'" in refused(model="mmo")
    assert "there is no task 'clik'; did you mean 'click'" in refused("--objective", "clik.auc")
    assert "there is no metric 'acu'" in refused("--objective", "click.acu")
    assert "no hyper-parameter of shared_bottom 'lr'" in refused("--search", "dropout,lr")
    assert "there is no algorithm 'grid'" in refused("--algorithm", "grid")
    assert "no setting 'drop'" in refused("--set", "drop=0.1")
    assert "to hold fixed 'lottery'" in refused("--set", "lottery.rounds=2")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("dear reader")
    assert "is no search directory" in refused()
