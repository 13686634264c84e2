"""How cost grows: fits against closed forms, what is run and kept, and the logs with other fields and tasks."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import scale_curves
import scale_point
import scale_table
import training_data
from peers import measuring
from scale_table import AXES, run_key

import pipelines


def costs(seconds: float, cpu: float = 1.0, peak: float = 1e3, impressions: int = 100) -> dict:
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "impressions": impressions}


def power_law_runs(rounds: int = 3) -> dict:
    """Experts with a cost of value^.5, slower from round to round by a factor."""
    return {
        run_key("experts", value, turn): {"step": costs(0.01 * 2.0**turn * value**0.5, 0.3 + 0.1 * value, 900 + value)}
        for turn in range(rounds)
        for value in AXES["experts"].values
    }


def text_of(table) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_a_line_is_found_exactly():
    line = scale_table.line_fit([1, 2, 8, 16], [5.0, 7.0, 19.0, 35.0])
    assert (line.fixed, line.per_unit) == (pytest.approx(3.0), pytest.approx(2.0))
    assert line.at(1e9) == pytest.approx(2e9 + 3.0)


def test_a_line_through_noise_is_that_of_the_normal_equations():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([1.0, 4.0, 3.0])
    per_unit = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    line = scale_table.line_fit(x, y)
    np.testing.assert_allclose([line.per_unit, line.fixed], [per_unit, y.mean() - per_unit * x.mean()])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    values = [6, 12, 23, 46, 92]
    assert scale_table.local_exponent(values, [7.0 * value**power for value in values]) == pytest.approx(power)


def test_fixed_cost_is_small_at_the_upper_half():
    """Above a line's fixed cost the exponent goes to 1: its slope there is b x / (a + b x)."""
    values = [1e6, 1.01e6]
    found = scale_table.local_exponent(values, [3e5 + value for value in values])
    assert found == pytest.approx(1.005e6 / (3e5 + 1.005e6), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "half"),
    [([5, 1, 3], [3, 5]), ([1, 2], [1, 2]), ([1, 2, 3, 4], [2, 3, 4]), (range(1, 9), [4, 5, 6, 7, 8]), ([7], [7])],
)
def test_upper_half(values, half):
    assert scale_table.upper_half(list(values)) == half


def test_exponents_are_taken_round_by_round():
    runs = power_law_runs()
    found = scale_table.exponent(runs, "experts", "step", "seconds")
    assert found.mean == pytest.approx(0.5)  # whatever a whole round is slower
    assert found.half == pytest.approx(0.0, abs=1e-9)
    del runs[run_key("experts", 1, 0)]  # not of the upper half
    runs[run_key("experts", 16, 1)]["step"]["seconds"] *= 2.0
    del runs[run_key("experts", 8, 2)]  # so that the round has not all of it
    found = scale_table.exponent(runs, "experts", "step", "seconds")
    raised = 0.5 + math.log(2.0) * math.log(2.0) / (2.0 * math.log(2.0) ** 2)
    assert found.mean == pytest.approx((0.5 + raised) / 2.0)
    assert math.isnan(scale_table.exponent(power_law_runs(1), "experts", "step", "seconds").low)
    assert scale_table.exponent({}, "experts", "step", "seconds") is None


def test_fits_are_of_medians_and_told_in_words():
    runs = power_law_runs()
    runs[run_key("experts", 4, 2)]["step"]["peak_mb"] = 1e9  # an outlier of one round
    line = scale_table.fitted_line(runs, "experts", "step", "peak_mb")
    assert (line.fixed, line.per_unit) == (pytest.approx(900.0), pytest.approx(1.0))
    wall, cpu, memory = scale_table.fits_in_words(runs, "experts", "step")
    assert wall.endswith("exponent 0.50 (0.50 to 0.50) from 4 to 16")
    assert cpu.startswith("CPU: 300 ms + 100 ms per expert; exponent")
    assert memory.startswith("peak memory: 900 MB + 1.00 MB per expert; exponent")


