"""One model per task, nothing shared: the baseline that sharing has to beat."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from mtlzoo.layers import MLP
from mtlzoo.models.base import MultiTaskModel
from mtlzoo.models.inputs import embed_features, model_inputs
from mtlzoo.models.search_space import OF_ALL_MODELS, Choice, SearchSpace
from mtlzoo.tasks import LabelSpace
from pipelines.schema import Schema


@keras.saving.register_keras_serializable(package="mtlzoo")
class SingleTask(MultiTaskModel):
    """Separate models for all labels, trained side by side.

    Every label t has embeddings, an MLP and a head of its own:

        logit_t = w_t . MLP_t(x_t) + b_t,        x_t = [embeddings of table set t ; numeric features]

    Since no parameter is shared and the optimizer works parameter by parameter, training them side by side in the label
    space `cvr_clicked` (the default) gives each what training it alone would give.

    Args:
        schema: Fitted schema.
        units: Widths of each MLP.
        embedding_dim: Width of embeddings that the schema leaves open.
        numeric_embedding: `"piecewise_linear"` or `"periodic"`: numbers get an embedding beside themselves and that of
            their bucket (`mtlzoo.models.inputs.embedded_numbers`); `None`: they do not.
        dropout: Dropout rate behind each hidden layer.
        label_space: See `mtlzoo.tasks`.
        dtype: Dtype policy.
        name: Name of the model.

    Source: the usual baseline ("Single") of the multi-task papers, e.g. MMoE (KDD 2018) and PLE (RecSys 2020).

    Example:
        >>> model = SingleTask(dataset.schema, units=(256, 128))
        >>> model.compile()
        >>> history = model.fit(dataset.read("train", shuffle=True))
    """

    SEARCH_SPACE: ClassVar[SearchSpace] = {
        "units": Choice(((128, 64), (256, 128, 64), (512, 256, 128))),
        **OF_ALL_MODELS,
    }

    def __init__(
        self,
        schema: Schema,
        units: tuple[int, ...] = (256, 128, 64),
        embedding_dim: int = 16,
        numeric_embedding: str | None = None,
        dropout: float = 0.1,
        label_space: LabelSpace = "cvr_clicked",
        dtype: Any = None,
        name: str = "single_task",
    ) -> None:
        # Layers
        mlps = {t.name: MLP(units, dropout=dropout, dtype=dtype, name=f"{t.name}_mlp") for t in schema.labels}
        heads = {t.name: keras.layers.Dense(1, dtype=dtype, name=f"{t.name}_logit") for t in schema.labels}

        # Graph
        inputs = model_inputs(schema)
        logits = {}
        for label in mlps:
            x = embed_features(
                schema, inputs, embedding_dim, numeric_embedding, dtype, f"{label}_"
            ).flat()  # [batch, D]
            logits[label] = heads[label](mlps[label](x))  # [batch, 1]

        # Config
        config = {
            "units": tuple(units),
            "embedding_dim": embedding_dim,
            "numeric_embedding": numeric_embedding,
            "dropout": dropout,
        }
        super().__init__(schema, inputs, logits, label_space, config, dtype, name)
