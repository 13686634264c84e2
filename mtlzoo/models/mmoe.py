"""MMoE: shared experts, mixed for each task by a gate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras

from mtlzoo.layers import SoftmaxGate, StackedExperts
from mtlzoo.models.base import MultiTaskModel, tower_logits
from mtlzoo.models.inputs import embed_features, model_inputs
from mtlzoo.models.interactions import Interactions
from mtlzoo.models.search_space import OF_ALL_MODELS, TOWER_UNITS, Choice, Range, SearchSpace
from mtlzoo.tasks import LabelSpace
from pipelines.schema import Schema


@keras.saving.register_keras_serializable(package="mtlzoo")
class MMoE(MultiTaskModel):
    """Multi-gate mixture of experts.

        f_t = sum_i softmax(W_t x)_i E_i(x),        logit_t = w_t . MLP_t(f_t) + b_t

    Args:
        schema: Fitted schema.
        num_experts: Number of experts E_i, each an MLP.
        expert_units: Widths of each expert's layers.
        experts: Experts that are no MLPs: names of modules of feature interaction (`"masknet"`, `"gdcn"`, `"memonet"`)
            or Keras layers of your own from `[B, D]` to `[B, expert_units[-1]]`. There are as many experts as stand
            there; `num_experts` does not count then.
        expert_settings: By name, arguments of a module's layer that differ from its defaults.
        tower_units: Widths of each task's tower.
        embedding_dim: Width of embeddings that the schema leaves open.
        numeric_embedding: `"piecewise_linear"` or `"periodic"`: numbers get an embedding beside themselves and that of
            their bucket (`mtlzoo.models.inputs.embedded_numbers`); `None`: they do not.
        dropout: Dropout rate behind each hidden layer.
        label_space: See `mtlzoo.tasks`.
        dtype: Dtype policy.
        name: Name of the model.

    Source: Ma et al., "Modeling task relationships in multi-task learning with multi-gate mixture-of-experts"
    (KDD 2018), eq. 6-8. Modules of feature interaction as experts are a control for DTN, which has the same modules.
    Widths, dropout and label space are our design.

    Example:
        >>> model = MMoE(dataset.schema, num_experts=4)
        >>> model.compile()
        >>> history = model.fit(dataset.read("train", shuffle=True))
    """

    SEARCH_SPACE: ClassVar[SearchSpace] = {
        "num_experts": Range(2, 8),
        "expert_units": Choice(((64,), (128,), (256,), (256, 128))),
        "tower_units": TOWER_UNITS,
        **OF_ALL_MODELS,
    }

    def __init__(
        self,
        schema: Schema,
        num_experts: int = 4,
        expert_units: tuple[int, ...] = (256, 128),
        experts: Sequence[Any] = (),
        expert_settings: Mapping[str, Mapping[str, Any]] | None = None,
        tower_units: tuple[int, ...] = (64,),
        embedding_dim: int = 16,
        numeric_embedding: str | None = None,
        dropout: float = 0.1,
        label_space: LabelSpace = "esmm_product",
        dtype: Any = None,
        name: str = "mmoe",
    ) -> None:
        # Layers
        modules = Interactions(experts, expert_units[-1], expert_settings, dtype) if experts else None
        mlps = StackedExperts(num_experts, expert_units, dropout=dropout, dtype=dtype, name="experts")
        gate = SoftmaxGate(len(schema.labels), dtype=dtype, name="gate")

        # Graph
        inputs = model_inputs(schema)
        embedded = embed_features(schema, inputs, embedding_dim, numeric_embedding, dtype)
        x = embedded.flat()  # [batch, D]
        found = modules.outputs(schema, inputs, embedded, x) if modules else mlps(x)  # [batch, experts, H]
        mixed = keras.ops.unstack(gate((x, found)), axis=1)  # of each task [batch, H]
        task_inputs = {label.name: of_task for label, of_task in zip(schema.labels, mixed, strict=True)}
        logits = tower_logits(schema, task_inputs, tower_units, dropout, dtype)

        # Config
        config = {
            "num_experts": num_experts,
            "expert_units": tuple(expert_units),
            "experts": modules.config if modules else [],
            "expert_settings": modules.settings if modules else {},
            "tower_units": tuple(tower_units),
            "embedding_dim": embedding_dim,
            "numeric_embedding": numeric_embedding,
            "dropout": dropout,
        }
        super().__init__(schema, inputs, logits, label_space, config, dtype, name)
