"""Every model of the zoo, exported and served with batching: a row's answer is its own, whoever shares its batch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from checks import at_once
from servers import AVAILABLE, exchange, model_config, serving
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, regression_pb2

from mtlzoo.models import MODELS, create
from mtlzoo.serving import export, request_of
from pipelines import MultiCategorical, Numeric
from pipelines.raw import read_raw

ROWS = 24
TOP = 3
BATCHING = """
max_batch_size { value: 64 }
batch_timeout_micros { value: 20000 }
num_batch_threads { value: 2 }
max_enqueued_batches { value: 1000 }
allowed_batch_sizes: 8
allowed_batch_sizes: 64
pad_variable_length_inputs: true
"""


@dataclass
class Zoo:
    """The models as they are served, the same models in this process, and rows to ask them about."""

    server: Any
    in_process: dict[str, Any]
    rows: pa.RecordBatch
    schema: Any

    def request(self, start: int = 0, count: int = ROWS) -> dict[str, np.ndarray]:
        """The arrays of some rows; their lists are padded to the longest of these rows alone."""
        return request_of(self.schema, self.rows.slice(start, count))

    def expected(
        self, model: str, request: dict[str, np.ndarray], signature="serving_default"
    ) -> dict[str, np.ndarray]:
        tensors = {name: tf.constant(array) for name, array in request.items()}
        answer = self.in_process[model].signatures[signature](**tensors)
        return {name: tensor.numpy() for name, tensor in answer.items()}


@pytest.fixture(scope="module")
def zoo(dataset, raw_log, demo_schema, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    targets = {}
    for name in MODELS:
        keras.utils.set_random_seed(3)
        model = create(name, dataset.schema, embedding_dim=4)
        for variable in model.trainable_variables:
            if "embedding" in variable.path:  # rows differ; with all weights larger, DCRNN and DTN would saturate
                variable.assign(5.0 * variable)
        targets[name] = export(model, folder / name, dataset=dataset, top_k=TOP if name == "mmoe" else None)
    in_process = {name: tf.saved_model.load(str(target)) for name, target in targets.items()}
    rows = next(read_raw([raw_log.parquet], demo_schema, batch_rows=ROWS)).batch
    with serving(model_config({name: folder / name for name in MODELS}), batching=BATCHING) as server:
        yield Zoo(server, in_process, rows, dataset.schema)


def assert_same(answer: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    assert set(answer) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(answer[name], values, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("model", list(MODELS))
def test_every_model_loads_and_answers_over_grpc(zoo, model):
    assert zoo.server.states(model)[1][0] == AVAILABLE
    request = zoo.request()
    expected = zoo.expected(model, request)
    for task, probabilities in expected.items():
        assert np.ptp(probabilities) > 1e-3, f"the rows must differ, or equality shows nothing: {task}"
    assert_same(zoo.server.predict(model, request), expected)


@pytest.mark.parametrize("model", list(MODELS))
def test_every_model_answers_over_rest(zoo, model):
    request = zoo.request()
    expected = zoo.expected(model, request)
    columns = {name: array.tolist() for name, array in request.items()}
    assert_same(zoo.server.post(f"/v1/models/{model}:predict", {"inputs": columns})["outputs"], expected)
    instances = [{name: values[row] for name, values in columns.items()} for row in range(ROWS)]
    predictions = zoo.server.post(f"/v1/models/{model}:predict", {"instances": instances})["predictions"]
    assert_same({name: [row[name] for row in predictions] for name in predictions[0]}, expected)


@pytest.mark.parametrize("model", list(MODELS))
def test_padding_that_counted_would_show(zoo, model):
    """What the next test holds to 1e-6 moves answers a hundred times as far where it fails."""
    request = zoo.request()
    expected = zoo.expected(model, request)
    for lists in zoo.schema.features:
        if not isinstance(lists, MultiCategorical):
            continue
        width = request[lists.name].shape[1]
        lengths = request[f"{lists.name}_length"]
        padding = np.arange(width) >= lengths[:, None]
        leaking = dict(request) | {f"{lists.name}_length": np.full_like(lengths, width)}
        for name in {lists.name, f"{lists.name}_weights"} & request.keys():
            leaking[name] = np.where(padding, request[name].flat[0], request[name])  # as TF Serving pads
        for task, answer in zoo.expected(model, leaking).items():
            moved = np.abs(answer - expected[task])[padding.any(axis=1)]
            assert np.median(moved) > 1e-4, (lists.name, task)


@pytest.mark.parametrize("model", list(MODELS))
def test_a_row_alone_and_in_company_gets_the_same_answer(zoo, model):
    """Rows come one by one, half over gRPC and half over REST, with lists of other lengths than their company's."""
    singles = [zoo.request(row, 1) for row in range(ROWS)]
    assert len({array.shape for request in singles for array in request.values()}) > 2, "the lists must differ"
    expected = zoo.expected(model, zoo.request())
    assert all(np.ptp(values) > 1e-2 for values in expected.values()), "the rows must differ"

    def over_rest(request):
        columns = {name: array.tolist() for name, array in request.items()}
        status, text = exchange(zoo.server.connection(), "POST", f"/v1/models/{model}:predict", {"inputs": columns})
        assert status == 200, text
        return json.loads(text)["outputs"]

    def asked(row):
        request = singles[row]
        return over_rest(request) if row % 2 else zoo.server.predict(model, request)

    alone = [asked(row) for row in range(0, ROWS, 5)]
    company = at_once([lambda row=row: asked(row) for row in range(ROWS)])
    for row, answer in [*zip(range(0, ROWS, 5), alone, strict=True), *enumerate(company)]:
        assert isinstance(answer, dict), answer
        assert_same(answer, {name: values[row : row + 1] for name, values in expected.items()})


