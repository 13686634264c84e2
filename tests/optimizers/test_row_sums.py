"""`backend.sums_of_rows`: the sums of numpy, whichever way it finds the distinct rows."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mtlzoo import backend


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("width", [1, 7, 31, 48])
@pytest.mark.parametrize("rows", [5, 1000], ids=["fewer rows than lookups", "more rows than lookups"])
def test_sums_are_those_of_numpy(rows, width, dtype, in_graph):
    rng = np.random.default_rng(width)
    ids = rng.integers(0, rows - 1, 60).astype("int32")  # the last row is never looked up
    values = rng.integers(-8, 8, (60, width)).astype(dtype)  # whole numbers, so that sums are exact

    def summed(values, ids):
        return backend.sums_of_rows(tf.IndexedSlices(values, ids, tf.constant([rows, width])))

    indices, *sums = (tf.function(summed) if in_graph else summed)(tf.constant(values), tf.constant(ids))
    assert sorted(indices.numpy()) == np.unique(ids).tolist()
    for found, summands in zip(sums, (values, values**2), strict=True):
        expected = np.zeros((rows, width), dtype)
        np.add.at(expected, ids, summands)
        np.testing.assert_array_equal(found.numpy(), expected[indices.numpy()])


def test_other_ranks_and_an_unknown_number_of_rows():
    ids, values = np.array([3, 1, 3]), np.arange(12.0, dtype="float32").reshape(3, 2, 2)
    indices, sums, squares = backend.sums_of_rows(tf.IndexedSlices(tf.constant(values), tf.constant(ids)))
    assert indices.numpy().tolist() == [3, 1]
    np.testing.assert_array_equal(sums.numpy(), [values[0] + values[2], values[1]])
    np.testing.assert_array_equal(squares.numpy(), [values[0] ** 2 + values[2] ** 2, values[1] ** 2])
