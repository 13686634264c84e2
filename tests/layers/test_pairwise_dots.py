"""Dot products of fields against numpy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mtlzoo.layers import PairwiseDots


def test_every_field_with_every_field():
    e = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
    dots = np.asarray(PairwiseDots()(e))
    assert dots.shape == (5, 16)
    for f in range(4):
        for g in range(4):
            np.testing.assert_allclose(dots[:, 4 * f + g], np.sum(e[:, f] * e[:, g], axis=1), rtol=1e-5, atol=1e-6)


def test_works_in_a_functional_model_and_from_its_config():
    inputs = keras.Input((4, 3))
    outputs = PairwiseDots.from_config(PairwiseDots(name="dots").get_config())(inputs)
    assert outputs.shape == (None, 16)
    assert keras.Model(inputs, outputs).predict(np.ones((2, 4, 3)), verbose=0).tolist() == [[3.0] * 16] * 2


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"must be \[batch, fields, width\], has shape \(2, 12\)"):
        PairwiseDots()(np.ones((2, 12), "float32"))
