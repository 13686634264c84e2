"""Calibration finds what is known to be true, the graph computes what numpy does, and changes are measured as such."""

from __future__ import annotations

import json

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss, roc_auc_score

import pipelines
from mtlzoo.models import create
from mtlzoo.serving.calibration import fit_calibration, measured_change, refuse_past
from mtlzoo.serving.calibration_curves import Isotonic, LogOddsHistogram, Temperature, fit_isotonic, fit_temperature
from mtlzoo.training import evaluate
from pipelines import DataError

TRICKY = np.array([0.0, 1e-45, 1e-30, 2e-9, 1e-3, 0.2, 0.5, 0.7, 0.999, 1 - 6e-8, 1.0], "float32")


def drawn(rows: int, temperature: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and predictions whose log-odds are `temperature` times too far from 0."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1.5, 1.2, rows)
    return (rng.random(rows) < expit(z)).astype("float64"), expit(temperature * z).astype("float32")


def histogram_of(y, p, w=None) -> LogOddsHistogram:
    histogram = LogOddsHistogram()
    histogram.add(y, p, np.ones_like(y) if w is None else w)
    return histogram


# Temperature


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(truth):
    y, p = drawn(200_000, truth)
    assert fit_temperature(histogram_of(y, p)).temperature == pytest.approx(truth, rel=0.02)


def test_the_temperature_has_the_least_log_loss_of_the_rows_themselves():
    y, p = drawn(3_000, 1.7)
    z = logit(p.astype("float64"))
    best = minimize_scalar(lambda t: log_loss(y, expit(z / t)), bounds=(0.1, 10), options={"xatol": 1e-9})
    assert fit_temperature(histogram_of(y, p)).temperature == pytest.approx(best.x, rel=1e-4)


@pytest.mark.parametrize("labels", ["perfect", "inverted"])
def test_labels_without_a_best_temperature_are_refused(labels):
    p = np.linspace(0.01, 0.99, 1000)
    y = (p > 0.5) == (labels == "perfect")
    with pytest.raises(DataError, match="no temperature between 0.01 and 100 fits"):
        fit_temperature(histogram_of(y, p))


# Isotonic


def test_knots_are_the_blocks_of_isotonic_regression():
    """Few distinct predictions, a bin for each: blocks are those of scikit-learn, exactly."""
    rng = np.random.default_rng(4)
    scores = np.linspace(-3.0, 2.0, 40)[rng.integers(0, 40, 5_000)]
    y = (rng.random(len(scores)) < expit(0.6 * scores)).astype("float64")
    steps = IsotonicRegression().fit(scores, y).predict(scores)
    values = np.unique(steps)
    assert 3 < len(values) < 40, "some neighbours must be joined, not all"
    curve = fit_isotonic(histogram_of(y, expit(scores)))
    np.testing.assert_allclose(curve.knots, [scores[steps == value].mean() for value in values], atol=1e-6)
    ratios = curve.values / values
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
    assert ratios[0] == pytest.approx(1.0, abs=0.02)


def test_is_near_isotonic_regression_of_the_rows_themselves():
    y, p = drawn(100_000, 2.0)
    curve = fit_isotonic(histogram_of(y, p))
    steps = IsotonicRegression().fit(p, y).predict(p)
    got = curve(tf.constant(p)).numpy()
    assert np.mean(np.abs(got - steps)) < 0.01
    assert np.mean(got) == pytest.approx(np.mean(y), rel=1e-4)
    known = expit(logit(p.astype("float64")) / 2.0)
    assert np.mean(np.abs(got - known)) < np.mean(np.abs(steps - known)), "it is nearer to the truth than steps are"


def test_the_order_stays_where_isotonic_regression_would_make_ties():
    y, p = drawn(100_000, 2.0)
    new_y, new_p = drawn(50_000, 2.0, seed=9)
    curve = fit_isotonic(histogram_of(y, p))
    got = curve(tf.constant(new_p)).numpy()
    steps = IsotonicRegression(out_of_bounds="clip").fit(p, y).predict(new_p)
    assert len(np.unique(got)) > 20 * len(np.unique(steps))
    before, after = roc_auc_score(new_y, new_p), roc_auc_score(new_y, got)
    assert after == pytest.approx(before, abs=2e-4)
    assert abs(after - before) < abs(roc_auc_score(new_y, steps) - before)


def test_thousands_of_blocks_become_200_knots_that_lie_on_the_same_curve():
    z = np.linspace(-8.0, 8.0, 3000)
    rates = expit(0.8 * z - 0.5)
    curve = fit_isotonic(histogram_of(rates, expit(z)))
    assert len(curve.knots) == len(curve.values) == 200
    assert np.all(np.diff(curve.knots) > 0)
    assert np.all(np.diff(curve.values) > 0)
    inside = (z > curve.knots[0]) & (z < curve.knots[-1])
    assert inside.mean() > 0.8
    np.testing.assert_allclose(curve(tf.constant(expit(z), tf.float32))[inside], rates[inside], atol=1e-3)


def test_blocks_of_one_outcome_do_not_make_probabilities_of_0_and_1():
    p = np.repeat([0.1, 0.3, 0.6, 0.9], 100)
    y = np.repeat([0.0, 0.0, 1.0, 1.0], 100)
    y[150], y[250] = 1.0, 0.0
    curve = fit_isotonic(histogram_of(y, p))
    least = 0.5 / 401
    np.testing.assert_allclose(curve.values, [least, 0.01, 0.99, 1 - least], rtol=0.01)
    got = curve(tf.constant(TRICKY)).numpy()
    assert np.all((got > 0) & (got < 1))


def test_a_rate_that_does_not_rise_is_refused():
    p = np.linspace(0.01, 0.99, 1000)
    with pytest.raises(DataError, match="one probability of all rows"):
        fit_isotonic(histogram_of(np.tile([1.0, 0.0], 500), p))


# Both


def test_batches_add_up_and_rows_of_weight_0_do_not_count():
    y, p = drawn(2_000, 1.5)
    whole, parts = histogram_of(y, p), LogOddsHistogram()
    for start in range(0, 2_000, 300):
        part = slice(start, start + 300)
        # As a dataset gives them: [batch, 1], with rows outside the population, in which anything may stand.
        columns = [np.concatenate([a[part], b])[:, None] for a, b in ((y, [1.0, np.nan]), (p, [np.nan, 0.5]))]
        parts.add(*columns, np.concatenate([np.ones(len(y[part])), [0.0, 0.0]])[:, None])
    assert (parts.rows, parts.positives) == (whole.rows, whole.positives) == (2_000, int(y.sum()))
    assert fit_temperature(parts).temperature == pytest.approx(fit_temperature(whole).temperature, rel=1e-9)
    np.testing.assert_allclose(fit_isotonic(parts).values, fit_isotonic(whole).values, rtol=1e-9)


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.5])
def test_predictions_that_are_no_probabilities_are_refused(value):
    with pytest.raises(DataError, match="no probabilities"):
        histogram_of(np.array([0.0, 1.0]), np.array([0.5, value]))


