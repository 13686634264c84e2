"""Export of trained models as SavedModels for TF Serving."""

from mtlzoo.serving.saved_model import export
from mtlzoo.serving.request import request_of

__all__ = ["export", "request_of"]
