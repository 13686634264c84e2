"""Initializing a weight that holds several equal parts."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mtlzoo")
class PerPart(keras.initializers.Initializer):
    """Initializes each part of a joint kernel by itself.

    Initializers such as Glorot's scale by the fans that they read off the shape. On the joint kernel of several experts
    or gates they would read the wrong ones, so each part `[D, H]` is drawn by itself. A kernel `[D, parts * H]` holds
    the parts side by side, a kernel `[parts, D, H]` holds them stacked.

    Args:
        initializer: Initializer of one part. A seed given in it becomes a seed per part (seed, seed + 1, ...), so
            that the parts differ.
        parts: Number of parts.

    Example:
        >>> kernel = PerPart("glorot_uniform", parts=4)((8, 4 * 16))
        >>> tuple(kernel.shape)
        (8, 64)

    Source: our design.
    """

    def __init__(self, initializer: Any, parts: int) -> None:
        self.initializer = keras.initializers.get(initializer)
        self.parts = parts

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Draws `[D, parts * H]` or `[parts, D, H]`."""
        stacked = len(shape) == 3
        part_shape = tuple(shape[1:]) if stacked else (shape[0], shape[1] // self.parts)
        draws = [self.of_part(i)(part_shape, dtype=dtype) for i in range(self.parts)]
        return ops.stack(draws) if stacked else ops.concatenate(draws, axis=1)

    def of_part(self, index: int) -> Any:
        """The initializer of one part, for parts that are variables of their own."""
        config = self.initializer.get_config()
        if isinstance(config.get("seed"), int):
            config["seed"] += index
        return type(self.initializer).from_config(config)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {"initializer": keras.initializers.serialize(self.initializer), "parts": self.parts}
