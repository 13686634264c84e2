"""Objectives over several tasks: directions from the registry, conditions, weights, fronts; the median rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mtlzoo.metrics import DIRECTIONS
from mtlzoo.tuning import METRICS, objective, parse_objective
from mtlzoo.tuning.pareto import drawn_weights, front, middle, mixture
from mtlzoo.tuning.pruning import is_hopeless, pruning_bound
from mtlzoo.tuning.records import TrialRecord


def evaluation(click: float, ctcvr: float, log_loss: float = 0.2) -> dict[str, dict[str, float | None]]:
    return {"click": {"auc": click, "log_loss": log_loss, "gauc": None}, "ctcvr": {"auc": ctcvr}}


@pytest.mark.parametrize("metric", METRICS)
def test_directions_come_from_the_registry(metric, demo_schema):
    assert parse_objective(f"click.{metric}", demo_schema).direction == DIRECTIONS[metric]
    if metric != "gauc":
        assert objective("click", metric).direction == DIRECTIONS[metric]
        assert objective("click", metric).name == f"val_click_{metric}"


@pytest.mark.parametrize(
    "text",
    [
        "ctcvr.auc",
        "0.3*click.auc + 0.7*ctcvr.auc",
        "ctcvr.auc if click.auc >= 0.62",
        "click.log_loss if ctcvr.auc >= 0.6 and click.ece <= 0.01",
        "click.auc, ctcvr.auc",
    ],
)
def test_objectives_are_read_as_they_are_written(text, demo_schema):
    assert str(parse_objective(text, demo_schema)) == text
    assert str(parse_objective(text.replace(">= ", ">=").replace(", ", ","), demo_schema)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clik.auc", "no task 'clik'; did you mean 'click'? (known: click, conversion, ctcvr)"),
        ("click.acu", "no metric 'acu'; did you mean 'auc'? (known: auc, gauc, log_loss"),
        ("auc", "named TASK.METRIC"),
        ("click.loss", "no metric 'loss'"),
        ("x*click.auc", "'x' is no number"),
        ("-1*click.auc + ctcvr.auc", "must be above 0"),
        ("ctcvr.auc if click.auc <= 0.6", "bound it by >=, not <="),
        ("ctcvr.auc if click.auc", "a condition reads"),
        ("click.auc, click.auc", "two or more different measures"),
    ],
)
def test_what_cannot_be_read_is_told(text, message, demo_schema):
    with pytest.raises(ValueError) as error:
        parse_objective(text, demo_schema)
    assert message in str(error.value)


def test_the_objective_of_kerastuner_knows_tasks_and_metrics(demo_schema):
    with pytest.raises(ValueError, match="no task 'clik'; did you mean 'click'"):
        objective("clik", "auc", demo_schema)
    with pytest.raises(ValueError, match="no metric of model.fit 'acu'"):
        objective("click", "acu")
    with pytest.raises(ValueError, match="gauc"):
        objective("click", "gauc")


def test_a_weighted_sum_turns_losses_round(demo_schema):
    wanted = parse_objective("0.5*ctcvr.auc + 2*click.log_loss", demo_schema)
    assert wanted.direction == "max"
    assert wanted.value(evaluation(0.6, 0.8, log_loss=0.25)) == pytest.approx(0.5 * 0.8 - 2 * 0.25)
    assert "ctcvr.auc 0.8000" in wanted.note(evaluation(0.6, 0.8))


def test_conditions_come_first(demo_schema):
    wanted = parse_objective("ctcvr.auc if click.auc >= 0.62", demo_schema)
    keeps, misses, misses_more = evaluation(0.63, 0.70), evaluation(0.61, 0.90), evaluation(0.60, 0.95)
    assert wanted.value(keeps) == pytest.approx(0.70)
    assert wanted.value(misses) == pytest.approx(0.90 - 10 * 0.01)
    assert wanted.missed(misses) == {"click.auc": pytest.approx(0.01)}
    assert "click.auc misses its bound by 0.0100" in wanted.note(misses)
    # The penalised value prefers `misses`: the choice of a winner must not.
    assert wanted.value(misses) > wanted.value(keeps)
    assert sorted([misses_more, misses, keeps], key=wanted.cost) == [keeps, misses, misses_more]


def test_what_does_not_exist_is_no_value(demo_schema):
    with pytest.raises(ValueError, match=r"click\.gauc does not exist on the validation split"):
        parse_objective("click.gauc", demo_schema).value(evaluation(0.6, 0.7))


def test_the_front_is_what_none_dominates():
    costs = np.random.default_rng(1).integers(0, 6, size=(60, 3)).astype(float)
    dominated = {
        j for i, j in itertools.permutations(range(60), 2) if all(costs[i] <= costs[j]) and any(costs[i] < costs[j])
    }
    assert set(np.flatnonzero(front(costs))) == set(range(60)) - dominated


def test_mixtures_reach_the_hollows_of_a_front_and_nothing_else():
    t = np.linspace(0, 1, 21)
    hollow = np.stack([1 - (1 - t) ** 2, 1 - t**2], axis=1)  # a front that bulges away from the origin
    behind = hollow + 0.05
    costs = np.concatenate([hollow, behind])
    found = {int(np.argmin(mixture(costs, drawn_weights(2, seed=3, trial=n)))) for n in range(200)}
    assert max(found) < len(hollow)
    assert len(found) > 10
    by_sum = {int(np.argmin(costs @ drawn_weights(2, seed=3, trial=n))) for n in range(200)}
    assert by_sum == {0, 20}  # which is why the mixture is no weighted sum
    assert middle(hollow) == 10


def test_weights_follow_from_seed_and_trial():
    np.testing.assert_array_equal(drawn_weights(3, 1, 7), drawn_weights(3, 1, 7))
    assert not np.allclose(drawn_weights(3, 1, 7), drawn_weights(3, 1, 8))
    assert drawn_weights(3, 1, 7).sum() == pytest.approx(1)


def trial(number: int, *curve: float, status: str = "finished") -> TrialRecord:
    return TrialRecord(number=number, values={}, status=status, curve=list(curve))


def test_a_trial_is_hopeless_below_the_median_of_running_averages():
    trials = [trial(1, 0.5, 0.7), trial(2, 0.6, 0.8), trial(3, 0.4, status="pruned"), trial(4, 0.9, status="failed")]
    trials += [trial(5, 0.9, status="running")]
    assert pruning_bound(trials, 1, least_trials=3) == pytest.approx(0.5)  # of 0.5, 0.6, 0.4
    assert pruning_bound(trials, 2, least_trials=2) == pytest.approx((0.6 + 0.7) / 2)
    assert pruning_bound(trials, 2, least_trials=3) is None
    assert is_hopeless([0.45], 0.5, "max")
    assert not is_hopeless([0.5], 0.5, "max")
    assert not is_hopeless([0.55, 0.4], 0.5, "max")
    assert is_hopeless([0.55], 0.5, "min")
    assert not is_hopeless([0.1], None, "max")
