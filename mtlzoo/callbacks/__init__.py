"""Callbacks for `model.fit`."""

from mtlzoo.callbacks.mask_density import MaskDensity
from mtlzoo.callbacks.throughput import Throughput

__all__ = ["MaskDensity", "Throughput"]
