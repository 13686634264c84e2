"""What is built: the data, the settings of training, the models."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlzoo.models import arguments_of
from mtlzoo.training import RunConfig

MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class Recipe:
    """A model of the zoo.

    Attributes:
        model: Its name in `mtlzoo.models.MODELS`.
        arguments: What differs from its defaults.
        why: Why they do, for the model card.
    """

    model: str
    arguments: dict[str, Any]
    why: str


# Half the default widths, where that is enough for a directory of 5 MB.
RECIPES = {
    "dcrnn-small": Recipe("dcrnn", {"units": 192, "tower_units": [64, 32]}, "half the default widths"),
    "dtn-small": Recipe(
        "dtn",
        {
            "embedding_dim": 8,
            "interaction_units": 32,
            "interaction_settings": {
                "masknet": {"mask_units": 48, "block_units": 64},
                "memonet": {"codebook_rows": 2000},
            },
        },
        "embeddings half as wide as by default, modules half as wide, codebooks of 2,000 rows instead of 100,000",
    ),
    "mmoe-small": Recipe("mmoe", {"expert_units": [128, 64]}, "half the default widths of the experts"),
    "ncs4cvr-small": Recipe("ncs4cvr", {"trunk_units": [256, 128, 64]}, "half the default widths"),
}


@dataclass(frozen=True)
class Plan:
    """Everything that decides what the models become.

    Attributes:
        rows: Impressions of the synthetic log, preset `small`.
        seed: Seed of its world. Nothing was tuned on the world of the default.
        sample_rows: The first impressions of the log, on whose test rows a quick check evaluates.
        training: Of `RunConfig`, the same for all models.
        recipes: The models by name.
        score: What the export ranks by.
        top_k: How many candidates its `ranking_top_k` gives.
    """

    rows: int = 1_000_000
    seed: int = 2026
    sample_rows: int = 65_536
    training: dict[str, Any] = field(
        default_factory=lambda: {
            "epochs": 6,
            "batch_size": 1024,
            "patience": 1,
            "monitor": "loss",
            "seed": 1,
        }
    )
    recipes: dict[str, Recipe] = field(default_factory=lambda: dict(RECIPES))
    score: str = "ctcvr * bid"
    top_k: int = 10

    def config(self, name: str, data: Path) -> RunConfig:
        """The training run of a model; all arguments stand in it, so that a changed default makes another run."""
        recipe = self.recipes[name]
        defaults = {key: value for key, value in arguments_of(recipe.model).items() if key not in ("name", "dtype")}
        return RunConfig(
            model=recipe.model, arguments={**defaults, **recipe.arguments}, data=str(data), **self.training
        )

    def description(self) -> dict[str, Any]:
        """The plan as plain data, with the versions that it runs on: work on another one cannot be gone on with."""
        return {
            "data": {"rows": self.rows, "seed": self.seed, "sample_rows": self.sample_rows},
            "models": {name: self.config(name, Path()).model_dump(mode="json") for name in self.recipes},
            "export": {"score": self.score, "top_k": self.top_k},
            "versions": {p: importlib.metadata.version(p) for p in ("mtlzoo", "keras", "tensorflow", "numpy")},
        }
