"""`mtlzoo train --profile`: what it shows and keeps, and that the training ends as without it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from mtlzoo.cli.app import app
from mtlzoo.cli.profile import PART_HEADINGS, advise
from mtlzoo.training import open_run, profile
from mtlzoo.training.profile import PARTS, StepProfile

SMALL = ["--set", "bottom_units=16", "--set", "tower_units=8", "--set", "embedding_dim=4", "--batch-size", "512"]


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """The same training with and without, and what the first printed."""
    folder = tmp_path_factory.mktemp("profiled")
    shown = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "_SECONDS", 0.3)
        patch.setattr(profile, "_SECONDS_OF_INPUT", 0.3)
        for name, options in {"profiled": ["--profile"], "plain": []}.items():
            words = ["train", "shared_bottom", "--data", str(dataset.folder), "--out", str(folder / name)]
            result = CliRunner().invoke(app, [*words, "--epochs", "1", *SMALL, *options], catch_exceptions=False)
            assert result.exit_code == 0, result.output
            shown[name] = result.output
    return folder, shown


def test_the_training_ends_with_the_same_weights(runs):
    folder, _ = runs
    profiled, plain = (open_run(folder / name) for name in ("profiled", "plain"))
    pairs = zip(profiled.model().get_weights(), plain.model().get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert profiled.metrics == plain.metrics
    losses = [[epoch["loss"] for epoch in run.history] for run in (profiled, plain)]
    assert losses[0] == losses[1]


def test_the_report_is_kept(runs):
    folder, _ = runs
    report = json.loads((folder / "profiled" / "profile.json").read_text())
    assert report["model"] == "shared_bottom"
    assert report["batch_size"] == 512
    assert tuple(report["parts"]) == PARTS
    assert sum(part["share"] for part in report["parts"].values()) == pytest.approx(1.0)
    assert report["advice"].startswith("largest part: ")
    assert not (folder / "plain" / "profile.json").exists()


def test_the_table_stands_before_the_first_epoch(runs):
    _, shown = runs
    assert shown["profiled"].index("waiting for input") < shown["profiled"].index("epoch 1:")
    assert "impressions/s now; the input alone delivers" in shown["profiled"]
    assert "waiting for input" not in shown["plain"]


def mostly(part: str) -> StepProfile:
    return StepProfile(3, 1.0, 1.0, {other: 0.7 if other == part else 0.05 for other in PARTS})


@pytest.mark.parametrize("part", PARTS)
def test_there_is_advice_for_every_part(dataset, part):
    advice = advise(mostly(part), dataset)
    assert advice.startswith(f"largest part: {PART_HEADINGS[part].replace(':', ',')} (70%); ")


def test_advice_about_input_looks_at_the_dataset(dataset, rows_dataset):
    assert "--layout blocks" in advise(mostly("input"), rows_dataset)
    assert "--set without=NAME" in advise(mostly("input"), dataset)
