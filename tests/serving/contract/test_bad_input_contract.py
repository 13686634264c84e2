"""Requests that no client should send: each is answered with the right code, and the next one is answered as ever."""

from __future__ import annotations

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random

import grpc
import numpy as np
import pytest
import tensorflow as tf
from checks import assert_rest_refuses, refused
from google.protobuf.message import DecodeError
from grpc import StatusCode
from mutations import mutated_bytes, mutated_json
from servers import exchange, model_config, predict_request, serving, wait_for
from tensorflow_serving.apis import predict_pb2
from tiny_models import Spec, save

PREDICT = "/v1/models/rows:predict"
MUTATIONS, WORKERS = 10_000, 4
REST_CODES = {200, 400}
GRPC_CODES = {
    StatusCode.OK,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.NOT_FOUND,
    StatusCode.UNIMPLEMENTED,
}
# Memory that a server may gain over the last three quarters of the mutations, in MB.
MOST_GROWTH = 40.0
# Memory that a server may keep of bodies of 100 MB, in MB.
BODIES, MOST_KEPT = 5, 60.0
ROWS = {
    "item": ["cup", "plate"],
    "price": [1.5, 2.0],
    "count": [3, 4],
    "tags": [["red", "new"], ["blue", ""]],
    "tags_length": [2, 1],
}
SCORES = [3 + 1.5 * 3 + 2, 5 + 2.0 * 4 + 1]


def scored(**rows: tf.Tensor) -> dict:
    letters = tf.cast(tf.strings.length(rows["item"]), tf.float32)
    mask = tf.sequence_mask(rows["tags_length"], tf.shape(rows["tags"])[1], tf.float32)
    return {"score": letters + rows["price"] * tf.cast(rows["count"], tf.float32) + tf.reduce_sum(mask, axis=1)}


