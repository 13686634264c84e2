from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference_encoding import read_all
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from mtlzoo.cli.data import app
from pipelines import convert, load_schema, open_dataset
from pipelines.errors import DataError
from pipelines.hashing import hash_strings
from pipelines.schema import FIRST_ID
from pipelines.synthetic import SyntheticFunnel
from pipelines.synthetic_history import DECAY, HISTORY
from pipelines.synthetic_truth import best_auc
from pipelines.synthetic_world import CHUNK_ROWS

LENGTH = 10
ROWS = 20_000


@pytest.fixture(scope="module")
def funnel() -> SyntheticFunnel:
    return SyntheticFunnel("small", history_length=LENGTH, click_rate=0.2, conversion_rate=0.1)


@pytest.fixture(scope="module")
def rows(funnel) -> dict[str, np.ndarray]:
    """Ids of impressions that the world was not scaled on."""
    return funnel.world.impressions(50).ids


@pytest.fixture(scope="module")
def tables(funnel) -> tuple[pa.Table, pa.Table]:
    return next(funnel.tables(CHUNK_ROWS))


def effects(world) -> np.ndarray:
    """E of click and of conversion, `[2, size + 1, size]`; the last row is of no value."""
    return np.stack([world.history.recent[0].astype(np.float64) @ part.T for part in world.history.candidates])


def by_hand(world, history: np.ndarray, category: np.ndarray) -> np.ndarray:
    """The documented sum over the ages, `[2, rows]`."""
    table = effects(world)
    return sum(DECAY**age * table[:, history[:, age], category] for age in range(history.shape[1]))


def reversed_in_time(history: np.ndarray, none: int) -> np.ndarray:
    ages = np.arange(history.shape[1])
    lengths = (history != none).sum(axis=1)[:, None]
    return np.take_along_axis(history, np.where(ages < lengths, lengths - 1 - ages, ages), axis=1)


@pytest.mark.parametrize(
    ("knobs", "digest"),
    [
        ({"preset": "small"}, "3ebfb798fc20f622"),
        ({"preset": "ali_ccp"}, "0b8b34972d236526"),
        ({"seed": 3, "observe_conversions": "all", "task_correlation": 0.5}, "e4f10b4351a88ee3"),
    ],
)
def test_a_log_without_a_history_is_what_it_was_before_there_were_any(knobs, digest):
    for silent in (SyntheticFunnel(**knobs), SyntheticFunnel(**knobs, history_strength=2.0)):
        log, truth = next(silent.tables(1_000))
        content = [log.to_pydict(), truth.to_pydict(), silent.schema().digest()]
        assert hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16] == digest


def test_a_history_changes_no_other_column():
    (without, _), (log, _) = (next(SyntheticFunnel("small", history_length=n).tables(2_000)) for n in (0, 4))
    assert set(log.column_names) - set(without.column_names) == {HISTORY}
    for name in set(without.column_names) - {"click", "conversion"}:
        assert log[name].equals(without[name])


def test_lists_show_the_oldest_value_first(funnel, tables):
    ids = funnel.world.impressions(0).ids[HISTORY]
    for by_age, shown in zip(ids[:500].tolist(), tables[0][HISTORY].to_pylist(), strict=False):
        assert shown == [f"category_{i:02d}" for i in reversed(by_age) if i < 40]


@pytest.mark.parametrize(("preset", "category"), [("small", "category"), ("ali_ccp", "f206")])
def test_histories_hold_values_of_the_items_category(preset, category):
    funnel = SyntheticFunnel(preset, history_length=LENGTH)
    log, _ = next(funnel.tables(CHUNK_ROWS))
    declared = {feature.name: feature for feature in funnel.schema().features}
    assert declared[HISTORY].table_name == declared[category].table_name == category
    assert declared[HISTORY].dtype == declared[category].dtype
    assert (declared[HISTORY].ordered, declared[HISTORY].keep, declared[HISTORY].max_length) == (True, "last", LENGTH)
    listed = np.unique(log[HISTORY].combine_chunks().flatten().to_numpy(zero_copy_only=False))
    # In ali_ccp rare categories stand in no list yet.
    assert np.isin(log[category].to_numpy(), listed).mean() > 0.99


