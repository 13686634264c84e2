from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

import pipelines
from pipelines import check_counts
from pipelines.check import check
from pipelines.manifest import MANIFEST
from pipelines.schema import Categorical, FileSplit, Keys, Label, MultiCategorical, Numeric, Schema
from pipelines.schema_file import save_schema

CLICK = (Label(name="click"),)
FUNNEL = (Label(name="click"), Label(name="conversion", parent="click"))
SPLIT = FileSplit(train="train*", valid="valid*", test="test*")


@pytest.fixture
def random():
    return np.random.default_rng(11)


def convert(folder, features, splits, labels=CLICK, shards=4, **schema):
    """A dataset whose splits are given as columns: `{"train": {"item": [...], "click": [...]}, ...}`."""
    files = []
    for split, columns in splits.items():
        file = folder / f"{split}.parquet"
        pq.write_table(pa.table(columns), file)
        files.append(file)
    declared = Schema(features=features, labels=labels, split=SPLIT, **schema)
    pipelines.convert(files, declared, folder / "out", shards=shards)
    return pipelines.open_dataset(folder / "out")


def halves(columns, fraction=0.5):
    """The same columns cut into train, valid and test."""
    rows = len(columns["click"])
    ends = [0, int(rows * fraction), int(rows * (1 + fraction) / 2), rows]
    names = ("train", "valid", "test")
    return {name: {k: v[a:b] for k, v in columns.items()} for name, a, b in zip(names, ends, ends[1:], strict=False)}


def found(report, kind):
    return {(f.feature, f.task, f.split): f for f in report.findings if f.kind == kind}


def target_encoding_auc(train, held_out, column, label):
    """The documented score, written anew: rate of the value in train, drawn to the prior as by ten more rows."""
    prior = np.mean(train[label])
    rate = {}
    for value in np.unique(train[column]):
        hits = train[label][train[column] == value]
        rate[value] = (hits.sum() + 10 * prior) / (len(hits) + 10)
    return roc_auc_score(held_out[label], [rate.get(value, prior) for value in held_out[column]])


def test_auc_of_a_feature_is_that_of_its_held_out_target_encoding(tmp_path, random):
    # Frequent, rare and unseen values: the pull towards the prior decides their order.
    item = random.zipf(1.5, 6000) % 300
    columns = {"item": item, "click": (random.random(6000) < item % 30 / 60).astype(int)}
    splits = halves(columns)
    report = check(convert(tmp_path, (Categorical(name="item", dtype="int"),), splits))

    held_out = {key: np.concatenate([splits["valid"][key], splits["test"][key]]) for key in columns}
    expected = target_encoding_auc(splits["train"], held_out, "item", "click")
    assert report.features["item"].auc["click"] == pytest.approx(expected, abs=1e-12)


def test_conversion_is_scored_on_clicked_rows_only(tmp_path, random):
    click = random.integers(0, 2, 8000)
    item = random.integers(0, 10, 8000)
    conversion = click * (random.random(8000) < item / 20)
    # Equals the click: a leak of click and of ctcvr's parent, but among clicked rows it says nothing.
    columns = {"item": item, "echo": click, "click": click, "conversion": conversion.astype(int)}
    splits = halves(columns)
    features = (Categorical(name="item", dtype="int"), Categorical(name="echo", dtype="int"))
    report = check(convert(tmp_path, features, splits, FUNNEL))

    assert report.features["echo"].auc["click"] == 1.0
    assert report.features["echo"].auc["conversion"] == 0.5
    assert set(found(report, "leak")) == {("echo", "click", None)}
    clicked = {name: {k: v[part["click"] == 1] for k, v in part.items()} for name, part in splits.items()}
    held_out = {key: np.concatenate([clicked["valid"][key], clicked["test"][key]]) for key in columns}
    expected = target_encoding_auc(clicked["train"], held_out, "item", "conversion")
    assert report.features["item"].auc["conversion"] == pytest.approx(expected, abs=1e-12)
    valid = clicked["valid"]["conversion"]
    assert report.tasks["conversion"]["valid"].rows == len(valid)
    assert report.tasks["conversion"]["valid"].positives == valid.sum()
    assert report.tasks["ctcvr"]["valid"].rows == len(splits["valid"]["click"])
    assert report.tasks["ctcvr"]["valid"].positives == valid.sum()


