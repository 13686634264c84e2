"""Searches in a directory: pruning, failing trials, going on, other searches' directories, memory, reports."""

from __future__ import annotations

import ctypes
import gc
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from mtlzoo.models import SharedBottom
from mtlzoo.models.search_space import Choice
from mtlzoo.training import train
from mtlzoo.tuning import Search, SearchConfig, ZooHyperModel, hypermodel, open_search
from mtlzoo.tuning.importance import hyperparameter_importance
from mtlzoo.tuning.records import TrialRecord
from mtlzoo.tuning.report import write_search_report
from pipelines import DataError

SMALL = {"tower_units": [4], "embedding_dim": 4}
HUGE = 2**45  # no machine has room for so wide a layer


def config(dataset, **changes) -> SearchConfig:
    settings = {
        "model": "shared_bottom",
        "data": str(dataset.folder),
        "fixed": {**SMALL, "bottom_units": [8]},
        "search": ("learning_rate", "dropout"),
        "epochs": 1,
        "batch_size": 2048,
        "algorithm": "random",
    }
    return SearchConfig(**{**settings, **changes})


def with_space(search: Search, fixed: dict, **space: Choice) -> Search:
    search.hypermodel = ZooHyperModel("shared_bottom", search.dataset.schema, space, fixed, ["auc"])
    return search


@pytest.fixture(scope="module")
def searched(dataset, tmp_path_factory) -> Search:
    """Three trials for a Pareto front."""
    wanted = config(dataset, objective="click.auc, ctcvr.auc", algorithm="bayesian")
    search = Search(wanted, tmp_path_factory.mktemp("searches") / "front")
    search.run(trials=3)
    return search


def test_every_trial_leaves_a_record_of_the_validation_split(searched, dataset):
    records = searched.records.all()
    assert [record.number for record in records] == [1, 2, 3]
    assert len({json.dumps(record.values) for record in records}) == 3
    for record in records:
        assert record.status == "finished"
        assert record.evaluation["click"]["rows"] == dataset.rows("valid")
        assert record.evaluation["click"]["gauc"] is not None
        assert record.seconds > 0


def test_the_front_is_that_of_the_finished_trials(searched):
    points = {r.number: (r.evaluation["click"]["auc"], r.evaluation["ctcvr"]["auc"]) for r in searched.records.all()}
    beaten = {
        number
        for number, (a, b) in points.items()
        for c, d in points.values()
        if c >= a and d >= b and (c, d) != (a, b)
    }
    assert {record.number for record in searched.front()} == set(points) - beaten
    assert searched.winner().number in set(points) - beaten


def test_what_cannot_be_searched_is_refused(searched):
    assert "hyperband needs one objective" in refused(config_of(searched, algorithm="hyperband"), searched)
    with searched.exclusive(), pytest.raises(DataError, match="another process is searching there"):
        open_search(searched.folder).exclusive().__enter__()


def config_of(made: Search, **changes) -> SearchConfig:
    return made.config.model_copy(update=changes)


def refused(changed: SearchConfig, search: Search) -> str:
    with pytest.raises(ValueError) as error:
        Search(changed, search.folder.with_name("other")).run(trials=1)
    return str(error.value)


def test_a_search_goes_on_where_it_ended(searched, dataset):
    before = {path.name: path.read_bytes() for path in (searched.folder / "trials").glob("*.json")}
    again = open_search(searched.folder)
    again.run(trials=4)
    after = {path.name: path.read_bytes() for path in (searched.folder / "trials").glob("*.json")}
    assert len(after) == 4
    assert {name: after[name] for name in before} == before
    assert len({json.dumps(record.values) for record in again.records.all()}) == 4
    again.run(trials=9, max_minutes=0.0)
    assert len(again.records.all()) == 4


def test_another_searchs_directory_is_refused(searched, dataset, rows_dataset, tmp_path):
    for changed, difference in [
        ({"model": "mmoe", "fixed": {}, "search": ("num_experts",)}, "model is 'shared_bottom' there and 'mmoe' here"),
        ({"objective": "click.auc"}, "objective is 'click.auc, ctcvr.auc' there and 'click.auc' here"),
        ({"fixed": {**searched.config.fixed, "without": ["city"]}}, "schema is '"),
    ]:
        with pytest.raises(DataError, match="is the directory of another search") as error:
            Search(config_of(searched, **changed), searched.folder)
        assert difference in str(error.value)
        assert "None there" not in str(error.value)
    (tmp_path / "letter.txt").write_text("not a search")
    with pytest.raises(DataError, match="is no search directory; choose another one, nothing there was touched"):
        Search(searched.config, tmp_path)
    # The same dataset at another place is the same search.
    moved = Search(config_of(searched, data=str(rows_dataset.folder)), searched.folder)
    assert open_search(searched.folder).config.data == str(rows_dataset.folder)
    assert moved.winner() == searched.winner()
    Search(searched.config, searched.folder)


