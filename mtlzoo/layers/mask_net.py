"""Mask blocks: hidden layers whose input is scaled, element by element, by what the instance itself says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mtlzoo.layers.mlp import checked_count, checked_units, checked_width
from mtlzoo.layers.per_part import PerPart

_MODES = ("parallel", "serial")


class _MaskedHidden(keras.layers.Layer):
    """P mask blocks behind their aggregation layers: for each block `(a [B, M], h [B, H])` to `[B, units]`."""

    def __init__(self, parts: int, units: int, epsilon: float, kernel_initializer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts
        self.units = units
        self.epsilon = epsilon
        self.kernel_initializer = kernel_initializer

    def build(self, input_shape: Any) -> None:
        """Creates the weights of all blocks."""
        mask_units, width = (h_shape[-1] for h_shape in input_shape)
        self.mask_kernel = self._add_kernel("mask_kernel", mask_units, width)
        self.mask_bias = self._add_vector("mask_bias", width, "zeros")
        self.kernel = self._add_kernel("kernel", width, self.units)
        self.bias = self._add_vector("bias", self.units, "zeros")
        self.gamma = self._add_vector("gamma", self.units, "ones")
        self.beta = self._add_vector("beta", self.units, "zeros")

    def _add_kernel(self, name: str, width_in: int, width: int) -> Any:
        initializer = PerPart(self.kernel_initializer.clone(), self.parts)
        return self.add_weight(shape=(self.parts, width_in, width), initializer=initializer, name=name)

    def _add_vector(self, name: str, width: int, initializer: str) -> Any:
        return self.add_weight(shape=(self.parts, 1, width), initializer=initializer, name=name)

    def call(self, inputs: Any) -> Any:
        """Masks, mixes, normalises, block by block: two lists of P tensors to one."""
        kernels = zip(ops.unstack(self.mask_kernel), ops.unstack(self.kernel), strict=True)
        vectors = zip(*(ops.unstack(v[:, 0]) for v in (self.mask_bias, self.bias, self.gamma, self.beta)), strict=True)
        outputs = []
        for a, h, of_block, (mask_bias, bias, gamma, beta) in zip(*inputs, kernels, vectors, strict=True):
            mask_kernel, kernel = of_block
            mask = ops.add(ops.matmul(a, mask_kernel), mask_bias)  # [B, H]
            o = ops.add(ops.matmul(h * mask, kernel), bias)  # [B, units]
            o = ops.layer_normalization(o, axis=-1, epsilon=self.epsilon)  # in float32 inside
            outputs.append(ops.relu(o * gamma + beta))
        return outputs


@keras.saving.register_keras_serializable(package="mtlzoo")
class MaskBlock(keras.layers.Layer):
    """One mask block: a mask that is read off the embeddings e, on e itself or on what the block before made of it.

        m = relu(e W_1 + b_1) W_2 + b_2,   o = relu(LN((h * m) W + b))

    `*` is the product element by element, LN the layer normalisation over the units, with scale and offset. The mask is
    linear at its end: it may be negative and of any size. Biases as in DTN's released code, three of them; the paper
    has no b, whose place LN's offset can take. All start at zeros.

    Args:
        units: Width of the output. Defaults to 128, as in DTN's released code.
        mask_units: Width of the mask's hidden layer, the "aggregation layer". Defaults to 256, as in DTN's released
            code; the paper ties it to the width of h.
        epsilon: Added to the variance in LN. Defaults to 1e-12, as in DTN's released code: a product of small
            embeddings varies so little that Keras's 1e-3 would leave it all but unnormalised.
        kernel_initializer: Initializer of the kernels.
        **kwargs: Of `keras.layers.Layer`.

    Inputs: `(e [B, D], h [B, H])`, or e `[B, D]` alone, which is then h as well. The paper's first block has as h the
    embeddings with each field normalised. Output: `[B, units]` in the compute dtype; the statistics of LN are float32.

    Raises:
        ValueError: A width below 1, an epsilon that is not above 0, an input that is neither `[B, D]` nor two of such.

    Example:
        >>> e = np.ones((8, 100), "float32")
        >>> tuple(MaskBlock(32)((e, MaskBlock(64)(e))).shape)
        (8, 32)

    Source: Wang, She and Zhang, "MaskNet: Introducing feature-wise multiplication to CTR ranking models by
    instance-guided mask" (DLP-KDD 2021, arXiv 2102.07619), eq. 5, 8, 12 and 14; the released code of Bi et al. (DTN,
    arXiv 2408.11611).
    """

    def __init__(
        self,
        units: int = 128,
        mask_units: int = 256,
        epsilon: float = 1e-12,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = checked_count("units", units)
        self.mask_units = checked_count("mask_units", mask_units)
        self.epsilon = _checked_epsilon(epsilon)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        """Creates the aggregation layer and the rest of the block."""
        e_shape, h_shape = self._shapes(input_shape)
        self.aggregation_kernel = self.add_weight(
            shape=(checked_width(self.name, e_shape), self.mask_units),
            initializer=self.kernel_initializer.clone(),
            name="aggregation_kernel",
        )
        self.aggregation_bias = self.add_weight(shape=(self.mask_units,), initializer="zeros", name="aggregation_bias")
        self.hidden = _MaskedHidden(
            1, self.units, self.epsilon, self.kernel_initializer, dtype=self.dtype_policy, name="hidden"
        )
        self.hidden.build(((e_shape[0], self.mask_units), (h_shape[0], checked_width(self.name, h_shape))))

    def _shapes(self, input_shape: Any) -> tuple[Any, Any]:
        """Shapes of e and h."""
        if not input_shape or not isinstance(input_shape[0], list | tuple):
            return input_shape, input_shape
        if len(input_shape) != 2:
            raise ValueError(f"{self.name}: the input must be (e, h) or e alone, is {len(input_shape)} tensors")
        return input_shape[0], input_shape[1]

    def call(self, inputs: Any) -> Any:
        """Runs the block."""
        e, h = inputs if isinstance(inputs, list | tuple) else (inputs, inputs)  # [B, D], [B, H]
        aggregated = ops.relu(ops.add(ops.matmul(e, self.aggregation_kernel), self.aggregation_bias))  # [B, mask_units]
        return self.hidden(([aggregated], [h]))[0]  # [B, units]

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, D]`, or that and `[B, H]`, to `[B, units]`."""
        return (self._shapes(input_shape)[0][0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "units": self.units,
            "mask_units": self.mask_units,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="mtlzoo")
class MaskNet(keras.layers.Layer):
    """N mask blocks (`MaskBlock`) and an MLP behind them; or C such networks on one input.

        parallel:  output = MLP([block_1(e, e), ..., block_N(e, e)])
        serial:    h_1 = block_1(e, e),   h_n = block_n(e, h_(n-1)),   output = MLP(h_N)

    Each layer of the MLP is `relu(h W + b)`. The kernels of all blocks and copies are one variable for each layer, each
    drawn by itself; the products are done one by one, as `StackedExperts` says why. Biases start at zeros. Copies share
    nothing but the input.

    The paper normalises each field's embedding before the first block masks it. DTN's released code does not, nor does
    this layer, which does not know where a field ends.

    Args:
        num_blocks: Number of blocks N, at least 1. Defaults to 2, as in DTN's released code.
        block_units: Width of each block's output. Defaults to 128, as in DTN's released code.
        mask_units: Width of each mask's hidden layer. Defaults to 256, as in DTN's released code.
        units: Widths of the MLP; none leaves it out. Defaults to (256, 256), as in DTN's released code. The paper's
            serial model has none.
        mode: `"parallel"` (the default) or `"serial"`.
        copies: Number of networks C, at least 1; `None` (the default) is one network, without an axis of copies.
        epsilon: Added to the variance in layer normalisations, see `MaskBlock`. Defaults to 1e-12.
        kernel_initializer: Initializer of each kernel; a seed given in it is varied over the kernels of one product.
        **kwargs: Of `keras.layers.Layer`.

    Input: e `[B, D]`. Output: `[B, units[-1]]`, with copies `[B, C, units[-1]]`; without MLP the last axis is
    `N block_units` (parallel) or `block_units` (serial). In the compute dtype; the statistics of LN are float32.

    Raises:
        ValueError: No block, a width or a number of copies below 1, an unknown mode, an epsilon that is not above 0, an
            input that is not `[B, D]`.

    Example:
        >>> network = MaskNet(num_blocks=2, block_units=128, units=(256, 256), copies=3)
        >>> tuple(network(np.zeros((8, 100), "float32")).shape)
        (8, 3, 256)

    Source: Wang, She and Zhang (MaskNet, DLP-KDD 2021, arXiv 2102.07619), section 3.4; the released code of Bi et al.
    (DTN, arXiv 2408.11611); the joint variables of copies are our design.
    """

    def __init__(
        self,
        num_blocks: int = 2,
        block_units: int = 128,
        mask_units: int = 256,
        units: Sequence[int] = (256, 256),
        mode: str = "parallel",
        copies: int | None = None,
        epsilon: float = 1e-12,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_blocks = checked_count("num_blocks", num_blocks)
        self.block_units = checked_count("block_units", block_units)
        self.mask_units = checked_count("mask_units", mask_units)
        self.units = checked_units(units)
        if mode not in _MODES:
            raise ValueError(f"mode must be 'parallel' or 'serial', is {mode!r}")
        self.mode = mode
        self.copies = None if copies is None else checked_count("copies", copies)
        self.epsilon = _checked_epsilon(epsilon)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    @property
    def _merged_units(self) -> int:
        """Width of what the MLP reads."""
        return self.block_units * (self.num_blocks if self.mode == "parallel" else 1)

    def build(self, input_shape: Any) -> None:
        """Creates the weights of all blocks and copies."""
        width, copies = checked_width(self.name, input_shape), self.copies or 1
        parts = self.num_blocks * copies
        self.aggregation_kernel = self.add_weight(
            shape=(width, parts * self.mask_units),
            initializer=PerPart(self.kernel_initializer.clone(), parts),
            name="aggregation_kernel",
        )
        self.aggregation_bias = self.add_weight(
            shape=(parts * self.mask_units,), initializer="zeros", name="aggregation_bias"
        )
        self.levels = []  # blocks that stand side by side
        widths = [width] if self.mode == "parallel" else [width] + [self.block_units] * (self.num_blocks - 1)
        for i, h_width in enumerate(widths):
            level = _MaskedHidden(
                parts // len(widths),
                self.block_units,
                self.epsilon,
                self.kernel_initializer,
                dtype=self.dtype_policy,
                name=f"blocks_{i}",
            )
            level.build(((input_shape[0], self.mask_units), (input_shape[0], h_width)))
            self.levels.append(level)
        self._build_mlp(copies)

    def _build_mlp(self, copies: int) -> None:
        self.kernels, self.biases = [], []
        for i, (width_in, width) in enumerate(zip((self._merged_units, *self.units), self.units, strict=False)):
            initializer = PerPart(self.kernel_initializer.clone(), copies)
            kernel = self.add_weight(shape=(copies, width_in, width), initializer=initializer, name=f"kernel_{i}")
            self.kernels.append(kernel)
            self.biases.append(self.add_weight(shape=(copies, 1, width), initializer="zeros", name=f"bias_{i}"))

    def call(self, inputs: Any) -> Any:
        """Runs all blocks of all copies."""
        copies, blocks = self.copies or 1, self.num_blocks
        kernels = ops.split(self.aggregation_kernel, blocks * copies, axis=1)  # block by block, its copies in turn
        biases = ops.split(self.aggregation_bias, blocks * copies)
        aggregated = [
            ops.relu(ops.add(ops.matmul(inputs, kernel), bias))  # [B, mask_units]
            for kernel, bias in zip(kernels, biases, strict=True)
        ]
        h = [inputs] * self.levels[0].parts
        for i, level in enumerate(self.levels):
            h = level((aggregated[i * level.parts : (i + 1) * level.parts], h))  # [B, block_units] each
        if self.mode == "parallel":
            h = [ops.concatenate(h[copy::copies], axis=1) for copy in range(copies)]  # [B, N * block_units] each
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            of_copies = zip(h, ops.unstack(kernel), ops.unstack(bias[:, 0]), strict=True)
            h = [ops.relu(ops.add(ops.matmul(x, w), b)) for x, w, b in of_copies]  # [B, units[i]] each
        return h[0] if self.copies is None else ops.stack(h, axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, D]` to `[B, units[-1]]` or `[B, C, units[-1]]`."""
        width = self.units[-1] if self.units else self._merged_units
        return (input_shape[0], width) if self.copies is None else (input_shape[0], self.copies, width)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "num_blocks": self.num_blocks,
            "block_units": self.block_units,
            "mask_units": self.mask_units,
            "units": self.units,
            "mode": self.mode,
            "copies": self.copies,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _checked_epsilon(epsilon: float) -> float:
    if not epsilon > 0.0:
        raise ValueError(f"epsilon must be above 0, is {epsilon!r}")
    return float(epsilon)
