from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from pipelines import convert, open_dataset
from pipelines.errors import DataError
from pipelines.hashing import hash_strings
from pipelines.raw import read_raw
from pipelines.schema_file import load_schema
from pipelines.synthetic import SyntheticFunnel
from pipelines.synthetic_numbers import zipf_cdf
from pipelines.synthetic_truth import best_auc, best_auc_of_split, expected_auc
from pipelines.synthetic_world import CHUNK_ROWS

ROWS = 150_000
FILES = ["impressions.parquet", "schema.yaml", "truth.parquet", "world.json"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("small")
    SyntheticFunnel("small", conversion_rate=0.2).write(out, ROWS)
    return out


def log_of(out) -> pa.Table:
    return pq.read_table(out / "impressions.parquet")


def truth_of(out) -> dict[str, np.ndarray]:
    table = pq.read_table(out / "truth.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def test_writes_exactly_the_documented_files(small):
    assert sorted(p.name for p in small.iterdir()) == FILES
    log = log_of(small)
    assert log.num_rows == ROWS
    np.testing.assert_array_equal(log["impression_id"].to_numpy(), np.arange(ROWS))
    assert set(np.unique(log["click"].to_numpy())) == {0, 1}


def test_base_rates_are_those_asked_for(small):
    log, truth = log_of(small), truth_of(small)
    click, conversion = log["click"].to_numpy(), log["conversion"].to_numpy()
    assert truth["p_click"].mean() == pytest.approx(0.04, rel=0.03)
    assert np.average(truth["p_conversion"], weights=truth["p_click"]) == pytest.approx(0.2, rel=0.03)
    assert click.mean() == pytest.approx(0.04, rel=0.05)
    assert conversion[click == 1].mean() == pytest.approx(0.2, rel=0.1)


def test_labels_follow_the_true_probabilities(small):
    log, truth = log_of(small), truth_of(small)
    click = log["click"].to_numpy()
    for part in np.array_split(np.argsort(truth["p_click"]), 5):
        expected = truth["p_click"][part].mean()
        error = np.sqrt(expected * (1 - expected) / len(part))
        assert abs(click[part].mean() - expected) < 5 * error
    np.testing.assert_allclose(truth["p_ctcvr"], truth["p_click"] * truth["p_conversion"], rtol=1e-6)


def test_best_auc_is_scikit_learns_on_each_population(small):
    log, truth = log_of(small), truth_of(small)
    click, conversion = log["click"].to_numpy(), log["conversion"].to_numpy()
    clicked = click == 1
    assert best_auc(small / "truth.parquet", small / "impressions.parquet") == pytest.approx(
        {
            "click": roc_auc_score(click, truth["p_click"]),
            "conversion": roc_auc_score(conversion[clicked], truth["p_conversion"][clicked]),
            "ctcvr": roc_auc_score(conversion, truth["p_ctcvr"]),
        }
    )


def test_best_auc_of_some_rows_by_mask_or_by_ids(small):
    log, truth = log_of(small), truth_of(small)
    mask = np.random.default_rng(0).random(ROWS) < 0.3
    expected = roc_auc_score(log["click"].to_numpy()[mask], truth["p_click"][mask])
    for rows in (mask, np.flatnonzero(mask)):
        assert best_auc(small / "truth.parquet", log, rows)["click"] == pytest.approx(expected)
    with pytest.raises(DataError, match="mask of shape"):
        best_auc(small / "truth.parquet", log, mask[:-1])
    with pytest.raises(DataError, match="do not hold the same impressions"):
        best_auc(small / "truth.parquet", log.slice(1))


def test_nothing_beats_the_true_probabilities(small):
    log, truth = log_of(small), truth_of(small)
    best = best_auc(small / "truth.parquet", log)["click"]
    noise = np.random.default_rng(0).standard_normal(ROWS)
    noisy = np.log(truth["p_click"]) + 0.4 * noise
    assert roc_auc_score(log["click"].to_numpy(), noisy) < best - 0.005
    assert 0.75 < best < 0.82


def test_best_auc_of_a_split_takes_the_rows_that_conversion_takes(small, tmp_path):
    dataset = open_dataset(convert([small / "impressions.parquet"], load_schema(small / "schema.yaml"), tmp_path / "d"))
    log, truth = log_of(small), truth_of(small)
    probability = dict(zip(truth["impression_id"].tolist(), truth["p_click"].tolist(), strict=True))
    positions = hash_strings(log["impression_id"].cast("string").to_numpy(), 1_000_000) / 1e6
    test = log.filter(positions < 0.1)
    assert test.num_rows == dataset.rows("test")
    scores = [probability[key] for key in test["impression_id"].to_pylist()]
    expected = roc_auc_score(test["click"].to_numpy(), scores)
    assert best_auc_of_split(small, "test")["click"] == pytest.approx(expected)


def test_expected_auc_is_the_mean_over_redrawn_labels(small):
    truth = truth_of(small)
    rng = np.random.default_rng(0)
    keep = np.arange(40_000)
    p = truth["p_click"][keep]
    drawn = [roc_auc_score(rng.random(len(p)) < p, p) for _ in range(30)]
    expected = expected_auc(small / "truth.parquet", keep)["click"]
    assert expected == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(30))


def test_auc_without_both_classes_is_not_a_number():
    truth = pa.table(
        {"impression_id": [0, 1], "p_click": [0.1, 0.2], "p_conversion": [0.1, 0.2], "p_ctcvr": [0.01, 0.04]}
    )
    log = pa.table({"impression_id": [0, 1], "click": [0, 1], "conversion": [0, 0]})
    aucs = best_auc(truth, log)
    assert aucs["click"] == 1.0
    assert np.isnan(aucs["conversion"])
    assert np.isnan(aucs["ctcvr"])


@pytest.mark.parametrize("preset", ["small", "ali_ccp"])
def test_truth_is_no_column_of_the_log(preset):
    world = SyntheticFunnel(preset)
    log, truth = next(world.tables(100))
    assert set(log.column_names) & set(truth.column_names) == {"impression_id"}
    read = {f.source for f in world.schema().features}
    assert read == set(log.column_names) - {"impression_id", "click", "conversion"}


def test_schema_file_fits_the_log(small):
    schema = load_schema(small / "schema.yaml")
    assert schema == SyntheticFunnel("small").schema()
    assert [(t.name, t.given) for t in schema.targets] == [("click", ()), ("conversion", ("click",)), ("ctcvr", ())]
    assert schema.keys.group == "user_id"
    assert sum(raw.batch.num_rows for raw in read_raw([small / "impressions.parquet"], schema)) == ROWS


def test_small_has_every_kind_of_feature(small):
    log, schema = log_of(small), SyntheticFunnel("small").schema()
    assert {f.dtype for f in schema.singles} == {"string", "int"}
    assert schema.multis[0].table_name == "category"
    assert log["days_away"].null_count / ROWS == pytest.approx(0.08, abs=0.01)
    assert log["price"].null_count == 0
    price = log["price"].to_numpy()
    assert price.mean() > 1.3 * np.median(price)
    lengths = np.diff(log["interests"].combine_chunks().offsets.to_numpy())
    assert lengths.min() == 0
    assert lengths.max() == schema.multis[0].max_length
    assert set(log["interests"].combine_chunks().flatten().unique().to_pylist()) <= set(
        log["category"].unique().to_pylist()
    )


def test_attributes_are_functions_of_their_owner(small):
    log = log_of(small)
    for owner, attributes in (
        ("user_id", ["age_band", "city", "member_level"]),
        ("item_id", ["category", "brand", "price"]),
    ):
        pairs = log.group_by([owner, *attributes]).aggregate([])
        assert pairs.num_rows == len(log[owner].unique())


def test_popularity_follows_zipf(small):
    items = log_of(small)["item_id"].to_numpy()
    share = np.bincount(items, minlength=2001)[1:] / ROWS
    expected = np.diff(zipf_cdf(2000, 0.9), prepend=0.0)
    np.testing.assert_allclose(share[:20], expected[:20], atol=5 * np.sqrt(expected[0] / ROWS))
    assert expected[0] / expected[9] == pytest.approx(10**0.9)


def test_ali_ccp_has_23_single_valued_integer_fields():
    schema = SyntheticFunnel("ali_ccp").schema()
    assert len(schema.singles) == len(schema.features) == 23
    assert {f.dtype for f in schema.singles} == {"int"}
    log, _ = next(SyntheticFunnel("ali_ccp").tables(CHUNK_ROWS))
    shop, history = log["f207"].to_numpy(), log["f509"].to_numpy()
    assert 0.3 < np.mean(history > 0) < 0.5
    assert len(np.unique(shop)) > 5_000


def test_conversions_are_seen_only_on_clicks(small):
    log = log_of(small)
    assert log["conversion"].to_numpy()[log["click"].to_numpy() == 0].sum() == 0


def test_all_conversions_can_be_seen():
    knobs = {"conversion_rate": 0.2, "seed": 3}
    everywhere = SyntheticFunnel("small", observe_conversions="all", **knobs)
    assert [label.parent for label in everywhere.schema().labels] == [None, None]
    log, truth = next(everywhere.tables(CHUNK_ROWS))
    selected, _ = next(SyntheticFunnel("small", **knobs).tables(CHUNK_ROWS))
    click, conversion = log["click"].to_numpy(), log["conversion"].to_numpy()
    unclicked = click == 0
    assert conversion[unclicked].mean() == pytest.approx(truth["p_conversion"].to_numpy()[unclicked].mean(), rel=0.05)
    np.testing.assert_array_equal(selected["click"].to_numpy(), click)
    np.testing.assert_array_equal(selected["conversion"].to_numpy(), conversion & click)


def effect_correlations(knobs: dict) -> list[float]:
    world = SyntheticFunnel("small", **knobs).world
    click, conversion = ([t.effects[task] for t in world.terms] for task in (0, 1))
    ids = [world.index(t.fields, world.sample) for t in world.terms]
    return [np.corrcoef(a[i], b[i])[0, 1] for a, b, i in zip(click, conversion, ids, strict=True)]


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.7])
def test_shared_effects_correlate_as_asked(correlation):
    found = effect_correlations({"specific_share": 0, "opposite_share": 0, "task_correlation": correlation})
    np.testing.assert_allclose(found, correlation, atol=0.01)


