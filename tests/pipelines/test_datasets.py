from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

import pipelines
from pipelines.check import check
from pipelines.datasets import DATASETS, census_income, hillstrom, prepare
from pipelines.schema import Numeric

DATA = Path(os.environ.get("MTLZOO_DATA") or Path(__file__).resolve().parents[2] / ".." / "shared" / "data")


def raw(name):
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(
            f"the raw files of {name} are not on this machine: set MTLZOO_DATA to the folder that holds {name}/"
        )
    return folder


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    return pipelines.open_dataset(
        prepare("census_income", raw("census_income"), tmp_path_factory.mktemp("c") / "census")
    )


def test_census_splits_and_labels(census):
    assert census.rows("train") + census.rows("valid") == 199_523
    assert census.rows("valid") == pytest.approx(19_952, rel=0.03)
    assert census.rows("test") == 99_762
    positives = {split: census.manifest.positives(split) for split in census.manifest.splits}
    assert positives["train"]["income"] + positives["valid"]["income"] == 12_382
    assert positives["train"]["never_married"] + positives["valid"]["never_married"] == 86_485


def test_census_inputs_are_the_32_usable_columns_without_the_label_column(census):
    names = {feature.name for feature in census.schema.features}
    assert len(names) == 31
    assert not names & {"weight", "marital_stat", "income"}
    assert census.schema.keys.weight is None
    # Every age has its own bucket; "NA" is a value of hispanic_origin and "?" of a country of birth.
    assert census.schema.fitted.tables["age"] == 2 + 91
    assert "NA" in census.vocabularies["hispanic_origin"].values.to_pylist()
    assert "?" in census.vocabularies["country_of_birth_self"].values.to_pylist()


def test_census_has_strong_honest_features_and_no_leak(census):
    report = check(census)
    assert report.worst in (None, "note")
    assert report.features["detailed_household_and_family_stat"].auc["never_married"] > 0.95


@pytest.fixture(scope="module")
def hillstrom_file():
    return raw("hillstrom") / "hillstrom.csv.gz"


def test_hillstrom_is_a_strict_funnel_without_error(hillstrom_file, tmp_path):
    dataset = pipelines.open_dataset(prepare("hillstrom", hillstrom_file.parent, tmp_path / "hillstrom"))
    splits = dataset.manifest.splits
    assert sum(dataset.rows(split) for split in splits) == 64_000
    assert sum(dataset.manifest.positives(split)["visit"] for split in splits) == 9_394
    assert sum(dataset.manifest.positives(split)["conversion"] for split in splits) == 578
    assert [target.name for target in dataset.schema.targets] == ["visit", "conversion", "ctcvr"]
    assert {feature.source for feature in dataset.schema.features}.isdisjoint({"spend", "visit", "conversion"})
    report = check(dataset)
    assert report.worst != "error"
    assert not [finding for finding in report.findings if finding.kind in ("leak", "drift", "constant")]


@pytest.mark.parametrize("spend", [Numeric(name="spend"), Numeric(name="spend", buckets=8)], ids=["value", "buckets"])
def test_spend_is_found_as_a_leak_of_hillstrom(hillstrom_file, tmp_path, spend):
    features = (*hillstrom.SCHEMA.features, spend)
    pipelines.convert([hillstrom_file], hillstrom.SCHEMA.model_copy(update={"features": features}), tmp_path / "out")
    leaks = [finding for finding in check(pipelines.open_dataset(tmp_path / "out")).findings if finding.kind == "leak"]
    assert {(leak.feature, leak.task, leak.severity) for leak in leaks} == {
        ("spend", "conversion", "error"),
        ("spend", "ctcvr", "error"),
    }