def test_a_billion_is_what_the_line_gives():
    runs = {
        run_key("rows", value, 0): {
            "convert": costs(1.0 + value * 36e-6, impressions=value) | {"shard_mb": value * 80e-6},
            "read": costs(2.0 - value * 1e-9, peak=1e3 + value * 192e-6, impressions=value),
        }
        for value in (1_000_000, 2_000_000)
    }
    wall, *_, shards = scale_table.fits_in_words(runs, "rows", "convert")
    assert wall.startswith("wall clock: 1.00 s + 36.0 s per million")
    assert wall.endswith("the line at a billion: 10.0 h")
    assert shards.endswith(
        "80.0 MB per million; exponent 1.00 from 1,000,000 to 2,000,000; the line at a billion: 80.0 GB"
    )
    wall, _, memory = scale_table.fits_in_words(runs, "rows", "read")
    assert "s - 0.00100 s per million" in wall
    assert "billion" not in wall  # a line that falls says nothing of it
    assert memory.endswith("the line at a billion: 193 GB")


def test_table_has_a_row_per_value():
    text = text_of(scale_table.table_of(power_law_runs(), "experts", "step"))
    assert "rounds: 3" in text
    assert [line.split("│")[1:6] for line in text.splitlines() if "│          4 " in line or "│       4 │" in line] == [
        ["       4 ", " 40.0 (20.0-80.0) ", "         2,500 ", "         700 ", "     904 "]
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.001234, "0.00123"), (1.0, "1.00"), (99.96, "100"), (-12345.6, "-12,346")]
)
def test_numbers_have_three_digits(value, text):
    assert scale_table.shown(value) == text


def test_figure_has_times_and_memory_of_every_axis():
    figure = scale_table.scale_figure(power_law_runs(), ["experts"])
    times, memory = figure.axes
    assert (times.get_xscale(), times.get_yscale(), memory.get_yscale()) == ("log",) * 3
    assert memory.get_xlabel() == "experts"
    middle = times.lines[0]
    values = np.array(AXES["experts"].values, float)
    np.testing.assert_allclose(middle.get_xdata().astype(float), values)
    np.testing.assert_allclose(middle.get_ydata().astype(float), 20.0 * values**0.5)
    assert np.diff(np.log10(memory.get_ylim())) == pytest.approx(1.0)  # a decade, though it hardly grows


def test_cpu_time_is_that_of_the_steps_that_count(monkeypatch):
    wall, cpu = iter([1.0, 2.0, 3.0, 5.0]), iter([10.0, 20.0, 22.0, 29.0])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(measuring.time, "process_time", lambda: next(cpu))
    clock = scale_point.CpuClock(measuring.Job(mode="documented", data="", sizes=(), warmup=2, steps=2, seconds=1e9))
    assert [clock.tick() for _ in range(4)] == [False, False, False, True]
    assert clock.step_seconds == [1.0, 2.0]
    assert clock.cpu_seconds == 2.0 + 7.0


def test_work_reaches_the_process_whole(monkeypatch, capsys, tmp_path):
    sent = []
    monkeypatch.setitem(scale_point._WORK, "step", lambda point, folder: sent.append((point, folder)) or costs(2.0))
    point = scale_point.Point(experts=7, expert_units=(3, 2))

    def start(command, **_):
        monkeypatch.setattr(sys, "argv", command[1:])
        scale_point.main()
        return argparse.Namespace(returncode=0, stdout="something else\n" + capsys.readouterr().out, stderr="")

    monkeypatch.setattr(scale_point.subprocess, "run", start)
    assert scale_point.in_process("step", point, tmp_path) == costs(2.0)
    assert sent == [(point, tmp_path)]


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="nothing: exit 1: KeyError: 'nothing'"):
        scale_point.in_process("nothing", scale_point.Point(), tmp_path)


def session_of(folder: Path, execute, **changes) -> scale_curves.Session:
    options = argparse.Namespace(**{"axis": ["experts", "rows"], "rounds": 2, "name": "main", "plot": None, **changes})
    values = {"experts": (1, 2), "rows": (10, 20), "batch_size": (8,)}
    console = Console(quiet=True)
    return scale_curves.Session(options, scale_point.Point(), values, folder / "kept.json", folder, console, execute)


