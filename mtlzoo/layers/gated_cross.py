"""Gated cross layers: products of features, each let through by a gate of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from mtlzoo.layers.mlp import checked_count, checked_width
from mtlzoo.layers.per_part import PerPart


@keras.saving.register_keras_serializable(package="mtlzoo")
class GatedCross(keras.layers.Layer):
    """One gated cross layer.

        x_(l+1) = x_0 * (x_l W_c + b_c) * sigmoid(x_l W_g) + x_l

    `*` is the product element by element. W_c, the cross, and W_g, the gate, are `[D, D]` and applied as one matrix
    product `[B, D] x [D, 2 D]`; each is drawn by itself. b_c starts at zeros; the gate has no bias. The sigmoid is
    computed in float32.

    Args:
        kernel_initializer: Initializer of W_c and of W_g; a seed given in it is varied between the two.
        **kwargs: Of `keras.layers.Layer`.

    Inputs: `(x_0, x_l)`, each `[B, D]`, or one tensor `[B, D]` that is both. Output: `[B, D]` in the compute dtype.

    Raises:
        ValueError: The input is neither `[B, D]` nor two of one width.

    Example:
        >>> x, cross = np.ones((8, 100), "float32"), GatedCross()
        >>> tuple(cross((x, cross(x))).shape)
        (8, 100)

    Source: the gated cross layer of Wang et al., "Towards Deeper, Lighter and Interpretable Cross Network for CTR
    Prediction" (GDCN, CIKM 2023, arXiv 2311.04635). Without the gate it is DCN-v2's (Wang et al., WWW 2021), and with
    W_g = 0 that at half strength.
    """

    def __init__(self, kernel_initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        """Creates the joint kernel and the bias."""
        width = checked_width(self.name, self._checked_shape(input_shape))
        self.kernel = self.add_weight(
            shape=(width, 2 * width), initializer=PerPart(self.kernel_initializer.clone(), 2), name="kernel"
        )
        self.bias = self.add_weight(shape=(width,), initializer="zeros", name="bias")

    def _checked_shape(self, input_shape: Any) -> Any:
        """Shape of x_l."""
        if not input_shape or not isinstance(input_shape[0], list | tuple):
            return input_shape
        if len(input_shape) != 2 or tuple(input_shape[0])[1:] != tuple(input_shape[1])[1:]:
            raise ValueError(
                f"{self.name}: the input must be (x_0, x_l), two tensors [batch, D] of one width D; has the shapes "
                f"{input_shape}"
            )
        return input_shape[1]

    def call(self, inputs: Any) -> Any:
        """Crosses the features."""
        x_0, x_l = inputs if isinstance(inputs, list | tuple) else (inputs, inputs)  # [B, D], [B, D]
        return _gated_cross(x_0, x_l, self.kernel, self.bias)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of one input."""
        return tuple(self._checked_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="mtlzoo")
