"""What every streaming metric owes: reference values, streaming, merging, weights, dtypes, saving, compile and fit."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import log_loss, roc_auc_score

from mtlzoo.metrics import AUC, CalibrationRatio, ExpectedCalibrationError, LogLoss, NormalizedEntropy


def normalized_entropy(y, p, w):
    mean = np.average(y, weights=w)
    return log_loss(y, p, sample_weight=w) / -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean))


def expected_calibration_error(y, p, w, num_bins=15, num_cells=4096):
    """The definition, row by row."""
    cell = np.floor((np.log(p / (1 - p)) + 20) * num_cells / 40)
    gaps = np.zeros(num_bins)
    for i in range(len(y)):
        middle = w[cell < cell[i]].sum() + w[cell == cell[i]].sum() / 2
        gaps[min(int(num_bins * middle / w.sum()), num_bins - 1)] += w[i] * (p[i] - y[i])
    return np.abs(gaps).sum() / w.sum()


METRICS = {
    AUC: lambda y, p, w: roc_auc_score(y, p, sample_weight=w),
    LogLoss: lambda y, p, w: log_loss(y, p, sample_weight=w),
    NormalizedEntropy: normalized_entropy,
    CalibrationRatio: lambda y, p, w: np.sum(w * p) / np.sum(w * y),
    ExpectedCalibrationError: expected_calibration_error,
}
every_metric = pytest.mark.parametrize("metric_class", METRICS, ids=lambda c: c.__name__)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@st.composite
def rows(draw):
    """Labels of both classes, predictions that no bin confuses (ties included), dyadic weights, and a cut."""
    n = draw(st.integers(2, 40))
    labels = draw(hnp.arrays(np.float32, n, elements=st.sampled_from([0.0, 1.0])))
    labels[:2] = 0, 1
    steps = draw(hnp.arrays(np.int64, n, elements=st.integers(-40, 40)))
    weights = draw(hnp.arrays(np.float32, n, elements=st.sampled_from([0.0, 0.25, 1.0, 3.0])))
    weights[:2] = 1
    order = draw(st.permutations(range(n)))
    predictions = sigmoid(steps * 0.3 + 0.001).astype(np.float32)
    return labels[order], predictions[order], weights[order], draw(st.integers(0, n))


@every_metric
@settings(max_examples=25, deadline=None)
@given(rows=rows())
def test_one_pass_two_batches_and_a_merge_equal_the_reference(metric_class, rows):
    y, p, w, cut = rows
    expected = METRICS[metric_class](*(a.astype(np.float64)[w > 0] for a in (y, p, w)))
    garbage = np.where(w > 0, p, np.nan)

    whole, batched, first, second = (metric_class() for _ in range(4))
    whole.update_state(y, garbage, w)
    for head, tail in ((batched, batched), (first, second)):
        head.update_state(y[:cut, None], garbage[:cut, None], w[:cut, None])
        tail.update_state(y[cut:], p[cut:, None], w[cut:])
    first.merge_state([second])

    for metric in (whole, batched, first):
        assert float(metric.result()) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@every_metric
def test_a_weight_of_two_is_the_row_twice(metric_class):
    y, p = np.array([0, 1, 0, 1, 0]), np.array([0.1, 0.2, 0.4, 0.7, 0.2])
    weighted, repeated = metric_class(), metric_class()
    weighted.update_state(y, p, np.array([1, 2, 1, 2, 0]))
    repeated.update_state(y[[0, 1, 1, 2, 3, 3]], p[[0, 1, 1, 2, 3, 3]])
    assert float(weighted.result()) == pytest.approx(float(repeated.result()), rel=1e-12)


@every_metric
def test_reset_forgets(metric_class):
    metric, fresh = metric_class(), metric_class()
    metric.update_state([0, 1, 1], [0.9, 0.2, 0.3])
    metric.reset_state()
    for m in (metric, fresh):
        m.update_state([0, 1], [0.1, 0.4])
    assert float(metric.result()) == float(fresh.result())


@every_metric
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_predictions_of_any_float_dtype(metric_class, dtype):
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.3).astype(np.float32)
    p = keras.ops.cast(sigmoid(rng.normal(size=300) + y), dtype)
    rounded = keras.ops.convert_to_numpy(keras.ops.cast(p, "float64"))
    metric = metric_class()
    metric.update_state(y, p)
    # AUC alone is approximate: scores that lie within one of its bins count as ties.
    tolerance = 1e-4 if metric_class is AUC else 1e-9
    assert float(metric.result()) == pytest.approx(METRICS[metric_class](y, rounded, np.ones(300)), abs=tolerance)


@every_metric
def test_counts_exactly_beyond_what_float32_can(metric_class):
    metric = metric_class()
    metric.update_state([0, 1], [0.5, 0.5])
    for variable in metric.variables:
        variable.assign(variable.value * 2.0**30)
    before = [np.array(v.value) for v in metric.variables]
    metric.update_state([0, 1], [0.5, 0.5])
    alone = metric_class()
    alone.update_state([0, 1], [0.5, 0.5])
    for old, variable, single in zip(before, metric.variables, alone.variables, strict=True):
        np.testing.assert_allclose(np.array(variable.value) - old, np.array(single.value), atol=1e-6)


@every_metric
@pytest.mark.parametrize(
    ("labels", "predictions", "weights"),
    [
        ([0, 1, 1], [0.1, np.nan, 0.3], [1, 1, 1]),
        ([0, 1, 1], [-2.0, 3.0, 0.5], [1, 1, 1]),
        ([0, np.nan, 1], [0.1, 0.2, 0.3], [1, 1, 1]),
        ([0, -1, 1], [0.1, 0.2, 0.3], [1, 1, 1]),
        ([0, 1, 1], [0.1, 0.2, 0.3], [1, -1, 1]),
    ],
    ids=["nan", "logits", "nan label", "label -1", "negative weight"],
)
def test_bad_rows_make_it_nan_unless_they_do_not_count(metric_class, labels, predictions, weights):
    metric = metric_class()
    metric.update_state(labels, np.array(predictions), np.array(weights))
    assert np.isnan(float(metric.result()))

    metric.reset_state()
    metric.update_state(labels, np.array(predictions), np.zeros(3))
    metric.update_state([0, 1], [0.2, 0.3])
    assert np.isfinite(float(metric.result()))


@every_metric
def test_no_rows_is_nan(metric_class):
    metric = metric_class()
    assert np.isnan(float(metric.result()))
    metric.update_state(np.zeros((0, 1)), np.zeros((0, 1)))
    assert np.isnan(float(metric.result()))


@every_metric
def test_perfect_zero_and_one_stay_finite(metric_class):
    metric = metric_class()
    metric.update_state([0, 1, 0, 1], np.array([0.0, 1.0, 1.0, 0.0], np.float32))
    assert np.isfinite(float(metric.result()))


@every_metric
def test_survives_serialization(metric_class):
    metric = metric_class(name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(again) is metric_class
    assert again.get_config() == metric.get_config()


def test_serialization_keeps_the_arguments():
    for metric in (AUC(num_bins=100), ExpectedCalibrationError(num_bins=7, num_cells=64)):
        again = type(metric).from_config(metric.get_config())
        assert [v.shape for v in again.variables] == [v.shape for v in metric.variables]


@every_metric
def test_shapes_that_do_not_fit_are_refused(metric_class):
    metric = metric_class()
    with pytest.raises(ValueError, match=r"`y_pred` must have shape \[batch\] or \[batch, 1\], received \(3, 2\)"):
        metric.update_state(np.zeros(3), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="`y_true` has 4 rows, `y_pred` has 3"):
        metric.update_state(np.zeros(4), np.zeros(3))
    with pytest.raises(ValueError, match="`sample_weight` has 2 rows, `y_pred` has 3"):
        metric.update_state(np.zeros(3), np.zeros(3), np.zeros(2))


@every_metric
def test_a_scalar_weight_holds_for_every_row(metric_class):
    metric, plain = metric_class(), metric_class()
    metric.update_state([0, 1, 0], [0.1, 0.5, 0.3], 0.5)
    plain.update_state([0, 1, 0], [0.1, 0.5, 0.3])
    assert float(metric.result()) == pytest.approx(float(plain.result()), rel=1e-12)


def test_merging_other_configurations_is_refused():
    with pytest.raises(ValueError, match="build both with the same arguments"):
        AUC().merge_state([AUC(num_bins=8)])
    with pytest.raises(ValueError, match="cannot merge LogLoss"):
        NormalizedEntropy().merge_state([LogLoss()])


def test_merging_does_not_care_for_names():
    left, right = CalibrationRatio(name="left"), CalibrationRatio(name="right")
    left.update_state([1, 0], [0.5, 0.5])
    right.update_state([1, 0], [0.5, 0.0])
    left.merge_state([right])
    assert float(left.result()) == 0.75


@pytest.mark.parametrize("options", [{"jit_compile": False}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_in_compile_and_fit_with_masked_weights(options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    click = (rng.random((200, 1)) < 0.4).astype(np.float32)
    conversion = click * (rng.random((200, 1)) < 0.5)
    y = {"click": click, "conversion": conversion.astype(np.float32)}
    weights = {"click": np.ones_like(click), "conversion": click}

    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, {task: keras.layers.Dense(1, "sigmoid", name=task)(inputs) for task in y})
    model.compile(
        optimizer="sgd",
        loss="binary_crossentropy",
        weighted_metrics={task: [metric() for metric in METRICS] for task in y},
        **options,
    )
    history = model.fit(x, y, sample_weight=weights, batch_size=64, epochs=1, verbose=0)
    assert {"click_auc", "conversion_auc", "conversion_ece"} <= set(history.history)

    logs = model.evaluate(x, y, sample_weight=weights, batch_size=64, verbose=0, return_dict=True)
    predicted = model.predict(x, verbose=0)
    for task in y:
        counts = weights[task][:, 0] > 0
        row = (y[task][counts, 0], predicted[task][counts, 0].astype(np.float64), np.ones(counts.sum()))
        for metric_class, reference in METRICS.items():
            assert logs[f"{task}_{metric_class().name}"] == pytest.approx(reference(*row), abs=1e-3)
