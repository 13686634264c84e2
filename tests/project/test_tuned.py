"""benchmarks/tuned.py: what it keeps, what it does not do again, and its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import tuned

from mtlzoo.models import MODELS
from mtlzoo.models.search_space import Choice


@pytest.fixture
def tiny(monkeypatch):
    """SharedBottom with nothing but a width to search: a trial takes seconds."""
    monkeypatch.setattr(MODELS["shared_bottom"], "SEARCH_SPACE", {"embedding_dim": Choice((2, 4))})


def test_a_search_and_its_runs_are_kept_and_not_done_again(dataset, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuned, "RESULTS", tmp_path / "results")
    words = ["name", "--data", str(dataset.folder), "--models", "shared_bottom", "--epochs", "1", "--trials", "2"]
    assert tuned.main([*words, "--seeds", "1", "--work", str(tmp_path / "work")]) == 0
    path = tmp_path / "results" / "tuned_name.json"
    kept = json.loads(path.read_text())
    search = kept.pop("search shared_bottom")
    first, second = search["trials"]
    assert search["objective"] == "0.5*click.auc + 0.5*ctcvr.auc"
    assert (first["values"]["batch_size"], first["values"]["learning_rate"]) == (1024, 0.001)  # the defaults
    assert search["chosen"] == max((first, second), key=lambda trial: trial["value"])["values"]
    configs = dict(key.split(maxsplit=1) for key in kept)
    assert sorted(configs) == ["before", "defaults", "searched"]
    before, chosen, defaults = (json.loads(configs[variant]) for variant in tuned.VARIANTS)
    assert (before["batch_size"], before["ema_momentum"]) == (4096, None)
    assert (defaults["batch_size"], defaults["ema_momentum"]) == (1024, "auto")
    assert chosen.get("learning_rate", 0.001) == search["chosen"]["learning_rate"]
    assert chosen["seed"] == 101
    capsys.readouterr()

    def unexpected(*args):
        raise AssertionError("done again")

    monkeypatch.setattr(tuned, "run_once", unexpected)
    monkeypatch.setattr(tuned.Search, "run", unexpected)
    assert tuned.main([*words, "--seeds", "1", "--work", str(tmp_path / "elsewhere")]) == 0
    shown = capsys.readouterr().out
    assert all(f"shared_bottom, {variant}" in shown for variant in tuned.VARIANTS)
    assert f"{kept[next(key for key in kept if key.startswith('defaults'))]['tasks']['click']['auc']:.4f}" in shown