def test_opposite_effects_are_opposite():
    np.testing.assert_allclose(effect_correlations({"specific_share": 0, "opposite_share": 1}), -1.0, atol=1e-3)
    assert SyntheticFunnel(specific_share=0, opposite_share=1).description()["logits"]["correlation"] < -0.99


def test_specific_fields_touch_one_task():
    truth = SyntheticFunnel("small", specific_share=1, opposite_share=0).description()
    main = [truth["fields"][name]["main"] for name in truth["fields"]]
    assert all((m["click"] > 0) != (m["conversion"] > 0) for m in main)
    assert sum(m["click"] > 0 for m in main) == len(main) // 2


def test_roles_are_given_in_the_shares_asked_for():
    truth = SyntheticFunnel("small", specific_share=0.3, opposite_share=0.4).description()
    roles = [field["role"] for field in truth["fields"].values()]
    assert roles.count("opposite") == 6  # 0.4 * 14 fields = 5.6
    assert roles.count("shared") == 4  # 0.3 * 14 = 4.2 are specific


def test_more_conflict_changes_the_fields_in_conflict_and_no_other():
    few, many = (SyntheticFunnel("small", specific_share=0, opposite_share=s).world for s in (0.2, 0.6))
    for one, other in zip(few.terms, many.terms, strict=True):
        np.testing.assert_array_equal(one.effects[0], other.effects[0])
        assert other.role == "opposite" or one.role == "shared"
    assert sum(t.role == "opposite" for t in many.terms) > sum(t.role == "opposite" for t in few.terms) > 0


