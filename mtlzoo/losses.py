"""Losses of binary tasks, computed from logits."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo import backend


class _FromLogits(keras.losses.Loss):
    """Base of losses that look through the probabilities of `y_pred` at the logits behind them."""

    def __init__(self, reduction: str | None, name: str | None) -> None:
        # float32 whatever floatx is: casting y_pred would lose the logits that hang on it.
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss per impression: `[B, 1]` and `[B, 1]` to `[B]`."""
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)  # Keras maps over lists
        if tuple(y_true.shape[1:]) != tuple(y_pred.shape[1:]):
            raise ValueError(
                f"{self.name}: labels of shape {tuple(y_true.shape)} do not fit predictions of shape "
                f"{tuple(y_pred.shape)}; give both as [batch, 1]"
            )
        return ops.mean(self.elementwise(y_true, backend.logits_of(y_pred)), axis=-1)

    def elementwise(self, labels: Any, logits: Any) -> Any:
        """Loss of each element, in the shape of its arguments."""
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="mtlzoo")
class BinaryCrossentropy(_FromLogits):
    """Binary cross-entropy from logits, as a mean over the task's population.

        l(y, p) = -[pos_weight y log p + (1 - y) log(1 - p)],   L = sum_i w_i l(y_i, p_i) / sum_i w_i

    With sample weights of 0 outside a task's population the loss moves neither with the batch size nor with the click
    rate. A batch without population has loss 0 and gradient 0.

    Args:
        pos_weight: Weight of the positives, above 0.
        reduction: Any of Keras's. Defaults to `"mean_with_sample_weight"`.
        name: Name of the loss.

    Inputs: `y_true` `[B, 1]` in [0, 1]; `y_pred` float32 `[B, 1]`, probabilities, best from
    `mtlzoo.layers.Probability`, which keeps the logits. Without them they are recovered from probabilities clipped to
    `[1e-7, 1 - 1e-7]`.

    Raises:
        ValueError: `pos_weight` is not above 0, or labels and predictions differ in shape.

    Example:
        >>> loss = BinaryCrossentropy()
        >>> round(float(loss([[1.0], [0.0]], [[0.5], [0.5]], sample_weight=[[1.0], [0.0]])), 4)
        0.6931

    Source: the usual loss; the reduction is our design (PLE, RecSys 2020, trains on each task's own sample space too).
    """

    def __init__(
        self,
        pos_weight: float = 1.0,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = "binary_crossentropy",
    ) -> None:
        if not pos_weight > 0.0:
            raise ValueError(f"pos_weight must be above 0, is {pos_weight!r}")
        super().__init__(reduction, name)
        self.pos_weight = float(pos_weight)

    def elementwise(self, labels: Any, logits: Any) -> Any:
        """-log p is softplus(-logit), -log(1 - p) is softplus(logit)."""
        return self.pos_weight * labels * ops.softplus(-logits) + (1.0 - labels) * ops.softplus(logits)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "pos_weight": self.pos_weight}


@keras.saving.register_keras_serializable(package="mtlzoo")
class Focal(_FromLogits):
    """Focal loss from logits: cross-entropy that counts the well-predicted less.

        l(y, p) = -[alpha (1 - p)^gamma y log p + (1 - alpha) p^gamma (1 - y) log(1 - p)]

    reduced as `BinaryCrossentropy` does.

    Args:
        alpha: Weight of the positives, in (0, 1).
        gamma: Exponent, at least 0. With `gamma=0, alpha=0.5` it is half the cross-entropy.
        reduction: Any of Keras's. Defaults to `"mean_with_sample_weight"`.
        name: Name of the loss.

    Inputs: as `BinaryCrossentropy`.

    Raises:
        ValueError: `alpha` or `gamma` is out of range, or labels and predictions differ in shape.

    Example:
        >>> loss = Focal(alpha=0.25, gamma=2.0)
        >>> round(float(loss([[1.0]], [[0.5]])), 4)
        0.0433

    Source: Lin et al., "Focal Loss for Dense Object Detection" (ICCV 2017), eq. 5 and section 3.3. NCS4CVR's CTR task
    uses `alpha=0.75, gamma=2`.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = "focal",
    ) -> None:
        if not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha must be between 0 and 1, is {alpha!r}")
        if not gamma >= 0.0:
            raise ValueError(f"gamma must be at least 0, is {gamma!r}")
        super().__init__(reduction, name)
        self.alpha = float(alpha)
        self.gamma = float(gamma)

    def elementwise(self, labels: Any, logits: Any) -> Any:
        """Powers of p and 1 - p as exponentials of softplus: finite values and gradients for any logit."""
        minus_log_p = ops.softplus(-logits)
        minus_log_q = ops.softplus(logits)
        positive = self.alpha * ops.exp(-self.gamma * minus_log_q) * minus_log_p
        negative = (1.0 - self.alpha) * ops.exp(-self.gamma * minus_log_p) * minus_log_q
        return labels * positive + (1.0 - labels) * negative

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "alpha": self.alpha, "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="mtlzoo")
class SquaredError(_FromLogits):
    """Squared error of a probability or of a ratio in [0, 1], as a mean over the task's population.

        l(y, p) = (p - min(max(y, 0), 1))^2,   L = sum_i w_i l(y_i, p_i) / sum_i w_i

    Of a binary label it is the Brier score. With `positives_only` an impression counts only where its label is above 0,
    `w_i` becoming `w_i 1[y_i > 0]`: the label of a ratio (the share of a video that was played) then needs no parent.

    Args:
        positives_only: Whether labels of 0 are left out. With binary labels nothing but ones would be left to learn
            from; leave it off there.
        reduction: Any of Keras's. Defaults to `"mean_with_sample_weight"`.
        name: Name of the loss.

    Inputs: as `BinaryCrossentropy`; `y_true` may be any number.

    Raises:
        ValueError: Labels and predictions differ in shape.

    Example:
        >>> loss = SquaredError(positives_only=True)
        >>> float(loss([[0.75], [0.0]], [[0.5], [0.5]]))
        0.0625

    Source: Xiao et al. (arXiv 2008.09872), the play-ratio loss of the released code, which is `positives_only=True`.
    """

    def __init__(
        self,
        positives_only: bool = False,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = "squared_error",
    ) -> None:
        super().__init__(reduction, name)
        self.positives_only = bool(positives_only)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The reduced loss."""
        if self.positives_only:
            positive = ops.cast(ops.convert_to_tensor(y_true) > 0, "float32")
            sample_weight = positive if sample_weight is None else positive * ops.cast(sample_weight, "float32")
        return super().__call__(y_true, y_pred, sample_weight)

    def elementwise(self, labels: Any, logits: Any) -> Any:
        """Through the sigmoid of the logit."""
        return ops.square(ops.sigmoid(logits) - ops.clip(labels, 0.0, 1.0))

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "positives_only": self.positives_only}
