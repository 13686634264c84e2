"""A trained model → a version directory that TF Serving loads: raw features in, probabilities out, lookups inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from mtlzoo.models import MultiTaskModel
from mtlzoo.serving.calibration import KINDS, Calibration, fit_calibration, measured_change, refuse_past
from mtlzoo.serving.formula import Formula, default_formula
from mtlzoo.serving.model_card import EXTRA, MODEL_CARD, Alterations, Exported, model_card
from mtlzoo.serving.quantization import QUANTIZATIONS, quantized
from mtlzoo.serving.raw_features import RawFeatures
from mtlzoo.serving.signature_defs import complete_signatures
from mtlzoo.serving.signatures import (
    METHOD_NAMES,
    REQUEST_SIGNATURES,
    TOP_K_SIGNATURE,
    Servable,
    check_names,
    chosen_signatures,
)
from mtlzoo.serving.version_directories import new_version, prune, write_version
from mtlzoo.serving.warmup import write_warmup
from mtlzoo.training.same_data import check_same_data
from pipelines import Dataset

Progress = Callable[[str, int, int | None], None]


def export(
    model: keras.Model,
    path: str | Path,
    dataset: Dataset,
    version: int | None = None,
    metrics: dict[str, Any] | None = None,
    *,
    signatures: Iterable[str] | None = None,
    score: str | None = None,
    top_k: int | None = None,
    quantize: Literal["float16", "int8"] | None = None,
    calibrate: Literal["temperature", "isotonic"] | None = None,
    keep: int | None = None,
    max_auc_drop: float = 0.001,
    max_calibration_change: float = 0.02,
    progress: Progress | None = None,
) -> Path:
    """Exports a model as a SavedModel version directory.

    Signatures; every output has the batch as dimension 0 and is float32, but for `classes` and `index`:

    - `serving_default`: one input per feature of the schema, by name: string, int64 or float32 `[batch]`; a
      multi-valued feature as `[batch, any]` with `<name>_length` int64 `[batch]` (and `<name>_weights` where it has
      weights). Gives `[batch]` by task.
    - `serialized_examples`: `inputs`, string `[batch]`, serialized `tf.train.Example`s with the raw features. Gives
      `[batch]` by task.
    - `classify`, for TF Serving's Classify: `inputs` as above. `classes`, string `[batch, tasks]`, the names of the
      tasks, and `scores` `[batch, tasks]`.
    - `regress`, for its Regress: `inputs` as above, with the score's own inputs as further floats. `outputs` `[batch]`,
      the score.
    - `ranking`: as `serving_default`, and the score's own inputs, float32 `[batch]`. Gives the tasks and `score`.
    - `ranking_top_k`, with `top_k`: every input of `ranking` with a dimension for the candidates behind the batch:
      `[batch, candidates]`, or `[batch, 1]` for what all candidates share; lists `[batch, candidates or 1, any]`, their
      lengths `[batch, candidates or 1]`; and `candidates` int64 `[batch]`: how many count, the rest is padding. All
      clients should give an input in the same one of the two forms: requests of both may not fit into one batch. Gives
      `[batch, top_k]` in falling order of the score: `index` int64 (-1 beyond the candidates), `score` and the tasks (0
      beyond). Equal scores stay in order, NaN comes last.

    A value that the vocabulary does not know is out of vocabulary; the empty string, the smallest int64, NaN, and an
    Example without the feature are missing values. No row's answer depends on the others, nor on what pads a list.

    Optional inputs: a single value for which the schema says what a missing one becomes may be left out of a gRPC
    request, and is missing in all its rows then. TF Serving feeds a default of one row, and its batching wants equal
    numbers of rows in all inputs: where batching is on, only requests of a single row may leave inputs out. Its REST
    API wants all inputs, and TensorFlow's own loaders know no defaults: give all inputs to
    `tf.saved_model.load(...).signatures`.

    What is exported is `model.for_serving()`, for a `MultiTaskModel`: NCS4CVR's masks are folded into its kernels. Then
    its tables are quantized and its probabilities calibrated, where that is asked for. The change of AUC, log loss and
    calibration is measured on the test split (on the validation split where the test split is empty) and stands in the
    model card, which names the class of the model that was trained.

    Args:
        model: A trained model whose inputs are the packed features of `dataset.schema`.
        path: Directory of the servable; the version becomes a sub-directory, written elsewhere and renamed in.
        dataset: The dataset the model was trained on, for its schema and vocabularies.
        version: Positive number; `None`: one more than the highest that is there.
        metrics: Evaluations to put into the model card.
        signatures: Names of the signatures; `None`: all. `serving_default` is always among them.
        score: What ranks, such as `"ctcvr * bid"`; see `mtlzoo.serving.formula.Formula`. `None`: the joint probability
            of the deepest funnel, or the first task where there is no funnel.
        top_k: How many candidates `ranking_top_k` gives; `None`: there is no such signature.
        quantize: `"float16"` or `"int8"`: embedding tables in fewer bits; see `mtlzoo.serving.quantization`.
        calibrate: `"temperature"` or `"isotonic"`, fitted on the validation split; see `mtlzoo.serving.calibration`.
        keep: How many of the newest versions stay; the others are removed, but never the one just written. `None`: all.
        max_auc_drop: How much AUC quantization may cost a task.
        max_calibration_change: How much quantization may move a task's calibration ratio.
        progress: Called with the phase (`"quantize"`, `"calibrate"`, `"measure"`, `"write"`), rows done and rows in all
            (`None` where no rows are counted).

    Returns:
        The version directory.

    Raises:
        DataError: The version exists or is not positive, the model was trained on another schema, quantization is past
            a limit, or there is nothing to calibrate on. Nothing is written then.
        ValueError: An argument that does not exist or does not fit the others, or a faulty formula.

    Example:
        >>> export(model, "saved_models/mmoe", dataset=dataset, score="ctcvr * bid", top_k=10)
        PosixPath('saved_models/mmoe/1')
    """
    path = Path(path)
    check_same_data(model, dataset)
    _check_arguments(quantize, calibrate, keep)
    chosen = chosen_signatures(signatures, score, top_k)
    check_names(dataset.schema, chosen)
    formula = Formula(score if score is not None else default_formula(dataset.schema), dataset.schema)
    target = new_version(path, version)
    served = model.for_serving() if isinstance(model, MultiTaskModel) else model
    served, quantization = _quantized(served, dataset, quantize, (max_auc_drop, max_calibration_change), progress)
    calibration, described = _calibrated(served, dataset, calibrate, progress)
    if progress is not None:
        progress("write", 0, None)
    features = RawFeatures(dataset.schema, dataset.vocabularies)
    servable = Servable(served, features, formula, calibration.apply if calibration else None, top_k)
    functions = servable.functions(chosen)
    defaults = _defaults(features, chosen)
    alterations = Alterations(quantization, described)
    exported = Exported(model, served, dataset, formula, functions, defaults, top_k, metrics, alterations)
    write_version(target, lambda folder: _write(folder, servable, exported, path.resolve().name, int(target.name)))
    if keep is not None:
        prune(path, keep, target)
    return target


def _check_arguments(quantize: str | None, calibrate: str | None, keep: int | None) -> None:
    for name, kind, kinds in (("quantize", quantize, QUANTIZATIONS), ("calibrate", calibrate, KINDS)):
        if kind is not None and kind not in kinds:
            raise ValueError(f"{name} must be one of {', '.join(kinds)}, is {kind!r}")
    if keep is not None and keep < 1:
        raise ValueError(f"keep must be at least 1, is {keep}: the version that is written stays")


def _quantized(
    model: keras.Model,
    dataset: Dataset,
    kind: Literal["float16", "int8"] | None,
    limits: tuple[float, float],
    progress: Progress | None,
) -> tuple[keras.Model, dict[str, Any] | None]:
    """The model to serve, and what the card says of its tables.

    Raises:
        DataError: The change is past the limits.
    """
    if kind is None:
        return model, None
    small = quantized(model, kind)
    change = measured_change(
        model.predict_on_batch, small.predict_on_batch, dataset, _measured_split(dataset), _phase(progress, "quantize")
    )
    refuse_past(change, *limits)
    return small, {"kind": kind, "change": change}


def _calibrated(
    model: keras.Model,
    dataset: Dataset,
    kind: Literal["temperature", "isotonic"] | None,
    progress: Progress | None,
) -> tuple[Calibration | None, dict[str, Any] | None]:
    """The calibration, and what the card says of it."""
    if kind is None:
        return None, None
    calibration = fit_calibration(model, dataset, kind, progress=_phase(progress, "calibrate"))

    def calibrated(packed: Any) -> dict[str, Any]:
        return calibration.apply({task: tf.constant(p) for task, p in model.predict_on_batch(packed).items()})

    change = measured_change(
        model.predict_on_batch, calibrated, dataset, _measured_split(dataset), _phase(progress, "measure")
    )
    return calibration, {**calibration.describe(), "change": change}


def _measured_split(dataset: Dataset) -> str:
    return "test" if dataset.manifest.splits.get("test") and dataset.rows("test") else "valid"


def _phase(progress: Progress | None, phase: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(phase, done, total)


def _defaults(features: RawFeatures, signatures: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """By signature and input; with a dimension for candidates where there is one."""
    single = features.defaults()
    wide = {name: value[None] for name, value in single.items()}
    return {
        name: wide if name == TOP_K_SIGNATURE else single
        for name in signatures
        if single and name in REQUEST_SIGNATURES
    }


def _write(folder: Path, servable: Servable, exported: Exported, name: str, version: int) -> None:
    """Fills a directory with the SavedModel, its warmup records and its card."""
    tf.saved_model.save(servable, str(folder), signatures=dict(exported.functions))
    methods = {signature: method for signature, method in METHOD_NAMES.items() if signature in exported.functions}
    complete_signatures(folder, methods, exported.defaults)
    extra = folder / EXTRA
    extra.mkdir()
    write_warmup(folder, name, exported.functions, exported.dataset, exported.formula.inputs, exported.top_k)
    card = model_card(exported, name, version)
    (extra / MODEL_CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