@pytest.mark.parametrize(("knob", "length"), [("main_strength", 1), ("interaction_strength", 2)])
def test_strength_is_the_deviation_of_the_logit(knob, length):
    silent = {"main_strength": 0.0, "interaction_strength": 0.0}
    truth = SyntheticFunnel("small", **(silent | {knob: 0.7})).description()
    assert truth["logits"]["deviation"] == pytest.approx({"click": 0.7, "conversion": 0.7}, abs=0.01)


@pytest.mark.parametrize("field", ["position", "device", "hour", "days_away"])
def test_importance_is_what_shuffling_the_field_costs(field):
    funnel = SyntheticFunnel("small")
    world, truth = funnel.world, funnel.description()
    shuffled = dict(world.sample)
    shuffled[field] = np.random.default_rng(0).permutation(shuffled[field])
    for task, before, after in zip(
        ("click", "conversion"), world.logits(world.sample), world.logits(shuffled), strict=True
    ):
        # A context field is independent of the others: shuffling it doubles the variance of each of its terms.
        parts = truth["fields"][field]
        expected = 2.0 * (parts["main"][task] + 2.0 * parts["interaction"][task])
        assert np.mean((after - before) ** 2) == pytest.approx(expected, rel=0.05, abs=1e-6)
        assert truth["importance"][task][field] == pytest.approx(parts["main"][task] + parts["interaction"][task])


