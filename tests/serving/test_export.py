"""The saved model gives, for raw rows, what the training path gives for the same rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from mtlzoo.layers import MaskedDense
from mtlzoo.models import MODELS, create
from mtlzoo.serving import export, request_of
from pipelines import DataError, MultiCategorical, Numeric
from pipelines.encode import Encoder
from pipelines.raw import read_raw
from pipelines.read import Packing, _block_parser
from pipelines.records import columns_of, serialize_blocks

# Runs in a process of its own that knows TensorFlow alone.
CLEAN_PROCESS = """
import sys
import numpy as np, tensorflow as tf
folder, request_file, out_file = sys.argv[1:]
raw = np.load(request_file, allow_pickle=True)
loaded = tf.saved_model.load(folder)
answers = {}
request = {k: tf.constant(raw[k].tolist(), tf.string) if raw[k].dtype == object else tf.constant(raw[k])
           for k in raw.files if k != "examples"}
for task, p in loaded.signatures["serving_default"](**request).items():
    answers["serving_default." + task] = p.numpy()
for task, p in loaded.signatures["serialized_examples"](tf.constant(raw["examples"].tolist(), tf.string)).items():
    answers["serialized_examples." + task] = p.numpy()
assert not {"mtlzoo", "pipelines"} & set(sys.modules), "the project was imported"
np.savez(out_file, **answers)
"""


@pytest.fixture(scope="module")
def raw_rows(raw_log, demo_schema):
    """Raw rows with values that the training split has never seen."""
    batch = next(read_raw([raw_log.parquet], demo_schema, batch_rows=512)).batch
    columns = {name: batch.column(name) for name in batch.schema.names}
    for feature in demo_schema.singles:
        values = columns[feature.source].to_pylist()
        values[:2] = ["never seen before", None] if feature.dtype == "string" else [987654321, None]
        columns[feature.source] = pa.array(values, columns[feature.source].type)
    return pa.RecordBatch.from_pydict(columns)


def trained(name, dataset):
    keras.utils.set_random_seed(1)
    model = create(name, dataset.schema, embedding_dim=4)
    model.compile()
    model.fit(dataset.read("train", 512, shuffle=True, seed=1), verbose=0)
    return model


def training_path(model, dataset, rows) -> dict[str, np.ndarray]:
    """Encode, serialize, parse and pack as training does."""
    encoded = Encoder(dataset.schema, dataset.vocabularies)(rows)
    packing = Packing(dataset.schema, groups=False)
    (block,) = serialize_blocks(encoded, columns_of(dataset.schema), rows.num_rows)
    features, _, _ = packing.unpack(*_block_parser(packing)(block))
    return {task: np.asarray(p)[:, 0] for task, p in model.predict_on_batch(features).items()}


def raw_examples(schema, rows) -> list[bytes]:
    """Each raw row as a `tf.train.Example`; a null is left out."""
    examples = []
    for row in rows.to_pylist():
        features = {}
        for feature in schema.features:
            value = row[feature.source]
            if isinstance(feature, MultiCategorical):
                features[feature.name] = _feature(feature.dtype, value or [])
                if feature.weights is not None:
                    features[feature.weights_name] = _feature("float", row[feature.weights] or [])
            elif value is not None:
                features[feature.name] = _feature("float" if isinstance(feature, Numeric) else feature.dtype, [value])
        examples.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return examples


def _feature(dtype, values):
    if dtype == "string":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in values]))
    if dtype == "int":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


@pytest.mark.parametrize("name", list(MODELS))
def test_a_clean_process_gets_the_training_paths_probabilities(name, dataset, raw_rows, tmp_path):
    model = trained(name, dataset)
    target = export(model, tmp_path / name, dataset=dataset)
    request = request_of(dataset.schema, raw_rows)
    examples = np.array(raw_examples(dataset.schema, raw_rows), object)
    np.savez(tmp_path / "request.npz", examples=examples, **request)
    command = [
        sys.executable,
        "-c",
        CLEAN_PROCESS,
        str(target),
        str(tmp_path / "request.npz"),
        str(tmp_path / "out.npz"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "out.npz")
    for task, expected in training_path(model, dataset, raw_rows).items():
        assert np.ptp(expected) > 1e-3, "the rows must differ, or equality shows nothing"
        for signature in ("serving_default", "serialized_examples"):
            got = answers[f"{signature}.{task}"]
            assert got.dtype == np.float32
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6, err_msg=f"{signature} {task}")


@pytest.fixture(scope="module")
def exported(dataset, tmp_path_factory):
    model = trained("shared_bottom", dataset)
    path = tmp_path_factory.mktemp("served") / "shared_bottom"
    return model, path, export(model, path, dataset=dataset)


def test_padding_of_a_list_is_not_looked_at(exported, dataset, raw_rows):
    _, _, target = exported
    predict = tf.saved_model.load(str(target)).signatures["serving_default"]
    request = {k: tf.constant(v) for k, v in request_of(dataset.schema, raw_rows).items()}
    padded = dict(request)
    for multi in dataset.schema.multis:
        for key in [multi.name] + ([multi.weights_name] if multi.weights else []):
            padded[key] = tf.concat([request[key], tf.repeat(request[key][:1, :1], raw_rows.num_rows, 0)], axis=1)
    plain, company = predict(**request), predict(**padded)
    for task in plain:
        np.testing.assert_array_equal(plain[task], company[task])


def test_versions_count_up_and_are_never_overwritten(exported, dataset):
    model, path, first = exported
    assert first == path / "1"
    second = export(model, path, dataset=dataset)
    assert second == path / "2"
    assert export(model, path, dataset=dataset, version=10) == path / "10"
    with pytest.raises(DataError, match="this version exists"):
        export(model, path, dataset=dataset, version=2)
    with pytest.raises(DataError, match="positive"):
        export(model, path, dataset=dataset, version=0)
    assert sorted(child.name for child in path.iterdir()) == ["1", "10", "2"]


def test_a_failed_export_leaves_no_version(exported, dataset, tmp_path, monkeypatch):
    model, _, _ = exported
    monkeypatch.setattr("mtlzoo.serving.saved_model.write_warmup", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(model, tmp_path / "m", dataset=dataset)
    assert [child.name for child in (tmp_path / "m").iterdir() if child.name.isdigit()] == []


def test_the_warmup_record_fits_the_signature(exported):
    _, _, target = exported
    (record,) = tf.data.TFRecordDataset(str(target / "assets.extra" / "tf_serving_warmup_requests")).as_numpy_iterator()
    request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
    assert request.model_spec.signature_name == "serving_default"
    predict = tf.saved_model.load(str(target)).signatures["serving_default"]
    specs = predict.structured_input_signature[1]
    assert set(request.inputs) == set(specs)
    values = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
    for key, value in values.items():
        assert specs[key].dtype.is_compatible_with(tf.as_dtype(value.dtype)), key
    for p in predict(**{key: tf.constant(value) for key, value in values.items()}).values():
        assert np.all(np.isfinite(p))


def test_the_model_card_says_what_it_is(exported, dataset):
    model, _, target = exported
    card = json.loads((target / "assets.extra" / "model_card.json").read_text())
    assert card["model"] == "SharedBottom"
    assert card["source"].startswith('Caruana, "Multitask learning" (1997)')
    assert card["parameters"] == model.count_params()
    assert card["data"]["schema_digest"] == dataset.schema.digest()
    assert card["data"]["rows"]["train"] == dataset.rows("train")


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
    return model, export(model, path, dataset=dataset)


def answers_of(target, dataset, rows) -> dict[str, np.ndarray]:
    predict = tf.saved_model.load(str(target)).signatures["serving_default"]
    request = {name: tf.constant(values) for name, values in request_of(dataset.schema, rows).items()}
    return {task: p.numpy() for task, p in predict(**request).items()}


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
    unfolded = export(clone, tmp_path / "clone", dataset=dataset)
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
        target = export(model, tmp_path / name, dataset=dataset)
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
    with pytest.raises(DataError, match="trained with another schema"):
        export(other, tmp_path / "m", dataset=dataset)


def test_the_librarys_own_loader_takes_it(exported):
    """The C API session loader is what TF Serving calls."""
    _, _, target = exported
    code = (
        "import sys, tensorflow as tf\n"
        "with tf.compat.v1.Session(graph=tf.Graph()) as session:\n"
        "    meta = tf.compat.v1.saved_model.load(session, ['serve'], sys.argv[1])\n"
        "    print(sorted(k for k in meta.signature_def if not k.startswith('__')))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code, str(target)], check=True, capture_output=True, text=True).stdout
    assert "['serialized_examples', 'serving_default']" in shown
