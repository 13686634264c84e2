"""NCS4CVR: a shared trunk of which every task uses the connections that its mask leaves open."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import keras

from mtlzoo.layers import Dropout, MaskedDense, PairwiseDots
from mtlzoo.losses import Focal, SquaredError
from mtlzoo.models.base import MultiTaskModel, tower_logits
from mtlzoo.models.folded_trunk import with_folded_masks
from mtlzoo.models.inputs import embed_features, model_inputs
from mtlzoo.models.search_space import OF_ALL_MODELS, Choice, Range, SearchSpace
from mtlzoo.tasks import LabelSpace
from pipelines.schema import Schema

_MASKS = ("learned", "lottery")
_LOSSES = ("cross_entropy", "paper")


@keras.saving.register_keras_serializable(package="mtlzoo")
class NCS4CVR(MultiTaskModel):
    """Neuron-connection sharing.

        h_0^t = x,   h_(l+1)^t = relu(h_l^t (W_l * M_l^t) + b_l),   logit_t = w_t . MLP_t(h_L^t) + b_t

    All tasks share kernels W and biases b of the trunk; the mask M^t of task t says which connections it uses. A
    connection is used by one task, by several or by none. Biases, heads and embeddings are not masked.

    - `mask="learned"`: masks and weights are learned together in one `fit` (`mtlzoo.layers.MaskedDense`). The paper's
      masks are not learned so; this is our design.
    - `mask="lottery"`, the paper's: masks are fixed. They are all open, which makes the model a `SharedBottom`, until
      `mtlzoo.training.find_tickets` gives each task its ticket, as `mtlzoo train ncs4cvr --set mask=lottery` does.

    Where the released code goes astray, and what is done here:

    1. It trains tickets from another initialization than they were found with: `find_tickets` rewinds to one theta_0
       for every training, and leaves the model there.
    2. It draws theta_0 anew for each task, unseeded: there is one, the model's own weights.
    3. Adam's momentum moves weights whose gradient is masked: a step that trains all tasks at once moves a closed
       connection only if another task uses it, and `LazyAdam(skip_zeros=True)`, which alternating training takes, moves
       nothing whose gradient is 0.
    4. Each task sees half of an epoch: `pipelines.alternate_tasks` gives every batch to every task.
    5. Training, validation and test are one file: tickets are chosen on the validation split, the test split is unseen.
    6. The served graph has other heads than the trained one, and a ReLU behind conversion's: the export is made of
       the trained layers, and tested to give the same probabilities.

    Args:
        schema: Fitted schema.
        trunk_units: Widths of the masked layers.
        tower_units: Widths of an unmasked tower of each task behind the trunk; none by default, as in the paper.
        pairwise_dots: Put the dot products of all pairs of fields of one width before the features.
        mask: `"learned"` or `"lottery"`.
        estimator: `"straight_through"` or `"hard_concrete"`; for learned masks. See `MaskedDense`.
        l0: Price of an open connection, per task; for learned masks.
        initial_density: Probability that a connection is open at the start, below 1 and above 0.5 (straight-through)
            or 0 (hard-concrete); for learned masks.
        gate_scale: How much faster gates move than kernels; for learned masks.
        losses: What `compile()` chooses. `"cross_entropy"`; or `"paper"`: focal loss (alpha 0.75, gamma 2) for labels
            without a parent, and for the others squared error on their population, weighing 1.5. The paper regresses
            the share of a video that was played where it is above 0: the same, where click means that it is above 0.
        kernel_initializer: Initializer of the trunk's kernels.
        embedding_dim: Width of embeddings that the schema leaves open.
        numeric_embedding: `"piecewise_linear"` or `"periodic"`: numbers get an embedding beside themselves and that of
            their bucket (`mtlzoo.models.inputs.embedded_numbers`); `None`: they do not.
        dropout: Dropout rate behind each hidden layer.
        label_space: See `mtlzoo.tasks`.
        dtype: Dtype policy.
        name: Name of the model.

    Raises:
        ValueError: No trunk, an unknown `mask` or `losses`, or what `MaskedDense` refuses.

    Weight decay pulls gates towards half open; take them out by `optimizer.exclude_from_weight_decay(var_names=
    ["gates"])` before `compile`.

    Source: Xiao et al., "NCS4CVR: Neuron-Connection Sharing for Multi-Task Learning in Video Conversion Rate
    Prediction" (arXiv 2008.09872) and its released code (`lt4rec`): trunk, heads, pairwise dots, tickets. The preset
    `paper` (`mtlzoo.training.presets`) has its settings. Cross-entropy, label spaces, dropout and learned masks are our
    design.

    Example:
        >>> model = NCS4CVR(dataset.schema, trunk_units=(256, 128))
        >>> model.compile()
        >>> history = model.fit(dataset.read("train", shuffle=True))
    """

    SEARCH_SPACE: ClassVar[SearchSpace] = {
        "trunk_units": Choice(((256, 128), (512, 256), (512, 256, 128))),
        "tower_units": Choice(((), (64,), (128, 64))),
        "pairwise_dots": Choice((False, True)),
        "l0": Range(1e-9, 1e-5, log=True),
        "initial_density": Choice((0.6, 0.75, 0.9)),
        "gate_scale": Range(1.0, 30.0, log=True),
        **OF_ALL_MODELS,
    }

    def __init__(
        self,
        schema: Schema,
        trunk_units: tuple[int, ...] = (512, 256, 128),
        tower_units: tuple[int, ...] = (),
        pairwise_dots: bool = False,
        mask: Literal["learned", "lottery"] = "learned",
        estimator: Literal["straight_through", "hard_concrete"] = "straight_through",
        l0: float = 1e-7,
        initial_density: float = 0.75,
        gate_scale: float = 10.0,
        losses: Literal["cross_entropy", "paper"] = "cross_entropy",
        kernel_initializer: Any = "glorot_uniform",
        embedding_dim: int = 16,
        numeric_embedding: str | None = None,
        dropout: float = 0.1,
        label_space: LabelSpace = "esmm_product",
        dtype: Any = None,
        name: str = "ncs4cvr",
    ) -> None:
        if not trunk_units:
            raise ValueError("trunk_units must name the width of at least one layer, is empty")
        if mask not in _MASKS:
            raise ValueError(f"mask must be one of {', '.join(_MASKS)}, is {mask!r}")
        if losses not in _LOSSES:
            raise ValueError(f"losses must be one of {', '.join(_LOSSES)}, is {losses!r}")

        # Layers
        learned = mask == "learned"
        trunk = [
            MaskedDense(
                units,
                num_tasks=len(schema.labels),
                mask="learned" if learned else "fixed",
                estimator=estimator,
                activation="relu",
                l0=l0 if learned else 0.0,
                initial_density=initial_density,
                gate_scale=gate_scale,
                kernel_initializer=kernel_initializer,
                dtype=dtype,
                name=f"trunk_{i}",
            )
            for i, units in enumerate(trunk_units)
        ]

        # Graph
        inputs = model_inputs(schema)
        embedded = embed_features(schema, inputs, embedding_dim, numeric_embedding, dtype)
        x = embedded.flat()  # [batch, D]
        if pairwise_dots:
            dots = [PairwiseDots(dtype=dtype)(fields) for fields in embedded.fields]
            x = keras.layers.Concatenate(dtype=dtype)([*dots, x])
        hidden = [x] * len(schema.labels)  # one per task
        for i, layer in enumerate(trunk):
            hidden = layer(hidden) if i else layer(x)
            if dropout:
                hidden = [Dropout(dropout, dtype=dtype)(h) for h in hidden]
        task_inputs = {label.name: h for label, h in zip(schema.labels, hidden, strict=True)}
        logits = tower_logits(schema, task_inputs, tower_units, dropout, dtype)

        # Config
        config = {
            "trunk_units": tuple(trunk_units),
            "tower_units": tuple(tower_units),
            "pairwise_dots": pairwise_dots,
            "mask": mask,
            "estimator": estimator,
            "l0": l0,
            "initial_density": initial_density,
            "gate_scale": gate_scale,
            "losses": losses,
            "kernel_initializer": kernel_initializer,
            "embedding_dim": embedding_dim,
            "numeric_embedding": numeric_embedding,
            "dropout": dropout,
        }
        super().__init__(schema, inputs, logits, label_space, config, dtype, name)
        self.mask = mask
        self.losses_of = losses

    def default_losses(self) -> dict[str, Any]:
        """Losses as the argument `losses` says."""
        if self.losses_of == "cross_entropy":
            return super().default_losses()
        roots = {label.name for label in self.schema.labels if label.parent is None}
        return {
            task.name: (Focal(0.75, 2.0) if task.label in roots else SquaredError()) if task.trained else None
            for task in self.tasks
        }

    def default_loss_weights(self) -> dict[str, float] | None:
        """1.5 for labels with a parent where `losses="paper"`."""
        if self.losses_of == "cross_entropy":
            return None
        children = {label.name for label in self.schema.labels if label.parent is not None}
        return {task.name: 1.5 for task in self.tasks if task.trained and task.label in children}

    def for_serving(self) -> keras.Model:
        """The model with each task's masks folded into kernels of its own; see `models.folded_trunk`."""
        trunk = [self.get_layer(f"trunk_{i}") for i in range(len(self._arguments["trunk_units"]))]
        return with_folded_masks(self, trunk)
