"""Warmup records: requests that TF Serving replays when it loads a version, so that no user meets a cold graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from mtlzoo.serving.raw_features import RawFeatures, length_name
from pipelines import MultiCategorical, Numeric
from pipelines.vocabulary import Vocabulary

WARMUP_FILE = "tf_serving_warmup_requests"
_ROWS = 8


def write_warmup(
    features: RawFeatures,
    name: str,
    folder: Path,
    vocabularies: Mapping[str, Vocabulary],
    signature: str = "serving_default",
) -> Path:
    """Writes one Predict request of a few rows for the default signature.

    TF Serving refuses a model whose warmup record does not fit its signature, so the request is made from the
    signature's own names and dtypes, with the most frequent values of the vocabularies.

    Args:
        features: The export's raw features.
        name: Name of the servable.
        folder: `assets.extra` of the version directory.
        vocabularies: By table name.
        signature: Name of the signature.

    Returns:
        The file, a TFRecord with one `PredictionLog`.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, values in warmup_request(features, vocabularies).items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    path = folder / WARMUP_FILE
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(log.SerializeToString())
    return path


def warmup_request(features: RawFeatures, vocabularies: Mapping[str, Vocabulary]) -> dict[str, np.ndarray]:
    """A valid request of a few rows: frequent values, the mean of each number, lists of one value."""
    schema, request = features.schema, {}
    for feature in schema.features:
        if isinstance(feature, Numeric):
            request[feature.name] = np.zeros(_ROWS, np.float32)
            continue
        vocabulary = vocabularies.get(feature.table_name)
        values = _frequent(feature.dtype, vocabulary)
        if isinstance(feature, MultiCategorical):
            request[feature.name] = values[:, None]
            request[length_name(feature)] = np.ones(_ROWS, np.int64)
            if feature.weights is not None:
                request[feature.weights_name] = np.ones((_ROWS, 1), np.float32)
        else:
            request[feature.name] = values
    return request


def _frequent(dtype: str, vocabulary: Vocabulary | None) -> np.ndarray:
    empty = 0 if dtype == "int" else ""
    values = vocabulary.values[:_ROWS].to_pylist() if vocabulary is not None else []
    values = (values + [empty] * _ROWS)[:_ROWS]
    return np.array(values, np.int64 if dtype == "int" else object)