def examples_of(zoo) -> list[tf.train.Example]:
    """The rows as examples; a null is left out."""
    found = []
    for row in zoo.rows.to_pylist():
        features = {}
        for feature in zoo.schema.features:
            value = row[feature.source]
            if isinstance(feature, MultiCategorical):
                features[feature.name] = _feature(feature.dtype, value or [])
                if feature.weights is not None:
                    features[feature.weights_name] = _feature("float", row[feature.weights] or [])
            elif value is not None:
                features[feature.name] = _feature("float" if isinstance(feature, Numeric) else feature.dtype, [value])
        found.append(tf.train.Example(features=tf.train.Features(feature=features)))
    return found


def _feature(dtype, values) -> tf.train.Feature:
    if dtype == "string":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in values]))
    if dtype == "int":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


@pytest.mark.parametrize("model", list(MODELS))
def test_examples_get_the_answers_of_the_rows(zoo, model):
    expected = zoo.expected(model, zoo.request())
    examples = examples_of(zoo)
    serialized = [example.SerializeToString() for example in examples]
    assert_same(zoo.server.predict(model, {"inputs": serialized}, "serialized_examples"), expected)

    classification = classification_pb2.ClassificationRequest()
    classification.model_spec.name, classification.model_spec.signature_name = model, "classify"
    classification.input.example_list.examples.extend(examples)
    result = zoo.server.prediction.Classify(classification).result
    answers = [{c.label: c.score for c in row.classes} for row in result.classifications]
    assert_same({name: [answer[name] for answer in answers] for name in answers[0]}, expected)

    regression = regression_pb2.RegressionRequest()
    regression.model_spec.name, regression.model_spec.signature_name = model, "regress"
    regression.input.example_list.examples.extend(examples)
    scores = [row.value for row in zoo.server.prediction.Regress(regression).result.regressions]
    ranking = zoo.server.predict(model, zoo.request(), "ranking")
    assert set(ranking) == {*expected, "score"}
    np.testing.assert_allclose(scores, ranking["score"], rtol=0, atol=1e-6)
    assert_same({name: ranking[name] for name in expected}, expected)


@pytest.mark.parametrize("model", list(MODELS))
def test_method_names_are_those_a_strict_server_demands(zoo, model):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = model
    found = get_model_metadata_pb2.SignatureDefMap()
    zoo.server.prediction.GetModelMetadata(request).metadata["signature_def"].Unpack(found)
    names = {name: signature.method_name for name, signature in found.signature_def.items()}
    assert names["classify"] == "tensorflow/serving/classify"
    assert names["regress"] == "tensorflow/serving/regress"
    assert names["serving_default"] == names["ranking"] == "tensorflow/serving/predict"
    for signature in (s for name, s in found.signature_def.items() if not name.startswith("__")):
        for info in [*signature.inputs.values(), *signature.outputs.values()]:
            assert len(info.tensor_shape.dim) >= 1, "batching needs a batch dimension everywhere"
            assert info.tensor_shape.dim[0].size == -1


def test_top_candidates_are_the_same_alone_and_in_company(zoo):
    """Requests of 2 to 10 candidates; the server pads them with each tensor's own first value."""
    ranking = zoo.expected("mmoe", zoo.request(), "ranking")
    counts = [2, 3, 7, 10]

    def asked(count):
        request = {name: array[None] for name, array in zoo.request(0, count).items()}
        answer = zoo.server.predict("mmoe", {**request, "candidates": np.array([count])}, "ranking_top_k")
        return {name: values[0] for name, values in answer.items()}

    alone = [asked(count) for count in counts]
    company = at_once([lambda count=count: asked(count) for count in counts])
    for count, *answers in zip(counts, alone, company, strict=True):
        order = np.argsort(-ranking["score"][:count], kind="stable")[:TOP]
        lacking = TOP - len(order)
        for answer in answers:
            assert isinstance(answer, dict), answer
            assert answer["index"].tolist() == [*order, *[-1] * lacking]
            padded = {name: np.concatenate([ranking[name][order], np.zeros(lacking)]) for name in ranking}
            assert_same({name: answer[name] for name in padded}, padded)
