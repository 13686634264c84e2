"""What a trained model learned to share: figures, numbers, and a report of a run."""

from mtlzoo.inspection.fields import field_sharing, input_columns, input_fields
from mtlzoo.inspection.mask_sections import numbers
from mtlzoo.inspection.report import write_report
from mtlzoo.inspection.sharing import Overlap, Sharing, sharing, total

__all__ = [
    "Overlap",
    "Sharing",
    "field_sharing",
    "input_columns",
    "input_fields",
    "numbers",
    "sharing",
    "total",
    "write_report",
]
