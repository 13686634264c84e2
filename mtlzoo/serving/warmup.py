"""Warmup records: requests that TF Serving replays when it loads a version, so that no user meets a cold graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from mtlzoo.serving.candidates import CANDIDATES
from mtlzoo.serving.raw_features import length_name
from mtlzoo.serving.request import feature_of
from mtlzoo.serving.servables import WARMUP_FILE
from mtlzoo.serving.signatures import (
    CLASSIFY_SIGNATURE,
    DEFAULT_SIGNATURE,
    EXAMPLES_SIGNATURE,
    RANKING_SIGNATURE,
    TOP_K_SIGNATURE,
)
from pipelines import Dataset, MultiCategorical, Numeric
from pipelines.vocabulary import Vocabulary, untransform_numbers

_FEWEST_CANDIDATES = 8


def write_warmup(
    version: Path,
    name: str,
    signatures: Iterable[str],
    dataset: Dataset,
    inputs: Iterable[str] = (),
    top_k: int | None = None,
) -> Path:
    """Writes one request for each signature.

    TF Serving refuses a model whose warmup record does not fit its signature, so a record has the signature's own names
    and dtypes; and it sends them through its batching, so each is a single row, which every batching takes.

    Args:
        version: The version directory.
        name: Name of the servable.
        signatures: The export's signatures.
        dataset: Its schema and vocabularies say what a row looks like.
        inputs: Inputs of the score besides the features.
        top_k: How many candidates `ranking_top_k` gives.

    Returns:
        The file, a TFRecord of `PredictionLog`s.

    Example:
        >>> write_warmup(version, "mmoe", ["serving_default", "ranking"], dataset, inputs=["bid"])

    Source: our design.
    """
    row = warmup_row(dataset)
    scored = row | {key: np.ones(1, np.float32) for key in inputs}
    lengths = {length_name(multi) for multi in dataset.schema.multis}
    example = _example({key: values for key, values in scored.items() if key not in lengths})
    candidates = max(top_k or 0, _FEWEST_CANDIDATES)
    wide = {key: np.repeat(values[:, None], candidates, axis=1) for key, values in scored.items()}
    requests = {
        DEFAULT_SIGNATURE: row,
        EXAMPLES_SIGNATURE: {"inputs": np.array([example.SerializeToString()], object)},
        RANKING_SIGNATURE: scored,
        TOP_K_SIGNATURE: wide | {CANDIDATES: np.array([candidates], np.int64)},
    }
    path = version / WARMUP_FILE
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in signatures:
            writer.write(_record(name, signature, requests, example).SerializeToString())
    return path


def warmup_row(dataset: Dataset) -> dict[str, np.ndarray]:
    """One row of a request: the most frequent values, the mean of each number, lists of one value."""
    row = {}
    assert dataset.schema.fitted is not None
    for feature in dataset.schema.features:
        if isinstance(feature, Numeric):
            mean = dataset.schema.fitted.numeric[feature.name].mean
            row[feature.name] = untransform_numbers(feature, np.array([mean], np.float32))
            continue
        value = _most_frequent(feature.dtype, dataset.vocabularies.get(feature.table_name))
        row[feature.name] = value
        if isinstance(feature, MultiCategorical):
            row[feature.name] = value[None]
            row[length_name(feature)] = np.ones(1, np.int64)
            if feature.weights is not None:
                row[feature.weights_name] = np.ones((1, 1), np.float32)
    return row


def _record(
    name: str, signature: str, requests: Mapping[str, Mapping[str, np.ndarray]], example: tf.train.Example
) -> prediction_log_pb2.PredictionLog:
    record = prediction_log_pb2.PredictionLog()
    if signature in requests:
        request = record.predict_log.request
        for key, values in requests[signature].items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
    else:
        log = record.classify_log if signature == CLASSIFY_SIGNATURE else record.regress_log
        request = log.request
        request.input.example_list.examples.append(example)
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    return record


def _example(row: Mapping[str, np.ndarray]) -> tf.train.Example:
    features = {key: feature_of(values.reshape(-1)) for key, values in row.items()}
    return tf.train.Example(features=tf.train.Features(feature=features))


def _most_frequent(dtype: str, vocabulary: Vocabulary | None) -> np.ndarray:
    values: list[Any] = vocabulary.values[:1].to_pylist() if vocabulary is not None else []
    return np.array(values or [0 if dtype == "int" else ""], np.int64 if dtype == "int" else object)
