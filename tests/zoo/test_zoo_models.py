"""The committed models: small, loadable both ways, as good as their cards say, ready to be trained further."""

from __future__ import annotations

import json
import zipfile
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.metrics import TaskEvaluation
from mtlzoo.models import load
from mtlzoo.optimizers import LazyAdam
from mtlzoo.serving.model_card import read_model_card
from mtlzoo.serving.verify_rows import rows_of_files
from mtlzoo.training import evaluate
from mtlzoo.zoo.card import render
from mtlzoo.zoo.plan import MOST_BYTES, RECIPES
from pipelines import convert, open_dataset
from pipelines.synthetic import SyntheticFunnel

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "saved_models"
NAMES = ["dcrnn-small", "dtn-small", "mmoe-small", "ncs4cvr-small"]


@cache
def card(name) -> dict:
    return read_model_card(FOLDER / name / "1")


@cache
def exported(name):
    return tf.saved_model.load(str(FOLDER / name / "1"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """The first impressions of the log that the models were trained on, drawn anew."""
    folder = tmp_path_factory.mktemp("zoo") / "raw"
    data = card(NAMES[0])["zoo"]["data"]
    SyntheticFunnel(data["preset"], seed=data["seed"]).write(folder, data["sample_rows"])
    return folder


@pytest.fixture(scope="module")
def sample(raw):
    """The same impressions, converted with the vocabularies that lie beside the models."""
    out = raw.with_name("sample")
    return open_dataset(convert([raw / "impressions.parquet"], out=out, like=FOLDER / NAMES[0] / "dataset"))


@pytest.fixture(scope="module", params=NAMES)
def model(request) -> keras.Model:
    model = load(request.param)
    model.run_eagerly = True  # a few batches; tracing would take longer
    return model


def name_of(model) -> str:
    (name,) = [name for name in NAMES if RECIPES[name].model == model.name]
    return name


def test_the_models_are_those_of_the_plan():
    assert sorted(RECIPES) == NAMES
    assert {path.parent.name for path in FOLDER.glob("*-small/model.keras")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_small_and_tells_nothing_of_where_and_when_it_was_made(name):
    files = [file for file in (FOLDER / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    for file in files:
        assert str(ROOT).encode() not in file.read_bytes(), file
    assert "created" not in card(name)
    with zipfile.ZipFile(FOLDER / name / "model.keras") as archive:
        assert list(json.loads(archive.read("metadata.json"))) == ["keras_version"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_card_says(name):
    page = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert page == render(card(name))
    metrics = card(name)["metrics"]
    for task, values in metrics["test"]["tasks"].items():
        assert f"| {task} | {values['auc']:.4f} | {metrics['best_reachable'][task]:.4f} |" in page
        assert 0.5 < values["auc"] < metrics["best_reachable"][task]
        assert values["calibration"] == pytest.approx(1.0, abs=0.25)


def test_the_datasets_beside_the_models_are_one():
    files = {name: sorted((FOLDER / name / "dataset").rglob("*.*")) for name in NAMES}
    contents = {name: [(f.name, f.read_bytes()) for f in found] for name, found in files.items()}
    assert len(files[NAMES[0]]) > 10
    assert all(found == contents[NAMES[0]] for found in contents.values())


def test_the_export_answers_raw_rows_as_the_keras_model_answers_packed_ones(model, raw, sample):
    rows = rows_of_files(sample, [raw / "impressions.parquet"], 512)
    predict = exported(name_of(model)).signatures["serving_default"]
    answers = predict(**{key: tf.constant(values) for key, values in rows.request.items()})
    expected = model.predict_on_batch(rows.features)
    assert set(answers) == set(expected) == {"click", "conversion", "ctcvr"}
    for task, probabilities in expected.items():
        assert np.ptp(probabilities) > 1e-3, "the rows must differ, or equality shows nothing"
        np.testing.assert_allclose(answers[task].numpy(), np.asarray(probabilities)[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_row_on_the_page_gets_the_answer_on_the_page(name):
    example = card(name)["zoo"]["example"]
    predict = exported(name).signatures["serving_default"]
    specs = predict.structured_input_signature[1]
    answers = predict(**{key: tf.constant(values, specs[key].dtype) for key, values in example["inputs"].items()})
    assert {task: float(p[0]) for task, p in answers.items()} == pytest.approx(example["answers"], abs=1e-6)


def test_the_metrics_of_the_card_are_found_again(model, sample):
    expected = card(name_of(model))["metrics"]["sample"]
    found = evaluate(model, sample, "test")
    assert found["rows"] == expected["rows"] > 5_000
    for task, values in expected["tasks"].items():
        # Probabilities that differ in their last bit may change places.
        assert found["tasks"][task] == pytest.approx(values, rel=1e-4), task


def test_a_model_is_ready_to_be_trained_further(model, sample):
    assert isinstance(model.optimizer, LazyAdam)
    assert int(model.optimizer.iterations) == 0
    few = sample.read("train", 512).take(4).cache()
    before = training_loss(model, few)
    model.fit(few, epochs=1, verbose=0)
    assert int(model.optimizer.iterations) == 4
    assert training_loss(model, few) < before


def training_loss(model, batches) -> float:
    """The sum of the trained tasks' cross-entropies."""
    evaluations = {task.name: TaskEvaluation() for task in model.tasks if task.trained}
    for features, labels, weights in batches:
        predictions = model.predict_on_batch(features)
        for task, evaluation in evaluations.items():
            evaluation.update(labels[task], predictions[task], weights[task])
    return sum(evaluation.result()["log_loss"] for evaluation in evaluations.values())
