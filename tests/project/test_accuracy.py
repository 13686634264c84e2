"""The seeds of a table are those asked for, and none is run twice."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import accuracy


def test_seeds_count_from_the_first_and_none_is_run_twice(tmp_path, monkeypatch):
    ran = []

    def run(config):
        ran.append((config.seed, config.arguments["interactions"], config.ema_momentum, config.batch_size))
        return {"tasks": {"click": {"auc": 0.5 + config.seed / 1000}}, "best_epoch": 1, "impressions_per_second": 1.0}

    monkeypatch.setattr(accuracy, "RESULTS", tmp_path)
    monkeypatch.setattr(accuracy, "run_once", run)
    words = ["accuracy.py", "tiny", "--data", "data", "--models", "dtn", "--batch-size", "1024"]
    settings = ["--set", "interactions=masknet,gdcn", "ema_momentum=auto"]
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "2", "--first-seed", "101", *settings])
    accuracy.main()
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "3", "--first-seed", "101", *settings])
    accuracy.main()
    assert [seed for seed, *_ in ran] == [101, 102, 103]
    for _, *settings in ran:
        assert settings == [["masknet", "gdcn"], "auto", 1024]
