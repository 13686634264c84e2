"""Serialized Examples, byte for byte against TensorFlow's own message classes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.example_bytes import Values, serialize_examples, varints

INTS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2**21) | st.sampled_from([0, 127, 128, 2**14 - 1, 2**14, -1])
FLOATS = st.floats(width=32)


def values(lists: list[list], dtype: type) -> Values:
    ends = np.cumsum([0, *map(len, lists)])
    return Values(np.array([value for each in lists for value in each], dtype), ends)


def of_tensorflow(columns: dict[str, tuple[list[list], str]], index: int) -> bytes:
    features = {}
    for key, (lists, kind) in columns.items():
        if kind == "int":
            features[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=lists[index]))
        else:
            features[key] = tf.train.Feature(float_list=tf.train.FloatList(value=lists[index]))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bytes_are_those_of_tensorflow(data):
    count = data.draw(st.integers(1, 4))
    columns = {}
    for key in data.draw(st.lists(st.text(max_size=200), unique=True, max_size=4)):
        kind = data.draw(st.sampled_from(["int", "float"]))
        each = st.lists(INTS if kind == "int" else FLOATS, max_size=40)
        columns[key] = (data.draw(st.lists(each, min_size=count, max_size=count)), kind)
    ours = {k: values(lists, np.int64 if kind == "int" else np.float32) for k, (lists, kind) in columns.items()}
    assert serialize_examples(ours, count) == [of_tensorflow(columns, index) for index in range(count)]


@pytest.mark.parametrize("bits", range(0, 63, 7))
def test_every_length_of_a_varint(bits):
    wanted = [(1 << bits) - 1, 1 << bits, (1 << bits) + 1]
    flat, ends = varints(np.array(wanted, np.int64))
    for value, start, stop in zip(wanted, ends, ends[1:], strict=False):
        assert stop - start == max(1, -(-value.bit_length() // 7))
        assert sum(int(byte & 0x7F) << (7 * i) for i, byte in enumerate(flat[start:stop])) == value


def test_long_columns_have_long_lengths():
    random = np.random.default_rng(1)
    flat = random.integers(0, 500_000, 3 * 1024)
    lists = [flat[start : start + 1024].tolist() for start in range(0, len(flat), 1024)]
    ours = serialize_examples({"field": values(lists, np.int64)}, 3)
    assert ours == [of_tensorflow({"field": (lists, "int")}, index) for index in range(3)]