def published_rows(random, rows, year):
    """Lines in the publisher's form: a blank before each value but the first, 41 values, the label with a full stop."""
    columns = dict.fromkeys(census_income.COLUMNS[:-1], "Not in universe")
    lines, labels = [], []
    for _ in range(rows):
        rich, single = random.random() < 0.3, random.random() < 0.5
        values = columns | {
            "age": str(random.integers(0, 91)),
            "detailed_industry_recode": str(random.integers(0, 52)),
            "detailed_occupation_recode": str(random.integers(0, 47)),
            "wage_per_hour": str(random.integers(0, 3) * 500),
            "marital_stat": "Never married" if single else "Divorced",
            "major_occupation_code": "Handlers equip cleaners etc ",
            "hispanic_origin": random.choice(["NA", "All other"]),
            "capital_gains": "0",
            "capital_losses": "0",
            "dividends_from_stocks": str(random.integers(0, 90)),
            "weight": f"{random.random() * 2000:.2f}",
            "migration_code_change_in_msa": random.choice(["?", "Nonmover"]),
            "num_persons_worked_for_employer": str(random.integers(0, 7)),
            "own_business_or_self_employed": "0",
            "veterans_benefits": str(random.integers(0, 3)),
            "weeks_worked_in_year": str(random.integers(0, 53)),
            "year": year,
        }
        lines.append(", ".join([*values.values(), "50000+." if rich else "- 50000."]))
        labels.append((rich, single))
    return "\n".join(lines) + "\n", np.array(labels)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_census_reads_the_publishers_files(tmp_path, packed):
    random = np.random.default_rng(5)
    train, train_labels = published_rows(random, 900, "94")
    test, test_labels = published_rows(random, 300, "95")
    for name, text in {"census-income.data": train, "census-income.test": test}.items():
        if packed:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (tmp_path / name).write_text(text)
    dataset = pipelines.open_dataset(prepare("census_income", tmp_path, tmp_path / "out" / "census", shards=1))

    assert dataset.rows("train") + dataset.rows("valid") == 900
    assert dataset.rows("valid") > 50
    assert dataset.manifest.positives("test") == {
        "income": test_labels[:, 0].sum(),
        "never_married": test_labels[:, 1].sum(),
    }
    both = {label: sum(dataset.manifest.positives(s)[label] for s in ("train", "valid")) for label in ("income",)}
    assert both["income"] == train_labels[:, 0].sum()
    names = [feature.name for feature in dataset.schema.features]
    assert len(names) == 39
    assert set(names) >= set(census_income.DETAIL_COLUMNS)
    # Trimmed values, and the same names as in the copy with a header.
    assert dataset.vocabularies["major_occupation_code"].values.to_pylist() == ["Handlers equip cleaners etc"]
    assert set(dataset.vocabularies["migration_code_change_in_msa"].values.to_pylist()) == {"?", "Nonmover"}
    assert dataset.vocabularies["year"].values.to_pylist() == [94]
    assert {feature.name for feature in census_income.schema(published=False).features} < set(names)
    # No temporary file stays beside the dataset.
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["census"]


def test_published_features_match_the_documented_columns():
    assert len(census_income.COLUMNS) == len(set(census_income.COLUMNS)) == 42
    assert set(census_income.DETAIL_COLUMNS) | set(census_income.NO_FEATURES) <= set(census_income.COLUMNS)
    # Where the copy with a header lies at hand, its columns are the publisher's without the eight, in the same order.
    with gzip.open(raw("census_income") / "train.csv.gz", "rt") as stream:
        header = stream.readline().strip().split(",")
    assert header == [column for column in census_income.COLUMNS if column not in census_income.DETAIL_COLUMNS]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace(", 94,", ",", 1), "not the publisher's file"),
        (
            lambda text: text.replace("50000+.", "51000+.", 1),
            r"census-income\.data, row \d+: the income is '51000\+\.'",
        ),
    ],
    ids=["a column too few", "unknown label"],
)
def test_damaged_published_file_is_named(tmp_path, damage, message):
    text, _ = published_rows(np.random.default_rng(0), 50, "94")
    (tmp_path / "census-income.data").write_text(damage(text))
    (tmp_path / "census-income.test").write_text(text)
    with pytest.raises(pipelines.DataError, match=message):
        prepare("census_income", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", DATASETS)
def test_missing_raw_files_say_where_to_fetch_them(tmp_path, name):
    with pytest.raises(pipelines.DataError) as error:
        prepare(name, tmp_path, tmp_path / "out")
    assert DATASETS[name].url in str(error.value)
    assert all(file in str(error.value) for file in DATASETS[name].files)


def test_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(pipelines.DataError, match="census_income, hillstrom"):
        prepare("adult", tmp_path, tmp_path / "out")
