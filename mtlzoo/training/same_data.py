"""Whether a dataset is one that a model can be asked about."""

from __future__ import annotations

from typing import Any

import keras

from pipelines import Categorical, DataError, Dataset, Schema


def check_same_data(model: keras.Model, dataset: Dataset) -> None:
    """Refuses a dataset that does not fit a model, and names what differs. A model without a schema is taken to fit.

    Args:
        model: The model.
        dataset: The dataset.

    Raises:
        DataError: It was converted with other features or vocabularies, or does not have the model's tasks.
    """
    schema = getattr(model, "schema", None)
    if schema is None:
        return
    differences = feature_differences(schema, dataset.schema)
    if differences:
        raise DataError(
            f"{dataset.folder}: was converted with other features or vocabularies than the model was trained with: "
            f"{'; '.join(differences)}. Use the dataset that it was trained on"
        )
    targets = {target.name for target in dataset.schema.targets}
    lacking = [target.name for target in schema.targets if target.name not in targets]
    if lacking:
        raise DataError(f"{dataset.folder}: has no labels for the model's tasks {', '.join(lacking)}")


def feature_differences(wanted: Schema, found: Schema) -> list[str]:
    """What keeps a dataset from fitting a model, in words.

    Args:
        wanted: The fitted schema of the model.
        found: The fitted schema of the dataset.

    Returns:
        One entry per kind of difference, with the names of the features; empty where there is none.

    Example:
        >>> feature_differences(model.schema, dataset.select(without=["price"]).schema)
        ['it lacks price']

    Source: our design.
    """
    features = {feature.name: feature for feature in wanted.features}
    others = {feature.name: feature for feature in found.features}
    common = [name for name in features if name in others]
    same = [name for name in common if features[name] == others[name]]
    kinds = {
        "it lacks": [name for name in features if name not in others],
        "it has besides": [name for name in others if name not in features],
        "declared otherwise:": [name for name in common if name not in same],
        "another vocabulary:": [name for name in same if _table_rows(wanted, name) != _table_rows(found, name)],
        "other mean, deviation or buckets:": [name for name in same if _numbers(wanted, name) != _numbers(found, name)],
    }
    differences = [f"{what} {', '.join(names)}" for what, names in kinds.items() if names]
    if not differences and list(features) != list(others):
        return [f"they stand in another order: {', '.join(others)}; the model has {', '.join(features)}"]
    return differences


def _table_rows(schema: Schema, name: str) -> int | None:
    feature = next(feature for feature in schema.features if feature.name == name)
    return schema.table_size(feature) if isinstance(feature, Categorical) else None


def _numbers(schema: Schema, name: str) -> Any:
    return schema.fitted.numeric.get(name) if schema.fitted is not None else None
