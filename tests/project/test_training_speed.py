"""The table of training speed: its log, its clock, its operation counts and ratios, against closed forms."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import training_data
import training_speed
import training_table
from peers import environments, limits, measuring

import pipelines

JOB = {"batch": 8, "sizes": [10] * 23, "embedding_dim": 16, "experts": 4, "expert_units": [256, 128]}
JOB |= {"tower_units": [64], "model": "mmoe", "levels": 2}


def result(speed: float) -> dict:
    rates = {"median": speed, "quartiles": [speed, speed], "mean": speed}
    return {"impressions_per_second": rates, "peak_mb": 1e3, "parameters": {"tables": 10**6, "rest": 10**6}}


def test_operations_of_a_step_are_three_products_for_each_kernel():
    kernels = 368 * 4 * 256 + 4 * 256 * 128 + 2 * (368 * 4 + 128 * 64 + 64)
    assert limits.flop_per_impression(JOB) == 6 * kernels  # forward, two gradients, multiply and add
    assert limits.flop_per_impression(JOB | {"batch": 64}) == 6 * kernels


def test_operations_of_the_other_models():
    towers = 2 * (128 * 64 + 64)
    bottom = 368 * 256 + 256 * 128
    assert limits.flop_per_impression(JOB | {"model": "shared_bottom"}) == 6 * (bottom + towers)
    first = 4 * (368 * 256 + 256 * 128) + 368 * (2 * 3 + 4)
    last = 4 * (128 * 256 + 256 * 128) + 128 * 2 * 3
    assert limits.flop_per_impression(JOB | {"model": "ple"}) == 6 * (first + last + towers)


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_factors_lie_in_memory_as_the_product_says(transposed):
    product = limits.Product(2, 3, 5, transposed)
    left, right = limits._factors(product)
    assert (left.T if transposed[0] else left).shape == (2, 3)
    assert (right.T if transposed[1] else right).shape == (3, 5)
    expected = (left.T if transposed[0] else left) @ (right.T if transposed[1] else right)
    np.testing.assert_allclose(limits.tensorflow_product(product)().numpy(), expected, rtol=1e-5)


def test_clock_counts_from_end_to_end_and_leaves_the_warm_up_out(monkeypatch):
    times = iter([5.0, 6.0, 8.0, 11.0, 19.0])  # the first step traces; two of four in the last execution
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(times))
    clock = measuring.StepClock(measuring.Job(mode="matched", data="", sizes=(), warmup=2, steps=4, seconds=1e9))
    assert [clock.tick(), clock.tick(), clock.tick(), clock.tick(), clock.tick(2)] == [False] * 4 + [True]
    assert clock.step_seconds == [2.0, 3.0, 4.0, 4.0]


def test_clock_ends_when_it_took_long_but_not_before_three_steps(monkeypatch):
    times = iter(range(0, 100, 10))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(times)))
    clock = measuring.StepClock(measuring.Job(mode="matched", data="", sizes=(), warmup=1, steps=99, seconds=5.0))
    assert [clock.tick() for _ in range(4)] == [False, False, False, True]


def test_callback_takes_the_mean_loss_apart():
    class Model:
        stop_training = False

    clock = measuring.StepClock(measuring.Job(mode="matched", data="", sizes=(), warmup=1, steps=3))
    callback = measuring.keras_callback(object, clock)
    callback.model = Model()
    losses = np.array([4.0, 2.0, 1.0, 3.0])
    for step, mean in enumerate(np.cumsum(losses) / np.arange(1, 5)):
        callback.on_train_batch_end(step, {"loss": mean})
    np.testing.assert_allclose(clock.losses, losses)
    assert callback.model.stop_training


def test_rates_are_of_single_steps_and_of_all_time():
    found = measuring.rate([1.0, 1.0, 4.0], batch=8)
    assert found == {"median": 8.0, "quartiles": [5.0, 8.0], "mean": 4.0}


def test_table_takes_ratios_within_a_round():
    runs = {}
    for turn, (ours, peer) in enumerate([(30e3, 10e3), (10e3, 5e3), (40e3, 10e3)]):
        runs[training_table.run_key(100, "matched", "ours", turn)] = result(ours)
        runs[training_table.run_key(100, "matched", "deepctr", turn)] = result(peer)
    runs[training_table.run_key(100, "matched", "ours", 3)] = result(1.0)  # its neighbour is still to come
    runs[training_table.run_key(1000, "matched", "ours", 0)] = result(2.0)
    assert training_table.ratios(runs, 100, "matched", "deepctr") == [3.0, 2.0, 4.0]
    flop = limits.flop_per_impression(JOB)
    entry = {"runs": runs, "limits": {"100/0": {"tensorflow": {"gflops": {"square": 60e3 * flop / 1e9}}}}}
    assert training_table.shares(entry, 100, "matched", JOB) == {"square": [pytest.approx(0.5)]}
    console = Console(width=160, file=io.StringIO())
    console.print(training_table.table_of(entry, 100, "matched", ["ours", "deepctr", "tfrs"], JOB))
    text = console.file.getvalue()
    assert "3.00 (2.00-4.00)" in text
    assert "10.0 (5.0-10.0)" in text
    assert "50%" in text
    assert "tfrs" not in text
    assert "fastest peer, deepctr: 3.00 (2.00-4.00) times as fast" in text
    assert training_table.growth(runs, 100, 1000, "matched") == [30e3 / 2.0]


@pytest.mark.parametrize("kind", ["zipf", "uniform"])
def test_log_is_the_same_as_arrays_and_as_tfrecords(tmp_path, kind):
    training_data.write(tmp_path, rows=2_301, impressions=3_000, kind=kind, seed=3)
    ids, labels = np.load(tmp_path / "ids.npy"), np.load(tmp_path / "labels.npy")
    sizes = np.array(measuring.table_sizes(2_301))
    assert sizes.sum() == 2_301
    assert sizes.max() - sizes.min() == 1
    assert ids.min() >= 0
    assert (ids.max(axis=0) < sizes).all()
    dataset = pipelines.open_dataset(tmp_path / "dataset")
    assert dataset.rows("train") == 3_000
    batches = list(dataset.read("train", batch_size=1_000))
    np.testing.assert_array_equal(np.concatenate([f["categorical"] for f, _, _ in batches]), ids)
    for i, label in enumerate(measuring.LABELS):
        np.testing.assert_array_equal(np.concatenate([y[label] for _, y, _ in batches])[:, 0], labels[:, i])
    share_of_first_ten = (ids < 10).mean()
    expected = np.log(11) / np.log(100) if kind == "zipf" else 0.1
    assert share_of_first_ten == pytest.approx(expected, abs=0.02)


def test_a_peer_without_its_environment_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    assert environments.python_of("ours") == Path(sys.executable)
    assert environments.python_of("deepctr") is None


def test_runs_alternate_are_kept_as_they_end_and_are_not_done_twice(tmp_path, monkeypatch):
    done, measured = [], []

    def run(session, rows, mode, peer):
        if peer == "deepctr" and not session.failed:
            session.failed.append("the first run of deepctr fails")
            return None
        done.append((rows, mode, peer))
        return result(1e3)

    monkeypatch.setattr(training_speed, "run", run)
    monkeypatch.setattr(training_speed, "measure", lambda *_, **__: measured.append(1) or {})
    monkeypatch.setattr(training_speed.Session, "log", lambda self, rows: tmp_path)
    options = argparse.Namespace(
        rows=[100, 200], modes=["matched"], peers=["ours", "deepctr"], rounds=2, ids="zipf", name="main", smoke=False
    )
    job = measuring.Job(mode="", data="", sizes=())

    def session(**changes):
        changed = argparse.Namespace(**vars(options) | changes)
        return training_speed.Session(changed, job, tmp_path / "kept.json", tmp_path, Console(quiet=True))

    training_speed.run_all(session())
    first = [(rows, "matched", peer) for rows in (100, 200) for peer in ("ours", "deepctr")]
    first.remove((100, "matched", "deepctr"))
    second = [(rows, "matched", peer) for rows in (100, 200) for peer in ("deepctr", "ours")]
    assert done == first + second
    assert len(measured) == 4  # for each size in each round
    done.clear()
    again = session()
    again.failed.append("before")
    training_speed.run_all(again)  # the failed one is left to do, and its neighbour beside it
    assert done == [(100, "matched", "ours"), (100, "matched", "deepctr")]
    assert len(measured) == 5
    done.clear()
    training_speed.run_all(again)
    assert done == []
    training_speed.run_all(session(ids="uniform", peers=["ours"], rounds=1))  # other settings stand beside
    assert done == [(100, "matched", "ours"), (200, "matched", "ours")]
    assert len(again.entry()["runs"]) == 8
