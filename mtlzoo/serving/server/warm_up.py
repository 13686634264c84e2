"""The warmup requests of a version, run before it serves."""

from __future__ import annotations

from pathlib import Path

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from mtlzoo.serving.servables import MOST_WARMUP_RECORDS, WARMUP_FILE
from mtlzoo.serving.server import inference
from mtlzoo.serving.server.errors import ServingError, invalid, serving_error
from mtlzoo.serving.server.servable import Servable


def warm_up(servable: Servable, path: Path) -> None:
    """Runs the warmup requests of a version, if it has any; a bad one makes TF Serving refuse the version.

    Args:
        servable: The version.
        path: Its directory.

    Raises:
        ServingError: A record is broken, of a kind that is not run, one too many, or does not fit its signature;
            DATA_LOSS: the file is no TFRecord.

    Example:
        >>> servable = Servable("ads", 1, path)
        >>> warm_up(servable, path)

    Source: our design, after the rules of TF Serving.
    """
    file = path / WARMUP_FILE
    if not file.is_file():
        return
    try:
        for number, record in enumerate(tf.data.TFRecordDataset(str(file)).as_numpy_iterator(), start=1):
            if number > MOST_WARMUP_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MOST_WARMUP_RECORDS}) at {file}")
            _replay(servable, _parsed(record, number, file))
    except tf.errors.OpError as error:
        raise serving_error(error) from error


def _parsed(record: bytes, number: int, file: Path) -> prediction_log_pb2.PredictionLog:
    try:
        return prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        raise invalid(f"Failed to parse warmup record {number} from {file}") from error


def _replay(servable: Servable, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        inference.predict(servable, log.predict_log.request)
    elif kind == "classify_log":
        inference.classify(servable, log.classify_log.request)
    elif kind == "regress_log":
        inference.regress(servable, log.regress_log.request)
    elif kind == "multi_inference_log":
        inference.multi_inference(servable, log.multi_inference_log.request)
    elif kind is not None:
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
