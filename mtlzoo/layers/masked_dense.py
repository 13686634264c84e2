"""A dense layer whose kernel carries one mask per task."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from mtlzoo.layers.pruning import checked_mask

_MASKS = ("learned", "fixed")
_ESTIMATORS = ("hard_concrete", "straight_through")

# Louizos et al. (2018), section 4: temperature, and the interval (GAMMA, ZETA) that is clipped to [0, 1].
_BETA, _GAMMA, _ZETA = 2.0 / 3.0, -0.1, 1.1
_CLOSING = _BETA * math.log(-_GAMMA / _ZETA)


@keras.saving.register_keras_serializable(package="mtlzoo")
class MaskedDense(keras.layers.Layer):
    """One kernel for T tasks, of which each task uses the connections that its mask leaves open.

        h_t = activation(x_t (W * M_t) + b),   t = 1 ... T

    Kernel W and bias b are shared; the bias is not masked. A connection is used by one task, by several or by none.
    Where `M_t` is 0 the gradient that task t sends to the connection is exactly 0.

    `mask="learned"` learns M together with W, from a trainable `log_alpha` `[T, D, units]`:

    - `estimator="hard_concrete"`, in training, with one u ~ U(0, 1) per step, task and connection:

          s = sigmoid((log u - log(1 - u) + log_alpha) / beta),   M = clip(s (zeta - gamma) + gamma, 0, 1)

      beta = 2/3, gamma = -0.1, zeta = 1.1. At inference `M = clip(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1)`.
      A connection is open (M > 0) with probability `p = sigmoid(log_alpha - beta log(-gamma / zeta))`.
    - `estimator="straight_through"`: M = 1 where log_alpha > 0, else 0, in training and at inference; its gradient is
      taken to be that of `p = sigmoid(log_alpha)`. Draws no noise.

    Both add `l0 * sum(p)`, over tasks and connections, to `losses`.

    `mask="fixed"` reads M from a non-trainable weight, all ones until `set_masks`. Masking stops gradients, not
    optimizers: a connection that is closed for every task stays where it is under an optimizer that starts with the
    masks, but momentum from before `set_masks` or from another task's step, and weight decay, still move it, unless the
    optimizer leaves alone what has no gradient (`LazyAdam(skip_zeros=True)`).

    Args:
        units: Width of the output.
        num_tasks: Number of tasks T, at least 1.
        mask: `"learned"` or `"fixed"`.
        estimator: `"straight_through"` or `"hard_concrete"`; for learned masks. The first was better on the synthetic
            funnel and costs less (docs/results.md).
        activation: Activation; none by default.
        l0: Weight of the penalty on open connections, at least 0; for learned masks. It multiplies a sum over tasks and
            connections: the price of a single connection.
        initial_density: Share p of open connections at the start, in (0, 1); for learned masks. The straight-through
            estimator holds a connection open while p is above 0.5, so it starts with all of them and needs more than
            0.5: a network with none open has no gradient.
        gate_scale: `log_alpha = gate_scale * weight`: under an Adam it moves `gate_scale` times as fast as the kernel.
            By itself an Adam of rate 0.001 would take a thousand steps to close a connection.
        kernel_initializer: Initializer of the kernel.
        seed: Seed of the noise. As with Keras's Dropout, a saved layer starts its noise anew when loaded.
        **kwargs: Of `keras.layers.Layer`.

    Input: `[B, D]` for all tasks, or a list of T such tensors, one per task. Output: a list of T tensors `[B, units]`
    in the compute dtype. Masks are computed in float32.

    Raises:
        ValueError: An argument outside its range, an input that is neither `[B, D]` nor T of them.

    Example:
        >>> first, second = MaskedDense(64, num_tasks=2, activation="relu"), MaskedDense(32, num_tasks=2)
        >>> click, conversion = second(first(np.zeros((8, 100), "float32")))
        >>> tuple(click.shape)
        (8, 32)

    Source: Xiao et al. (arXiv 2008.09872) for masks per task, fixed there; Louizos, Welling and Kingma, "Learning
    sparse neural networks through L0 regularization" (ICLR 2018), eq. 10-13, for the gates. Learning the masks of the
    first by the gates of the second, and `gate_scale`, are our design.
    """

    def __init__(
        self,
        units: int,
        num_tasks: int,
        mask: str = "learned",
        estimator: str = "straight_through",
        activation: Any = None,
        l0: float = 0.0,
        initial_density: float = 0.75,
        gate_scale: float = 10.0,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"units must be at least 1, is {units!r}")
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, is {num_tasks!r}")
        if mask not in _MASKS:
            raise ValueError(f"mask must be 'learned' or 'fixed', is {mask!r}")
        if estimator not in _ESTIMATORS:
            raise ValueError(f"estimator must be 'hard_concrete' or 'straight_through', is {estimator!r}")
        if not 0.0 <= l0 < math.inf:
            raise ValueError(f"l0 must be finite and at least 0, is {l0!r}")
        if l0 and mask == "fixed":
            raise ValueError(f"l0 must be 0 with mask='fixed', which learns no masks; is {l0!r}")
        if not 0.0 < initial_density < 1.0:
            raise ValueError(f"initial_density must be above 0 and below 1, is {initial_density!r}")
        if mask == "learned" and estimator == "straight_through" and initial_density <= 0.5:
            raise ValueError(
                f"initial_density must be above 0.5 with estimator='straight_through', is {initial_density!r}: every "
                "connection would start closed, and none would learn to open"
            )
        if not 0.0 < gate_scale < math.inf:
            raise ValueError(f"gate_scale must be finite and above 0, is {gate_scale!r}")
        self.units = int(units)
        self.num_tasks = int(num_tasks)
        self.mask = mask
        self.estimator = estimator
        self.activation = keras.activations.get(activation)
        self.l0 = float(l0)
        self.initial_density = float(initial_density)
        self.gate_scale = float(gate_scale)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        if mask == "learned" and estimator == "hard_concrete":
            self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def _offset(self) -> float:
        """The `log_alpha` of a connection that is open with probability 1/2."""
        return _CLOSING if self.estimator == "hard_concrete" else 0.0

    def build(self, input_shape: Any) -> None:
        """Creates kernel, bias and either gates or masks."""
        width = self._checked_shape(input_shape)[1]
        self.kernel = self.add_weight(
            shape=(width, self.units), initializer=self.kernel_initializer.clone(), name="kernel"
        )
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")
        per_task = (self.num_tasks, width, self.units)
        if self.mask == "fixed":
            self.binary_masks = self.add_weight(shape=per_task, initializer="ones", trainable=False, name="masks")
            return
        log_alpha = math.log(self.initial_density / (1.0 - self.initial_density)) + self._offset
        self.gates = self.add_weight(
            shape=per_task,
            initializer=keras.initializers.Constant(log_alpha / self.gate_scale),
            # A penalty on the weight counts once, however often the layer is called.
            regularizer=self._penalty if self.l0 else None,
            autocast=False,
            name="gates",
        )

    def _checked_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Shape of one task's input."""
        per_task = bool(input_shape) and isinstance(input_shape[0], list | tuple)
        shapes = {tuple(shape) for shape in input_shape} if per_task else {tuple(input_shape)}
        shape = next(iter(shapes), ())
        if len(shapes) != 1 or len(shape) != 2 or (per_task and len(input_shape) != self.num_tasks):
            raise ValueError(
                f"{self.name}: the input must be one tensor [batch, D] or a list of {self.num_tasks} of them, one per "
                f"task; has shape {input_shape}"
            )
        return shape

    def call(self, inputs: Any, training: bool | None = None) -> list[Any]:
        """Runs the layer for each task."""
        per_task = isinstance(inputs, list | tuple)
        self._checked_shape([tuple(x.shape) for x in inputs] if per_task else tuple(inputs.shape))
        masks = self._training_masks() if training else self.masks()  # [T, D, units]
        masks = ops.unstack(ops.cast(masks, self.compute_dtype), self.num_tasks)
        outputs = []
        # One product per task: beside it, one joint or batched product copies kernels and was slower.
        for x, mask in zip(inputs if per_task else [inputs] * self.num_tasks, masks, strict=True):
            h = ops.matmul(x, self.kernel * mask) + self.bias  # [B, units]
            outputs.append(self.activation(h))
        return outputs

    def _training_masks(self) -> Any:
        """The masks of one training step, `[T, D, units]`; gradients flow through them to the gates."""
        if self.mask == "fixed":
            return self.masks()
        log_alpha = self.log_alpha()
        if self.estimator == "straight_through":
            open_probability = ops.sigmoid(log_alpha)
            # The difference is exactly 0: it brings its gradient and nothing else.
            return self.masks() + (open_probability - ops.stop_gradient(open_probability))
        tiny = keras.config.epsilon()  # keeps the logarithm finite
        u = keras.random.uniform(log_alpha.shape, tiny, 1.0 - tiny, dtype="float32", seed=self.seed_generator)
        return _stretched(ops.sigmoid((ops.log(u / (1.0 - u)) + log_alpha) / _BETA))

    def _penalty(self, gates: Any) -> Any:
        return self.l0 * ops.sum(self._open_probability(gates))

    def _open_probability(self, gates: Any) -> Any:
        return ops.sigmoid(self.gate_scale * gates - self._offset)

    def log_alpha(self) -> Any:
        """The parameter of the learned masks, float32 `[T, D, units]`.

        Raises:
            ValueError: The masks are fixed, or the layer is not built.
        """
        self._require("learned", "log_alpha")
        return self.gate_scale * ops.convert_to_tensor(self.gates)

    def masks(self) -> Any:
        """The masks at inference, float32 `[T, D, units]`.

        Values in [0, 1] with `estimator="hard_concrete"`, otherwise 0 or 1.

        Raises:
            ValueError: The layer is not built.
        """
        self._require(self.mask, "masks")
        if self.mask == "fixed":
            return ops.convert_to_tensor(self.binary_masks)
        if self.estimator == "straight_through":
            return ops.cast(self.log_alpha() > 0.0, "float32")
        return _stretched(ops.sigmoid(self.log_alpha()))

    def set_masks(self, masks: Any) -> None:
        """Sets the fixed masks.

        Args:
            masks: Array `[T, D, units]` of 0 and 1, numbers or booleans.

        Raises:
            ValueError: The masks are learned, the layer is not built, the array has another shape or another value.
        """
        self._require("fixed", "set_masks")
        array = checked_mask(masks, tuple(self.binary_masks.shape), f"{self.name}: masks")
        self.binary_masks.assign(array.astype("float32"))

    def expected_density(self) -> Any:
        """For each task the share of connections that are open, float32 `[T]`.

        With `estimator="hard_concrete"` its expectation in training, mean(p); otherwise the share itself.

        Raises:
            ValueError: The layer is not built.
        """
        if self.mask == "learned" and self.estimator == "hard_concrete":
            self._require("learned", "expected_density")
            return ops.mean(self._open_probability(ops.convert_to_tensor(self.gates)), axis=(1, 2))
        return ops.mean(self.masks(), axis=(1, 2))

    def _require(self, mask: str, method: str) -> None:
        if self.mask != mask:
            raise ValueError(f"{self.name}: {method} needs mask={mask!r}, the layer has mask={self.mask!r}")
        if not self.built:
            raise ValueError(f"{self.name}: {method} needs the layer to be built; call it once, or build(shape)")

    def compute_output_shape(self, input_shape: Any) -> list[tuple[int | None, ...]]:
        """`[B, D]`, or a list of T of it, to a list of T times `[B, units]`."""
        return [(self._checked_shape(input_shape)[0], self.units)] * self.num_tasks

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "units": self.units,
            "num_tasks": self.num_tasks,
            "mask": self.mask,
            "estimator": self.estimator,
            "activation": keras.activations.serialize(self.activation),
            "l0": self.l0,
            "initial_density": self.initial_density,
            "gate_scale": self.gate_scale,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }


def _stretched(s: Any) -> Any:
    """`s` in (0, 1), stretched to (gamma, zeta) and clipped to [0, 1]."""
    # min(max(z, 0), 1) as relu6(6 z) / 6: one operation forward and one backward, where `ops.clip` takes several.
    return ops.relu6(s * (6.0 * (_ZETA - _GAMMA)) + 6.0 * _GAMMA) / 6.0
