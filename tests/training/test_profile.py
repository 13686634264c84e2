"""Where the time of a step goes: closed forms of the counting, and steps whose slow part is known."""

from __future__ import annotations

import time

import keras
import pytest
import tensorflow as tf

from mtlzoo.metrics import AUC
from mtlzoo.training import RunConfig, profile
from mtlzoo.training.profile import PARTS, part_of, profile_steps, profile_training, time_by_part
from mtlzoo.training.trace import Span, Trace, Tracer
from pipelines import Dataset

BATCH = 512
SMALL = {"bottom_units": [16], "tower_units": [8], "embedding_dim": 4}
SLEEP = 0.1


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(profile, "_SECONDS", 0.3)
    monkeypatch.setattr(profile, "_SECONDS_OF_INPUT", 0.5)


def config(dataset, **changes) -> RunConfig:
    return RunConfig(**{"model": "shared_bottom", "arguments": SMALL, "data": str(dataset.folder), **changes})


def toy(units=(), metrics=None) -> keras.Model:
    model = keras.Sequential([keras.Input((64,)), *map(keras.layers.Dense, units), keras.layers.Dense(1)])
    model.compile(loss="mse", weighted_metrics=metrics, jit_compile=False)
    return model


def toy_batches(size=8) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors((tf.ones((size, 64)), tf.ones((size, 1)), tf.ones((size, 1)))).repeat()


def share_of_work(found, part) -> float:
    """Without the rest, which grows where other processes hold the processor."""
    return found.shares[part] / (1.0 - found.shares["rest"])


def test_every_moment_counts_once():
    trace = Trace(
        steps=[0.0, 4.0, 10.0],
        operations=[Span("a", 1.0, 3.0), Span("b", 2.0, 4.0), Span("b", 2.0, 3.0), Span("b", 9.0, 12.0)],
        waits=[Span("", 0.5, 2.5), Span("", 4.0, 6.0), Span("", -3.0, 0.25)],
    )
    seconds = time_by_part(trace, {"a": "metrics", "b": "dense"}.__getitem__)
    expected = {"input": 0.25 + 0.5 + 2.0, "metrics": 1.0 + 1 / 3, "dense": 2 / 3 + 1.0 + 1.0, "rest": 0.25 + 3.0}
    assert seconds == pytest.approx(dict.fromkeys(PARTS, 0.0) | expected)
    assert sum(seconds.values()) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("m_1/embedding_16_1/Gather", "lookups"),
        ("m/embedding_16/SelectV2", "lookups"),
        ("gradient_tape/m_1/embedding_16_1/Gather/Reshape", "lookups"),
        ("m_1/embedding_16_tags_pooled_1/MatMul", "dense"),
        ("m_1/memonet_1/Gather_2", "lookups"),
        ("m_1/memonet_1/GatherV2", "dense"),
        ("gradient_tape/m_1/experts_1/MatMul/MatMul_1", "dense"),
        ("AddN_7", "dense"),
        ("profiled.metrics/Cumsum_2", "metrics"),
        ("profiled.optimizer/lazy_adam/mul_3", "optimizer_dense"),
        ("profiled.optimizer/lazy_adam/profiled.sparse/cond/else/_80/cond/SparseTensorDenseMatMul", "lookups"),
        ("profiled.optimizer/cond/then/_3/lazy_adam/profiled.sparse_1/profiled.rows_1/Gather_1", "optimizer_rows"),
    ],
)
def test_the_path_of_an_operation_tells_its_part(path, part):
    assert part_of(f"StatefulPartitionedCall/{path}", ["embedding_16"]) == part


def test_slow_input_is_named_and_its_wait_is_measured(dataset, monkeypatch):
    read = Dataset.read

    def slowly(*batch):
        tf.py_function(lambda: time.sleep(SLEEP), [], [])
        return batch

    monkeypatch.setattr(Dataset, "read", lambda *args, **kwargs: read(*args, **kwargs).map(slowly))
    found = profile_training(config(dataset, batch_size=BATCH))
    assert found.step.largest == "input"
    assert 0.95 * SLEEP < found.step.shares["input"] * found.step.traced_step_ms / 1000 < 2 * SLEEP
    assert BATCH / (3 * SLEEP) < found.input_impressions_per_second < BATCH / SLEEP
    assert found.impressions_per_second < BATCH / SLEEP
    assert found.first_batch_seconds > SLEEP


def test_wide_layers_are_dense():
    found = profile_steps(toy(units=(512, 512)), toy_batches(1024))
    assert share_of_work(found, "dense") > 0.8


def test_an_expensive_metric_is_named():
    found = profile_steps(toy(metrics=[AUC(num_bins=2**21)]), toy_batches())
    assert share_of_work(found, "metrics") > 0.8


def test_every_part_of_a_model_with_codebooks_in_half_precision_with_alternating_tasks(rows_dataset):
    rows, trained_tasks = rows_dataset.rows("train"), 2
    arguments = {
        "interactions": ["memonet"], "interaction_units": 8, "tower_units": [8], "embedding_dim": 4,
        "dtype": "mixed_float16",
    }  # fmt: skip
    seen: list[tuple] = []
    found = profile_training(
        config(rows_dataset, model="dtn", arguments=arguments, batch_size=2 * rows, alternate=True),
        lambda *step: seen.append(step),
    )
    step = found.step
    assert tuple(step.shares) == PARTS
    assert sum(step.shares.values()) == pytest.approx(1.0)
    assert min(step.shares[part] for part in PARTS if part != "input") > 0.0
    assert step.steps >= 3
    assert found.impressions_per_second == pytest.approx(rows / trained_tasks / step.step_ms * 1000)
    phases = [phase for phase, _, _ in seen]
    assert phases.count("steps") == 3 + 2 * step.steps + 1
    assert phases.index("input alone") == phases.count("steps")
    report = found.to_dict()
    assert list(report) == [
        "model", "batch_size", "steps", "step_ms", "traced_step_ms", "impressions_per_second",
        "input_impressions_per_second", "first_batch_seconds", "parts", "largest",
    ]  # fmt: skip
    assert sum(part["ms"] for part in report["parts"].values()) == pytest.approx(report["step_ms"])
    assert report["largest"] == max(report["parts"], key=lambda part: report["parts"][part]["ms"])


def test_too_few_batches_are_refused_and_the_tracer_is_free_again():
    with pytest.raises(ValueError, match="the batches ended after 7 steps, before enough were traced"):
        profile_steps(toy(), toy_batches().take(7))
    Tracer().start()
    tf.profiler.experimental.stop(save=False)


def test_an_interruption_stops_the_tracer():
    def interrupt(phase, done, total):
        if done == 54:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_steps(toy(), toy_batches(), interrupt)
    tracer = Tracer()
    tracer.start()
    tracer.mark()
    assert tracer.stop().steps == [0.0]


def test_what_the_trace_cannot_show_is_refused(dataset, monkeypatch):
    model = toy()
    model.compile(loss="mse", jit_compile=True)
    with pytest.raises(ValueError, match="compile the model with jit_compile=False"):
        profile_steps(model, toy_batches())
    monkeypatch.setattr(profile, "sees_gpu", lambda: True)
    with pytest.raises(ValueError, match="on the processor alone"):
        profile_training(config(dataset))
