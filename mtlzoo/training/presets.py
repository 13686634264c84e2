"""Named sets of settings, for a model as a paper has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings that differ from the defaults.

    Attributes:
        arguments: Of the model's class.
        training: Of `RunConfig`.
    """

    arguments: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)


# Widths, initializer, losses, their weights, rates, rounds and alternation: the released code of arXiv 2008.09872.
_NCS4CVR_PAPER = Preset(
    arguments={
        "trunk_units": [512, 256, 128],
        "pairwise_dots": True,
        "mask": "lottery",
        "losses": "paper",
        "kernel_initializer": "glorot_normal",
        "embedding_dim": 16,
        "dropout": 0.0,
        "label_space": "cvr_clicked",
    },
    training={
        "learning_rate": 1e-4,
        "batch_size": 4096,
        "ema_momentum": None,
        "alternate": True,
        "lottery": {"rounds": 4, "final_density": 0.2, "epochs": 1, "scope": "global"},
    },
)

# The released code of arXiv 2408.11611. Its conversion is ctcvr over all impressions, on a head of its own.
_DTN_PAPER = Preset(
    arguments={
        "interactions": ["masknet", "memonet", "gdcn"],
        "interaction_units": 256,
        "fusion": "sum",
        "gate_input": "modules",
        "input_scale": True,
        "tower_units": [128, 64],
        "pos_weight": [200.0, 3000.0],
        "embedding_dim": 64,
        "dropout": 0.0,
        "label_space": "ctcvr",
    },
    training={"learning_rate": 1e-4, "batch_size": 1024, "epochs": 10, "ema_momentum": None},
)

# No settings of DCRNN (arXiv 2310.11777) are known. These are those that its authors' code of FDN has for Ali-CCP: its
# expert widths stand for the towers'; regularizers and dropout are declared there and never used.
_DCRNN_SISTER = Preset(
    arguments={
        "tower_units": [128, 64],
        "pos_weight": [200.0, 3000.0],
        "embedding_dim": 16,
        "dropout": 0.0,
        "label_space": "ctcvr",
    },
    training={"learning_rate": 1e-4, "batch_size": 1024, "epochs": 10, "ema_momentum": None},
)

PRESETS: dict[str, dict[str, Preset]] = {
    "ncs4cvr": {"paper": _NCS4CVR_PAPER},
    "dtn": {"paper": _DTN_PAPER},
    "dcrnn": {"default": Preset(arguments={}), "authors_sister_code": _DCRNN_SISTER},
}


def preset_of(model: str, name: str) -> Preset:
    """A preset of a model.

    Raises:
        ValueError: The model has no such preset; the message lists those that it has.

    Example:
        >>> preset_of("ncs4cvr", "paper").training["alternate"]
        True
    """
    known = PRESETS.get(model, {})
    if name not in known:
        raise ValueError(f"{model} has no preset {name!r}; it has {', '.join(known) or 'none'}")
    return known[name]
