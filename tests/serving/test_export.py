"""The saved model gives, for raw rows, what the training path gives for the same rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from real_rows import answers_of, raw_examples, trained, training_path, unseen_rows
from tensorflow_serving.apis import prediction_log_pb2

from mtlzoo.layers import MaskedDense
from mtlzoo.models import MODELS, create
from mtlzoo.serving import export, request_of
from mtlzoo.serving.calibration import fit_calibration
from mtlzoo.serving.quantization import quantized
from pipelines import DataError

# Runs in a process of its own that knows TensorFlow alone.
CLEAN_PROCESS = """
import pathlib, sys
import numpy as np, tensorflow as tf
folder, request_file, out_file = sys.argv[1:]
raw = np.load(request_file, allow_pickle=True)
request = {k: tf.constant(raw[k].tolist(), tf.string) if raw[k].dtype == object else tf.constant(raw[k])
           for k in raw.files}
examples = request.pop("examples")
answers = {}
for servable in pathlib.Path(folder).iterdir():
    signatures = tf.saved_model.load(str(servable / "1")).signatures
    for task, p in signatures["serving_default"](**request).items():
        answers[f"{servable.name} serving_default {task}"] = p.numpy()
    for task, p in signatures["serialized_examples"](examples).items():
        answers[f"{servable.name} serialized_examples {task}"] = p.numpy()