def test_a_directory_begun_with_other_values_is_refused(searched, monkeypatch):
    changed = {**SharedBottom.SEARCH_SPACE, "dropout": Choice((0.0, 0.7))}
    monkeypatch.setattr(SharedBottom, "SEARCH_SPACE", changed)
    with pytest.raises(DataError, match="values of dropout is '0, 0.1, .*' there and '0, 0.7' here"):
        open_search(searched.folder)


def test_the_report_shows_settings_trials_and_figures(searched):
    path = write_search_report(searched, searched.folder / "report.html")
    html = path.read_text()
    for title in (
        "What was searched",
        "Trials",
        "History",
        "Pareto front",
        "Parallel coordinates",
        "What mattered for",
    ):
        assert f"<h2>{title}" in html
    assert html.count("data:image/svg+xml") == 3
    assert f"Trial {searched.winner().number} is the one to train" in html
    assert "http" not in html.replace("http://www.w3.org", "")


def test_failing_trials_have_a_reason_and_the_search_goes_on(dataset, tmp_path):
    search = Search(config(dataset), tmp_path / "out")
    search = with_space(search, SMALL, bottom_units=Choice(((8,), (HUGE,), (-1,))))
    search.run(trials=3)
    by_width = {record.values["bottom_units"][0]: record for record in search.records.all()}
    assert {width: record.status for width, record in by_width.items()} == {8: "finished", HUGE: "failed", -1: "failed"}
    assert by_width[HUGE].reason.startswith("out of memory: ")
    assert by_width[-1].reason.startswith("ValueError: ")
    assert search.winner() == by_width[8]
    assert "1 x out of memory" in search.failures()
    assert "out of memory" in write_search_report(search, search.folder / "report.html").read_text()


def test_a_loss_that_is_no_number_fails_the_trial(dataset, tmp_path):
    fast = {**SMALL, "bottom_units": [8], "learning_rate": 1e30}
    search = Search(config(dataset, fixed=fast, search=("dropout",)), tmp_path / "out")
    search.run(trials=1)
    with pytest.raises(ValueError, match="no trial has a result: 1 x the training loss became nan in epoch 1"):
        search.winner()


def test_a_search_without_any_result_ends_early_and_says_why(dataset, tmp_path):
    search = Search(config(dataset), tmp_path / "out")
    search = with_space(search, SMALL, bottom_units=Choice(tuple((-width,) for width in range(1, 10))))
    search.run(trials=9)
    assert [record.status for record in search.records.all()] == ["failed"] * 5
    with pytest.raises(ValueError, match="no trial has a result: 1 x ValueError: "):
        search.winner()


def test_a_hopeless_trial_is_pruned_and_keeps_its_value(dataset, tmp_path):
    search = Search(config(dataset, epochs=3), tmp_path / "out")
    for number in range(11, 16):
        done = {"values": {}, "status": "finished", "curve": [0.99, 0.99, 0.99], "value": 0.99}
        search.records.write(TrialRecord(number=number, **done))
    search.run(trials=1)
    record = search.records.find(1)
    assert (record.status, len(record.curve), record.best_epoch) == ("pruned", 1, 1)
    assert record.value == record.curve[0] == record.evaluation["ctcvr"]["auc"]
    assert record.reason == "worse after epoch 1 than the median of the others, 0.9900"
    state = json.loads((search.folder / "state.json").read_text())
    assert state["trials"]["0"]["status"] == "COMPLETED"
    assert state["trials"]["0"]["score"] == pytest.approx(record.value)


def test_a_search_begins_with_the_defaults(searched):
    first = searched.records.find(1)
    assert first.values == {"learning_rate": 0.001, "dropout": 0.1}
    state = json.loads((searched.folder / "state.json").read_text())
    assert state["trials"]["0"]["hyperparameters"]["values"] == {"learning_rate": 0.001, "dropout": "0.1"}


