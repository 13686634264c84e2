"""What keeps a dataset from fitting a model, or a schema from going with what a dataset has fitted."""

from __future__ import annotations

from typing import Any

from pipelines.schema import Categorical, Schema


def feature_differences(wanted: Schema, found: Schema) -> list[str]:
    """What keeps a dataset from fitting a model, in words.

    Args:
        wanted: The fitted schema of the model.
        found: The fitted schema of the dataset.

    Returns:
        One entry per kind of difference, with the names of the features; empty where there is none. Vocabularies are
        told apart by their sizes, and by their digests where both schemas have them.

    Example:
        >>> feature_differences(model.schema, dataset.select(without=["price"]).schema)
        ['it lacks price']

    Source: our design.
    """
    features = {feature.name: feature for feature in wanted.features}
    others = {feature.name: feature for feature in found.features}
    common = [name for name in features if name in others]
    same = [name for name in common if features[name] == others[name]]
    categoricals = [feature for feature in wanted.categoricals if feature.name in same]
    kinds = {
        "it lacks": [name for name in features if name not in others],
        "it has besides": [name for name in others if name not in features],
        "declared otherwise:": [name for name in common if name not in same],
        "another vocabulary:": [f.name for f in categoricals if _other_vocabulary(wanted, found, f)],
        "other mean, deviation or buckets:": [name for name in same if _numbers(wanted, name) != _numbers(found, name)],
    }
    differences = [f"{what} {', '.join(names)}" for what, names in kinds.items() if names]
    if not differences and list(features) != list(others):
        return [f"they stand in another order: {', '.join(others)}; wanted is {', '.join(features)}"]
    return differences


def _other_vocabulary(wanted: Schema, found: Schema, feature: Categorical) -> bool:
    if wanted.table_size(feature) != found.table_size(feature):
        return True
    digests = {schema.fitted.vocabularies.get(feature.table_name) for schema in (wanted, found) if schema.fitted}
    return len(digests - {None}) > 1


def _numbers(schema: Schema, name: str) -> Any:
    return schema.fitted.numeric.get(name) if schema.fitted is not None else None
