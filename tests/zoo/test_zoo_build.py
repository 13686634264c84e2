"""Building the zoo: a tiny one for real; going on after an interruption, and what is said of old and new metrics."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from mtlzoo.models import create, load
from mtlzoo.serving.model_card import read_model_card
from mtlzoo.zoo import __main__ as command
from mtlzoo.zoo import build as building
from mtlzoo.zoo.build import build
from mtlzoo.zoo.compare import TOLERANCES, comparison_table, differences, verdict
from mtlzoo.zoo.keras_file import write_keras_file
from mtlzoo.zoo.plan import Plan, Recipe
from pipelines import DataError

TINY = Plan(
    rows=40_000,
    sample_rows=4_000,
    training={"epochs": 1, "batch_size": 2048, "patience": 1, "monitor": "loss", "seed": 1},
    recipes={"tiny": Recipe("shared_bottom", {"bottom_units": [8], "tower_units": [4], "embedding_dim": 2}, "tiny")},
)


def evaluation(click=0.7, conversion=0.6, **changes) -> dict:
    plain = {"log_loss": 0.2, "calibration": 1.0}
    tasks = {"click": {"auc": click, **plain}, "conversion": {"auc": conversion, **plain}}
    tasks["click"] |= changes
    return {"tasks": tasks}


def test_a_tiny_zoo_is_built_for_real(tmp_path):
    lines = []
    results = build(TINY, ["tiny"], tmp_path / "models", tmp_path / "work", lines.append)
    assert not (tmp_path / "work").exists()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]
    folder = tmp_path / "models/tiny"
    assert {path.name for path in folder.iterdir()} == {"1", "README.md", "dataset", "model.keras"}
    metrics = read_model_card(folder / "1")["metrics"]
    assert results == {"tiny": (None, metrics["test"])}
    assert metrics["test"]["split"] == "test"
    assert metrics["best_epoch"] == metrics["trained_epochs"] == 1
    assert load("tiny", folder=tmp_path / "models").compiled
    page = (folder / "README.md").read_text()
    assert "`bottom_units=8`, `tower_units=4`, `embedding_dim=2`: tiny." in page
    assert "--set 'bottom_units=8'" in page
    assert "{" not in page.split("## Load")[0]


@pytest.fixture
def steps(monkeypatch):
    """A build whose parts are quick; the list of what was trained."""
    trained_names = []

    def stage(plan, name, run, dataset, sample, best, staged):
        extra = staged / "1/assets.extra"
        extra.mkdir(parents=True)
        card = {"metrics": {"test": evaluation(0.7 + len(trained_names) / 100)}}
        (extra / "model_card.json").write_text(json.dumps(card))

    monkeypatch.setattr(building, "_datasets", lambda plan, work, say: (None, None))
    monkeypatch.setattr(building, "best_auc_of_split", lambda raw, split: {})
    monkeypatch.setattr(building, "_trained", lambda plan, name, work, say: trained_names.append(name))
    monkeypatch.setattr(building, "_stage", stage)
    return trained_names


def test_an_interrupted_build_goes_on_behind_the_last_finished_model(steps, tmp_path, monkeypatch):
    out, work = tmp_path / "models", tmp_path / "work"
    names = ["dtn-small", "mmoe-small", "dcrnn-small"]
    first = build(Plan(), names, out, work, print)
    assert [old for old, _ in first.values()] == [None, None, None]

    def interrupted(plan, name, work, say):
        if name == "dcrnn-small":
            raise KeyboardInterrupt
        steps.append(name)

    with monkeypatch.context() as patched:
        patched.setattr(building, "_trained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(Plan(), names, out, work, print)
    assert work.is_dir()
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == sorted(names)
    del steps[3:]
    second = build(Plan(), names, out, work, print)
    assert steps[3:] == ["dcrnn-small"], "the two finished ones are not trained again"
    assert {name: old for name, (old, _) in second.items()} == {name: new for name, (_, new) in first.items()}
    assert not work.exists()
    assert sorted(path.name for path in out.iterdir()) == sorted(names)


def test_work_on_another_plan_is_begun_anew(steps, tmp_path):
    out, work = tmp_path / "models", tmp_path / "work"
    building._open_work(work, Plan())
    (work / "dtn-small.json").write_text(json.dumps({"old": None, "new": evaluation()}))
    building._open_work(work, Plan())
    assert (work / "dtn-small.json").exists()
    build(replace(Plan(), rows=10), ["dtn-small"], out, work, print)
    assert steps == ["dtn-small"]


def test_what_is_no_work_of_this_program_stays(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(DataError, match="is no work of this program"):
        build(Plan(), ["dtn-small"], tmp_path / "models", tmp_path, print)
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(DataError, match=r"no model 'dtn' in the zoo \(known: dcrnn-small, dtn-small"):
        build(Plan(), ["dtn"], tmp_path / "models", tmp_path / "work", print)


def test_changed_defaults_make_another_plan(monkeypatch):
    before = Plan().description()
    monkeypatch.setattr(
        "mtlzoo.zoo.plan.arguments_of", lambda model: {"embedding_dim": 99, "name": model, "dtype": None}
    )
    assert Plan().description() != before


def test_metrics_are_identical_the_same_or_different():
    old = evaluation()
    assert verdict(None, old) == "new"
    assert verdict(old, evaluation()) == "identical"
    assert verdict(old, evaluation(click=0.7 + 0.9 * TOLERANCES["auc"]["click"])) == "same"
    assert verdict(old, evaluation(click=0.7 - 1.1 * TOLERANCES["auc"]["click"])) == "different"
    assert verdict(old, evaluation(click=None)) == "different"
    assert verdict(evaluation(click=None), evaluation(click=None)) == "identical"
    assert verdict(old, evaluation(log_loss=0.2 * (1 + 1.1 * TOLERANCES["log_loss"]["click"]))) == "different"
    assert verdict({"tasks": {}}, old) == "different"
    off = differences(old, evaluation(conversion=0.6 + TOLERANCES["auc"]["conversion"]))
    assert off["auc"]["conversion"] == pytest.approx(1.0)
    assert off["auc"]["click"] == 0.0
    assert comparison_table({"a": (None, old), "b": (old, evaluation(click=0.5))}).row_count == 6


@pytest.fixture
def run_command(monkeypatch):
    """The command; pytest's own handlers of signals come back behind it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(command, "_interrupted", False)
    yield command.main
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("click", "code", "said"), [(0.7, 0, "to the last digit"), (0.5, 1, "DIFFERENT: dtn-small")])
def test_the_command_fails_where_a_metric_is_off(click, code, said, run_command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(building, "build", lambda *given: {"dtn-small": (evaluation(), evaluation(click))})
    assert run_command(["--only", "dtn-small", "--work", str(tmp_path)]) == code
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_an_error_is_a_message_and_an_interruption_says_how_to_go_on(run_command, tmp_path, monkeypatch, capsys):
    assert run_command(["--only", "x", "--work", str(tmp_path / "work")]) == 1
    assert "error: there is no model 'x' in the zoo" in capsys.readouterr().err
    monkeypatch.setattr(building, "build", lambda *given: signal.raise_signal(signal.SIGTERM))
    assert run_command(["--work", str(tmp_path)]) == command.INTERRUPTED
    assert "the same command goes on from there" in capsys.readouterr().err


def test_a_keras_file_holds_the_weights_and_no_moments(dataset, tmp_path):
    model = create("mmoe", dataset.schema, embedding_dim=4)
    model.compile(run_eagerly=True)
    model.fit(dataset.read("train", 512).take(1), verbose=0)
    model.save(tmp_path / "whole.keras")
    write_keras_file(model, tmp_path / "model.keras")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "whole.keras"]
    assert (tmp_path / "model.keras").stat().st_size < 0.5 * (tmp_path / "whole.keras").stat().st_size
    loaded = load(tmp_path)
    for found, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
