"""What a trained model learned: which features its tasks need, what they share; figures, numbers, a report of a run."""

from mtlzoo.inspection.divergence import Divergence, divergences
from mtlzoo.inspection.fields import field_sharing, input_columns, input_fields
from mtlzoo.inspection.gates import GateWeights, has_gates, mean_gate_weights
from mtlzoo.inspection.importance import (
    MEASURE_NAMES,
    FeatureImportance,
    Importance,
    TaskImportance,
    checked_measure,
    permutation_importance,
)
from mtlzoo.inspection.importance_sections import features_by_share, importance_numbers
from mtlzoo.inspection.mask_sections import numbers
from mtlzoo.inspection.report import checked_path, write_report
from mtlzoo.inspection.sharing import Overlap, Sharing, sharing, total
from mtlzoo.inspection.updates import StepGate, UpdateGates, has_update_gates, mean_update_gates

__all__ = [
    "MEASURE_NAMES",
    "Divergence",
    "FeatureImportance",
    "GateWeights",
    "Importance",
    "Overlap",
    "Sharing",
    "StepGate",
    "TaskImportance",
    "UpdateGates",
    "checked_measure",
    "checked_path",
    "divergences",
    "features_by_share",
    "field_sharing",
    "has_gates",
    "has_update_gates",
    "importance_numbers",
    "input_columns",
    "input_fields",
    "mean_gate_weights",
    "mean_update_gates",
    "numbers",
    "permutation_importance",
    "sharing",
    "total",
    "write_report",
]