class GatedCrossNetwork(keras.layers.Layer):
    """L gated cross layers (`GatedCross`) and a linear projection; or C such networks on one input.

        x_(l+1) = x_0 * (x_l W_c^l + b_c^l) * sigmoid(x_l W_g^l) + x_l,   l = 0 ... L - 1,   output = x_L P + p

    The kernels of all copies, crosses and gates, are one variable for each layer; each kernel `[D, D]` is drawn by
    itself. The products are done one by one, as `StackedExperts` says why. Biases start at zeros. Copies share nothing
    but the input.

    Args:
        num_layers: Number of cross layers L, at least 1. Defaults to 2, as in DTN's released code.
        units: Width of the projection; `None` leaves it out. Defaults to 256, as in DTN's released code.
        copies: Number of networks C, at least 1; `None` (the default) is one network, without an axis of copies.
        kernel_initializer: Initializer of each kernel; a seed given in it is varied from kernel to kernel of a layer.
        **kwargs: Of `keras.layers.Layer`.

    Input: `[B, D]`. Output: `[B, units]`, with copies `[B, C, units]`; `[B, D]` or `[B, C, D]` without projection. In
    the compute dtype; sigmoids are computed in float32.

    Raises:
        ValueError: No layer, a width or a number of copies below 1, an input that is not `[B, D]`.

    Example:
        >>> network = GatedCrossNetwork(num_layers=2, units=256, copies=3)
        >>> tuple(network(np.zeros((8, 100), "float32")).shape)
        (8, 3, 256)

    Source: the gated cross network of Wang et al. (GDCN, CIKM 2023, arXiv 2311.04635); two layers and the projection as
    in the released code of Bi et al. (DTN, arXiv 2408.11611); the joint variables of copies are our design.
    """

    def __init__(
        self,
        num_layers: int = 2,
        units: int | None = 256,
        copies: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_layers = checked_count("num_layers", num_layers)
        self.units = None if units is None else checked_count("units", units)
        self.copies = None if copies is None else checked_count("copies", copies)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        """Creates the kernels and biases of all copies."""
        width, copies = checked_width(self.name, input_shape), self.copies or 1
        first = PerPart(self.kernel_initializer.clone(), 2 * copies)
        self.kernels = [self.add_weight(shape=(width, copies * 2 * width), initializer=first, name="kernel_0")]
        self.biases = [self.add_weight(shape=(copies, 1, width), initializer="zeros", name="bias_0")]
        for i in range(1, self.num_layers):
            initializer = _stacked_pairs(self.kernel_initializer.clone(), copies)
            kernel = self.add_weight(shape=(copies, width, 2 * width), initializer=initializer, name=f"kernel_{i}")
            self.kernels.append(kernel)
            self.biases.append(self.add_weight(shape=(copies, 1, width), initializer="zeros", name=f"bias_{i}"))
        if self.units is not None:
            projection = PerPart(self.kernel_initializer.clone(), copies)
            self.projection = self.add_weight(
                shape=(copies, width, self.units), initializer=projection, name="projection"
            )
            self.projection_bias = self.add_weight(
                shape=(copies, 1, self.units), initializer="zeros", name="projection_bias"
            )

    def call(self, inputs: Any) -> Any:
        """Runs all copies."""
        copies = self.copies or 1
        kernels = [ops.split(self.kernels[0], copies, axis=1), *map(ops.unstack, self.kernels[1:])]  # C of [D, 2 D]
        biases = [ops.unstack(bias[:, 0]) for bias in self.biases]
        outputs = []
        for copy in range(copies):
            x_l = inputs  # [B, D]
            for of_layer, bias in zip(kernels, biases, strict=True):
                x_l = _gated_cross(inputs, x_l, of_layer[copy], bias[copy])
            if self.units is not None:
                x_l = ops.add(ops.matmul(x_l, self.projection[copy]), self.projection_bias[copy, 0])  # [B, units]
            outputs.append(x_l)
        return outputs[0] if self.copies is None else ops.stack(outputs, axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, D]` to `[B, units]` or `[B, C, units]`."""
        width = input_shape[1] if self.units is None else self.units
        return (input_shape[0], width) if self.copies is None else (input_shape[0], self.copies, width)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "units": self.units,
            "copies": self.copies,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _gated_cross(x_0: Any, x_l: Any, kernel: Any, bias: Any) -> Any:
    """The formula, with `kernel` = `[W_c, W_g]`, `[D, 2 D]`."""
    of_cross, of_gate = ops.split(kernel, 2, axis=1)
    cross = ops.add(ops.matmul(x_l, of_cross), bias)
    gate = ops.sigmoid(ops.cast(ops.matmul(x_l, of_gate), "float32"))
    return x_0 * cross * ops.cast(gate, cross.dtype) + x_l


def _stacked_pairs(initializer: Any, copies: int) -> Callable[..., Any]:
    """Draws `[C, D, 2 D]`, each of the 2 C kernels by itself; `PerPart` would draw a cross and its gate as one."""

    def draw(shape: Any, dtype: Any = None) -> Any:
        _, width, pair = shape
        joint = PerPart(initializer, 2 * copies)((width, copies * pair), dtype=dtype)  # [D, C * 2 D]
        return ops.stack(ops.split(joint, copies, axis=1))

    return draw
