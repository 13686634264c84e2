"""Permutation importance, against closed forms: models and rows for which it is known what every feature is worth."""

from __future__ import annotations

import math
from statistics import NormalDist

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import pipelines
from mtlzoo.inspection import permutation_importance
from mtlzoo.inspection.permuting import Predictions, donor_rows, feature_columns
from mtlzoo.inspection.scores import mean_and_error, row_scores
from mtlzoo.models import SharedBottom
from mtlzoo.models.base import MultiTaskModel
from mtlzoo.models.inputs import model_inputs
from mtlzoo.training import evaluate
from pipelines import DataError
from pipelines.schema import Schema

ROWS, CLICKS, CONVERSIONS = 40_000, 0.2, 0.15
# Of clicked rows `click_*` lie half of this higher, of the others half of it lower; the same for conversion, which
# rows without a click do not have: their values lie elsewhere.
SHIFTS = {"click_a": 1.2, "click_b": 0.6, "buy_a": 1.0, "buy_b": 0.5, "noise": 0.0}
ELSEWHERE = -8.0
NORMAL = NormalDist()


def log_of_normals(rows: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    click = random.random(rows) < CLICKS
    conversion = click & (random.random(rows) < CONVERSIONS)
    columns = {"click": click, "conversion": conversion}
    for name, shift in SHIFTS.items():
        means = np.where(conversion if "buy" in name else click, shift / 2, -shift / 2)
        means = np.where("buy" in name and ~click, ELSEWHERE, means)
        columns[name] = random.normal(means)
    return pa.table({"row": np.arange(rows)} | columns)


@pytest.fixture(scope="module")
def normals(tmp_path_factory) -> pipelines.Dataset:
    folder = tmp_path_factory.mktemp("normals")
    features = [{"name": name, "type": "numeric", "standardize": False} for name in SHIFTS]
    labels = [{"name": "click"}, {"name": "conversion", "parent": "click"}]
    split = {"by": "hash", "key": "row", "valid": 0.05, "test": 0.9}
    schema = Schema.model_validate({"features": features, "labels": labels, "split": split})
    pa.parquet.write_table(log_of_normals(ROWS, seed=1), folder / "log.parquet")
    return pipelines.open_dataset(pipelines.convert([folder / "log.parquet"], schema, folder / "data"))


def linear_model(schema: Schema, offset: float = 0.0) -> MultiTaskModel:
    """Click's logit is linear in the fields of click, conversion's in those of conversion: the best for its rows."""
    inputs = model_inputs(schema)
    logits = {}
    for label, prefix in (("click", "click"), ("conversion", "buy")):
        slopes = [[shift if name.startswith(prefix) else 0.0] for name, shift in SHIFTS.items()]
        head = keras.layers.Dense(1, name=f"{label}_logit")
        logits[label] = head(inputs["numeric"])
        head.set_weights([np.array(slopes, "float32"), np.array([offset], "float32")])
    return MultiTaskModel(schema, inputs, logits, "cvr_clicked", {}, name="linear")


def auc_drop(field: str, prefix: str, positives: float) -> float:
    """The AUC of a linear score of normal fields, minus its AUC when one field's values come from any row.

    The difference of two scores is normal, but for the permuted field: each of its two values may be of either class.
    """
    squares = {name: shift**2 for name, shift in SHIFTS.items() if name.startswith(prefix)}
    others = sum(squares.values()) - squares[field]
    whole = NORMAL.cdf(math.sqrt(sum(squares.values()) / 2))
    mixed = positives * (1 - positives)
    spread = math.sqrt(2 * sum(squares.values()))
    terms = [(1 - 2 * mixed, 0.0), (mixed, squares[field]), (mixed, -squares[field])]
    return whole - sum(chance * NORMAL.cdf((others + shift) / spread) for chance, shift in terms)


def standard_error(feature) -> float:
    return (feature.high - feature.mean) / 1.959964


def by_name(task) -> dict:
    return {feature.feature: feature for feature in task.features}


@pytest.mark.parametrize("max_rows", [100_000, 4_000])
def test_drops_of_the_auc_are_those_of_the_closed_form(normals, max_rows):
    """Values that came from rows without a click would put conversion's drops far off: they lie elsewhere."""
    importance = permutation_importance(linear_model(normals.schema), normals, max_rows=max_rows)
    assert importance.tasks["click"].sampled == min(max_rows, normals.rows("test"))
    for task, prefix, positives in (("click", "click", CLICKS), ("conversion", "buy", CONVERSIONS)):
        found = by_name(importance.tasks[task])
        ranks = [feature.feature for feature in importance.tasks[task].ranking]
        assert ranks[:2] == [f"{prefix}_a", f"{prefix}_b"]
        for name, feature in found.items():
            if name.startswith(prefix):
                assert abs(feature.mean - auc_drop(name, prefix, positives)) < 3 * standard_error(feature)
                assert standard_error(feature) < 0.02
            else:
                assert (feature.mean, feature.low, feature.high) == (0.0, 0.0, 0.0)


def test_rises_of_the_log_loss_are_the_mean_over_all_pairs_of_rows(normals):
    """Every row with every other row's value: what permutations estimate."""
    model = linear_model(normals.schema)
    importance = permutation_importance(model, normals, "valid", "log_loss", repeats=30)
    ((features, labels, _),) = normals.read("valid", batch_size=10_000)
    fields = dict(zip(SHIFTS, features["numeric"].numpy().T.astype(float), strict=True))
    clicked = labels["click"].numpy()[:, 0] == 1
    for task, rows, prefix in (("click", np.ones(len(clicked), bool), "click"), ("conversion", clicked, "buy")):
        happened = labels[task].numpy()[rows, 0] == 1
        score = sum(shift * fields[name][rows] for name, shift in SHIFTS.items() if name.startswith(prefix))
        found = by_name(importance.tasks[task])
        for name in (f"{prefix}_a", f"{prefix}_b"):
            part = SHIFTS[name] * fields[name][rows]
            switched = score[:, None] - part[:, None] + part[None, :]  # [rows, rows]
            rise = loss(switched, happened[:, None]).mean() - loss(score, happened).mean()
            repeats = found[name].repeats
            assert abs(found[name].mean - rise) < 3.5 * np.std(repeats) / math.sqrt(len(repeats))
        assert found["noise"].mean == 0.0


def loss(score: np.ndarray, happened: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, np.where(happened, -score, score))


def test_the_joint_task_needs_the_fields_of_both(normals):
    ctcvr = by_name(permutation_importance(linear_model(normals.schema), normals).tasks["ctcvr"])
    assert all(ctcvr[name].low > 0 for name in ("click_a", "click_b", "buy_a", "buy_b"))
    assert ctcvr["noise"].mean == 0.0


def test_the_score_is_that_of_an_evaluation(normals):
    model = linear_model(normals.schema)
    evaluation = evaluate(model, normals, "valid")["tasks"]
    for measure in ("auc", "log_loss"):
        importance = permutation_importance(model, normals, "valid", measure, repeats=1, features=[])
        for name, task in importance.tasks.items():
            # The evaluation counts scores in bins.
            assert task.score == pytest.approx(evaluation[name][measure], abs=1e-3 if measure == "auc" else 1e-6)
            assert (task.rows, task.positives) == (evaluation[name]["rows"], evaluation[name]["positives"])
            assert task.features == ()


def test_the_seed_decides_and_other_features_do_not(normals):
    model = linear_model(normals.schema)
    arguments = {"dataset": normals, "split": "valid", "repeats": 2, "max_rows": 500}
    first = permutation_importance(model, **arguments, seed=3)
    assert permutation_importance(model, **arguments, seed=3, batch_size=64) == first
    assert permutation_importance(model, **arguments, seed=4) != first
    alone = permutation_importance(model, **arguments, seed=3, features=["buy_b"])
    for name, task in alone.tasks.items():
        assert task.features == (by_name(first.tasks[name])["buy_b"],)
        assert task.features[0].mean == pytest.approx(np.mean(task.features[0].repeats))


def test_intervals_hold_what_they_promise():
    """Over many draws of few rows 95 % of the intervals hold the true drop; fewer would without the rows' chance."""
    truth = auc_drop("buy_a", "buy", CONVERSIONS)
    slopes = np.array([SHIFTS["buy_a"], SHIFTS["buy_b"]])
    held = held_by_repeats = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        labels = random.random(400) < CONVERSIONS
        fields = random.normal(np.where(labels, 0.5, -0.5)[:, None] * slopes)
        weights = np.ones(400)
        changes = []
        for _ in range(5):
            permuted = np.stack([fields[donor_rows(weights, random), 0], fields[:, 1]], axis=1)
            before, after = (row_scores("auc", labels, rows @ slopes, weights) for rows in (fields, permuted))
            changes.append(before - after)
        mean, error = mean_and_error("auc", labels, np.mean(changes, axis=0), weights)
        drops = [mean_and_error("auc", labels, change, weights)[0] for change in changes]
        held += abs(mean - truth) < 1.96 * error
        held_by_repeats += abs(mean - truth) < 2.776 * np.std(drops, ddof=1) / math.sqrt(5)  # Student's, 4 degrees
    assert 0.91 <= held / 200 <= 0.985
    assert held_by_repeats / 200 < 0.85


def test_without_both_classes_there_is_no_importance(normals, tmp_path):
    table = log_of_normals(2_000, seed=2)
    none = table.set_column(table.column_names.index("conversion"), "conversion", pa.array([0] * 2_000))
    pa.parquet.write_table(none, tmp_path / "log.parquet")
    data = pipelines.open_dataset(pipelines.convert([tmp_path / "log.parquet"], unfitted(normals), tmp_path / "data"))
    importance = permutation_importance(linear_model(data.schema), data, repeats=1)
    assert importance.tasks["click"].score is not None
    for task in ("conversion", "ctcvr"):
        assert importance.tasks[task].score is None
        assert importance.tasks[task].features == ()
        assert importance.tasks[task].positives == 0


def test_a_model_that_predicts_nan_has_none(normals):
    importance = permutation_importance(linear_model(normals.schema, offset=math.nan), normals, "valid", repeats=1)
    assert [task.score for task in importance.tasks.values()] == [None, None, None]


def test_an_empty_test_split_gives_way_to_validation(normals, tmp_path):
    split = {"by": "hash", "key": "row", "valid": 0.5, "test": 0.0}
    schema = Schema.model_validate({**unfitted(normals).to_dict(), "split": split})
    pa.parquet.write_table(log_of_normals(2_000, seed=3), tmp_path / "log.parquet")
    data = pipelines.open_dataset(pipelines.convert([tmp_path / "log.parquet"], schema, tmp_path / "data"))
    importance = permutation_importance(linear_model(data.schema), data, repeats=1, features=["noise"])
    assert importance.split == "valid"
    assert importance.tasks["click"].rows == data.rows("valid")


def unfitted(dataset: pipelines.Dataset) -> Schema:
    return dataset.schema.model_copy(update={"fitted": None})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "gini"}, "measure must be one of auc, log_loss, is 'gini'"),
        ({"repeats": 0}, "repeats must be at least 1, is 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, is 0"),
        ({"max_rows": 99}, "max_rows must be at least 100, is 99"),
        ({"features": ["noise", "size"]}, "there are no features size; there are click_a, click_b"),
        ({"split": "tset"}, "has no split 'tset'"),
    ],
)
def test_wrong_arguments_are_named(normals, arguments, message):
    with pytest.raises(ValueError, match=message):
        permutation_importance(linear_model(normals.schema), normals, **arguments)