SPECS = {
    "item": Spec([None], tf.string, "item"),
    "price": Spec([None], tf.float32, "price"),
    "count": Spec([None], tf.int64, "count"),
    "tags": Spec([None, None], tf.string, "tags"),
    "tags_length": Spec([None], tf.int64, "tags_length"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_input")
    save(folder / "rows", 1, {"serving_default": (scored, SPECS)})
    with serving(model_config({"rows": folder / "rows"})) as server:
        yield server
        assert server.is_alive()


@pytest.fixture(autouse=True)
def answered_as_ever(server):
    """After each test, both interfaces still answer a good request."""
    yield
    assert server.is_alive()
    assert server.post(PREDICT, {"inputs": ROWS}) == {"outputs": SCORES}
    assert server.predict("rows", arrays())["score"].tolist() == SCORES


def arrays(**changed) -> dict[str, np.ndarray]:
    dtypes = {"item": object, "price": np.float32, "count": np.int64, "tags": object, "tags_length": np.int64}
    return {name: np.array(values, dtypes[name]) for name, values in ROWS.items()} | changed


def without(name: str) -> dict:
    return {key: values for key, values in ROWS.items() if key != name}


@pytest.mark.parametrize("name", list(ROWS))
def test_a_missing_feature_is_named(server, name):
    assert_rest_refuses(server.rest("POST", PREDICT, {"inputs": without(name)}), 400, name)
    with refused(StatusCode.INVALID_ARGUMENT, name):
        server.predict("rows", {key: values for key, values in arrays().items() if key != name})


def test_an_unknown_feature_is_named(server):
    instance = {name: values[0] for name, values in ROWS.items()} | {"colour": "red"}
    assert_rest_refuses(server.rest("POST", PREDICT, {"instances": [instance]}), 400, "colour")
    with refused(StatusCode.INVALID_ARGUMENT, "colour"):
        server.predict("rows", arrays(colour=np.array(["red", "red"], object)))


@pytest.mark.parametrize(
    ("name", "values"),
    [("item", [1, 2]), ("price", ["1.5", "2"]), ("count", [3.5, 4.5]), ("count", ["3", "4"]), ("tags", [[1], [2]])],
)
def test_a_wrong_dtype_is_refused(server, name, values):
    assert_rest_refuses(server.rest("POST", PREDICT, {"inputs": ROWS | {name: values}}), 400, "expected type")
    with refused(StatusCode.INVALID_ARGUMENT, "is provided"):
        server.predict("rows", arrays(**{name: np.array(values)}))


@pytest.mark.parametrize(
    "changed",
    [{"tags": [["red", "new"], ["blue"]]}, {"tags": ["red", ["blue"]]}, {"price": [1.5, [2.0]]}],
    ids=["lengths", "depths", "values"],
)
def test_ragged_rows_are_refused(server, changed):
    assert_rest_refuses(server.rest("POST", PREDICT, {"inputs": ROWS | changed}), 400)


def test_a_list_that_is_none_is_refused(server):
    with refused(StatusCode.INVALID_ARGUMENT):
        server.predict("rows", arrays(tags=np.array(["red", "blue"], object)))
    assert_rest_refuses(server.rest("POST", PREDICT, {"inputs": ROWS | {"tags": ["red", "blue"]}}), 400)


def test_other_row_counts_per_feature_are_refused(server):
    with refused(StatusCode.INVALID_ARGUMENT):
        server.predict("rows", arrays(price=np.ones(3, np.float32)))
    assert_rest_refuses(server.rest("POST", PREDICT, {"inputs": ROWS | {"price": [1.0, 2.0, 3.0]}}), 400)


@pytest.mark.parametrize("size", [3, -1, 2**40])
def test_a_tensor_that_claims_another_size_is_refused(server, size):
    request = predict_request("rows", arrays())
    assert request.inputs["price"].tensor_content
    request.inputs["price"].tensor_shape.dim[0].size = size
    with refused(StatusCode.INVALID_ARGUMENT):
        server.prediction.Predict(request, timeout=30)


@pytest.mark.parametrize("depth", [10, 500])
def test_deep_nesting_is_refused(server, depth):
    body = '{"inputs": ' + "[" * depth + "]" * depth + "}"
    assert_rest_refuses(server.rest("POST", PREDICT, body), 400)


def test_bodies_of_100_megabytes(server):
    server.post(PREDICT, {"inputs": ROWS})
    before = server.resident_megabytes()
    for _ in range(BODIES):
        connection = server.connection(seconds=120)
        answer = exchange(connection, "POST", PREDICT, b'{"inputs": "' + b"x" * 100_000_000 + b'"}')
        connection.close()
        assert_rest_refuses((answer[0], answer[1][:1000]), 400)

    def given_back() -> bool:
        server.post(PREDICT, {"inputs": ROWS})
        return server.resident_megabytes() < before + MOST_KEPT

    wait_for(given_back, seconds=20)


def test_slow_clients_keep_nobody_waiting(server):
    body = json.dumps({"inputs": ROWS}).encode()
    head = (
        f"POST {PREDICT} HTTP/1.1\r\nHost: {server.rest_address}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    in_the_head, in_the_body = ([_connected(server) for _ in range(10)] for _ in range(2))
    for connection in in_the_head:
        connection.sendall(head[:30])
    for connection in in_the_body:
        connection.sendall(head + body[:10])
    for _ in range(10):
        start = time.monotonic()
        assert server.post(PREDICT, {"inputs": ROWS}) == {"outputs": SCORES}
        assert time.monotonic() - start < 5.0
    slowest = in_the_body[0]
    for at in range(10, len(body)):
        slowest.sendall(body[at : at + 1])
        time.sleep(0.01)
    assert b"200 OK" in slowest.recv(100)
    for connection in in_the_head + in_the_body:
        connection.close()


def _connected(server) -> socket.socket:
    host, port = server.rest_address.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"NONSENSE\r\n\r\n",
        b"POST " + b"/" * 50 + b" HTTP/9.9\r\n\r\n",
        b"\x00" * 99,
    ],
    ids=["nothing", "tls", "no_http", "no_version", "zeros"],
)
def test_what_is_no_http_is_cut_off(server, sent):
    with _connected(server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert b"200 OK" not in answer


def test_a_client_that_hangs_up_midway_harms_nobody(server):
    for length in (10, 1_000_000):
        connection = _connected(server)
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b'{"inpu')
        connection.close()
    call = server.prediction.Predict.future(predict_request("rows", arrays()))
    call.cancel()
    assert call.cancelled() or call.code() == StatusCode.OK


def test_mutations_of_valid_requests(server):
    """10,000 of them: the right codes, messages that say something, no hang, and no memory gained."""
    quarter = MUTATIONS // WORKERS // 4
    with ThreadPoolExecutor(WORKERS) as pool:
        seen = list(pool.map(lambda worker: _mutations(server, worker, quarter), range(WORKERS)))
        early = server.resident_megabytes()
        seen += pool.map(lambda worker: _mutations(server, WORKERS + worker, 3 * quarter), range(WORKERS))
    late = server.resident_megabytes()
    codes = [code for part in seen for code in part]
    assert len(codes) == MUTATIONS
    assert {code for code in codes if isinstance(code, int)} == REST_CODES
    grpc_codes = {code for code in codes if not isinstance(code, int)}
    assert {StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.INTERNAL} <= grpc_codes
    assert late - early < MOST_GROWTH, f"{early:.0f} MB, then {late:.0f} MB"


def _mutations(server, worker: int, count: int) -> list[int | StatusCode]:
    """Sends mutated requests, in turns over REST and gRPC, and a good one now and then; the codes of the answers."""
    random = Random(worker)
    columns = {"inputs": ROWS}
    rows = {"instances": [{name: values[i] for name, values in ROWS.items()} for i in range(2)]}
    message = predict_request("rows", arrays()).SerializeToString()
    connection = server.connection(seconds=20)
    call = server.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    codes: list[int | StatusCode] = []
    for turn in range(count):
        if turn % 2:
            codes.append(_grpc_code(call, mutated_bytes(random, message)))
        else:
            codes.append(_rest_code(connection, mutated_json(random, rows if turn % 4 else columns)))
        if turn % 100 == 99:
            assert json.loads(exchange(connection, "POST", PREDICT, columns)[1]) == {"outputs": SCORES}
            response = predict_pb2.PredictResponse.FromString(call(message, timeout=20))
            assert list(response.outputs["score"].float_val) == SCORES
    connection.close()
    return codes


def _rest_code(connection: http.client.HTTPConnection, body: bytes) -> int:
    status, text = exchange(connection, "POST", PREDICT, body)
    assert status in REST_CODES, (status, body, text)
    if status == 200:
        assert set(json.loads(text)) < {"predictions", "outputs"}, text
    else:
        assert_rest_refuses((status, text), status)
    return status


def _grpc_code(call: grpc.UnaryUnaryMultiCallable, message: bytes) -> StatusCode:
    try:
        call(message, timeout=20)
        return StatusCode.OK
    except grpc.RpcError as error:
        code, details = error.code(), error.details()
    expected = GRPC_CODES if _is_readable(message) else {StatusCode.INTERNAL}
    assert code in expected, (code, details, message)
    assert details
    return code


def _is_readable(message: bytes) -> bool:
    try:
        predict_pb2.PredictRequest.FromString(message)
    except DecodeError:
        return False
    return True
