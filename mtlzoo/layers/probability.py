"""From logits to probabilities, and along the funnel, without leaving the space of logits."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

# How near a conditional probability comes to 1: its logit is at most 13.8.
_TINY = 1e-6


class _Float32Layer(keras.layers.Layer):
    """A layer that computes in float32 whatever the policy: half precision would round probabilities to 0 and 1."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})


@keras.saving.register_keras_serializable(package="mtlzoo")
class Probability(_Float32Layer):
    """The probability of a logit: `p = 1 / (1 + exp(-logit))`.

    Keras attaches the logits to the output of its sigmoid; `mtlzoo.losses` compute from those, so that a loss has
    neither a ceiling nor a vanishing gradient where the probability rounds to 0 or 1.

    Args:
        **kwargs: Of `keras.layers.Layer`. The dtype is float32 whatever is given.

    Input: `[B, 1]` of any float dtype. Output: float32 `[B, 1]`.

    Example:
        >>> float(Probability()(np.array([[0.0]]))[0, 0])
        0.5

    Source: our design.
    """

    def call(self, inputs: Any) -> Any:
        """The sigmoid."""
        return ops.sigmoid(inputs)  # [B, 1]

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The input's shape."""
        return tuple(input_shape)


@keras.saving.register_keras_serializable(package="mtlzoo")
class JointLogit(_Float32Layer):
    """The logit of the product of probabilities, given as logits: all steps of a funnel happen.

        logit(s(a) s(b)) = a + b - log(1 + exp(a) + exp(b)) = -log(exp(-a) + exp(-b) + exp(-a - b)),   s = sigmoid

    folded from the left for more than two. The second form is computed: where one logit is large it returns the other
    exactly, while the first would lose it in rounding.

    Args:
        **kwargs: Of `keras.layers.Layer`. The dtype is float32 whatever is given.

    Inputs: two or more logits `[B, 1]`. Output: float32 `[B, 1]`.

    Raises:
        ValueError: Fewer than two logits.

    Example:
        >>> logit = JointLogit()([np.array([[0.0]]), np.array([[0.0]])])  # of 1/4
        >>> round(float(logit[0, 0]), 4)
        -1.0986

    Source: the product is ESMM's (Ma et al., SIGIR 2018, eq. 1-3); its logit is our derivation.
    """

    def build(self, input_shape: Any) -> None:
        """Checks the number of logits."""
        if not isinstance(input_shape[0], list | tuple) or len(input_shape) < 2:
            raise ValueError(
                f"{self.name}: give a list of two or more logits [batch, 1]; their shapes are {input_shape}"
            )

    def call(self, inputs: Any) -> Any:
        """Folds the logits."""
        joint = inputs[0]
        for logit in inputs[1:]:
            joint = -ops.logsumexp(ops.stack([-joint, -logit, -joint - logit], axis=-1), axis=-1)  # [B, 1]
        return joint

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of the first logit."""
        return tuple(input_shape[0])


@keras.saving.register_keras_serializable(package="mtlzoo")
class ConditionalLogit(_Float32Layer):
    """The logit of `min(p_joint / p_parent, 1 - 1e-6)`, given two logits: a step of the funnel given the one before.

    With joint logit j, parent logit q and d = q - j > 0:

        logit(s(j) / s(q)) = j - log s(q) - log(1 - exp(-d)),   s = sigmoid

    computed as `(j - min(q, 0)) + log(1 + exp(-|q|)) - log(-expm1(-d))`. A model of the joint probability is free to
    exceed the parent's; the ratio is then no probability, and is given as `1 - 1e-6` (logit 13.8), with gradient 0.

    Args:
        **kwargs: Of `keras.layers.Layer`. The dtype is float32 whatever is given.

    Inputs: `(joint_logit [B, 1], parent_logit [B, 1])`. Output: float32 `[B, 1]`.

    Example:
        >>> joint, parent = np.array([[-math.log(9.0)]]), np.array([[0.0]])  # 1/10 given 1/2: 1/5
        >>> round(float(ConditionalLogit()((joint, parent))[0, 0]), 4)
        -1.3863

    Source: our derivation.
    """

    def call(self, inputs: Any) -> Any:
        """See the class."""
        joint, parent = inputs  # [B, 1], [B, 1]
        # Below 1e-7 the logit is beyond the clip anyway; without a floor log(0) would make NaN of its gradient.
        distance = ops.maximum(parent - joint, 1e-7)
        # j - log s(q), with j and q subtracted first: both may be thousands and their difference small.
        logit = (joint - ops.minimum(parent, 0.0)) + ops.softplus(-ops.abs(parent))
        logit = logit - ops.log(-ops.expm1(-distance))
        return ops.minimum(logit, math.log((1.0 - _TINY) / _TINY))  # [B, 1]

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of the joint logit."""
        return tuple(input_shape[0])
