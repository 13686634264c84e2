"""Layers: tensors in, tensors out. They know nothing of schemas and tasks."""

from __future__ import annotations

from mtlzoo.layers.embedding import EmbeddingTable
from mtlzoo.layers.experts import StackedExperts
from mtlzoo.layers.gate import SoftmaxGate
from mtlzoo.layers.masked_dense import MaskedDense
from mtlzoo.layers.mlp import MLP
from mtlzoo.layers.pairwise_dots import PairwiseDots
from mtlzoo.layers.pooling import WeightedPooling
from mtlzoo.layers.probability import ConditionalLogit, JointLogit, Probability

__all__ = [
    "MLP",
    "ConditionalLogit",
    "EmbeddingTable",
    "JointLogit",
    "MaskedDense",
    "PairwiseDots",
    "Probability",
    "SoftmaxGate",
    "StackedExperts",
    "WeightedPooling",
]
