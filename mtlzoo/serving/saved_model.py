"""A trained model → a version directory that TF Serving loads: raw features in, probabilities out, lookups inside."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mtlzoo.models import MultiTaskModel
from mtlzoo.serving.raw_features import RawFeatures
from mtlzoo.serving.warmup import write_warmup
from pipelines import DataError, Dataset

DEFAULT_SIGNATURE = "serving_default"
EXAMPLES_SIGNATURE = "serialized_examples"
MODEL_CARD = "model_card.json"


class _Servable(tf.Module):
    """What a SavedModel holds: the lookups, the model's variables, and one function per signature."""

    def __init__(self, model: keras.Model, features: RawFeatures) -> None:
        super().__init__()
        self.features = features
        # Keras variables wrap the resources; SavedModel tracks the resources themselves.
        self.model_variables = [variable.value for variable in model.variables]
        self._model = _Untracked(model)

    def signatures(self) -> dict[str, Any]:
        # Without autograph: there is no Python control flow over tensors here to translate.
        @tf.function(autograph=False)
        def serving_default(**request: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._predict(self.features.from_request(request))

        @tf.function(autograph=False)
        def serialized_examples(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._predict(self.features.from_examples(inputs))

        return {
            DEFAULT_SIGNATURE: serving_default.get_concrete_function(**self.features.request_spec()),
            EXAMPLES_SIGNATURE: serialized_examples.get_concrete_function(tf.TensorSpec([None], tf.string, "inputs")),
        }

    def _predict(self, packed: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        probabilities = self._model.held(packed, training=False)
        return {task: tf.cast(p[:, 0], tf.float32) for task, p in probabilities.items()}


class _Untracked:
    """Keeps a Keras model out of the SavedModel's object graph: only its variables belong there."""

    def __init__(self, held: keras.Model) -> None:
        self.held = held


def export(
    model: keras.Model,
    path: str | Path,
    dataset: Dataset,
    version: int | None = None,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """Exports a model as a SavedModel version directory.

    Signatures:

    - `serving_default`: one input per feature of the schema, by name: string, int64 or float32 `[batch]`; a
      multi-valued feature as `[batch, any]` with `<name>_length` int64 `[batch]` (and `<name>_weights` where it has
      weights).
    - `serialized_examples`: `inputs`, string `[batch]`, serialized `tf.train.Example`s with the raw features.

    What is exported is `model.for_serving()`, for a `MultiTaskModel`: NCS4CVR's masks are folded into its kernels. The
    model card names the class of the model that was trained.

    Both signatures give float32 `[batch]` by task. A value that the vocabulary does not know is out of vocabulary; the
    empty string, the smallest int64, NaN, and an Example without the feature are missing values.

    Args:
        model: A trained model whose inputs are the packed features of `dataset.schema`.
        path: Directory of the servable; the version becomes a sub-directory, written elsewhere and renamed in.
        dataset: The dataset the model was trained on, for its schema and vocabularies.
        version: Positive number; `None`: one more than the highest that is there.
        metrics: Evaluations to put into the model card.

    Returns:
        The version directory.

    Raises:
        DataError: The version exists or is not positive, or the model was trained on another schema.

    Example:
        >>> export(model, "saved_models/mmoe", dataset=dataset)
        PosixPath('saved_models/mmoe/1')
    """
    path = Path(path)
    schema = getattr(model, "schema", dataset.schema)
    if schema.fitted != dataset.schema.fitted or schema.features != dataset.schema.features:
        raise DataError(
            f"{dataset.folder}: the model was trained with another schema or other vocabularies than this dataset's"
        )
    version = _next_version(path) if version is None else version
    target = path / str(version)
    if version < 1:
        raise DataError(f"a version is a positive number, is {version}")
    if target.exists():
        raise DataError(f"{target}: this version exists; give a higher one, or none to take the next")
    # TF Serving ignores names that are no numbers, so it cannot pick up an unfinished directory.
    unfinished = path / f".writing-{version}"
    shutil.rmtree(unfinished, ignore_errors=True)
    served = model.for_serving() if isinstance(model, MultiTaskModel) else model
    servable = _Servable(served, RawFeatures(dataset.schema, dataset.vocabularies))
    tf.saved_model.save(servable, str(unfinished), signatures=servable.signatures())
    extra = unfinished / "assets.extra"
    extra.mkdir(exist_ok=True)
    write_warmup(servable.features, path.name, extra, dataset.vocabularies)
    card = _model_card(model, served, path.name, version, dataset, metrics)
    (extra / MODEL_CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
    unfinished.rename(target)
    return target


def _next_version(path: Path) -> int:
    numbers = [int(child.name) for child in path.iterdir() if child.name.isdigit()] if path.is_dir() else []
    return max(numbers, default=0) + 1


def _model_card(
    model: keras.Model,
    served: keras.Model,
    name: str,
    version: int,
    dataset: Dataset,
    metrics: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "model": type(model).__name__,
        **({"source": model.source()} if isinstance(model, MultiTaskModel) else {}),
        "parameters": int(model.count_params()),
        **({} if served is model else {"served_parameters": int(served.count_params())}),
        "tasks": [str(task) for task in getattr(model, "tasks", ())] or [t.name for t in dataset.schema.targets],
        "label_space": getattr(model, "label_space", None),
        "data": {
            "schema_digest": dataset.schema.digest(),
            "sources": list(dataset.manifest.sources),
            "rows": {split: dataset.rows(split) for split in dataset.manifest.splits},
        },
        "metrics": metrics or {},
        "versions": {package: importlib.metadata.version(package) for package in ("mtlzoo", "keras", "tensorflow")},
    }
