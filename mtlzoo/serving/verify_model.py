"""A version as TF Serving runs it: a session, tensors fed by name; and the replay of its warmup records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from mtlzoo.serving.request import serialized_examples
from mtlzoo.serving.servables import MOST_WARMUP_RECORDS, WARMUP_FILE
from mtlzoo.serving.verify_files import Check, signatures_of

Arrays = dict[str, np.ndarray]


class LoadedModel:
    """A version, loaded with the tag `serve`.

    Args:
        version: The version directory.

    Attributes:
        signatures: `SignatureDef`s by name.

    Raises:
        tensorflow.errors.OpError: It cannot be loaded.
        ValueError: It is no SavedModel, or without a graph for serving.

    Source:
        Our design.

    Example:
        >>> model = LoadedModel(Path("saved_models/mmoe/1"))
        >>> model.run("serialized_examples", {"inputs": np.array([b""], object)})["click"].shape
        (1,)
    """

    def __init__(self, version: Path) -> None:
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self._session, [tf.saved_model.SERVING], str(version))
        self.signatures = signatures_of(loaded)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Answers of a signature.

        Args:
            signature: Its name.
            inputs: By name; what is left out must have a default.

        Returns:
            All outputs by name.

        Raises:
            ValueError: Another input than the signature has, a missing one, or a dtype or shape that does not fit.
            tensorflow.errors.OpError: The graph fails.
        """
        definition = self.signatures[signature]
        given = self.defaults(signature) | dict(inputs)
        if set(given) != set(definition.inputs):
            raise ValueError(f"inputs are {', '.join(sorted(given))}, must be {', '.join(sorted(definition.inputs))}")
        feed = {}
        for key, values in given.items():
            wanted = tf.as_dtype(definition.inputs[key].dtype)
            is_text = values.dtype.kind in "OSU"
            if is_text != (wanted == tf.string) or (not is_text and tf.as_dtype(values.dtype) != wanted):
                raise ValueError(f"input {key!r} must be {wanted.name}, is {values.dtype}")
            feed[definition.inputs[key].name] = values
        return self._session.run({key: info.name for key, info in definition.outputs.items()}, feed)

    def defaults(self, signature: str) -> Arrays:
        """What a server feeds for the inputs that a request may leave out, by name."""
        return {key: tf.make_ndarray(proto) for key, proto in self.signatures[signature].defaults.items()}

    def close(self) -> None:
        """Frees the session."""
        self._session.close()


def warmup_check(model: LoadedModel, version: Path) -> tuple[Check, dict[str, Arrays]]:
    """Replays the warmup records as TF Serving does when it loads a version.

    Args:
        model: The version, loaded.
        version: Its directory.

    Returns:
        The check, and the inputs of the first good record of each signature.

    Source:
        TF Serving, `saved_model_warmup_util.cc`.
    """
    path = version / WARMUP_FILE
    if not path.is_file():
        return Check("warmup", True, "no records: the first requests will be slow"), {}
    faults: list[str] = []
    requests: dict[str, Arrays] = {}
    count = 0
    try:
        for count, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), start=1):
            faults += _replayed(model, record, f"record {count}", requests)
    except tf.errors.DataLossError:
        faults.append(f"behind record {count} the file is damaged or no TFRecord")
    if count > MOST_WARMUP_RECORDS:
        faults.insert(0, f"{count} records, TF Serving takes at most {MOST_WARMUP_RECORDS}")
    cold = [name for name in model.signatures if name not in requests]
    rest = f"; none for {', '.join(cold)}" if cold else ""
    shown = faults[:3] + ([f"and {len(faults) - 3} more"] if len(faults) > 3 else [])
    return Check("warmup", not faults, "; ".join(shown) or f"{count} records answered{rest}"), requests


def _replayed(model: LoadedModel, record: bytes, where: str, requests: dict[str, Arrays]) -> list[str]:
    """Faults of one record; its inputs go into `requests`."""
    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        return [f"{where} is no PredictionLog"]
    kind = log.WhichOneof("log_type")
    if kind in ("session_run_log", "predict_streamed_log"):
        return [f"{where} is a {kind}, which TF Serving does not replay"]
    faults = []
    for signature, inputs in _calls(log, kind):
        if signature not in model.signatures:
            faults.append(f"{where}: there is no signature {signature!r}")
            continue
        try:
            answers = model.run(signature, inputs)
        except (ValueError, tf.errors.OpError) as error:
            faults.append(f"{where}, {signature}: {first_line(error)}")
            continue
        infinite = [name for name, values in answers.items() if not all_finite(values)]
        faults += [f"{where}, {signature}: {name} is not finite" for name in infinite]
        if not infinite:
            requests.setdefault(signature, inputs)
    return faults


def _calls(log: Any, kind: str | None) -> Iterator[tuple[str, Arrays]]:
    """Signatures and inputs of a record; none where it is empty."""
    if kind == "predict_log":
        request = log.predict_log.request
        inputs = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
        yield request.model_spec.signature_name or "serving_default", inputs
    elif kind in ("classify_log", "regress_log"):
        request = getattr(log, kind).request
        yield request.model_spec.signature_name or "serving_default", {"inputs": serialized_examples(request.input)}
    elif kind == "multi_inference_log":
        request = log.multi_inference_log.request
        for task in request.tasks:
            yield task.model_spec.signature_name or "serving_default", {"inputs": serialized_examples(request.input)}


def all_finite(values: np.ndarray) -> bool:
    """Whether no float is NaN or infinite; what is no float is finite."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def first_line(error: Exception) -> str:
    """The line of an error that says what is wrong; TensorFlow's have many."""
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip() not in ("", "Graph execution error:")]
    return lines[0] if lines else type(error).__name__
