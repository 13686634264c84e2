"""A model zoo for multi-task click and conversion ranking in Keras 3 on TensorFlow.

Modules: `models`, `layers`, `losses`, `metrics`, `optimizers`, `callbacks`, `training`, `inspection`, `scoring`,
`serving`, `tasks`, `tuning`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "callbacks",
    "inspection",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "scoring",
    "serving",
    "tasks",
    "training",
    "tuning",
)

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Imports a module of the package at its first use, so that `import mtlzoo` alone stays quick."""
    if name in _MODULES:
        return importlib.import_module(f"mtlzoo.{name}")
    raise AttributeError(f"module 'mtlzoo' has no attribute {name!r}; it has {', '.join(__all__)}")
