from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_encoding import expected, read_all

import pipelines
from pipelines.hashing import hash_strings
from pipelines.schema import Schema
from pipelines.split import SPLITS


def rows_by_split(table: pa.Table, schema: Schema) -> dict[str, list[dict]]:
    """The raw rows of each split of a hash split, hashed one by one."""
    split = schema.split
    parts: dict[str, list[dict]] = {name: [] for name in SPLITS}
    for number, row in enumerate(table.to_pylist()):
        key = str(number) if split.key == "row" else str(row[split.key])
        position = hash_strings([key], 1_000_000)[0] / 1_000_000
        parts["test" if position < split.test else "valid" if position < split.test + split.valid else "train"] += [row]
    return parts


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) - {"groups"} == set(wanted)
    for key, value in wanted.items():
        assert found[key].shape == value.shape, key
        if found[key].dtype == np.int32:
            np.testing.assert_array_equal(found[key], value, err_msg=key)
        else:
            assert found[key].dtype == np.float32, key
            np.testing.assert_allclose(found[key], value, rtol=2e-5, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("layout", ["dataset", "rows_dataset"])
@pytest.mark.parametrize("split", SPLITS)
def test_batches_are_what_the_raw_rows_say(layout, split, raw_log, request):
    converted = request.getfixturevalue(layout)
    parts = rows_by_split(raw_log.table, converted.schema)
    assert converted.rows(split) == len(parts[split])
    found = read_all(converted, split)
    assert_same(found, expected(parts[split], parts["train"], converted.schema))


@pytest.mark.parametrize("layout", ["dataset", "rows_dataset"])
def test_groups_are_equal_exactly_where_the_keys_are(layout, raw_log, request):
    converted = request.getfixturevalue(layout)
    users = [row["user_id"] for row in rows_by_split(raw_log.table, converted.schema)["train"]]
    groups = read_all(converted, "train", groups=True)["groups"]
    assert groups.dtype == np.int64
    assert len(set(zip(users, groups.tolist(), strict=True))) == len(set(users)) == len(set(groups.tolist()))


def test_both_layouts_have_the_same_vocabularies_and_schema(dataset, rows_dataset):
    assert dataset.schema == rows_dataset.schema
    for name, vocabulary in dataset.vocabularies.items():
        assert vocabulary.values.equals(rows_dataset.vocabularies[name].values)
        assert vocabulary.exact


def test_fixture_is_what_it_promises(raw_log, dataset):
    click = raw_log.table["click"].to_numpy()
    conversion = raw_log.table["conversion"].to_numpy()
    assert click.mean() == pytest.approx(0.2, abs=0.05)
    assert conversion[click == 1].mean() == pytest.approx(0.2, abs=0.08)
    assert dataset.schema.packed_numeric == ("age", "price", "price:missing")
    assert [f.name for f in dataset.schema.packed_categorical][-1] == "dwell"


texts = st.sampled_from(["", "a", "b", "bb", "ü", "日本", "other"])
numbers = st.integers(-3, 12)
floats = st.floats(-0.5, 1e4, width=32) | st.none() | st.just(float("nan"))


@st.composite
def logs(draw) -> tuple[Schema, pa.Table]:
    """A schema with every kind of feature in some configuration, and rows for it."""
    rows = draw(st.integers(12, 40))
    lengths = draw(st.lists(st.integers(0, 5), min_size=rows, max_size=rows))

    def column(values):
        return draw(st.lists(values, min_size=rows, max_size=rows))

    def counting():
        return {"min_count": draw(st.integers(1, 3)), "max_size": draw(st.none() | st.integers(1, 4))}

    shared = counting()
    features = [
        {"name": "text", "type": "categorical", "table": "texts", **shared},
        {"name": "more", "type": "multi_categorical", "table": "texts", "max_length": draw(st.integers(1, 4)), **shared}
        | {"keep": draw(st.sampled_from(["first", "last"])), "missing_values": draw(st.sampled_from([(), ("a", "")]))},
        {"name": "number", "type": "categorical", "dtype": "int", **counting()}
        | {"missing_values": draw(st.sampled_from([(), (0, -1)]))},
        {"name": "hashed", "type": "categorical", "dtype": "int", "column": "number_2", "hash_buckets": 5},
        {"name": "ints", "type": "multi_categorical", "dtype": "int", "max_length": 3, "weights": "strength"}
        | counting(),
        {"name": "x", "type": "numeric", "missing": draw(st.sampled_from(["mean", 0.25])), "indicator": True}
        | {"transform": draw(st.sampled_from(["none", "log1p", "symlog"])), "standardize": draw(st.booleans())}
        | {"buckets": draw(st.none() | st.integers(2, 5)), "keep_value": draw(st.booleans())},
    ]
    click = column(st.integers(0, 1))
    table = pa.table(
        {
            "text": pa.array(column(texts | st.none()), pa.string()),
            "more": pa.array(column(st.lists(texts | st.none(), max_size=6) | st.none()), pa.list_(pa.string())),
            "number": pa.array(column(numbers | st.none()), pa.int64()),
            "number_2": pa.array(column(st.integers(-(2**63), 2**63 - 1) | st.none()), pa.int64()),
            "ints": pa.array([[draw(numbers) for _ in range(n)] for n in lengths], pa.list_(pa.int64())),
            "strength": pa.array([[draw(st.floats(0, 2)) for _ in range(n)] for n in lengths], pa.list_(pa.float64())),
            "x": pa.array(column(floats), pa.float64()),
            "click": click,
            "conversion": [c * draw(st.integers(0, 1)) for c in click],
            "importance": column(st.floats(0, 3)),
        }
    )
    schema = Schema.model_validate(
        {
            "features": features,
            "labels": [{"name": "click"}, {"name": "conversion", "parent": "click"}],
            "keys": {"weight": "importance", "group": "number"},
            "split": {"by": "hash", "key": "row", "valid": 0.3, "test": 0.0},
        }
    )
    return schema, table


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(log=logs())
def test_any_log_comes_back_as_the_reference_says_in_both_layouts(log, tmp_path_factory):
    schema, table = log
    folder = tmp_path_factory.mktemp("any")
    pa.parquet.write_table(table, folder / "log.parquet")
    parts = rows_by_split(table, schema)
    for layout in ("blocks", "rows"):
        converted = pipelines.open_dataset(pipelines.convert([folder / "log.parquet"], schema, folder / layout, layout))
        for split in ("train", "valid"):
            if parts[split]:
                found = read_all(converted, split, groups=True)
                assert_same(found, expected(parts[split], parts["train"], converted.schema))
                ids = [row["number"] for row in parts[split]]
                assert [g for g, i in zip(found["groups"], ids, strict=True) if i is not None] == [
                    i for i in ids if i is not None
                ]