CURVES = [
    Temperature(2.0),
    Temperature(0.2),
    Isotonic(np.array([-3.0, -2.9, 0.0, 4.0]), np.array([0.1, 0.2, 0.5, 0.8])),
]


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("shape", [[-1], [-1, 1]])
def test_the_graph_computes_what_numpy_does(curve, shape):
    p = np.sort(np.concatenate([TRICKY, np.random.default_rng(1).random(500).astype("float32")]))
    got = tf.function(curve)(tf.reshape(tf.constant(p), shape))
    assert got.dtype == tf.float32
    assert got.shape == p.reshape(shape).shape
    z = logit(np.clip(p.astype("float64"), expit(-20.0), 1 - 2.0**-24))
    if isinstance(curve, Temperature):
        expected = expit(z / curve.temperature)
    else:
        expected = np.interp(z, curve.knots, curve.values)
    flat = got.numpy().reshape(-1)
    np.testing.assert_allclose(flat, expected, rtol=2e-5, atol=1e-30)
    assert np.all(np.diff(flat) >= -1e-6 * flat[1:]), "more likely before is more likely after"


# On a dataset


@pytest.fixture(scope="module")
def model(dataset):
    """A trained model that then promises too much."""
    keras.utils.set_random_seed(1)
    model = create("shared_bottom", dataset.schema, embedding_dim=4)
    model.compile()
    model.fit(dataset.read("train", 512, shuffle=True, seed=1), epochs=3, verbose=0)
    for label, shift in (("click", 0.7), ("conversion", 1.1)):
        bias = model.get_layer(f"{label}_logit").bias
        bias.assign(bias.value + shift)
    return model


