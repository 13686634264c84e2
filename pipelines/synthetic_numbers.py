"""Numbers that are the same on every machine: random streams by key, Zipf shares, and effects on a grid."""

from __future__ import annotations

import zlib

import numpy as np

_GRID = 2.0**16


def random_stream(seed: int, *key: int | str) -> np.random.Generator:
    """A generator of its own for every key, so that no draw depends on how many others there are."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=words))


def zipf_cdf(size: int, exponent: float) -> np.ndarray:
    """Cumulative shares of ranks 1 ... size, share(r) proportional to r**-exponent; float64 `[size]`, ends in 1."""
    cumulative = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -exponent)
    return cumulative / cumulative[-1]


def on_grid(values: np.ndarray | float, scale: float = 1.0) -> np.ndarray:
    """`scale * values` rounded to multiples of 2**-16, float64; below 256 float32 holds them and their sums exactly."""
    return np.round(values * (scale * _GRID)) / _GRID
