"""The statistics of the benchmarks against SciPy's own and hand values, and what their runs keep and print."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import ttest_1samp, ttest_rel

from pipelines.synthetic import SyntheticFunnel

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import evidence
import evidence_runs
import paired
import sharing_sweep

SEEDS = 5


def samples(seed: int = 0) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    worlds = 0.7 + 0.05 * rng.standard_normal(SEEDS)
    return list(worlds + 0.004 + 0.004 * rng.standard_normal(SEEDS)), list(worlds)


def text_of(table) -> str:
    console = Console(width=150, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def kept(auc: float, best: float | None = None, **more) -> dict:
    """A result as it stands in the file."""
    extra = {"best": {"conversion": best}} if best else {}
    return {"tasks": {"conversion": {"auc": auc}}, "best_epoch": 1, **extra, **more}


@pytest.mark.parametrize("seed", range(5))
def test_mean_interval_is_scipys(seed):
    values, _ = samples(seed)
    mine = paired.mean_interval(values)
    theirs = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mine.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert mine.half == pytest.approx(theirs.high - np.mean(values), rel=1e-9)


def test_mean_interval_by_hand():
    """1, 2, 3: s = 1, t_(0.975, 2) = 4.303, half = 4.303 / sqrt(3)."""
    interval = paired.mean_interval([1.0, 2.0, 3.0])
    assert (interval.low, interval.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_paired_gain_is_scipys_paired_t_test(seed):
    values, others = samples(seed)
    mine, theirs = paired.paired_gain(values, others), ttest_rel(values, others)
    bounds = theirs.confidence_interval(0.95)
    assert mine.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (mine.interval.low, mine.interval.high) == pytest.approx((bounds.low, bounds.high), rel=1e-9)
    assert mine.wins == sum(a > b for a, b in zip(values, others, strict=True))
    assert mine.pairs == SEEDS


def test_a_gain_turned_around_is_the_loss():
    values, others = samples()
    gain, loss = paired.paired_gain(values, others), paired.paired_gain(others, values)
    assert loss.interval.mean == -gain.interval.mean
    assert loss.p == gain.p
    assert loss.wins == SEEDS - gain.wins


def test_pairing_takes_out_what_the_worlds_differ_by():
    values, others = samples()
    unpaired = math.hypot(paired.mean_interval(values).half, paired.mean_interval(others).half)
    assert paired.paired_gain(values, others).interval.half < unpaired / 5


@pytest.mark.parametrize(("values", "others", "p"), [([0.5, 0.75], [0.5, 0.75], 1.0), ([0.5, 0.75], [0.25, 0.5], 0.0)])
def test_differences_that_are_all_the_same_leave_no_doubt(values, others, p):
    gain = paired.paired_gain(values, others)
    assert gain.p == p
    assert gain.interval.half == 0.0


def test_one_pair_shows_a_difference_but_no_chance():
    gain = paired.paired_gain([0.75], [0.5])
    assert (gain.interval.mean, gain.wins, gain.pairs) == (0.25, 1, 1)
    assert math.isnan(gain.p)
    assert math.isnan(gain.interval.low)
    assert paired.verdict(gain, *paired.holm([gain.p])) == "not shown"


def test_values_without_pairs_are_refused():
    with pytest.raises(ValueError, match="2 values and 1 others"):
        paired.paired_gain([0.5, 0.6], [0.5])
    with pytest.raises(ValueError, match="no values"):
        paired.mean_interval([])


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([0.005, 0.01, 0.03, 0.04], [0.02, 0.03, 0.06, 0.06]),
        ([0.04, 0.005, 0.03, 0.01], [0.06, 0.02, 0.06, 0.03]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([math.nan, 0.01, 0.02], [math.nan, 0.02, 0.02]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, corrected):
    assert paired.holm(p_values) == pytest.approx(corrected, nan_ok=True)


def test_holm_keeps_false_alarms_to_five_percent():
    """Of tables of six comparisons with nothing to find, as many hold a false alarm as the level allows."""
    tables = np.random.default_rng(1).random((4000, 6))
    alarms = np.mean([min(paired.holm(list(table))) < paired.ALPHA for table in tables])
    assert alarms == pytest.approx(1 - (1 - paired.ALPHA / 6) ** 6, abs=0.012)
    assert np.mean(tables.min(axis=1) < paired.ALPHA) > 0.2  # what it would be without


def test_tables_show_losses_as_plainly_as_gains():
    values, others = [0.70, 0.71, 0.72], [0.74, 0.752, 0.758]
    results = {
        "shared_bottom": [kept(auc, best=0.9) for auc in others],
        "single_task": [kept(auc - 0.1, best=0.9) for auc in others],
        "ncs4cvr": [kept(auc, best=0.9) for auc in values],
    }
    rows = text_of(evidence.gains_table(results, "conversion")).splitlines()
    (over_bottom,), (over_single,) = ([row for row in rows if name in row] for name in ("shared_bottom", "single_task"))
    assert "-0.0400" in over_bottom
    assert "0/3" in over_bottom
    assert over_bottom.rstrip(" │").endswith("loss")
    assert "+0.0600" in over_single
    assert "3/3" in over_single
    assert over_single.rstrip(" │").endswith("gain")
    p = ttest_rel(values, others).pvalue
    assert [cell.strip() for cell in over_bottom.split("│")[5:7]] == [f"{p:.4f}"] * 2  # the larger p of two stays
    means = text_of(evidence.means_table(results))
    assert "52.5%" in means  # (0.71 - 0.5) / (0.9 - 0.5)
    assert f"0.7100 ± {paired.mean_interval(values).half:.4f}" in means


def test_a_subject_is_compared_with_its_own_variants():
    results = {name: [kept(auc)] * 3 for name, auc in (("dtn:dropout=0.2", 0.75), ("dtn_no_tsn", 0.74), ("mmoe", 0.73))}
    text = text_of(evidence.gains_table(results, "conversion", ["dtn"]))
    assert "+0.0100" in text
    assert "+0.0200" in text
    assert text.count("dtn:dropout=0.2") == 2
    with pytest.raises(ValueError, match="no contender is a subject"):
        evidence.checked(argparse.Namespace(contenders=["dtn_no_tsn"], subject=["dtn"]))


def options(**given) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evidence_runs.add_arguments(parser)
    return argparse.Namespace(**{**vars(parser.parse_args(["name"])), "work": Path("w"), **given})


def world(**knobs) -> evidence_runs.World:
    return evidence_runs.World(SyntheticFunnel(seed=101, **knobs), rows=1000, test_share=0.4)


def test_contenders_have_the_same_trunk_and_settings_of_their_own():
    given = options(trunk=[32, 16], settings=["embedding_dim=8", "learning_rate=0.002"])
    names = ["single_task", "single_task:esmm_product", "shared_bottom", "ncs4cvr:l0=1e-6", "ncs4cvr_lottery"]
    configs = [evidence_runs.trial_of(name, given, 3, world()).config for name in names]
    trunk_arguments = ["units", "units", "bottom_units", "trunk_units", "trunk_units"]
    trunks = [config.arguments[name] for config, name in zip(configs, trunk_arguments, strict=True)]
    assert trunks == [[32, 16]] * 5
    assert {(c.seed, c.learning_rate, c.arguments["embedding_dim"]) for c in configs} == {(3, 0.002, 8)}
    assert configs[1].arguments["label_space"] == "esmm_product"
    assert configs[2].arguments["tower_units"] == []
    assert (configs[3].arguments["l0"], configs[4].arguments["mask"]) == (1e-6, "lottery")
    assert len({evidence_runs.trial_of(name, given, 3, world()).key for name in names}) == 5


@pytest.mark.parametrize(("name", "message"), [("nobody", "no contender"), ("single_task:l0=1", "no setting 'l0'")])
def test_unknown_contenders_and_settings_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        evidence_runs.trial_of(name, options(), 1, world())


def test_knobs_make_worlds_and_keys():
    assert evidence_runs.parse_knobs(["opposite_share=0", "users=500", "user_zipf=1"]) == {
        "opposite_share": 0.0,
        "users": 500,
        "user_zipf": 1.0,
    }
    with pytest.raises(ValueError, match="opposite_shares=1"):
        evidence_runs.parse_knobs(["opposite_shares=1"])
    keys = {
        evidence_runs.trial_of("ncs4cvr", options(), 1, world(**knobs)).key
        for knobs in ({}, {"opposite_share": 0.2}, {"opposite_share": 0.4}, {"preset": "ali_ccp"})
    }
    assert len(keys) == 3  # 0.2 is the default
    assert world().folder(Path("w")) != world(opposite_share=0.4).folder(Path("w"))


def test_a_result_is_kept_until_a_default_changes():
    trial = evidence_runs.trial_of("ncs4cvr", options(), 1, world())
    settings = trial.settings()
    assert trial.is_answered_by({"settings": settings})
    assert trial.is_answered_by({"settings": {k: v for k, v in settings.items() if k != "arguments.gate_scale"}})
    assert not trial.is_answered_by({"settings": {**settings, "arguments.gate_scale": 1.5}})
    assert not trial.is_answered_by({"settings": {**settings, "data.rows": 2000}})
    assert not trial.is_answered_by(None)


def test_only_seeds_that_every_contender_has_finished_are_paired(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_runs, "RESULTS", tmp_path)
    trials = [
        evidence_runs.trial_of(name, options(), seed, world())
        for seed in (1, 2, 3)
        for name in ("ncs4cvr", "shared_bottom")
    ]
    done = {trial.key: kept(i / 10, settings=trial.settings()) for i, trial in enumerate(trials) if i != 2}
    (tmp_path / "pairs.json").write_text(json.dumps(done))
    results = evidence_runs.paired_results(trials, "pairs")
    assert {name: evidence.aucs(runs, "conversion") for name, runs in results.items()} == {
        "ncs4cvr": [0.0, 0.4],
        "shared_bottom": [0.1, 0.5],
    }
    with pytest.raises(ValueError, match="no seed"):
        evidence_runs.paired_results(trials, "nothing")


def test_the_sweep_draws_the_means_and_their_intervals():
    shares = [0.0, 0.4]
    lines = [paired.paired_gain([0.7, 0.72, 0.73], others) for others in ([0.7, 0.71, 0.72], [0.6, 0.64, 0.66])]
    figure = sharing_sweep.sweep_figure(shares, {"opposite_share": {"shared_bottom": lines}}, "ncs4cvr", "conversion")
    (panel,) = figure.axes
    (drawn,) = panel.containers
    assert drawn[0].get_ydata() == pytest.approx([gain.interval.mean for gain in lines])
    ends = [segment[:, 1] for segment in drawn[2][0].get_segments()]
    expected = [[gain.interval.low, gain.interval.high] for gain in lines]
    np.testing.assert_allclose(ends, expected)
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0.0", "0.4"]


def test_a_sweep_varies_one_share_and_leaves_the_other_at_zero():
    given = options(shares=[0.0, 0.4], sweep=list(sharing_sweep.LABELS), subject="ncs4cvr", rivals=["shared_bottom"])
    given.seeds, given.knobs = 2, ["click_rate=0.3"]
    trials = sharing_sweep.in_order(sharing_sweep.trials_of(given))
    assert [trial.config.seed for trial in trials] == [1] * 8 + [2] * 8
    funnels = {trial.world.funnel for trial in trials}
    assert {(f.opposite_share, f.specific_share) for f in funnels} == {(0.0, 0.0), (0.4, 0.0), (0.0, 0.4)}
    assert {f.click_rate for f in funnels} == {0.3}
    assert {f.seed for f in funnels} == {101, 102}
    given.rivals = ["ncs4cvr"]
    with pytest.raises(ValueError, match="other than the subject"):
        sharing_sweep.trials_of(given)


def test_a_run_is_kept_with_the_best_reachable_and_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evidence_runs, "RESULTS", tmp_path / "results")
    words = ["tiny", "--contenders", "ncs4cvr", "--seeds", "1", "--trunk", "4", "--epochs", "1", "--rows", "4000"]
    words += ["--knobs", "click_rate=0.4", "conversion_rate=0.4", "--work", str(tmp_path / "work")]
    assert evidence.main(words) == 0
    assert "1 runs, 1 of them to do" in capsys.readouterr().out
    file = tmp_path / "results" / "tiny.json"
    ((key, result),) = json.loads(file.read_text()).items()
    assert json.loads(key)["world"]["seed"] == 101
    assert result["tasks"]["click"]["rows"] == pytest.approx(1600, abs=120)  # the test split is 40 %
    assert 0.6 < result["best"]["conversion"] < 1.0
    assert set(result["density"]) == {"click", "conversion"}
    assert list((tmp_path / "work").iterdir()) == []
    written = file.stat().st_mtime_ns
    assert evidence.main(words) == 0
    assert "1 runs, 0 of them to do" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == written


def test_each_contender_gets_the_learning_rate_of_its_least_validation_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_runs, "RESULTS", tmp_path)
    given = options(data=None, contenders=["mmoe", "dtn"], learning_rates=[0.001, 0.002], tune_seeds=2, name="tiny")
    losses = {"mmoe:learning_rate=0.001": [0.3, 0.2], "mmoe:learning_rate=0.002": [0.1, 0.3]}
    losses |= {"dtn:learning_rate=0.001": [0.4, 0.1], "dtn:learning_rate=0.002": [0.3, 0.3]}
    seeds = [1001, 1002]
    kept_runs = {}
    for contender, values in losses.items():
        for trial, loss in zip(evidence.trials_of([contender], seeds, given), values, strict=True):
            kept_runs[trial.key] = {"valid_loss": loss, "settings": trial.settings()}
    (tmp_path / "tiny_tuning.json").write_text(json.dumps(kept_runs))
    chosen = evidence.tuned(given, Console(quiet=True))  # all there is to run has been run
    assert chosen == ["mmoe:learning_rate=0.002", "dtn:learning_rate=0.001"]
    measured = evidence.trials_of(chosen, range(1, 6), given)
    assert {t.world.funnel.seed for t in measured}.isdisjoint({100 + seed for seed in seeds})
    assert {t.config.learning_rate for t in measured} == {0.001, 0.002}