@pytest.fixture(scope="module", params=["temperature", "isotonic"])
def calibration(request, model, dataset):
    return fit_calibration(model, dataset, request.param)


def calibrated(model, calibration):
    return lambda features: calibration.apply(model.predict_on_batch(features))


def test_each_task_is_calibrated_on_its_own_population(model, dataset, calibration):
    change = measured_change(model.predict_on_batch, calibrated(model, calibration), dataset, "valid")
    for task in ("click", "conversion"):
        before, after = change["tasks"][task]["before"], change["tasks"][task]["after"]
        assert before["calibration"] > 1.2, "there must be something to repair"
        assert after["log_loss"] < before["log_loss"]
        assert abs(after["calibration"] - 1.0) < abs(before["calibration"] - 1.0)
        if calibration.kind == "isotonic":
            assert after["calibration"] == pytest.approx(1.0, abs=1e-3)
            assert after["ece"] < before["ece"]
    assert change["tasks"]["ctcvr"]["after"]["log_loss"] < change["tasks"]["ctcvr"]["before"]["log_loss"]


def test_a_temperature_keeps_every_rank(model, dataset):
    """Its AUC by scikit-learn: that of `evaluate` counts in bins, and moves by the pairs that come to share one."""
    calibration = fit_calibration(model, dataset, "temperature")
    features, labels, weights = zip(*dataset.read("valid", 512), strict=True)
    predictions = [model.predict_on_batch(batch) for batch in features]
    for task in ("click", "conversion"):
        before, y, w = (np.concatenate([np.ravel(x[task]) for x in xs]) for xs in (predictions, labels, weights))
        after = np.ravel(calibration.tasks[task].curve(tf.constant(before)))
        assert np.all(np.diff(after[np.argsort(before)]) >= 0.0)
        aucs = [roc_auc_score(y, p, sample_weight=w) for p in (before, after)]
        assert aucs[1] == pytest.approx(aucs[0], abs=1e-6)


def test_joint_probabilities_are_products(model, dataset, calibration):
    features = next(iter(dataset.read("test", 256)))[0]
    predictions = {task: tf.constant(p)[:, 0] for task, p in model.predict_on_batch(features).items()}
    got = tf.function(calibration.apply)(predictions)
    assert list(got) == list(predictions)
    np.testing.assert_allclose(got["ctcvr"], got["click"] * got["conversion"], rtol=1e-6)
    assert np.any(got["ctcvr"] != predictions["ctcvr"])
    for task in ("click", "conversion"):
        np.testing.assert_allclose(got[task], calibration.tasks[task].curve(predictions[task]), rtol=1e-6)
    with pytest.raises(ValueError, match="click, conversion, ctcvr; it was given click, sale"):
        calibration.apply({"click": predictions["click"], "sale": predictions["ctcvr"]})


