"""Which field of the schema each input of the first masked layer belongs to, and which tasks use it."""

from __future__ import annotations

import numpy as np

from mtlzoo.callbacks.mask_density import masked_layers, task_names
from mtlzoo.inspection.sharing import Sharing, open_connections, sharing_of
from mtlzoo.models import MultiTaskModel
from mtlzoo.models.inputs import fields_by_width

_MISSING, _VALUE = ":missing", ":value"


def input_columns(model: MultiTaskModel) -> list[str]:
    """Names of the inputs of a model's first masked layer.

    Args:
        model: A model of the zoo with `MaskedDense` layers on its flattened fields.

    Returns:
        In order, where the model has them: `f * g` for the dot product of two fields' embeddings, `f[k]` for entry k of
        a field's embedding (`f:value[k]` of that of a number, beside its bucket's), and the numeric columns as the
        schema names them.

    Raises:
        ValueError: The model's inputs cannot be named: it has no schema, no masks, or another layout.

    Example:
        >>> input_columns(mtlzoo.models.NCS4CVR(dataset.schema))[:2]
        ['item[0]', 'item[1]']

    Source: our design.
    """
    return [column for column, _ in _columns_and_fields(model)]


def input_fields(model: MultiTaskModel) -> list[str]:
    """The field of each input of a model's first masked layer, as `input_columns` orders them.

    The dot products `f * g` of a field f with all fields together count as the field `f * all`. The indicator of
    missing values and the embedding of a number count to their feature.

    Raises:
        ValueError: As `input_columns`.
    """
    return [field for _, field in _columns_and_fields(model)]


def field_sharing(model: MultiTaskModel) -> list[Sharing]:
    """How the tasks share the first layer's connections from each field.

    Args:
        model: A model of the zoo with `MaskedDense` layers on its flattened fields.

    Returns:
        One entry per field, in order of its first input.

    Raises:
        ValueError: As `input_columns`.

    Example:
        >>> field_sharing(mtlzoo.models.NCS4CVR(dataset.schema))[0].density
        {'click': 1.0, 'conversion': 1.0}

    Source: our design.
    """
    fields = np.array(input_fields(model))
    masks = open_connections(masked_layers(model)[0])
    tasks = task_names(model)
    return [sharing_of(masks[:, fields == field], field, tasks) for field in dict.fromkeys(fields.tolist())]


def _columns_and_fields(model: MultiTaskModel) -> list[tuple[str, str]]:
    layers = masked_layers(model)
    if not layers or not isinstance(model, MultiTaskModel):
        raise ValueError(f"{model.name}: its inputs have no names: it is no model of the zoo with masked layers")
    arguments = model.get_config()
    groups = fields_by_width(model.schema, arguments.get("embedding_dim"), arguments.get("numeric_embedding"))
    columns = []
    if arguments.get("pairwise_dots"):
        for names in groups.values():
            columns += [(f"{f} * {g}", f"{f} * all") for f in names for g in names]
    for width, names in groups.items():
        columns += [(f"{name}[{k}]", name.removesuffix(_VALUE)) for name in names for k in range(width)]
    columns += [(column, column.removesuffix(_MISSING)) for column in model.schema.packed_numeric]
    if len(columns) != layers[0].kernel.shape[0]:
        raise ValueError(
            f"{model.name}: the inputs of {layers[0].name} cannot be named: the schema makes {len(columns)} columns, "
            f"the layer has {layers[0].kernel.shape[0]}"
        )
    return columns
