from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import DataError
from pipelines.schema import Schema
from pipelines.schema_file import load_schema, save_schema

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda n: n not in ("categorical", "numeric", "ctcvr") and not n.endswith("_weights") and not n.startswith("joint_")
)
raw_names = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
missing_values = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.integers(), max_size=3)


@st.composite
def schemas(draw) -> Schema:
    found = draw(st.lists(names, min_size=3, max_size=8, unique=True))
    first, second, *others = found
    features = [draw(_feature(name, number)) for number, name in enumerate(others)]
    labels = [{"name": first, "column": "#1"}, {"name": second, "column": "#2", "parent": first}]
    labels[1]["positive"] = draw(st.none() | st.text(max_size=3) | st.integers(-5, 5) | st.floats(-5, 5))
    labels[1]["joint"] = draw(st.none() | st.just("bought_too"))
    keys = {"group": draw(raw_names), "weight": draw(raw_names)}
    return Schema.model_validate({"features": features, "labels": labels, "keys": keys, "split": draw(_split())})


@st.composite
def _feature(draw, name: str, number: int) -> dict:
    kind = draw(st.sampled_from(["categorical", "multi_categorical", "numeric"]))
    feature = {"name": name, "type": kind, "column": f"{number} {draw(raw_names) or ''}"}
    feature["embedding_dim"] = draw(st.none() | st.integers(1, 64))
    if kind == "numeric":
        transform = draw(st.sampled_from(["none", "symlog"]))
        feature |= {"missing": draw(st.sampled_from(["error", "mean"]) | st.floats(-1e300, 1e300))}
        return feature | {"transform": transform, "buckets": draw(st.none() | st.integers(2, 50))}
    feature |= {"dtype": draw(st.sampled_from(["string", "int"])), "min_count": draw(st.integers(1, 9))}
    feature |= {"missing_values": draw(missing_values), "hash_buckets": draw(st.none() | st.integers(1, 10**6))}
    if kind == "multi_categorical":
        feature |= {"max_length": draw(st.integers(1, 50)), "separator": draw(st.text("|,; \t", min_size=1))}
        feature |= {"keep": draw(st.sampled_from(["first", "last"])), "weights": draw(raw_names)}
        feature |= {"ordered": draw(st.booleans()) and feature["keep"] == "last"}
    return feature


@st.composite
def _split(draw) -> dict:
    kind = draw(st.sampled_from(["files", "time", "hash"]))
    if kind == "hash":
        return {"by": kind, "key": draw(st.text("abc ", min_size=1)), "valid": draw(st.floats(0, 0.5)), "test": 0.25}
    if kind == "files":
        return {"by": kind, "train": "*.csv", "valid_fraction": draw(st.floats(0, 0.9)), "salt": draw(st.text("ab:"))}
    moments = (
        [draw(st.dates()).isoformat() for _ in range(2)] if draw(st.booleans()) else [draw(st.floats(0, 1e12))] * 2
    )
    return {"by": kind, "column": "when", "valid_from": min(moments), "test_from": max(moments)}


@settings(max_examples=80, deadline=None)
@given(schema=schemas())
def test_a_schema_survives_its_file(schema, tmp_path_factory):
    path = tmp_path_factory.mktemp("schema") / "schema.yaml"
    save_schema(schema, path)
    again = load_schema(path)
    assert again == schema
    assert again.digest() == schema.digest()


def test_ordered_is_stored_only_where_it_is_true(demo_schema):
    plain = demo_schema.to_dict()
    assert all("ordered" not in f for f in plain["features"])
    feature(plain, "history")["ordered"] = False
    assert Schema.model_validate(plain).digest() == demo_schema.digest()
    feature(plain, "history")["ordered"] = True
    ordered = Schema.model_validate(plain)
    assert feature(ordered.to_dict(), "history")["ordered"] is True
    assert ordered.digest() != demo_schema.digest()


def test_fitted_schema_survives_its_file(dataset, tmp_path):
    save_schema(dataset.schema, tmp_path / "schema.yaml")
    assert load_schema(tmp_path / "schema.yaml") == dataset.schema


def changed(demo_schema, change) -> dict:
    data = demo_schema.to_dict()
    change(data)
    return data


def feature(data, name):
    return next(f for f in data["features"] if f["name"] == name)


BAD = {
    "unknown key": (
        lambda d: feature(d, "item").update(min_cuont=3),
        r"features\.0 \(item\).*'min_cuont'.*'min_count'",
    ),
    "unknown top key": (lambda d: d.update(label=[]), "unknown key 'label'; did you mean 'labels'"),
    "bad value": (lambda d: feature(d, "age").update(transform="log"), r"\(age\)\.transform.*found 'log'"),
    "missing key": (lambda d: feature(d, "tags").pop("max_length"), r"\(tags\)\.max_length: missing"),
    "unknown type": (lambda d: feature(d, "age").update(type="number"), r"\(age\).*'number'"),
    "name twice": (lambda d: feature(d, "age").update(name="city"), "'city' stands twice"),
    "leak": (lambda d: feature(d, "age").update(column="click"), "'age' reads column 'click'.*leak"),
    "parent after": (lambda d: d["labels"].reverse(), "its parent 'click' must be a label that stands before it"),
    "unlike tables": (lambda d: feature(d, "item").update(min_count=3), "share the table 'item' but differ.*3 and 2"),
    "bucket table": (lambda d: feature(d, "city").update(table="dwell"), "uses the table 'dwell'.*'dwell'"),
    "missing out of domain": (lambda d: feature(d, "price").update(missing=-1.0), "above -1 for log1p"),
    "missing not finite": (lambda d: feature(d, "age").update(missing=float("inf")), "finite"),
    "reserved": (lambda d: feature(d, "age").update(name="numeric"), "'numeric' is reserved"),
    "ordered from the wrong end": (
        lambda d: feature(d, "tags").update(ordered=True),
        r"\(tags\): `ordered: true` needs the most recent values, `keep: first` drops them: write `keep: last`$",
    ),
    "no training rows": (lambda d: d["split"].update(valid=0.8), "valid=0.8 and test=0.2 leave no training rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_schema_names_file_field_and_value(case, demo_schema, tmp_path):
    change, message = BAD[case]
    path = tmp_path / "schema.yaml"
    path.write_text(yaml.safe_dump(changed(demo_schema, change)), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        load_schema(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("", "mapping"), ("- a", "mapping"), ("a: [", "YAML"), ("a: \x00", "YAML")]
)
def test_what_is_no_schema_is_refused(text, message, tmp_path):
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_schema(tmp_path / "s.yaml")


def test_a_missing_schema_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.yaml: there is no such schema file"):
        load_schema(tmp_path / "nowhere.yaml")


def test_targets_of_a_funnel_of_three(demo_schema):
    labels = [{"name": "click"}, {"name": "cart", "parent": "click"}, {"name": "buy", "parent": "cart"}]
    schema = Schema.model_validate(demo_schema.to_dict() | {"labels": labels})
    found = {t.name: (t.positive, t.given) for t in schema.targets}
    assert found == {
        "click": (("click",), ()),
        "cart": (("cart",), ("click",)),
        "buy": (("buy",), ("click", "cart")),
        "joint_cart": (("click", "cart"), ()),
        "joint_buy": (("click", "cart", "buy"), ()),
    }


def test_an_unfitted_schema_knows_no_table_sizes(demo_schema):
    with pytest.raises(ValueError, match="open_dataset"):
        demo_schema.table_size(demo_schema.singles[0])