def test_a_trial_that_gets_no_better_ends_as_a_training_would(dataset, tmp_path):
    settled = {**SMALL, "bottom_units": [8], "learning_rate": 1e-30, "patience": 3}
    search = Search(config(dataset, epochs=9, fixed=settled, search=("dropout",)), tmp_path / "out")
    search.run(trials=1)
    record = search.records.find(1)
    assert (record.status, record.best_epoch, len(record.curve)) == ("finished", 1, 4)
    assert set(record.curve) == {record.value}


def test_an_interrupted_trial_is_run_again_and_one_that_kills_its_process_is_not(dataset, tmp_path):
    class CtrlC(BaseException):
        pass

    search = Search(config(dataset), tmp_path / "out")
    fit = keras.Model.fit
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(*args, **kwargs):
            fit(*args, **kwargs)
            raise CtrlC

        patch.setattr(keras.Model, "fit", interrupted)
        with pytest.raises(CtrlC):
            search.run(trials=2)
    halted = search.records.find(1)
    assert (halted.status, halted.begun) == ("interrupted", 0)
    # What two kills would have left of it.
    search.records.write(halted.model_copy(update={"status": "running", "begun": 2}))
    search.run(trials=2)
    first, second = search.records.all()
    assert (first.status, first.values) == ("failed", halted.values)
    assert first.reason == "its process was killed 2 times; out of memory?"
    assert second.status == "finished"


def test_hyperband_trains_its_best_longer(dataset, tmp_path):
    search = Search(config(dataset, algorithm="hyperband", epochs=3), tmp_path / "out")
    search.run(trials=4)
    records = search.records.all()
    short = [record for record in records if record.epochs == 1]
    (longer,) = [record for record in records if record.epochs == 3]
    assert len(short) == 3
    assert longer.values == max(short, key=lambda record: record.value).values
    assert longer.curve[0] == pytest.approx(max(record.value for record in short))


def resident_megabytes() -> float:
    """What is in use: free memory that malloc holds back goes to the system first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_trials_leave_no_memory_behind(dataset, tmp_path):
    """Weights and moments of one of these models take 25 MB: four that stayed would take 100."""
    wide = {**SMALL, "bottom_units": [1024, 2048]}
    search = Search(config(dataset, fixed=wide, prune=False), tmp_path / "out")
    taken: dict[int, float] = {}

    def measure() -> None:
        over = sum(record.is_over for record in search.records.all())
        if over in (2, 6) and over not in taken:  # measuring collects garbage, which takes seconds
            taken[over] = resident_megabytes()

    search.run(trials=6, on_change=measure)
    assert taken[6] - taken[2] < 50


def test_a_trial_trains_as_the_run_of_the_winner_does(dataset, tmp_path):
    search = Search(config(dataset, search=("ema_momentum",), epochs=2), tmp_path / "out")
    search.run(trials=1)
    averaged = search.records.all()[0]
    assert averaged.values == {"ema_momentum": 0.99}
    wanted = search.run_config(averaged)
    run, plain = (
        train(wanted.model_copy(update={"ema_momentum": momentum}), tmp_path / str(momentum))
        for momentum in (wanted.ema_momentum, None)
    )
    assert run.config.ema_momentum == 0.99
    assert run.history[0]["val_ctcvr_auc"] == pytest.approx(averaged.curve[0], abs=1e-4)
    assert plain.history[0]["val_ctcvr_auc"] != pytest.approx(averaged.curve[0], abs=1e-4)


def test_batch_size_is_searched_where_the_tuner_reads(dataset, tmp_path):
    search = Search(config(dataset, search=("batch_size",), algorithm="bayesian"), tmp_path / "out")
    assert search.run_config(TrialRecord(number=1, values={"batch_size": 8192})).batch_size == 8192
    assert search.run_config(TrialRecord(number=1, values={})).batch_size == 2048
    assert hypermodel("mmoe", dataset.schema, ["batch_size"]).config({"batch_size": 1024}).batch_size == 1024


def test_importance_finds_what_matters():
    positions = np.random.default_rng(2).random((300, 3))
    found = hyperparameter_importance(positions, 3 * positions[:, 0] + positions[:, 1])
    # Variances of 9/12 and 1/12: shares 0.9 and 0.1.
    np.testing.assert_allclose(found, [0.9, 0.1, 0.0], atol=0.06)
    # One that decides all: few trials leave the forest coarse, but no share above 1.
    (alone, *others) = hyperparameter_importance(positions[:9], positions[:9, 0])
    assert 0.5 < alone <= 1.0
    assert hyperparameter_importance(positions[:7], positions[:7, 0]) is None
    assert hyperparameter_importance(positions[:20], [0.5] * 20) is None
