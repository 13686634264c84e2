from __future__ import annotations

import hashlib
import struct
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines import DataError, vocabulary
from pipelines.schema import Numeric
from pipelines.vocabulary import (
    FrequencyCounter,
    NumericSummary,
    Vocabulary,
    load_vocabularies,
    quantile_edges,
    save_vocabularies,
)

words = st.sampled_from(["", "a", "aa", "b", "ä", "z", "日本"]) | st.text(st.characters(exclude_categories=["Cs"]))


def ranked(counts: Counter, min_count: int, max_size: int | None) -> list:
    """By falling count, ties by value (text by its UTF-8 bytes)."""
    kept = [(value, count) for value, count in counts.items() if count >= min_count]
    kept.sort(key=lambda pair: (-pair[1], pair[0].encode() if isinstance(pair[0], str) else pair[0]))
    return kept[:max_size]


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.lists(words | st.none())) | st.lists(st.lists(st.integers(-4, 9) | st.none())),
    min_count=st.integers(1, 3),
    max_size=st.none() | st.integers(1, 6),
    merge_parts=st.integers(1, 3),
)
def test_a_stream_gives_the_exact_vocabulary(parts, min_count, max_size, merge_parts):
    seen = [value for part in parts for value in part if value is not None]
    type_ = pa.int64() if seen and isinstance(seen[0], int) else pa.string()
    counter = FrequencyCounter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_MERGE_PARTS", merge_parts)
        for part in parts:
            counter.add(pa.array(part, type_))
        found = counter.vocabulary(min_count, max_size)
    wanted = ranked(Counter(seen), min_count, max_size)
    assert list(zip(found.values.to_pylist(), found.counts.tolist(), strict=True)) == wanted
    assert found.exact
    assert found.size == 2 + len(wanted)


def test_beyond_the_cap_the_frequent_values_stay_and_it_says_so(monkeypatch):
    monkeypatch.setattr(vocabulary, "_MERGE_PARTS", 1)
    random = np.random.default_rng(0)
    counter = FrequencyCounter(max_distinct=200)
    truth: Counter = Counter()
    for start in range(0, 20_000, 500):
        rare = np.arange(start, start + 100) + 1_000  # never again
        frequent = random.integers(0, 50, 400)
        truth.update(frequent.tolist())
        counter.add(pa.array(np.concatenate([rare, frequent])))
    found = counter.vocabulary(min_count=1, max_size=50)
    assert not found.exact
    assert sorted(found.values.to_pylist()) == list(range(50))
    assert dict(zip(found.values.to_pylist(), found.counts.tolist(), strict=True)) == truth


def test_beyond_the_cap_equally_rare_values_do_not_all_go():
    counter = FrequencyCounter(max_distinct=100)
    counter.add(pa.array(range(150)))
    found = counter.vocabulary(min_count=1, max_size=None)
    assert found.values.to_pylist() == list(range(50))
    assert not found.exact


def test_vocabularies_survive_their_files(tmp_path):
    saved = {
        "a": Vocabulary(pa.array(["x", "", "é"]), np.array([3, 2, 2])),
        "b": Vocabulary(pa.array([7, -1], pa.int64()), np.array([9, 1]), exact=False),
        "empty": Vocabulary(pa.array([], pa.string()), np.zeros(0, np.int64)),
    }
    save_vocabularies(saved, tmp_path)
    loaded = load_vocabularies(saved, tmp_path)
    for name, wanted in saved.items():
        assert loaded[name].values.equals(wanted.values)
        assert loaded[name].counts.tolist() == wanted.counts.tolist()
        assert loaded[name].exact == wanted.exact


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_broken_vocabulary_file_is_an_error_with_its_place(fault, tmp_path):
    save_vocabularies({"a": Vocabulary(pa.array(["x"]), np.array([1]))}, tmp_path)
    file = tmp_path / "a.parquet"
    file.unlink() if fault == "missing" else file.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=str(file)):
        load_vocabularies(["a"], tmp_path)


def digest(values, type_=None) -> str:
    return Vocabulary(pa.array(values, type_), np.ones(len(values), np.int64)).digest


@settings(max_examples=100, deadline=None)
@given(values=st.lists(words), before=st.lists(words, max_size=3), cut=st.integers(0, 9))
def test_the_digest_of_text_is_that_of_its_lengths_and_bytes(values, before, cut):
    encoded = [value.encode() for value in values]
    content = b"".join([struct.pack("<q", len(value)) for value in encoded] + encoded)
    wanted = hashlib.sha256(f"string {len(values)}\n".encode() + content).hexdigest()[:16]
    assert digest(values, pa.string()) == wanted
    within = pa.array(before + values + before, pa.string()).slice(len(before), len(values))
    assert Vocabulary(within, np.zeros(len(values), np.int64)).digest == wanted
    chunked = pa.chunked_array([values[:cut], [], values[cut:]], pa.string()).combine_chunks()
    assert Vocabulary(chunked, np.zeros(len(values), np.int64)).digest == wanted