assert not {"mtlzoo", "pipelines"} & set(sys.modules), "the project was imported"
np.savez(out_file, **answers)
"""


@pytest.fixture(scope="module")
def raw_rows(raw_log, demo_schema):
    return unseen_rows(raw_log, demo_schema)


@pytest.fixture(scope="module")
def every_model(dataset, raw_rows, tmp_path_factory):
    """By model what the training path says, and what a clean process gets of the export."""
    folder = tmp_path_factory.mktemp("clean")
    expected = {}
    for name in MODELS:
        model = trained(name, dataset)
        export(model, folder / "served" / name, dataset, signatures=["serialized_examples"])
        expected[name] = training_path(model, dataset, raw_rows)
    examples = np.array(raw_examples(dataset.schema, raw_rows), object)
    np.savez(folder / "in.npz", examples=examples, **request_of(dataset.schema, raw_rows))
    arguments = [folder / "served", folder / "in.npz", folder / "out.npz"]
    command = [sys.executable, "-c", CLEAN_PROCESS, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "out.npz") as answers:
        return expected, dict(answers)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_clean_process_gets_the_training_paths_probabilities(name, every_model):
    expected, answers = every_model
    for task, probabilities in expected[name].items():
        assert np.ptp(probabilities) > 1e-3, "the rows must differ, or equality shows nothing"
        for signature in ("serving_default", "serialized_examples"):
            got = answers[f"{name} {signature} {task}"]
            assert got.dtype == np.float32
            assert got.shape == probabilities.shape
            np.testing.assert_allclose(got, probabilities, rtol=0, atol=1e-6, err_msg=f"{signature} {task}")


@pytest.fixture(scope="module")
def exported(dataset, tmp_path_factory):
    model = trained("shared_bottom", dataset)
    path = tmp_path_factory.mktemp("served") / "shared_bottom"
    metrics = {"best_epoch": 1, "valid": {"tasks": {"click": {"calibration": 1.01}}}}
    return model, path, export(model, path, dataset, metrics=metrics, score="ctcvr * bid", top_k=20)


def test_every_warmup_record_fits_its_signature(exported):
    _, _, target = exported
    records = tf.data.TFRecordDataset(str(target / "assets.extra" / "tf_serving_warmup_requests")).as_numpy_iterator()
    signatures = tf.saved_model.load(str(target)).signatures
    replayed = []
    for record in map(prediction_log_pb2.PredictionLog.FromString, records):
        kind = record.WhichOneof("log_type")
        request = getattr(record, kind).request
        name = request.model_spec.signature_name
        replayed.append((name, kind))
        inputs = warmup_inputs(kind, request)
        specs = signatures[name].structured_input_signature[1]
        assert set(inputs) == set(specs)
        for key, value in inputs.items():
            assert specs[key].dtype == tf.as_dtype(value.dtype), key
            assert len(value) == 1, "more rows than one may be more than a server's batching takes"
        for key, values in signatures[name](**{key: tf.constant(v) for key, v in inputs.items()}).items():
            assert key == "classes" or np.all(np.isfinite(values)), f"{name} {key}"
            assert key != "index" or np.array_equal(np.sort(values)[0], np.arange(20))
    kinds = {"classify": "classify_log", "regress": "regress_log"}
    assert dict(replayed) == {name: kinds.get(name, "predict_log") for name in signatures}
    assert len(replayed) == len(signatures)


def warmup_inputs(kind, request) -> dict[str, np.ndarray]:
    if kind == "predict_log":
        return {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
    examples = request.input.example_list.examples
    return {"inputs": np.array([example.SerializeToString() for example in examples], object)}


def test_warmup_rows_have_the_most_frequent_values(exported, dataset):
    _, _, target = exported
    records = tf.data.TFRecordDataset(str(target / "assets.extra" / "tf_serving_warmup_requests")).as_numpy_iterator()
    inputs = prediction_log_pb2.PredictionLog.FromString(next(records)).predict_log.request.inputs
    row = {key: tf.make_ndarray(proto) for key, proto in inputs.items()}
    assert row["item"].tolist() == [dataset.vocabularies["item"].values[0].as_py().encode()]
    assert row["age"].tolist() == [pytest.approx(dataset.schema.fitted.numeric["age"].mean)]
    assert np.log1p(row["price"]).tolist() == [pytest.approx(dataset.schema.fitted.numeric["price"].mean)]


def test_the_model_card_says_what_it_is(exported, dataset):
    model, _, target = exported
    card = json.loads((target / "assets.extra" / "model_card.json").read_text())
    assert card["model"] == "SharedBottom"
    assert card["source"].startswith('Caruana, "Multitask learning" (1997)')
    assert card["parameters"] == model.count_params()
    assert card["data"]["schema_digest"] == dataset.schema.digest()
    assert card["data"]["rows"]["train"] == dataset.rows("train")
    assert card["label_space"] == "esmm_product"
    assert card["metrics"]["valid"]["tasks"]["click"]["calibration"] == 1.01
    assert card["score"] == {"formula": "ctcvr * bid", "inputs": ["bid"]}
    assert card["quantization"] is None
    assert card["calibration"] is None
    assert card["versions"]["tensorflow"] == tf.__version__
    assert card["versions"]["python"] == sys.version.split()[0]


def test_the_model_card_describes_each_signature(exported):
    _, _, target = exported
    card = json.loads((target / "assets.extra" / "model_card.json").read_text())
    signatures = tf.saved_model.load(str(target)).signatures
    assert set(card["signatures"]) == set(signatures)
    for name, described in card["signatures"].items():
        assert set(described["inputs"]) == set(signatures[name].structured_input_signature[1]), name
        assert set(described["outputs"]) == set(signatures[name].structured_outputs), name
    assert card["signatures"]["classify"]["inputs"] == {"inputs": "string [batch]"}
    assert card["signatures"]["ranking_top_k"]["inputs"]["tags"] == "string [batch, any, any]"
    assert card["signatures"]["ranking_top_k"]["outputs"]["index"] == "int64 [batch, 20]"


def test_a_quantized_and_calibrated_export_serves_that_model(exported, dataset, raw_rows, tmp_path):
    model, _, plain = exported
    phases = []
    target = export(
        model,
        tmp_path / "small",
        dataset,
        signatures=[],
        quantize="int8",
        calibrate="temperature",
        max_auc_drop=0.1,
        max_calibration_change=0.1,
        progress=lambda phase, done, total: phases.append((phase, done, total)),
    )
    small = quantized(model, "int8")
    expected = fit_calibration(small, dataset, "temperature").apply(training_path(small, dataset, raw_rows))
    answers, before = answers_of(target, dataset, raw_rows), answers_of(plain, dataset, raw_rows)
    for task, p in expected.items():
        np.testing.assert_allclose(answers[task], p, rtol=0, atol=1e-6)
        assert np.abs(answers[task] - before[task]).max() > 1e-5
    card = json.loads((target / "assets.extra" / "model_card.json").read_text())
    assert card["quantization"]["kind"] == "int8"
    assert card["quantization"]["change"]["split"] == "test"
    assert card["calibration"]["kind"] == "temperature"
    middle = card["quantization"]["change"]["tasks"]["click"]["after"]
    assert card["calibration"]["change"]["tasks"]["click"]["before"] == pytest.approx(middle)
    checkpoint = tf.train.load_checkpoint(str(target / "variables" / "variables"))
    assert tf.int8 in checkpoint.get_variable_to_dtype_map().values()
    assert list(dict.fromkeys(phase for phase, _, _ in phases)) == ["quantize", "calibrate", "measure", "write"]
    assert {phase: total for phase, _, total in phases}["quantize"] == dataset.rows("test")


def test_a_refused_export_writes_nothing(exported, dataset, tmp_path):
    model, _, _ = exported
    with pytest.raises(DataError, match="the limit is 0"):
        export(model, tmp_path / "m", dataset, quantize="int8", max_calibration_change=0.0)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantize": "int4"}, "quantize must be one of float16, int8, is 'int4'"),
        ({"calibrate": "platt"}, "calibrate must be one of temperature, isotonic"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"score": "ctcvr *"}, "character 8"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, exported, dataset, tmp_path):
    model, _, _ = exported
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "m", dataset, **arguments)
    assert not (tmp_path / "m").exists()


def test_versions_count_up_and_are_never_overwritten(exported, dataset):
    model, path, first = exported
    assert first == path / "1"
    second = export(model, path, dataset, signatures=[])
    assert second == path / "2"
    assert export(model, path, dataset, version=10, signatures=[]) == path / "10"
    with pytest.raises(DataError, match="this version exists"):
        export(model, path, dataset=dataset, version=2)
    with pytest.raises(DataError, match="positive"):
        export(model, path, dataset=dataset, version=0)
    assert sorted(child.name for child in path.iterdir()) == ["1", "10", "2"]
    assert export(model, path, dataset, signatures=[], keep=2) == path / "11"
    assert sorted(child.name for child in path.iterdir()) == ["10", "11"]


def test_a_failed_export_leaves_no_version(exported, dataset, tmp_path, monkeypatch):
    model, _, _ = exported
    monkeypatch.setattr("mtlzoo.serving.saved_model.write_warmup", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(model, tmp_path / "m", dataset=dataset)
    assert list((tmp_path / "m").iterdir()) == []


@pytest.fixture(scope="module")
def folded(dataset, tmp_path_factory):
    """An NCS4CVR whose tasks each use about a twentieth of the connections, and its export."""
    model = trained("ncs4cvr", dataset)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, MaskedDense):
            layer.kernel.assign(4.0 * layer.kernel)  # of so few connections, rows would else hardly differ
            is_open = random.random(layer.gates.shape) < 0.05
            log_alpha = np.where(
                is_open, random.uniform(0.1, 4.0, is_open.shape), -random.uniform(2.5, 8.0, is_open.shape)
            )
            layer.gates.assign(log_alpha / layer.gate_scale)
            np.testing.assert_array_equal(np.asarray(layer.masks()) > 0, is_open)
    path = tmp_path_factory.mktemp("served") / "ncs4cvr"
    return model, export(model, path, dataset, signatures=[])


def test_folded_masks_give_the_training_paths_probabilities(folded, dataset, raw_rows):
    model, target = folded
    answers = answers_of(target, dataset, raw_rows)
    for task, expected in training_path(model, dataset, raw_rows).items():
        assert np.ptp(expected) > 1e-3, "the rows must differ, or equality shows nothing"
        np.testing.assert_allclose(answers[task], expected, rtol=0, atol=1e-6, err_msg=task)


def test_a_folded_export_holds_no_masks(folded, dataset, raw_rows, tmp_path):
    model, target = folded
    card = json.loads((target / "assets.extra" / "model_card.json").read_text())
    assert card["model"] == "NCS4CVR"
    assert card["parameters"] == model.count_params()
    # A plain clone knows nothing of folding, and is exported as it is.
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    unfolded = export(clone, tmp_path / "clone", dataset, signatures=[])
    assert "served_parameters" not in json.loads((unfolded / "assets.extra" / "model_card.json").read_text())
    answers = answers_of(target, dataset, raw_rows)
    for task, p in answers_of(unfolded, dataset, raw_rows).items():
        np.testing.assert_allclose(p, answers[task], rtol=0, atol=1e-6)
    shapes, unfolded_shapes = variable_shapes(target), variable_shapes(unfolded)
    masks = [(2, *layer.kernel.shape) for layer in model.layers if isinstance(layer, MaskedDense)]
    assert set(masks) <= set(unfolded_shapes)
    assert max(len(shape) for shape in shapes) == 2
    assert sum(int(np.prod(shape)) for shape in shapes) == card["served_parameters"]
    assert megabytes(target) < 0.7 * megabytes(unfolded)


def variable_shapes(target) -> list[tuple[int, ...]]:
    listed = tf.train.list_variables(str(target / "variables" / "variables"))
    return [tuple(shape) for name, shape in listed if name.startswith("model_variables/")]


def megabytes(target) -> float:
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 1e6


def test_open_masks_are_served_by_the_operations_of_separate_trunks(dataset, tmp_path):
    """The most that a folded export can cost is what Shared-Bottom with towers of the trunk's widths costs."""
    plain = {"embedding_dim": 4, "dropout": 0.0}
    models = {
        "folded": create("ncs4cvr", dataset.schema, trunk_units=(32, 16), **plain),
        "towers": create("shared_bottom", dataset.schema, bottom_units=(), tower_units=(32, 16), **plain),
    }
    operations, shapes = {}, {}
    for name, model in models.items():
        target = export(model, tmp_path / name, dataset, signatures=[])
        graph = tf.saved_model.load(str(target)).signatures["serving_default"].graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        operations[name], shapes[name] = Counter(node.op for node in nodes), Counter(variable_shapes(target))
    assert operations["folded"] == operations["towers"]
    assert operations["folded"]["MatMul"] >= 6
    assert shapes["folded"] == shapes["towers"]


def test_a_model_of_another_schema_is_refused(exported, dataset, tmp_path):
    _, _, _ = exported
    fitted = dataset.schema.fitted
    grown = fitted.model_copy(update={"tables": {name: size + 1 for name, size in fitted.tables.items()}})
    other = create("shared_bottom", dataset.schema.model_copy(update={"fitted": grown}), embedding_dim=4)
    with pytest.raises(DataError, match="than the model was trained with: another vocabulary: item"):
        export(other, tmp_path / "m", dataset=dataset)