def test_lengths_and_tastes_are_the_documented_ones(rows):
    history = rows[HISTORY]
    lengths = (history < 40).sum(axis=1)
    shares = np.bincount(lengths, minlength=LENGTH + 1) / len(lengths)
    clicks = 2 * LENGTH + 1  # 0 ... 20, of which the last 10 are kept
    np.testing.assert_allclose(shares[:LENGTH], 1 / clicks, atol=0.004)
    assert shares[LENGTH] == pytest.approx((LENGTH + 1) / clicks, abs=0.01)
    most_active = history[rows["user_id"] == 0]
    counts = np.bincount(most_active[most_active < 40], minlength=40)
    assert np.sort(counts)[-8:].sum() / counts.sum() > 0.75


def test_contributions_are_the_documented_sum(funnel, rows):
    found = funnel.world.history.contributions(rows)
    np.testing.assert_allclose(found, by_hand(funnel.world, rows[HISTORY], rows["category"]), atol=1e-3)
    for part in found:
        np.testing.assert_array_equal(part * 2**16, np.round(part * 2**16))


def test_another_order_gives_another_probability(funnel, rows):
    world = funnel.world
    other = reversed_in_time(rows[HISTORY], none=40)
    before, after = (world.logits({**rows, HISTORY: history}) for history in (rows[HISTORY], other))
    expected = by_hand(world, other, rows["category"]) - by_hand(world, rows[HISTORY], rows["category"])
    np.testing.assert_allclose(np.subtract(after, before), expected, atol=1e-3)
    longer = (rows[HISTORY] != other).any(axis=1)
    assert np.mean(after[0][longer] != before[0][longer]) > 0.99
    np.testing.assert_array_equal(after[0][~longer], before[0][~longer])


def test_reversed_and_pooled_histories_lose_signal(funnel, rows):
    history, category = rows[HISTORY], rows["category"]
    lengths = (history != 40).sum(axis=1)
    signal = by_hand(funnel.world, history, category)[0]
    backwards = by_hand(funnel.world, reversed_in_time(history, none=40), category)[0]
    assert np.corrcoef(signal, backwards)[0, 1] ** 2 < 0.3
    # The mean over all orders of the list: what is left for a model that cannot see the order.
    mean_effect = effects(funnel.world)[0][history, category[:, None]].sum(axis=1) / np.maximum(lengths, 1)
    pooled = mean_effect * np.append(0.0, np.cumsum(DECAY ** np.arange(LENGTH)))[lengths]
    assert np.mean((signal - pooled) * pooled) == pytest.approx(0.0, abs=0.01)
    assert 0.5 < pooled.var() / signal.var() < 0.75


def test_neither_history_nor_candidate_has_a_main_effect(funnel):
    world, table = funnel.world, effects(funnel.world)
    category, history = (world.sample[name] for name in ("category", HISTORY))
    np.testing.assert_allclose(table[:, :, category].mean(axis=2), 0.0, atol=1e-3)
    fading = np.broadcast_to(DECAY ** np.arange(LENGTH), history.shape)
    shares = np.bincount(history.ravel(), fading.ravel(), 41)[:40]
    np.testing.assert_allclose(np.einsum("h,thc->tc", shares / shares.sum(), table[:, :40]), 0.0, atol=1e-3)


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.8])
def test_strength_and_correlation_are_those_asked_for(correlation):
    knobs = {"task_correlation": correlation, "specific_share": 0, "opposite_share": 1}
    world = SyntheticFunnel(history_length=6, history_strength=0.5, **knobs).world
    click, conversion = world.history.contributions(world.impressions(9).ids)
    assert click.std() == pytest.approx(0.5, rel=0.03)
    assert conversion.std() == pytest.approx(0.5, rel=0.03)
    assert np.corrcoef(click, conversion)[0, 1] == pytest.approx(correlation, abs=0.03)


def test_rates_stay_calibrated(tables):
    log, truth = tables
    p_click, p_conversion = (truth[name].to_numpy() for name in ("p_click", "p_conversion"))
    assert p_click.mean() == pytest.approx(0.2, rel=0.02)
    assert np.average(p_conversion, weights=p_click) == pytest.approx(0.1, rel=0.03)
    assert log["click"].to_numpy().mean() == pytest.approx(0.2, rel=0.03)


