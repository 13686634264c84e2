"""The models of the zoo, by class and by lower-case name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from mtlzoo.models.base import MultiTaskModel
from mtlzoo.models.dcrnn import DCRNN
from mtlzoo.models.dtn import DTN
from mtlzoo.models.mmoe import MMoE
from mtlzoo.models.ncs4cvr import NCS4CVR
from mtlzoo.models.ple import PLE
from mtlzoo.models.pretrained import load
from mtlzoo.models.shared_bottom import SharedBottom
from mtlzoo.models.single_task import SingleTask
from pipelines.schema import Schema

MODELS: dict[str, type[MultiTaskModel]] = {
    "single_task": SingleTask,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
    "ncs4cvr": NCS4CVR,
    "dtn": DTN,
    "dcrnn": DCRNN,
}

__all__ = [
    "DCRNN",
    "DTN",
    "MODELS",
    "NCS4CVR",
    "PLE",
    "MMoE",
    "MultiTaskModel",
    "SharedBottom",
    "SingleTask",
    "arguments_of",
    "create",
    "load",
]


def create(name: str, schema: Schema, **arguments: Any) -> MultiTaskModel:
    """Builds a model by name.

    Args:
        name: A key of `MODELS`.
        schema: Fitted schema.
        **arguments: Arguments of the model's class.

    Raises:
        ValueError: Unknown model or argument; the message lists the known ones.

    Example:
        >>> model = create("mmoe", dataset.schema, num_experts=4)
    """
    known = arguments_of(name)
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"{name} has no argument {argument!r}{_closest(argument, known)}")
    return MODELS[name](schema, **arguments)


def arguments_of(name: str) -> dict[str, Any]:
    """The arguments of a model with their defaults, `schema` aside.

    Raises:
        ValueError: Unknown model.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}{_closest(name, MODELS)}")
    parameters = inspect.signature(MODELS[name].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("self", "schema")}


def _closest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known)})"
