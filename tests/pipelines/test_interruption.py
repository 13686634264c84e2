from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

import pipelines
from pipelines import DataError, convert
from pipelines.raw import BATCH_ROWS
from pipelines.replace import set_aside

# One raw batch is larger than the log, so that progress is only reported at the end: interrupt within it instead.
assert BATCH_ROWS > 6_000


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Interrupting:
    """Breaks a conversion off when it closes its n-th shard, as Ctrl-C would."""

    def __init__(self, monkeypatch, closings: int) -> None:
        self.left = closings
        self.save = convert_module._save_state
        monkeypatch.setattr(convert_module, "_save_state", self)

    def __call__(self, work, state) -> None:
        self.save(work, state)
        if state.closed:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


convert_module = sys.modules["pipelines.convert"]


@pytest.fixture
def arguments(raw_log, demo_schema):
    return {"files": [raw_log.parquet], "schema": demo_schema, "shards": 5}


@pytest.fixture(scope="module")
def uninterrupted(raw_log, demo_schema, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    return contents(convert([raw_log.parquet], demo_schema, out, shards=5))


@pytest.mark.parametrize("closings", [1, 3, 6])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(closings, arguments, uninterrupted, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        Interrupting(patch, closings)
        with pytest.raises(KeyboardInterrupt):
            convert(out=out, **arguments)
    assert not out.exists()
    with pytest.raises(DataError, match="its conversion did not finish"):
        pipelines.open_dataset(tmp_path / "out.partial")
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("*.tfrecord")}
    assert len(finished) >= closings
    phases = []
    convert(out=out, progress=lambda phase, done, total: phases.append(phase), **arguments)
    assert set(phases) == {"write"}  # what was fitted is not fitted again
    assert contents(out) == uninterrupted
    kept = [path for path, written in finished.items() if (out / path.name).stat().st_mtime_ns == written]
    assert len(kept) >= closings  # closed shards are not written again
    assert os.listdir(tmp_path) == ["out"]


def test_an_interruption_leaves_the_old_dataset_whole(arguments, tmp_path, monkeypatch):
    out = convert(out=tmp_path / "out", **arguments | {"shards": 1})
    before = contents(out)
    with monkeypatch.context() as patch:
        Interrupting(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            convert(out=out, **arguments)
    assert contents(out) == before
    pipelines.open_dataset(out).verify()
    convert(out=out, **arguments)
    assert len(pipelines.open_dataset(out).manifest.splits["train"]) > 1


def test_another_call_does_not_go_on_from_what_a_different_one_left(arguments, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Interrupting(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            convert(out=tmp_path / "out", **arguments | {"shards": 2})
    assert contents(convert(out=tmp_path / "out", **arguments)) == uninterrupted


@pytest.mark.parametrize("damage", ["progress", "shard"])
def test_a_damaged_partial_conversion_begins_anew(damage, arguments, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Interrupting(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            convert(out=tmp_path / "out", **arguments)
    work = tmp_path / "out.partial"
    broken = work / "progress.json" if damage == "progress" else sorted(work.glob("*.tfrecord"))[0]
    broken.write_bytes(broken.read_bytes()[:50])
    assert contents(convert(out=tmp_path / "out", **arguments)) == uninterrupted


@pytest.mark.parametrize("before", ["first rename", "second rename", "clean-up"])
def test_stopped_while_the_new_takes_the_place_of_the_old(before, arguments, uninterrupted, tmp_path, monkeypatch):
    """Whatever the moment, the next call finds old or new whole and finishes the job."""
    out = convert(out=tmp_path / "out", **arguments | {"shards": 1})
    old = contents(out)
    swap = convert_module.replace_directory

    def stop_in_swap(work, place):
        if before == "second rename":
            place.rename(set_aside(place))
        if before == "clean-up":
            swap(work, place)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "replace_directory", stop_in_swap)
        with pytest.raises(KeyboardInterrupt):
            convert(out=out, **arguments)
    if before != "clean-up":
        with pytest.raises(DataError, match="no such raw file"):
            convert(out=out, **arguments | {"files": [tmp_path / "nowhere.csv"]})
        assert contents(out) == old
    assert pipelines.open_dataset(out).rows("train")
    assert contents(convert(out=out, **arguments)) == uninterrupted
    assert os.listdir(tmp_path) == ["out"]


KILLED = """
import sys
from pathlib import Path
from pipelines.schema_file import load_schema
import pipelines.convert, time
convert = sys.modules["pipelines.convert"]
save = convert._save_state
def slowly(work, state):
    save(work, state)
    if len(state.closed.get("train", ())) == 2:
        Path(sys.argv[3] + ".reached").touch()
        time.sleep(60)
convert._save_state = slowly
convert.convert([sys.argv[1]], load_schema(sys.argv[2]), sys.argv[3], shards=5)
"""


def test_a_killed_conversion_goes_on_to_the_same_bytes(arguments, uninterrupted, raw_log, demo_schema, tmp_path):
    pipelines.save_schema(demo_schema, tmp_path / "schema.yaml")
    out = tmp_path / "data" / "out"
    command = [sys.executable, "-c", KILLED, str(raw_log.parquet), str(tmp_path / "schema.yaml"), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not out.with_name("out.reached").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(DataError, match="another conversion is writing this dataset"):
            convert(out=out, **arguments)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    out.with_name("out.reached").unlink()
    assert not out.exists()
    assert contents(convert(out=out, **arguments)) == uninterrupted
    assert os.listdir(out.parent) == ["out"]


def test_two_conversions_at_once(arguments, tmp_path):
    with (tmp_path / "out.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"out: another conversion is writing this dataset"):
            convert(out=tmp_path / "out", **arguments)
    convert(out=tmp_path / "out", **arguments)
    assert os.listdir(tmp_path) == ["out"]


def test_a_raw_file_that_changes_meanwhile(arguments, raw_log, tmp_path):
    file = tmp_path / "log.parquet"
    file.write_bytes(raw_log.parquet.read_bytes())

    def touch(phase, done, total):
        if phase == "write":
            os.utime(file, ns=(1, 1))

    with pytest.raises(DataError, match="a raw file changed while it was being converted"):
        convert(out=tmp_path / "out", progress=touch, **arguments | {"files": [file]})
    assert not (tmp_path / "out").exists()


def test_progress_is_reported(arguments, tmp_path):
    reports = []
    convert(out=tmp_path / "out", progress=lambda *report: reports.append(report), **arguments)
    assert reports[0] == ("fit", 6_000, None)
    assert reports[-1] == ("write", 6_000, 6_000)
