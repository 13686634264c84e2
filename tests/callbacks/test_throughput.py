"""Throughput: which steps it counts, and what it reports, against a clock that the test sets and in a real fit."""

from __future__ import annotations

import time

import keras
import numpy as np
import pytest

from mtlzoo.callbacks import Throughput


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def run_epoch(callback, clock, durations, steps_per_execution=1, between=0.0):
    logs = {}
    callback.on_epoch_begin(0)
    for i, seconds in enumerate(durations):
        callback.on_train_batch_begin(i * steps_per_execution)
        clock.now += seconds
        callback.on_train_batch_end((i + 1) * steps_per_execution - 1)
        clock.now += between
    callback.on_epoch_end(0, logs)
    return logs["impressions_per_second"]


def test_first_step_of_fit_and_last_of_each_epoch_do_not_count(clock):
    callback = Throughput(batch_size=100)
    callback.on_train_begin()
    assert run_epoch(callback, clock, [50.0, 1.0, 3.0, 99.0]) == pytest.approx(2 * 100 / 4)
    assert run_epoch(callback, clock, [1.0, 1.0, 99.0]) == pytest.approx(100)
    assert callback.impressions_per_second == pytest.approx(4 * 100 / 6)
    assert callback.step_seconds == pytest.approx([1, 3, 1, 1])
    assert callback.median_step_ms == pytest.approx(1000)
    assert callback.step_share == pytest.approx(1)


def test_time_between_steps_is_the_rest_of_the_share(clock):
    callback = Throughput(batch_size=10)
    callback.on_train_begin()
    rate = run_epoch(callback, clock, [9.0, 3.0, 3.0, 9.0], between=2.0)
    assert rate == pytest.approx(2 * 10 / 6)
    assert callback.step_share == pytest.approx(6 / 8)


def test_several_steps_per_execution(clock):
    callback = Throughput(batch_size=10)
    callback.on_train_begin()
    assert run_epoch(callback, clock, [50.0, 2.0, 2.0, 1.0], steps_per_execution=4) == pytest.approx(8 * 10 / 4)
    assert callback.median_step_ms == pytest.approx(500)


def test_an_epoch_without_a_whole_step_is_nan(clock):
    callback = Throughput(batch_size=10)
    callback.on_train_begin()
    assert np.isnan(run_epoch(callback, clock, [5.0, 1.0]))
    assert all(np.isnan([callback.impressions_per_second, callback.median_step_ms, callback.step_share]))
    assert run_epoch(callback, clock, [1.0, 1.0]) == pytest.approx(10)


def test_a_new_fit_starts_over(clock):
    callback = Throughput(batch_size=10)
    for step in (1.0, 2.0):
        callback.on_train_begin()
        run_epoch(callback, clock, [50.0, step, 99.0])
    assert callback.impressions_per_second == pytest.approx(5)


@pytest.mark.parametrize(("steps_per_execution", "timed"), [(1, 2 * 7 - 3), (3, 2 * 3 - 3)])
def test_in_a_real_fit_with_validation_and_a_partial_batch(steps_per_execution, timed):
    x, y = np.random.default_rng(0).normal(size=(100, 4)), np.ones((100, 1))
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(loss="mse", steps_per_execution=steps_per_execution)
    callback = Throughput(batch_size=16)
    history = model.fit(x, y, batch_size=16, epochs=2, validation_data=(x, y), callbacks=[callback], verbose=0).history
    assert len(history["impressions_per_second"]) == 2
    assert len(callback.step_seconds) == timed
    assert 0 < callback.step_share <= 1
    assert callback.impressions_per_second == pytest.approx(16 / np.mean(callback.step_seconds))


@pytest.mark.parametrize("batch_size", [0, -4, 2.5, None])
def test_batch_size_is_checked(batch_size):
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, received"):
        Throughput(batch_size=batch_size)
