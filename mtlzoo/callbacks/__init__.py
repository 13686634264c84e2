"""Callbacks for `model.fit`."""

from mtlzoo.callbacks.averaged_weights import AveragedWeights
from mtlzoo.callbacks.mask_density import MaskDensity
from mtlzoo.callbacks.throughput import Throughput

__all__ = ["AveragedWeights", "MaskDensity", "Throughput"]
