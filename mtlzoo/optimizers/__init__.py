"""Optimizers whose step costs the same at any size of an embedding table."""

from __future__ import annotations

from mtlzoo.optimizers.lazy_adam import LazyAdam
from mtlzoo.optimizers.loss_scale import RowSparseLossScaleOptimizer
from mtlzoo.optimizers.row_sparse_adagrad import RowSparseAdagrad

__all__ = ["LazyAdam", "RowSparseAdagrad", "RowSparseLossScaleOptimizer"]