def test_world_file_holds_the_knobs_and_the_realised_rates(small):
    world = json.loads((small / "world.json").read_text())
    log = log_of(small)
    assert SyntheticFunnel(**world["knobs"]) == SyntheticFunnel("small", conversion_rate=0.2)
    assert world["rows"] == ROWS
    assert world["counts"]["click"] == log["click"].to_numpy().sum()
    assert world["realised_rates"]["ctcvr"] == pytest.approx(log["conversion"].to_numpy().mean())


def test_same_seed_same_bytes_and_another_seed_another_log(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        SyntheticFunnel("small", seed=seed).write(tmp_path / name, 5_000)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not log_of(tmp_path / "a").equals(log_of(tmp_path / "c"))


def test_a_row_does_not_depend_on_how_many_follow():
    def table(rows: int, part: int) -> pa.Table:
        return pa.concat_tables([pair[part] for pair in SyntheticFunnel("small").tables(rows)]).combine_chunks()

    rows = CHUNK_ROWS + 1_000
    for part in (0, 1):
        assert table(2 * rows, part).slice(0, rows).equals(table(rows, part))


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    fresh, used = tmp_path / "fresh", tmp_path / "used"
    with pytest.raises(KeyboardInterrupt):
        SyntheticFunnel("small").write(fresh, 200_000, interrupt)
    assert list(fresh.iterdir()) == []
    SyntheticFunnel("small").write(used, 1_000)
    before = {file: (used / file).read_bytes() for file in FILES}
    with pytest.raises(KeyboardInterrupt):
        SyntheticFunnel("small", seed=1).write(used, 1_000, interrupt)
    assert {p.name: p.read_bytes() for p in used.iterdir()} == before


def test_progress_counts_the_rows_written(tmp_path):
    seen: list[int] = []
    SyntheticFunnel("small").write(tmp_path, CHUNK_ROWS + 10, seen.append)
    assert seen == [CHUNK_ROWS, CHUNK_ROWS + 10]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"preset": "tiny"}, "preset='tiny' is unknown; choose one of 'small', 'ali_ccp'"),
        ({"seed": -1}, "seed=-1: must be an integer of at least 0"),
        ({"users": 3}, "users=3"),
        ({"click_rate": 4}, "click_rate=4: must be a number from 0.0001 to 0.9"),
        ({"conversion_rate": float("nan")}, "conversion_rate=nan"),
        ({"task_correlation": "high"}, "task_correlation='high'"),
        ({"specific_share": 0.6, "opposite_share": 0.6}, "are more than 1 together"),
        ({"observe_conversions": "some"}, "observe_conversions='some': must be 'clicked' or 'all'"),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knobs, message):
    with pytest.raises(DataError, match=message):
        SyntheticFunnel(**knobs)


@pytest.mark.parametrize("rows", [0, -5, 1.5, True])
def test_bad_row_counts_are_refused(tmp_path, rows):
    with pytest.raises(DataError, match="must be an integer of at least 1"):
        SyntheticFunnel().write(tmp_path, rows)
