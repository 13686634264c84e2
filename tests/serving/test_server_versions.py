"""Versions come and go while requests are answered."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from server_parts import configuration, predict_request, put, refused, write_tiny
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from mtlzoo.serving.servables import WARMUP_FILE, version_policy
from mtlzoo.serving.server.errors import ServingError
from mtlzoo.serving.server.prometheus import ServerMetrics
from mtlzoo.serving.server.servable import Servable
from mtlzoo.serving.server.versions import VersionManager, wanted_versions
from mtlzoo.serving.server.warm_up import warm_up

LOADING, AVAILABLE, UNLOADING, END = 20, 30, 40, 50
POLL_SECONDS = 0.05


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "written")


@pytest.fixture
def model(version, tmp_path):
    put(version, tmp_path / "tiny", 1)
    return tmp_path / "tiny"


@pytest.fixture
def manager(model):
    manager = VersionManager(Servable, POLL_SECONDS, ServerMetrics())
    assert manager.configure(list(configuration(tiny=model).model_config_list.config), any_labels=False) == {}
    manager.start()
    yield manager
    manager.close()


def states(manager) -> dict[int, int]:
    return {version: state for version, (state, _) in manager.status("tiny").items()}


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def take_out(path: Path) -> None:
    gone = path.parent.parent / f"gone-{path.name}"
    path.rename(gone)
    shutil.rmtree(gone)


def answering(manager) -> int:
    with manager.use("tiny", None) as servable:
        return servable.version


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [("latest", {10}), ("latest:2", {3, 10}), ("latest:9", {2, 3, 10}), ("all", {2, 3, 10}), ("3,7", {3})],
)
def test_policies_choose_versions(policy, wanted):
    assert wanted_versions({number: Path(str(number)) for number in (2, 3, 10)}, version_policy(policy)) == wanted


def test_without_a_policy_the_highest_number_is_served():
    model = model_server_config_pb2.ModelConfig()
    found = {number: Path(str(number)) for number in (10, 2, 3)}
    assert wanted_versions(found, model.model_version_policy) == {10}


def test_a_request_in_progress_finishes_on_the_version_that_began_it(manager, model, version):
    with manager.use("tiny", None) as servable:
        put(version, model, 2)
        wait_for(lambda: states(manager) == {2: AVAILABLE, 1: UNLOADING})
        assert answering(manager) == 2
        tensor = servable.signatures["serving_default"]
        (y,) = servable.run({tensor.inputs["x"].tensor: np.array([3.0], np.float32)}, (tensor.outputs["y"],))
        assert (servable.version, list(y)) == (1, [6.0])
    assert states(manager) == {2: AVAILABLE, 1: END}
    with refused(grpc.StatusCode.NOT_FOUND, "Specific(tiny, 1)"), manager.use("tiny", 1):
        pass


def test_there_is_always_a_version_during_a_swap(manager, model, version):
    seen = set()
    put(version, model, 2)
    while states(manager) != {2: AVAILABLE, 1: END}:
        seen.add(answering(manager))
    assert seen | {answering(manager)} == {1, 2}


def test_a_broken_newer_version_leaves_the_old_one_until_it_is_mended(manager, model, version):
    (model / "2").mkdir()
    wait_for(lambda: states(manager).get(2) == END)
    _, error = manager.status("tiny")[2]
    assert error.code.value[0] == 5
    assert "saved_model" in error.message or "SavedModel" in error.message
    assert answering(manager) == 1
    shutil.copytree(version, model / "2", dirs_exist_ok=True)
    wait_for(lambda: states(manager) == {2: AVAILABLE, 1: END})


def test_deleting_the_newest_rolls_back_and_the_last_unloads(manager, model, version):
    put(version, model, 2)
    wait_for(lambda: states(manager) == {2: AVAILABLE, 1: END})
    take_out(model / "2")
    wait_for(lambda: states(manager) == {2: END, 1: AVAILABLE})
    take_out(model / "1")
    wait_for(lambda: states(manager) == {2: END, 1: END})
    assert not manager.healthy()
    with refused(grpc.StatusCode.NOT_FOUND, "Latest(tiny)"):
        answering(manager)


def test_a_directory_that_is_gone_takes_nothing_away(manager, model):
    aside = model.rename(model.parent / "aside")
    time.sleep(5 * POLL_SECONDS)
    assert answering(manager) == 1
    aside.rename(model)


def record(**inputs: list[float]) -> prediction_log_pb2.PredictionLog:
    request = predict_request(inputs=inputs)
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))


def warmed(model: Path, records: list[bytes]) -> Path:
    path = model / "1"
    (path / WARMUP_FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path / WARMUP_FILE)) as writer:
        for one in records:
            writer.write(one)
    return path


def load_and_warm_up(path: Path) -> None:
    servable = Servable("tiny", 1, path)
    try:
        warm_up(servable, path)
    finally:
        servable.close()


GOOD = record(x=[1.0]).SerializeToString()
EMPTY = prediction_log_pb2.PredictionLog().SerializeToString()


@pytest.mark.parametrize("records", [[], [GOOD, EMPTY], [GOOD] * 1000])
def test_good_warmup_records_are_run(model, records):
    load_and_warm_up(warmed(model, records))


@pytest.mark.parametrize(
    ("records", "code"),
    [
        ([GOOD, record(w=[1.0]).SerializeToString()], "INVALID_ARGUMENT"),
        ([record(x=[1]).SerializeToString()], "INVALID_ARGUMENT"),
        ([b"\xff\xff"], "INVALID_ARGUMENT"),
        ([GOOD] * 1001, "INVALID_ARGUMENT"),
        ([prediction_log_pb2.PredictionLog(session_run_log={}).SerializeToString()], "UNIMPLEMENTED"),
    ],
)
def test_a_bad_warmup_record_makes_the_load_fail(model, records, code):
    with refused(grpc.StatusCode[code]):
        load_and_warm_up(warmed(model, records))


def test_a_warmup_file_that_is_no_tfrecord_makes_the_load_fail(model):
    path = warmed(model, [])
    (path / WARMUP_FILE).write_bytes(b"these are no records, and long enough to be read as one")
    with refused(grpc.StatusCode.DATA_LOSS):
        load_and_warm_up(path)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda path: (path / "saved_model.pb").unlink(), "NOT_FOUND"),
        (lambda path: shutil.rmtree(path / "variables"), "NOT_FOUND"),
        (lambda path: (path / "saved_model.pb").write_bytes(b"\xff" * 100), "DATA_LOSS"),
    ],
)
def test_a_damaged_version_is_not_loaded(model, damage, code):
    damage(model / "1")
    with pytest.raises(ServingError) as caught:
        Servable("tiny", 1, model / "1")
    assert caught.value.code == grpc.StatusCode[code]


def test_the_warmup_name_is_not_looked_at(model):
    log = record(x=[1.0])
    log.predict_log.request.model_spec.name = "another"
    load_and_warm_up(warmed(model, [log.SerializeToString()]))
    assert predict_pb2.PredictRequest.FromString(log.predict_log.request.SerializeToString()).model_spec.name
