"""Callbacks for `model.fit`."""

from mtlzoo.callbacks.throughput import Throughput

__all__ = ["Throughput"]
