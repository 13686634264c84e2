"""Shared-Bottom: one trunk for all tasks, one tower per task."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from mtlzoo.layers import MLP
from mtlzoo.models.base import MultiTaskModel, tower_logits
from mtlzoo.models.inputs import embed_features, model_inputs
from mtlzoo.models.search_space import OF_ALL_MODELS, TOWER_UNITS, Choice, SearchSpace
from mtlzoo.tasks import LabelSpace
from pipelines.schema import Schema


@keras.saving.register_keras_serializable(package="mtlzoo")
class SharedBottom(MultiTaskModel):
    """Hard parameter sharing.

        h = MLP_s(x),        logit_t = w_t . MLP_t(h) + b_t

    Args:
        schema: Fitted schema.
        bottom_units: Widths of the shared MLP.
        tower_units: Widths of each task's tower.
        embedding_dim: Width of embeddings that the schema leaves open.
        numeric_embedding: `"piecewise_linear"` or `"periodic"`: numbers get an embedding beside themselves and that of
            their bucket (`mtlzoo.models.inputs.embedded_numbers`); `None`: they do not.
        dropout: Dropout rate behind each hidden layer.
        label_space: See `mtlzoo.tasks`.
        dtype: Dtype policy.
        name: Name of the model.

    Source: Caruana, "Multitask learning" (1997); widths as in the MTReclib benchmark's class (512-256, towers 128-64).

    Example:
        >>> model = SharedBottom(dataset.schema, bottom_units=(256, 128), tower_units=(64,))
        >>> model.compile()
        >>> history = model.fit(dataset.read("train", shuffle=True))
    """

    SEARCH_SPACE: ClassVar[SearchSpace] = {
        "bottom_units": Choice(((128,), (256, 128), (512, 256), (512, 256, 128))),
        "tower_units": TOWER_UNITS,
        **OF_ALL_MODELS,
    }

    def __init__(
        self,
        schema: Schema,
        bottom_units: tuple[int, ...] = (512, 256),
        tower_units: tuple[int, ...] = (128, 64),
        embedding_dim: int = 16,
        numeric_embedding: str | None = None,
        dropout: float = 0.1,
        label_space: LabelSpace = "esmm_product",
        dtype: Any = None,
        name: str = "shared_bottom",
    ) -> None:
        # Layers
        bottom = MLP(bottom_units, dropout=dropout, dtype=dtype, name="bottom")

        # Graph
        inputs = model_inputs(schema)
        x = embed_features(schema, inputs, embedding_dim, numeric_embedding, dtype).flat()  # [batch, D]
        shared = bottom(x)  # [batch, H]
        task_inputs = {label.name: shared for label in schema.labels}
        logits = tower_logits(schema, task_inputs, tower_units, dropout, dtype)

        # Config
        config = {
            "bottom_units": tuple(bottom_units),
            "tower_units": tuple(tower_units),
            "embedding_dim": embedding_dim,
            "numeric_embedding": numeric_embedding,
            "dropout": dropout,
        }
        super().__init__(schema, inputs, logits, label_space, config, dtype, name)