def test_importance_is_shared_with_the_candidates_category(funnel):
    without = SyntheticFunnel("small", click_rate=0.2, conversion_rate=0.1).description()
    truth = funnel.description()
    for task in ("click", "conversion"):
        assert truth["importance"][task][HISTORY] == pytest.approx(0.8**2 / 2, rel=0.01)
        gained = truth["importance"][task]["category"] - without["importance"][task]["category"]
        assert gained == pytest.approx(0.8**2 / 2, rel=0.01)
        assert truth["importance"][task]["brand"] == without["importance"][task]["brand"]
    assert truth["fields"][HISTORY]["main"] == {"click": 0.0, "conversion": 0.0}
    assert truth["interactions"][-1]["fields"] == [HISTORY, "category"]


def test_best_auc_needs_the_order(funnel, rows, tables):
    log, truth = tables
    click = log["click"].to_numpy()
    ids = funnel.world.impressions(0).ids
    blind = funnel.world.logits({**ids, HISTORY: reversed_in_time(ids[HISTORY], none=40)})[0]
    best = best_auc(truth, log)["click"]
    assert best == pytest.approx(roc_auc_score(click, truth["p_click"].to_numpy()))
    assert roc_auc_score(click, blind) < best - 0.02


def test_the_first_rows_do_not_depend_on_how_many_follow(funnel, tables):
    for few, many in zip(next(funnel.tables(100)), tables, strict=True):
        assert many.slice(0, 100).equals(few)


@pytest.mark.parametrize(("preset", "category"), [("small", "category"), ("ali_ccp", "f206")])
def test_conversion_keeps_the_last_values_in_order(preset, category, tmp_path):
    SyntheticFunnel(preset, history_length=8).write(tmp_path, ROWS)
    schema = load_schema(tmp_path / "schema.yaml")
    assert schema == SyntheticFunnel(preset, history_length=8).schema()
    shorter = [f.model_copy(update={"max_length": 5}) if f.name == HISTORY else f for f in schema.features]
    schema = schema.model_copy(update={"features": tuple(shorter)})
    dataset = open_dataset(convert([tmp_path / "impressions.parquet"], schema, tmp_path / "dataset"))
    found = read_all(dataset, "test")
    log = pq.read_table(tmp_path / "impressions.parquet", columns=["impression_id", HISTORY])
    test = hash_strings(log["impression_id"].cast("string").to_numpy(), 1_000_000) < 100_000
    ids = {value: FIRST_ID + i for i, value in enumerate(dataset.vocabularies[category].values.to_pylist())}
    lists = [[ids.get(value, 0) for value in row[-5:]] for row in log.filter(test)[HISTORY].to_pylist()]
    assert {len(row) for row in lists} == {0, 1, 2, 3, 4, 5}
    np.testing.assert_array_equal(found[HISTORY], [row + [0] * (5 - len(row)) for row in lists])
    weights = [[1.0] * len(row) + [0.0] * (5 - len(row)) for row in lists]
    np.testing.assert_array_equal(found[f"{HISTORY}_weights"], weights)


def test_the_command_line_writes_histories(tmp_path):
    done = CliRunner().invoke(app, ["synth", str(tmp_path), "--rows", "50", "--history-length", "3"])
    assert done.exit_code == 0, done.output
    expected, _ = next(SyntheticFunnel("small", history_length=3).tables(50))
    assert pq.read_table(tmp_path / "impressions.parquet")[HISTORY].to_pylist() == expected[HISTORY].to_pylist()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"history_length": -1}, "history_length=-1: must be an integer from 0 to 100"),
        ({"history_length": 101}, "history_length=101: must be an integer from 0 to 100"),
        ({"history_length": 2.5}, "history_length=2.5: must be an integer from 0 to 100"),
        ({"history_length": True}, "history_length=True: must be an integer from 0 to 100"),
        ({"history_strength": -0.1}, "history_strength=-0.1: must be a number from 0 to 10"),
        ({"history_strength": "much"}, "history_strength='much': must be a number from 0 to 10"),
    ],
)
def test_a_bad_knob_is_one_line(knobs, message):
    with pytest.raises(DataError) as caught:
        SyntheticFunnel(**knobs)
    assert str(caught.value) == message