def test_runs_alternate_are_kept_as_they_end_and_are_not_done_twice(tmp_path):
    done: list[tuple] = []
    stop_at: list[int] = []

    def execute(kind, point, folder):
        if stop_at == [len(done)]:
            raise KeyboardInterrupt
        done.append((kind, point.rows if folder.name.startswith("raw") else point.experts))
        if kind in ("raw", "log"):
            folder.mkdir()
        return costs(1.0)

    stop_at.append(6)  # in the conversion of the second value
    with pytest.raises(KeyboardInterrupt):
        scale_curves.run_all(session_of(tmp_path, execute))
    assert done == [("log", 1), ("step", 1), ("step", 2), ("raw", 10), ("convert", 10), ("read", 10)]
    kept = session_of(tmp_path, execute).runs()
    assert list(kept) == ["experts/1/0", "experts/2/0", "rows/10/0"]
    assert kept["rows/10/0"].keys() == {"convert", "read", "commit"}

    stop_at.clear()
    done.clear()
    scale_curves.run_all(session_of(tmp_path, execute))
    of_20 = [("raw", 20), ("convert", 20), ("read", 20)]
    second = [("step", 2), ("step", 1), ("convert", 20), ("read", 20), ("convert", 10), ("read", 10)]
    assert done == of_20 + second
    done.clear()
    scale_curves.run_all(session_of(tmp_path, execute))
    assert done == []
    scale_curves.run_all(session_of(tmp_path, execute, axis=["batch_size"], rounds=1))
    scale_curves.run_all(session_of(tmp_path, execute, axis=["experts"], rounds=1, name="later"))
    assert done == [("step", 4), ("step", 1), ("step", 2)]
    keys = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8")).keys()
    assert [json.loads(key)["name"] for key in keys] == ["main", "later"]


def test_a_failed_run_is_told_and_left_to_do(tmp_path):
    def execute(kind, point, folder):
        if point.experts == 1:
            raise RuntimeError("step: exit -9 (killed)")
        return costs(1.0)

    session = session_of(tmp_path, execute, axis=["experts"], rounds=1)
    scale_curves.run_all(session)
    assert session.failed == ["experts 1: step: exit -9 (killed)"]
    assert list(scale_curves.plan(session, session.runs())) == [(0, "experts", 1)]


def test_every_axis_changes_the_point_it_is_named_after():
    assert set(AXES) <= set(scale_point.Point.__dataclass_fields__)
    point = scale_point.Point()
    assert all(point.impressions % size == 0 for size in AXES["batch_size"].values)
    for name, axis in AXES.items():
        assert list(axis.values) == sorted(axis.values)
        assert getattr(point, name) in axis.values


@pytest.mark.parametrize(("fields", "tasks"), [(6, 1), (46, 4)])
def test_log_has_the_fields_and_tasks_that_are_asked_for(tmp_path, fields, tasks):
    training_data.write(tmp_path, 1_000, 20_480, "zipf", seed=3, fields=fields, tasks=tasks)
    ids, labels = np.load(tmp_path / "ids.npy"), np.load(tmp_path / "labels.npy")
    assert ids.shape == (20_480, fields)
    assert labels.shape == (20_480, tasks)
    dataset = pipelines.open_dataset(tmp_path / "dataset")
    ((features, targets, _),) = dataset.read("train", batch_size=20_480)
    np.testing.assert_array_equal(features["categorical"], ids)
    schema = dataset.schema
    assert sum(schema.fitted.tables.values()) == 1_000
    joint = [target.name for target in schema.targets if target.is_joint or target.label == "click"]
    assert len(joint) == tasks
    for i, name in enumerate(joint):
        np.testing.assert_array_equal(targets[name][:, 0], labels[:, i])
    assert 0.02 < labels[:, 0].mean() < 0.05  # as rare with many fields as with few
    assert (labels[:, 1:] <= labels[:, :1]).all()
    assert len(np.unique(labels[:, 1:].sum(axis=0))) == max(tasks - 1, 0)  # each conversion is drawn by itself
