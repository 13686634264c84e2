"""Layers: tensors in, tensors out. They know nothing of schemas and tasks."""

from __future__ import annotations

from mtlzoo.layers.dropout import Dropout
from mtlzoo.layers.embedding import EmbeddingTable
from mtlzoo.layers.experts import StackedExperts
from mtlzoo.layers.extraction import ExtractionLevel
from mtlzoo.layers.feature_filter import FeatureFilter
from mtlzoo.layers.feature_scale import FeatureScale
from mtlzoo.layers.gate import SoftmaxGate
from mtlzoo.layers.gated_cross import GatedCross, GatedCrossNetwork
from mtlzoo.layers.hash_codebook import HashCodebook
from mtlzoo.layers.information_transfer import InformationTransfer
from mtlzoo.layers.mask_net import MaskBlock, MaskNet
from mtlzoo.layers.masked_dense import MaskedDense
from mtlzoo.layers.mlp import MLP
from mtlzoo.layers.numeric_embedding import PeriodicEmbedding, PiecewiseLinearEmbedding
from mtlzoo.layers.pairwise_dots import PairwiseDots
from mtlzoo.layers.pooling import WeightedPooling
from mtlzoo.layers.probability import ConditionalLogit, JointLogit, Probability
from mtlzoo.layers.quantized_embedding import QuantizedEmbedding
from mtlzoo.layers.recurrent_cross import RecurrentCross
from mtlzoo.layers.set_gates import InputGates, ModuleGate
from mtlzoo.layers.task_sensitive_gate import TaskSensitiveGate

__all__ = [
    "MLP",
    "ConditionalLogit",
    "Dropout",
    "EmbeddingTable",
    "ExtractionLevel",
    "FeatureFilter",
    "FeatureScale",
    "GatedCross",
    "GatedCrossNetwork",
    "HashCodebook",
    "InformationTransfer",
    "InputGates",
    "JointLogit",
    "MaskBlock",
    "MaskNet",
    "MaskedDense",
    "ModuleGate",
    "PairwiseDots",
    "PeriodicEmbedding",
    "PiecewiseLinearEmbedding",
    "Probability",
    "QuantizedEmbedding",
    "RecurrentCross",
    "SoftmaxGate",
    "StackedExperts",
    "TaskSensitiveGate",
    "WeightedPooling",
]