def leaking_columns(random, rows):
    click = (random.random(rows) < 0.2).astype(int)
    noise = random.random(rows)
    lists = [[str(v) for v in random.integers(0, 50, random.integers(1, 4))] for _ in range(rows)]
    return {
        "status": np.where(click == 1, np.where(noise < 0.5, "paid", "open"), np.where(noise < 0.5, "shown", "seen")),
        # Positives in the middle: no monotone score finds them.
        "middle": np.where(click == 1, random.uniform(0.4, 0.6, rows), random.choice([0.2, 0.8], rows) + noise / 10),
        "amount": np.where(click == 1, noise * 100, 0.0),
        "filled": pa.array([n if c else None for n, c in zip(noise, click, strict=True)]),
        "bought": [[*tags, "sold"] if c else tags for tags, c in zip(lists, click, strict=True)],
        "steps": [tags * 2 if c else ["a"] for tags, c in zip(lists, click, strict=True)],
        "user": random.permutation(rows),
        "item": random.integers(0, rows // 3, rows),
        "price": random.normal(size=rows),
        "click": click,
    }


def test_leaks_of_every_kind_of_feature_are_found_and_ids_are_not_blamed(tmp_path, random):
    features = (
        Categorical(name="status"),
        Numeric(name="middle"),
        Numeric(name="amount", buckets=4),
        Numeric(name="filled", missing="mean", indicator=True),
        MultiCategorical(name="bought", max_length=4),
        MultiCategorical(name="steps", max_length=8),
        Categorical(name="user", dtype="int"),
        Categorical(name="item", dtype="int", hash_buckets=1000),
        Numeric(name="price", buckets=10, keep_value=True),
    )
    report = check(convert(tmp_path, features, halves(leaking_columns(random, 6000))))
    leaks = found(report, "leak")
    assert {key[0] for key in leaks} >= {"status", "middle", "amount", "filled", "steps", "bought"}
    assert not {key[0] for key in leaks} & {"user", "item", "price"}
    assert leaks["status", "click", None].severity == "error"
    assert "status" in leaks["status", "click", None].message
    assert report.worst == "error"


def test_leak_on_few_positives_is_a_warning_that_says_so(tmp_path, random):
    click = np.zeros(4000, int)
    click[random.choice(4000, 80, replace=False)] = 1
    report = check(convert(tmp_path, (Categorical(name="echo", dtype="int"),), halves({"echo": click, "click": click})))
    (leak,) = found(report, "leak").values()
    assert leak.severity == "warning"
    assert "chance" in leak.message


def test_thinned_sample_and_pooled_ids_still_find_leaks_in_sorted_rows(tmp_path, random, monkeypatch):
    monkeypatch.setattr(check_counts, "_SAMPLE_ROWS", 512)
    monkeypatch.setattr(check_counts, "_BATCH_ROWS", 300)
    monkeypatch.setattr(check_counts, "MAX_CELLS", 8)
    click = np.repeat([0, 1], 3000)
    columns = {
        "amount": click * random.uniform(1, 2, 6000),
        "item": random.integers(0, 500, 6000),
        "hashed": random.integers(0, 500, 6000),
        "tags": np.array([f"{a}|{b}" for a, b in random.integers(0, 90, (6000, 2))]),
        "click": click,
    }
    order = np.arange(6000).reshape(2, 2, 2, -1)
    # Each split sorted by label: the first rows alone would show only zeros.
    splits = {
        name: {k: v[np.sort(order[:, i, j].ravel())] for k, v in columns.items()}
        for name, (i, j) in {"train": (0, 0), "valid": (0, 1), "test": (1, 0)}.items()
    }
    features = (
        Numeric(name="amount"),
        Categorical(name="item", dtype="int"),
        Categorical(name="hashed", dtype="int", hash_buckets=200),
        MultiCategorical(name="tags", max_length=2),
    )
    report = check(convert(tmp_path, features, splits, shards=1))
    assert set(found(report, "leak")) == {("amount", "click", None)}
    assert found(report, "drift") == {}
    assert report.features["hashed"].out_of_vocabulary == {"train": 0.0, "valid": 0.0, "test": 0.0}


@pytest.mark.parametrize(("positives", "severity"), [(0, "error"), (1, "warning"), (99, "warning"), (100, None)])
def test_positives_per_task(tmp_path, random, positives, severity):
    click = random.integers(0, 2, 1500)
    splits = halves({"item": random.integers(0, 5, 1500), "click": click})
    splits["valid"]["click"] = np.arange(len(splits["valid"]["click"])) < positives
    report = check(convert(tmp_path, (Categorical(name="item", dtype="int"),), splits))
    findings = found(report, "no_positives") | found(report, "few_positives")
    of_valid = [finding.severity for (_, _, split), finding in findings.items() if split == "valid"]
    assert of_valid == ([] if severity is None else [severity])


def test_constant_features(tmp_path, random):
    rows = 1000
    columns = {
        "same": ["a"] * rows,
        "same_number": np.full(rows, 0.1),
        "same_bucket": np.full(rows, 7.0),
        "nearly": ["a"] * 499 + ["b"] * (rows - 499),
        "nearly_number": np.append(np.full(499, 0.1), np.full(rows - 499, np.nextafter(0.1, 1.0, dtype=np.float32))),
        "click": random.integers(0, 2, rows),
    }
    features = (
        Categorical(name="same"),
        Numeric(name="same_number"),
        Numeric(name="same_bucket", buckets=3, keep_value=True),
        Categorical(name="nearly"),
        Numeric(name="nearly_number", standardize=False),
    )
    report = check(convert(tmp_path, features, halves(columns)))
    assert {key[0] for key in found(report, "constant")} == {"same", "same_number", "same_bucket"}


def test_drift_is_found_and_chance_is_not(tmp_path, random):
    def part(rows, shift, rate):
        return {
            "moved": random.normal(shift, 1.0, rows),
            "steady": random.normal(size=rows),
            "many": random.zipf(1.3, rows) % 5000,
            # Most ids of train are seen once, and hardly any of them again elsewhere.
            "sparse": random.zipf(1.1, rows) % 100_000,
            "country": random.choice(["de", "fr", "us"], rows, p=[0.6 - shift / 4, 0.3, 0.1 + shift / 4]),
            "click": (random.random(rows) < rate).astype(int),
        }

    splits = {"train": part(8000, 0.0, 0.2), "valid": part(3000, 0.0, 0.2), "test": part(3000, 1.0, 0.4)}
    features = (
        Numeric(name="moved", buckets=8, keep_value=True),
        Numeric(name="steady"),
        Categorical(name="many", dtype="int"),
        Categorical(name="sparse", dtype="int"),
        Categorical(name="country"),
    )
    report = check(convert(tmp_path, features, splits))
    assert set(found(report, "drift")) == {("moved", None, "test"), ("country", None, "test")}
    assert set(found(report, "label_drift")) == {(None, "click", "test")}
    p, q = (np.array([0.6, 0.3, 0.1]), np.array([0.35, 0.3, 0.35]))
    assert report.features["sparse"].out_of_vocabulary["test"] > 0.2
    # The index of the true distributions; the samples scatter around it.
    assert report.features["country"].drift["test"] == pytest.approx(np.sum((p - q) * np.log(p / q)), rel=0.15)


def test_out_of_vocabulary_and_missing_shares(tmp_path, random):
    rows = 1000

    def part(new, missing):
        item = np.array([str(v) for v in random.integers(0, 3, rows)], object)
        item[:new] = "new"
        item[rows - missing :] = None
        numbers = np.where(np.arange(rows) < missing, np.nan, random.normal(size=rows))
        return {
            "item": item,
            "bucketed": pa.array(numbers, from_pandas=True),
            "tags": [[] if i < missing else ["a", "new" if i >= rows - new else "b"] for i in range(rows)],
            "click": random.integers(0, 2, rows),
        }

    splits = {"train": part(0, 600), "valid": part(60, 600), "test": part(300, 600)}
    features = (
        Categorical(name="item"),
        Numeric(name="bucketed", buckets=3, missing="mean"),
        MultiCategorical(name="tags", max_length=2),
    )
    report = check(convert(tmp_path, features, splits))
    assert report.features["item"].out_of_vocabulary == {"train": 0.0, "valid": 0.06, "test": 0.3}
    assert report.features["item"].missing == {"train": 0.6, "valid": 0.6, "test": 0.6}
    assert report.features["bucketed"].missing == {"train": 0.6, "valid": 0.6, "test": 0.6}
    assert report.features["bucketed"].out_of_vocabulary == {}
    # 400 lists of two values are not empty; 300 of their 800 values are new.
    assert report.features["tags"].out_of_vocabulary["test"] == pytest.approx(300 / 800)
    assert report.features["tags"].missing["test"] == 0.6
    severities = {key: finding.severity for key, finding in found(report, "out_of_vocabulary").items()}
    assert severities["item", None, "valid"] == "note"
    assert severities["item", None, "test"] == "warning"
    assert {key[0] for key in found(report, "missing")} == {"item", "bucketed", "tags"}


def test_conversion_without_click(tmp_path, random):
    click = random.integers(0, 2, 2000)
    conversion = click * random.integers(0, 2, 2000)
    conversion[[3, 5]], click[[3, 5]] = 1, 0
    columns = {"item": random.integers(0, 5, 2000), "click": click, "conversion": conversion}
    features = (Categorical(name="item", dtype="int"),)
    (tmp_path / "dropped").mkdir()
    dropping = convert(tmp_path / "dropped", features, halves(columns), FUNNEL, funnel_violations="drop")
    (dropped,) = found(check(dropping), "dropped_rows").values()
    assert "2 of 2,000" in dropped.message

    # Conversion refuses such rows, so the records come from a schema without the funnel.
    free = (Label(name="click"), Label(name="conversion"))
    dataset = convert(tmp_path, features, halves(columns), free)
    schema = dataset.schema.model_copy(update={"labels": FUNNEL})
    save_schema(schema, dataset.folder / "schema.yaml")
    _edit_manifest(dataset.folder, schema_digest=schema.digest())
    report = check(pipelines.open_dataset(dataset.folder))
    orphans = found(report, "orphan")
    assert set(orphans) == {(None, "conversion", "train")}
    assert orphans[None, "conversion", "train"].message.startswith("2 rows")
    assert report.worst == "error"


def test_storage_notes_and_empty_split(tmp_path, random):
    click = np.repeat([0, 1], 4096)
    columns = {"item": random.integers(0, 5, 8192), "click": click}
    dataset = convert(tmp_path, (Categorical(name="item", dtype="int"),), {"train": columns}, shards=4)
    _edit_manifest(dataset.folder, inexact_vocabularies=["item"])
    report = check(pipelines.open_dataset(dataset.folder))
    assert set(found(report, "sorted_rows")) == {(None, "click", "train")}
    assert set(found(report, "inexact_vocabulary")) == {("item", None, None)}
    assert {split for _, _, split in found(report, "empty_split")} == {"valid", "test"}
    assert report.features["item"].auc == {}


def test_clean_dataset_has_no_findings_and_every_report_is_json(tmp_path, random):
    columns = {"item": random.integers(0, 5, 4000), "user": random.integers(0, 9, 4000)}
    columns |= {"weight": random.integers(0, 2, 4000) * 1.0, "click": random.integers(0, 2, 4000)}
    features = (Categorical(name="item", dtype="int"),)
    dataset = convert(tmp_path, features, halves(columns), keys=Keys(group="user", weight="weight"))
    report = check(dataset)
    assert report.findings == []
    assert report.worst is None
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["worst"] is None
    # A row of weight 0 is a row of the population all the same.
    assert plain["tasks"]["click"]["train"] == {"rows": 2000, "positives": int(columns["click"][:2000].sum())} | {
        "rate": pytest.approx(columns["click"][:2000].mean())
    }


def _edit_manifest(folder, **changes):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
