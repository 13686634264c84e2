"""PLE: levels of experts of each task's own beside shared ones, mixed by gates."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from mtlzoo.layers import ExtractionLevel
from mtlzoo.layers.mlp import checked_count
from mtlzoo.models.base import MultiTaskModel, tower_logits
from mtlzoo.models.inputs import embed_features, model_inputs
from mtlzoo.models.search_space import OF_ALL_MODELS, TOWER_UNITS, Choice, Range, SearchSpace
from mtlzoo.tasks import LabelSpace
from pipelines.schema import Schema


@keras.saving.register_keras_serializable(package="mtlzoo")
class PLE(MultiTaskModel):
    """Progressive layered extraction.

        x_t^0 = x_s^0 = x
        x_t^l = sum over the experts i of task t and the shared ones of softmax(W_t^l x_t^(l-1))_i E_i^l
        x_s^l = sum over all experts i of softmax(W_s^l x_s^(l-1))_i E_i^l
        logit_t = w_t . MLP_t(x_t^L) + b_t

    On level l the experts of task t read x_t^(l-1), shared ones read x_s^(l-1). The last level has no x_s. One level is
    CGC, customized gate control; one level without experts of the tasks' own is MMoE.

    Args:
        schema: Fitted schema.
        num_levels: Number of levels L, at least 1.
        own_experts: Number of experts of each task's own on every level; may be 0.
        shared_experts: Number of shared experts on every level. With 0, the tasks share nothing but embeddings.
        expert_units: Widths of each expert's layers, on every level.
        tower_units: Widths of each task's tower.
        embedding_dim: Width of embeddings that the schema leaves open.
        numeric_embedding: `"piecewise_linear"` or `"periodic"`: numbers get an embedding beside themselves and that of
            their bucket (`mtlzoo.models.inputs.embedded_numbers`); `None`: they do not.
        dropout: Dropout rate behind each hidden layer.
        label_space: See `mtlzoo.tasks`.
        dtype: Dtype policy.
        name: Name of the model.

    Raises:
        ValueError: No level, no expert at all, a negative number of experts, no layer of an expert.

    Source: Tang et al., "Progressive layered extraction (PLE): A novel multi-task learning model for personalized
    recommendations" (RecSys 2020), section 4. Two levels, three experts of a task's own and two shared ones are the
    sizes of the PLE in the released code of Bi et al. (DTN, arXiv 2408.11611). Widths, dropout and label space are our
    design, and so is the loss: its default is the other models', without weights that change from epoch to epoch.

    Example:
        >>> model = PLE(dataset.schema, num_levels=1, own_experts=2)
        >>> model.compile()
        >>> history = model.fit(dataset.read("train", shuffle=True))
    """

    SEARCH_SPACE: ClassVar[SearchSpace] = {
        "num_levels": Range(1, 3),
        "own_experts": Range(1, 4),
        "shared_experts": Range(1, 4),
        "expert_units": Choice(((64,), (128,), (256, 128))),
        "tower_units": TOWER_UNITS,
        **OF_ALL_MODELS,
    }

    def __init__(
        self,
        schema: Schema,
        num_levels: int = 2,
        own_experts: int = 3,
        shared_experts: int = 2,
        expert_units: tuple[int, ...] = (128,),
        tower_units: tuple[int, ...] = (64,),
        embedding_dim: int = 16,
        numeric_embedding: str | None = None,
        dropout: float = 0.1,
        label_space: LabelSpace = "esmm_product",
        dtype: Any = None,
        name: str = "ple",
    ) -> None:
        # Layers
        last = checked_count("num_levels", num_levels)
        levels = [
            ExtractionLevel(
                len(schema.labels),
                own_experts,
                shared_experts,
                expert_units,
                shared_output=shared_experts > 0 and level < last,
                dropout=dropout,
                dtype=dtype,
                name=f"level_{level}",
            )
            for level in range(1, last + 1)
        ]

        # Graph
        inputs = model_inputs(schema)
        x = embed_features(schema, inputs, embedding_dim, numeric_embedding, dtype).flat()  # [batch, D]
        for level in levels:
            x = level(x)  # [batch, tasks + 1, H], of the last level [batch, tasks, H]
        mixed = keras.ops.unstack(x, axis=1)  # of each task [batch, H]
        task_inputs = {label.name: of_task for label, of_task in zip(schema.labels, mixed, strict=True)}
        logits = tower_logits(schema, task_inputs, tower_units, dropout, dtype)

        # Config
        config = {
            "num_levels": num_levels,
            "own_experts": own_experts,
            "shared_experts": shared_experts,
            "expert_units": tuple(expert_units),
            "tower_units": tuple(tower_units),
            "embedding_dim": embedding_dim,
            "numeric_embedding": numeric_embedding,
            "dropout": dropout,
        }
        super().__init__(schema, inputs, logits, label_space, config, dtype, name)