def test_the_digest_of_integers_is_that_of_their_bytes():
    wanted = hashlib.sha256(b"int64 3\n" + struct.pack("<3q", 7, -1, 2**40)).hexdigest()[:16]
    assert digest([7, -1, 2**40]) == wanted
    within = pa.array([0, 7, -1, 2**40, 5]).slice(1, 3)
    assert Vocabulary(within, np.array([3, 2, 1])).digest == wanted


def test_no_two_vocabularies_share_a_digest():
    texts = [["a", "b"], ["b", "a"], ["ab", ""], ["", "ab"], ["ab"], ["a", "b", ""], [""], []]
    digests = [digest(values, pa.string()) for values in texts]
    digests += [digest(values, pa.int64()) for values in ([], [0], [1, 2], [2, 1])]
    digests += [digest(["1", "2"])]
    assert len(set(digests)) == len(digests)


def test_a_vocabulary_of_other_values_is_named_where_its_digest_is_known(tmp_path):
    old, other = (Vocabulary(pa.array(values), np.array([2, 1])) for values in (["x", "y"], ["x", "z"]))
    save_vocabularies({"a": other, "b": other}, tmp_path)
    assert set(load_vocabularies(["a", "b"], tmp_path, {"b": other.digest, "c": "0"})) == {"a", "b"}
    with pytest.raises(DataError, match=rf"{tmp_path / 'b.parquet'}: its values differ from what was written"):
        load_vocabularies(["a", "b"], tmp_path, {"b": old.digest})


def bucket_shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) / len(values)


def test_buckets_of_distinct_values_hold_equal_mass():
    values = np.random.default_rng(0).lognormal(size=10_000).astype(np.float32)
    shares = bucket_shares(values, quantile_edges(values, 10))
    np.testing.assert_allclose(shares, 0.1, atol=0.001)


@pytest.mark.parametrize("spike", [-5.0, 0.5, 5.0])
def test_a_heavy_value_has_a_bucket_of_its_own_and_the_rest_share_the_others(spike):
    light = np.random.default_rng(1).random(4_000)
    values = np.concatenate([np.full(6_000, spike), light]).astype(np.float32)
    edges = quantile_edges(values, 10)
    bucket = np.searchsorted(edges, values, side="right")
    at_spike = values == np.float32(spike)
    assert len(set(bucket[at_spike])) == 1
    assert not set(bucket[at_spike]) & set(bucket[~at_spike])
    others = np.bincount(bucket[~at_spike])
    assert len(edges) + 1 >= 9
    assert others.max() <= 4_000 / 7


@settings(max_examples=300, deadline=None)
@given(
    values=hnp.arrays(
        np.float32, st.integers(1, 60), elements=st.integers(-4, 6).map(float) | st.floats(-9, 9, width=32)
    ),
    buckets=st.integers(2, 12),
)
def test_edges_rise_and_make_no_more_buckets_than_wanted(values, buckets):
    edges = quantile_edges(values, buckets)
    distinct = np.unique(values)
    assert edges.dtype == np.float32
    assert len(edges) < buckets
    assert (np.diff(edges) > 0).all()
    assert set(edges) <= set(distinct)
    assert (bucket_shares(values, edges) > 0).all()
    if len(distinct) <= buckets:
        assert len(edges) == len(distinct) - 1
    else:
        assert len(edges) >= 1


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(-1e4, 1e4, width=32) | st.just(np.nan))
    )
)
def test_mean_and_deviation_are_those_of_the_whole_stream(parts):
    summary = NumericSummary()
    for part in parts:
        summary.add(part, part)
    seen = np.concatenate([*parts, np.zeros(0, np.float32)]).astype(np.float64)
    seen = seen[~np.isnan(seen)]
    fitted = summary.fitted(Numeric(name="x"))
    constant = len(seen) == 0 or seen.std() <= max(1e-6 * abs(seen.mean()), np.finfo(np.float32).tiny)
    assert fitted.std > 0.0
    assert fitted.mean == pytest.approx(seen.mean() if len(seen) else 0.0, rel=1e-5, abs=1e-3)
    if not constant:
        assert fitted.std == pytest.approx(seen.std(), rel=1e-4, abs=1e-3)


def test_a_constant_has_deviation_one():
    summary = NumericSummary()
    for rows in (3, 7, 11):
        summary.add(np.full(rows, 0.1, np.float32), np.full(rows, 0.1, np.float32))
    assert summary.fitted(Numeric(name="x")).std == 1.0


def test_quantiles_of_a_long_stream_come_close_with_a_bounded_sample(monkeypatch):
    monkeypatch.setattr(vocabulary, "_SAMPLE_CAPACITY", 1 << 14)
    random = np.random.default_rng(2)
    stream = random.exponential(size=300_000).astype(np.float32)
    summary = NumericSummary()
    for part in np.split(stream, 100):
        summary.add(part, part)
    edges = np.array(summary.fitted(Numeric(name="x", buckets=4)).edges)
    np.testing.assert_allclose(bucket_shares(stream, edges), 0.25, atol=0.02)
