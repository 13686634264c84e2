"""Whether a dataset is one that a model can be asked about."""

from __future__ import annotations

import keras

from pipelines import DataError, Dataset
from pipelines.differences import feature_differences

__all__ = ["check_same_data", "feature_differences"]


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
            f"{'; '.join(differences)}. Use the dataset that it was trained on, or convert these logs as that one: "
            f"`mtlzoo data convert RAW... --like DIR --out OUT` with DIR the dataset that it was trained on"
        )
    targets = {target.name for target in dataset.schema.targets}
    lacking = [target.name for target in schema.targets if target.name not in targets]
    if lacking:
        raise DataError(f"{dataset.folder}: has no labels for the model's tasks {', '.join(lacking)}")