def test_the_description_is_ready_for_json(dataset, calibration):
    described = calibration.describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert {k: v for k, v in described.items() if k != "tasks"} == {
        "kind": calibration.kind,
        "split": "valid",
        "rows": dataset.rows("valid"),
        "joint": {"ctcvr": ["click", "conversion"]},
    }
    labels = [batch[1] for batch in dataset.read("valid")]
    clicks, conversions = (int(sum(float(tf.reduce_sum(y[task])) for y in labels)) for task in ("click", "ctcvr"))
    tasks = described["tasks"]
    assert [tasks["click"][k] for k in ("rows", "positives")] == [dataset.rows("valid"), clicks]
    assert [tasks["conversion"][k] for k in ("rows", "positives")] == [clicks, conversions]
    for task, fitted in calibration.tasks.items():
        if calibration.kind == "temperature":
            assert tasks[task]["temperature"] == fitted.curve.temperature
        else:
            assert 2 <= tasks[task]["knots"] == len(fitted.curve.knots) <= 200


@pytest.mark.parametrize(("outcome", "lacking"), [(0, "no positives"), (1, "no negatives")])
def test_a_split_with_one_outcome_is_refused(raw_log, demo_schema, tmp_path, outcome, lacking):
    table = raw_log.table.slice(0, 800)
    conversion = pa.array(np.full(800, outcome)) if outcome == 0 else table["click"]
    table = table.set_column(table.schema.get_field_index("conversion"), "conversion", conversion)
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    one_sided = pipelines.open_dataset(pipelines.convert([tmp_path / "log.parquet"], demo_schema, tmp_path / "out"))
    model = create("shared_bottom", one_sided.schema, embedding_dim=4)
    with pytest.raises(DataError, match=f"conversion on the split 'valid': there are {lacking} among .* rows"):
        fit_calibration(model, one_sided, "temperature")


def test_bad_arguments_are_named(model, dataset):
    with pytest.raises(ValueError, match="temperature, isotonic.*'platt'"):
        fit_calibration(model, dataset, "platt")
    with pytest.raises(DataError, match="no split 'dev'"):
        fit_calibration(model, dataset, "temperature", "dev")


# Changes


def test_both_sides_are_what_evaluate_says(model, dataset):
    other = keras.models.clone_model(model)
    seen = []
    change = measured_change(
        model.predict_on_batch, other.predict_on_batch, dataset, "test", lambda *rows: seen.append(rows)
    )
    assert change["rows"] == dataset.rows("test")
    assert seen[-1] == (change["rows"], change["rows"])
    for side, measured in (("before", model), ("after", other)):
        for task, expected in evaluate(measured, dataset, "test")["tasks"].items():
            got = change["tasks"][task][side]
            assert set(got) == {"auc", "log_loss", "calibration", "ece"}
            assert got == pytest.approx({key: expected[key] for key in got}, rel=1e-12)


def changed(auc=0.7, calibration=1.0):
    before = {"auc": 0.7, "log_loss": 0.5, "calibration": 1.0, "ece": 0.01}
    return {
        "split": "test",
        "rows": 100,
        "tasks": {
            "click": {"before": before, "after": before},
            "conversion": {"before": before, "after": {**before, "auc": auc, "calibration": calibration}},
        },
    }


def test_changes_within_the_limits_pass():
    refuse_past(changed(), 0.0, 0.0)
    refuse_past(changed(auc=0.6991, calibration=1.019), 0.001, 0.02)
    refuse_past(changed(auc=0.9, calibration=0.981), 0.001, 0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(auc=0.6985), r"conversion: auc on the split 'test' goes from 0.70000 to 0.69850, .* limit is 0.001"),
        (changed(calibration=1.03), r"conversion: calibration .* from 1.00000 to 1.03000, by 0.03; the limit is 0.02"),
        (changed(calibration=0.97), r"conversion: calibration .* from 1.00000 to 0.97000, by 0.03; the limit is 0.02"),
        (changed(auc=None), "conversion: auc .* cannot be compared, it is 0.70000 before and no number after"),
    ],
)
def test_changes_past_a_limit_are_refused_by_name(change, message):
    with pytest.raises(DataError, match=message):
        refuse_past(change, 0.001, 0.02)
