"""What every model of the zoo shares: outputs along the funnel, default losses and metrics, configuration."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from mtlzoo import backend
from mtlzoo.layers import MLP, ConditionalLogit, JointLogit, Probability
from mtlzoo.losses import BinaryCrossentropy
from mtlzoo.metrics import AUC
from mtlzoo.optimizers import LazyAdam, RowSparseLossScaleOptimizer
from mtlzoo.tasks import LabelSpace, tasks_of
from pipelines.schema import Schema


class MultiTaskModel(keras.Model):
    """Base of all models: a functional `keras.Model` from packed features to a dict of probabilities by task.

    A model's class builds its layers and its graph up to one logit per label, and hands them over here. What a label's
    logit means follows from the label space (see `mtlzoo.tasks`); the base adds the probabilities of every task of the
    schema, computed from logits in float32 whatever the dtype policy.

    Args:
        schema: Fitted schema, as `pipelines.open_dataset(DIR).schema` has it.
        inputs: Symbolic inputs by name.
        logits: Symbolic logit `[batch, 1]` by label.
        label_space: `"cvr_clicked"`, `"esmm_product"` or `"ctcvr"`.
        config: The arguments of the model's class besides `schema`, `label_space`, `dtype` and `name`.
        dtype: Dtype policy of the model's layers.
        name: Name of the model.
    """

    def __init__(
        self,
        schema: Schema,
        inputs: dict[str, Any],
        logits: dict[str, Any],
        label_space: LabelSpace,
        config: dict[str, Any],
        dtype: Any = None,
        name: str | None = None,
    ) -> None:
        outputs = funnel_probabilities(schema, logits, label_space)
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.schema = schema
        self.label_space = label_space
        self.tasks = tasks_of(schema, label_space)
        self.dtype_policy = keras.dtype_policies.get(dtype)
        self._arguments = config

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        loss_weights: Any = None,
        weighted_metrics: Any = "auto",
        **kwargs: Any,
    ) -> None:
        """`keras.Model.compile` with the right defaults for the model's tasks; any argument given wins.

        Args:
            optimizer: `"auto"`: `LazyAdam(1e-3)`. Under `mixed_float16` any optimizer gets loss scaling.
            loss: `"auto"`: binary cross-entropy from logits for each task that the label space trains, as a mean over
                the task's own population.
            loss_weights: Dict of floats by task; tasks that it leaves out weigh 1. `None`: the model's own with
                `loss="auto"`, else 1.
            weighted_metrics: `"auto"`: AUC for every task on its own population. (Keras masks by sample weight only
                what is given here, not what is given as `metrics`.)
            **kwargs: Further arguments of `keras.Model.compile`.

        Raises:
            ValueError: `loss_weights` names a task that is not trained.
        """
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = LazyAdam(1e-3)
        optimizer = keras.optimizers.get(optimizer)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if self.dtype_policy.name == "mixed_float16" and not scaled:
            optimizer = RowSparseLossScaleOptimizer(optimizer)
        if isinstance(loss, str) and loss == "auto":
            loss = self.default_losses()
            loss_weights = self._full_loss_weights(
                self.default_loss_weights() if loss_weights is None else loss_weights
            )
        if isinstance(weighted_metrics, str) and weighted_metrics == "auto":
            weighted_metrics = {task.name: [AUC(name="auc")] for task in self.tasks}
        self._lacks_loss_trackers = isinstance(loss, dict)
        super().compile(
            optimizer=optimizer, loss=loss, loss_weights=loss_weights, weighted_metrics=weighted_metrics, **kwargs
        )

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        **settings: Any,
    ) -> Any:
        """Keras's. Of a stream of batches `shuffle` asks nothing: `Dataset.read(..., shuffle=True)` does it."""
        shuffle = shuffle and not backend.is_stream(x)  # Keras would warn that it cannot
        return super().fit(
            x, y, batch_size, epochs, verbose, callbacks, validation_split, validation_data, shuffle, **settings
        )

    def make_train_function(self, force: bool = False) -> Any:
        """Keras's. All variables of a step are there before: a function that makes some is traced twice, for seconds.

        With losses that are not by task, and under a distribution strategy, Keras makes them itself.
        """
        if self.compiled and not backend.is_distributed(self):
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
            self._make_loss_trackers()
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Any:
        """Keras's, as `make_train_function`."""
        if self.compiled and not backend.is_distributed(self):
            self._make_loss_trackers()
        return super().make_test_function(force)

    def _make_loss_trackers(self) -> None:
        """Keras makes them, a mean for each loss, when it first computes losses."""
        if not self._lacks_loss_trackers:
            return
        self._lacks_loss_trackers = False
        labels, predictions, weights = (
            {task.name: np.full((1, 1), value, "float32") for task in self.tasks} for value in (0.0, 0.5, 1.0)
        )
        self.compute_loss(None, labels, predictions, weights)
        self.reset_metrics()

    def default_losses(self) -> dict[str, Any]:
        """What `compile(loss="auto")` takes: a loss for each task that the label space trains, else `None`."""
        return {task.name: BinaryCrossentropy() if task.trained else None for task in self.tasks}

    def default_loss_weights(self) -> dict[str, float] | None:
        """What `compile(loss="auto")` weighs the losses with where no weights are given; `None`: all weigh 1."""
        return None

    def _full_loss_weights(self, given: dict[str, float] | None) -> dict[str, float] | None:
        if given is None:
            return None
        trained = [task.name for task in self.tasks if task.trained]
        unknown = sorted(set(given) - set(trained))
        if unknown:
            raise ValueError(
                f"loss_weights names {', '.join(unknown)}, but the label space {self.label_space!r} trains only "
                f"{', '.join(trained)}"
            )
        # Keras wants a weight for every output, also for those without a loss.
        return {task.name: float(given.get(task.name, 1.0)) for task in self.tasks}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as the saved one was; Keras leaves that to classes with a `compile` of their own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def for_serving(self) -> keras.Model:
        """The model as it is exported: a model with the same inputs and the same probabilities.

        The model itself, unless a class overrides this because it serves cheaper in another form than it trains in.
        """
        return self

    @classmethod
    def source(cls) -> str | None:
        """What of the model is published where, and what is our design: the paragraph `Source:` of the class.

        `None` where there is none, or where Python leaves docstrings out.

        Example:
            >>> import mtlzoo
            >>> mtlzoo.models.SharedBottom.source()[:27]
            'Caruana, "Multitask learnin'
        """
        paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
        found = next((paragraph for paragraph in paragraphs if paragraph.startswith("Source: ")), None)
        return " ".join(found.removeprefix("Source: ").split()) if found else None

    def get_config(self) -> dict[str, Any]:
        """Everything that builds the model anew, weights aside."""
        return {
            "schema": self.schema.to_dict(),
            **self._arguments,
            "label_space": self.label_space,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MultiTaskModel:
        """Builds the model from `get_config`."""
        config = dict(config)
        config["schema"] = Schema.model_validate(config["schema"])
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        return cls(**config)


def funnel_probabilities(schema: Schema, logits: dict[str, Any], label_space: LabelSpace) -> dict[str, Any]:
    """Probabilities of all targets from one logit per label.

    With heads of conditional probabilities, `joint = logit(prod_k sigmoid(logit_k))` along the funnel. In the label
    space `ctcvr` a label's head is joint already, and `conditional = logit(p_joint / p_joint_of_parent)`.

    Args:
        schema: Its targets say what to predict.
        logits: `[batch, 1]` by label.
        label_space: What the logits of labels with a parent mean.

    Returns:
        float32 `[batch, 1]` by target name.

    Raises:
        ValueError: A label has no logit.
    """
    lacking = [label.name for label in schema.labels if label.name not in logits]
    if lacking:
        raise ValueError(f"no logit for the labels {lacking}; there are logits for {sorted(logits)}")
    probabilities = {}
    for target in schema.targets:
        logit = logits[target.label]
        if label_space == "ctcvr" and target.given:
            parent = logits[target.given[-1]]
            logit = ConditionalLogit(name=f"{target.name}_conditional_logit")((logit, parent))
        elif label_space != "ctcvr" and target.is_joint:
            chain = [logits[name] for name in target.positive]
            logit = JointLogit(name=f"{target.name}_joint_logit")(chain)
        probabilities[target.name] = Probability(name=target.name)(logit)
    return probabilities


def weighted_losses(model: MultiTaskModel, pos_weight: Sequence[float]) -> dict[str, Any]:
    """Cross-entropy for each task that is trained, with heavier positives.

    Args:
        model: The model.
        pos_weight: Weight of the positives of labels without a parent, and of the others.

    Returns:
        Loss by task; `None` for tasks that are not trained.
    """
    of_roots, of_others = pos_weight
    roots = {label.name for label in model.schema.labels if label.parent is None}
    return {
        task.name: BinaryCrossentropy(of_roots if task.label in roots else of_others) if task.trained else None
        for task in model.tasks
    }


def tower_logits(
    schema: Schema, task_inputs: dict[str, Any], units: tuple[int, ...], dropout: float, dtype: Any
) -> dict[str, Any]:
    """A tower (MLP) and a logit head for each label.

    Args:
        schema: Its labels.
        task_inputs: `[batch, H]` by label.
        units: Widths of the tower's layers.
        dropout: Dropout rate behind each of them.
        dtype: Policy of the layers.

    Returns:
        Logit `[batch, 1]` by label.
    """
    return {
        label.name: tower_logit(label.name, task_inputs[label.name], units, dropout, dtype) for label in schema.labels
    }


def tower_logit(label: str, task_input: Any, units: tuple[int, ...], dropout: float, dtype: Any) -> Any:
    """A tower (MLP) and a logit head for one label.

    Args:
        label: Name of the label; the layers are named for it.
        task_input: `[batch, H]`.
        units: Widths of the tower's layers.
        dropout: Dropout rate behind each of them.
        dtype: Policy of the layers.

    Returns:
        Logit `[batch, 1]`.
    """
    tower = MLP(units, dropout=dropout, dtype=dtype, name=f"{label}_tower")
    return keras.layers.Dense(1, dtype=dtype, name=f"{label}_logit")(tower(task_input))
