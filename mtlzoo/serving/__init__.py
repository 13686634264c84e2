"""Export of trained models as SavedModels for TF Serving."""

from mtlzoo.serving.request import request_of
from mtlzoo.serving.saved_model import export

__all__ = ["export", "request_of"]