def test_data_of_another_model_is_refused(normals, dataset):
    with pytest.raises(DataError, match="converted with other features or vocabularies"):
        permutation_importance(linear_model(normals.schema), dataset)


class Recorder:
    """A model that predicts nothing of interest and keeps what it was asked about."""

    def __init__(self) -> None:
        self.batches: list[dict[str, np.ndarray]] = []

    def predict_on_batch(self, batch):
        self.batches.append(batch)
        return {}


def test_all_that_is_fed_of_a_feature_moves_together_and_nothing_else(dataset):
    """Ids and weights of a list, a number with its indicator, a bucketed number with its value."""
    plain = dataset.schema.to_dict()
    for feature in plain["features"]:
        feature |= {"keep_value": True} if feature["name"] == "dwell" else {}
    schema = Schema.model_validate(plain)
    random = np.random.default_rng(0)
    features = {
        "categorical": random.integers(0, 9, (50, len(schema.packed_categorical))),
        "numeric": random.normal(size=(50, len(schema.packed_numeric))),
    }
    for multi in schema.multis:
        features[multi.name] = random.integers(0, 9, (50, multi.max_length))
        features[multi.weights_name] = random.random((50, multi.max_length))
    columns = feature_columns(schema)
    assert list(columns) == [feature.name for feature in schema.features]
    assert len(columns["price"]["numeric"]) == 2
    assert columns["dwell"].keys() == {"categorical", "numeric"}
    donors = random.permutation(50)
    moved: list[tuple[str, int]] = []
    for places in columns.values():
        recorder = Recorder()
        Predictions(recorder, 16, 0, None)(features, [], places, donors)
        assert [len(batch["numeric"]) for batch in recorder.batches] == [16, 16, 16, 2]
        for name, values in features.items():
            seen = np.concatenate([batch[name] for batch in recorder.batches])
            for column in range(values.shape[1]):
                own = name in places and (places[name] is None or column in places[name])
                np.testing.assert_array_equal(seen[:, column], values[donors, column] if own else values[:, column])
                moved += [(name, column)] if own else []
    assert sorted(moved) == sorted((name, column) for name, v in features.items() for column in range(v.shape[1]))


def test_every_kind_of_feature_is_measured(dataset):
    model = SharedBottom(dataset.schema, bottom_units=(8,), tower_units=(4,), embedding_dim=4)
    importance = permutation_importance(model, dataset, repeats=1)
    assert list(importance.tasks) == ["click", "conversion", "ctcvr"]
    for task in importance.tasks.values():
        assert [feature.feature for feature in task.features] == [feature.name for feature in dataset.schema.features]
        assert all(feature.low < feature.mean < feature.high for feature in task.features)
