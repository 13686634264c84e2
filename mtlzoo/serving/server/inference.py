"""What Predict, Classify, Regress and MultiInference mean for one loaded version, by TF Serving's rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import grpc
import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from mtlzoo.serving.request import serialized_examples
from mtlzoo.serving.server.errors import ServingError, invalid
from mtlzoo.serving.server.servable import Servable, Signature
from mtlzoo.serving.server.tensors import array_of, dtype_name, write_array

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
INPUTS, CLASSES, SCORES, OUTPUTS = "inputs", "classes", "scores", "outputs"


def predict(servable: Servable, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    """Answers a Predict request.

    Args:
        servable: The version that answers.
        request: Inputs exactly as the signature names them; those with a default may be left out.

    Returns:
        The outputs that `output_filter` names, or all.

    Raises:
        ServingError: FAILED_PRECONDITION: no such signature; INVALID_ARGUMENT: names, dtypes or the filter are wrong;
            else what the graph raised.
    """
    signature = predict_signature(servable, request.model_spec)
    feeds = _feeds(signature, request)
    aliases = _wanted_outputs(signature, request.output_filter)
    arrays = servable.run(feeds, tuple(signature.outputs[alias] for alias in aliases))
    response = predict_pb2.PredictResponse()
    _answered_by(servable, request.model_spec, response.model_spec)
    for alias, array in zip(aliases, arrays, strict=True):
        write_array(array, response.outputs[alias])
    return response


def predict_signature(servable: Servable, spec: model_pb2.ModelSpec) -> Signature:
    """The signature that a Predict request means.

    Raises:
        ServingError: FAILED_PRECONDITION: there is none of this name.
    """
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    return servable.signatures[name]


def classify(
    servable: Servable, request: classification_pb2.ClassificationRequest
) -> classification_pb2.ClassificationResponse:
    """Answers a Classify request: for every example its classes, each with a label, a score or both.

    Raises:
        ServingError: INVALID_ARGUMENT: no such signature, it is no classification, or there is no example.
    """
    signature = _examples_signature(servable, request.model_spec)
    fetches = _classify_outputs(signature)
    arrays, count = _run_examples(servable, signature, request.input, fetches.values())
    response = classification_pb2.ClassificationResponse()
    _answered_by(servable, request.model_spec, response.model_spec)
    _fill_classes(dict(zip(fetches, arrays, strict=True)), count, response.result)
    return response


def regress(servable: Servable, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:
    """Answers a Regress request: one number for every example.

    Raises:
        ServingError: INVALID_ARGUMENT: no such signature, it is no regression, or there is no example.
    """
    signature = _examples_signature(servable, request.model_spec)
    fetch = _regress_output(signature)
    (array,), count = _run_examples(servable, signature, request.input, [fetch])
    response = regression_pb2.RegressionResponse()
    _answered_by(servable, request.model_spec, response.model_spec)
    _fill_regressions(array, count, response.result)
    return response


def multi_inference(
    servable: Servable, request: inference_pb2.MultiInferenceRequest
) -> inference_pb2.MultiInferenceResponse:
    """Answers several Classify and Regress tasks on the same examples in one run.

    Raises:
        ServingError: UNIMPLEMENTED: a task of another kind; INVALID_ARGUMENT: tasks of several models, a signature
            twice or of another input.
    """
    wanted = _tasks(servable, request)
    feeds = {signature.inputs[INPUTS].tensor for signature, _ in wanted}
    if len(feeds) != 1:
        raise invalid("Input tensor must be the same for all Signatures.")
    fetches = list(dict.fromkeys(tensor for _, outputs in wanted for tensor in outputs.values()))
    arrays, count = _run_examples(servable, wanted[0][0], request.input, fetches)
    by_tensor = dict(zip(fetches, arrays, strict=True))
    response = inference_pb2.MultiInferenceResponse()
    for task, (_, outputs) in zip(request.tasks, wanted, strict=True):
        result = response.results.add()
        _answered_by(servable, task.model_spec, result.model_spec)
        named = {alias: by_tensor[tensor] for alias, tensor in outputs.items()}
        if task.method_name == CLASSIFY:
            _fill_classes(named, count, result.classification_result)
        else:
            _fill_regressions(named[OUTPUTS], count, result.regression_result)
    return response


def _tasks(servable: Servable, request: inference_pb2.MultiInferenceRequest) -> list[tuple[Signature, dict[str, str]]]:
    """Signature and outputs of every task."""
    wanted: dict[str, tuple[Signature, dict[str, str]]] = {}
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in wanted:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        signature = servable.signatures[name]
        if task.method_name == CLASSIFY:
            wanted[name] = signature, _classify_outputs(signature)
        elif task.method_name == REGRESS:
            wanted[name] = signature, {OUTPUTS: _regress_output(signature)}
        else:
            message = f"Unsupported signature method_name: {task.method_name}"
            raise ServingError(grpc.StatusCode.UNIMPLEMENTED, message)
    return list(wanted.values())


def _feeds(signature: Signature, request: predict_pb2.PredictRequest) -> dict[str, np.ndarray]:
    """Arrays by tensor name."""
    sent, known = set(request.inputs), set(signature.inputs)
    if len(sent) > len(known) or (len(sent) < len(known) and not signature.defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} len({_braces(sent)}) != "
            f"len({_braces(known)}). Sent extra: {_braces(sent - known)}. Missing but required: "
            f"{_braces(known - sent)}."
        )
    feeds = {}
    for position, (alias, tensor) in enumerate(signature.inputs.items()):
        if alias not in sent:
            if alias not in signature.defaults:
                raise invalid(
                    f"Signature input alias: {alias}(feed name: {tensor.tensor}) not found in request and no default "
                    f"value provided. Inputs expected to be in the request {_braces(known)}, or default input alias "
                    f"set: {_braces(signature.defaults)}; sent: {_braces(sent)}"
                )
            feeds[tensor.tensor] = signature.defaults[alias]
            continue
        proto = request.inputs[alias]
        array = array_of(proto, alias)
        if proto.dtype != tensor.dtype:
            raise invalid(
                f"Expects arg[{position}] to be {dtype_name(tensor.dtype)} but {dtype_name(proto.dtype)} is provided "
                f"(input {alias})"
            )
        feeds[tensor.tensor] = array
    if sent - known:
        raise invalid(f"Inputs contains invalid name: {_braces(sent - known)}; the signature has {_braces(known)}")
    return feeds


def _wanted_outputs(signature: Signature, output_filter: Sequence[str]) -> list[str]:
    seen: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            known = _braces(signature.outputs)
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set {known}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.append(alias)
    return seen or list(signature.outputs)


def _examples_signature(servable: Servable, spec: model_pb2.ModelSpec) -> Signature:
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return servable.signatures[name]


def _classify_outputs(signature: Signature) -> dict[str, str]:
    """Tensors of `classes` and `scores`, those of them that there are."""
    _check_counts(signature, (1, 2), f"Expected one or two output Tensors, found {len(signature.outputs)}")
    _check_input_name(signature, "classification")
    outputs = {alias: signature.outputs[alias] for alias in (CLASSES, SCORES) if alias in signature.outputs}
    if not outputs:
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f'Expected classification signature outputs to contain at least one of "{CLASSES}" or "{SCORES}"; '
            f"they are {_braces(signature.outputs)}",
        )
    return outputs


def _regress_output(signature: Signature) -> str:
    _check_counts(signature, (1,), "Expected one output Tensor.")
    _check_input_name(signature, "regression")
    if OUTPUTS not in signature.outputs:
        message = f"No regression outputs found in SignatureDef: its output is {_braces(signature.outputs)}"
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, message)
    return signature.outputs[OUTPUTS]


def _check_counts(signature: Signature, outputs: tuple[int, ...], message: str) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in outputs:
        raise invalid(message)


def _check_input_name(signature: Signature, kind: str) -> None:
    if INPUTS not in signature.inputs:
        message = f"No {kind} inputs found in SignatureDef: its input is {_braces(signature.inputs)}, not {INPUTS}"
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, message)


def _run_examples(
    servable: Servable, signature: Signature, examples: input_pb2.Input, fetches: Iterable[str]
) -> tuple[list[np.ndarray], int]:
    """Runs a signature on serialized examples, string `[batch]`; the context of a list goes in front of each."""
    serialized = serialized_examples(examples)
    if not len(serialized):
        raise invalid("Input is empty.")
    tensor = signature.inputs[INPUTS]
    if tensor.dtype != types_pb2.DT_STRING:
        raise invalid(f"Expects arg[0] to be {dtype_name(tensor.dtype)} but string is provided (input {INPUTS})")
    return servable.run({tensor.tensor: serialized}, tuple(fetches)), len(serialized)


def _fill_classes(arrays: dict[str, np.ndarray], count: int, result: classification_pb2.ClassificationResult) -> None:
    for alias, wanted in ((CLASSES, object), (SCORES, np.float32)):
        if alias not in arrays:
            continue
        array = arrays[alias]
        if array.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {list(array.shape)}")
        if array.dtype != wanted:
            kind = "DT_STRING" if alias == CLASSES else "DT_FLOAT"
            raise invalid(f"Expected {alias} Tensor of {kind}. Got: {array.dtype}")
        if len(array) != count:
            raise invalid(f"Expected {alias} output batch size of {count}. Got: {len(array)}")
    widths = {array.shape[1] for array in arrays.values()}
    if len(widths) != 1:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {arrays[CLASSES].shape[1]} vs. "
            f"{arrays[SCORES].shape[1]}"
        )
    lists = {alias: array.tolist() for alias, array in arrays.items()}
    for row in range(count):
        classes = result.classifications.add().classes
        for column in range(*widths):
            one = classes.add()
            if CLASSES in lists:
                one.label = lists[CLASSES][row][column].decode()
            if SCORES in lists:
                one.score = lists[SCORES][row][column]


def _fill_regressions(array: np.ndarray, count: int, result: regression_pb2.RegressionResult) -> None:
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {list(array.shape)}"
        )
    if len(array) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(array)}")
    if array.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {array.dtype}")
    for value in array.ravel().tolist():
        result.regressions.add().value = value


def _answered_by(servable: Servable, asked: model_pb2.ModelSpec, answer: model_pb2.ModelSpec) -> None:
    answer.name = servable.name
    answer.signature_name = asked.signature_name or DEFAULT_SIGNATURE
    answer.version.value = servable.version


def _braces(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
