"""Magnitude pruning against counts and hand-made numbers; overlap against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from mtlzoo.layers.pruning import checked_mask, independent_overlap, overlap, prune_by_magnitude, pruning_rate

RNG = np.random.default_rng(0)
SHAPES = [(720, 512), (512, 256), (256, 128)]


def random_layers(shapes=SHAPES):
    # Scales differ, so that one cut for all layers differs from one cut per layer.
    return [(scale * RNG.normal(size=s)).astype("float32") for scale, s in zip((1.0, 0.5, 2.0), shapes, strict=True)]


def survivors(masks) -> int:
    return sum(int(mask.sum()) for mask in masks)


def test_a_cut_by_hand():
    kernels = [np.array([[0.5, -0.1], [3.0, 0.0]]), np.array([-2.0, 0.2, -0.4])]
    masks = [np.ones((2, 2)), np.array([1, 1, 0])]
    # Survivors in order: 0, .1, .2, .5, 2, 3; n = 6, k = 3, c = .5.
    first, second = prune_by_magnitude(kernels, masks, rate=0.5)
    np.testing.assert_array_equal(first, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(second, [1, 0, 0])
    # By layer: 0, .1, .5, 3 with c = .5, and .2, 2 with c = 2.
    first, second = prune_by_magnitude(kernels, masks, rate=0.5, scope="layer")
    np.testing.assert_array_equal(first, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(second, [1, 0, 0])
    kernels[1] *= 100
    assert survivors(prune_by_magnitude(kernels, masks, rate=0.5)) == 3
    np.testing.assert_array_equal(prune_by_magnitude(kernels, masks, rate=0.5)[0], [[0, 0], [1, 0]])
    np.testing.assert_array_equal(prune_by_magnitude(kernels, masks, rate=0.5, scope="layer")[1], [1, 0, 0])


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_and_densities_of_the_papers_schedule(scope):
    rate = pruning_rate(0.2, rounds=4)
    masks = [np.ones(shape, "float32") for shape in SHAPES]
    total, densities = survivors(masks), [100.0]
    for _ in range(4):
        kernels = random_layers()  # trained anew in each round
        pruned = prune_by_magnitude(kernels, masks, rate, scope)
        counts = [int(m.sum()) for m in masks] if scope == "layer" else [survivors(masks)]
        assert survivors(pruned) == sum(n - round(rate * n) for n in counts)
        assert all(np.all(new <= old) for new, old in zip(pruned, masks, strict=True))  # what is cut stays cut
        masks = pruned
        densities.append(100 * survivors(masks) / total)
    np.testing.assert_allclose(densities, [100, 66.87, 44.72, 29.91, 20.0], atol=0.006)
    if scope == "layer":
        np.testing.assert_allclose([m.mean() for m in masks], 0.2, atol=1e-4)
    else:
        assert masks[1].mean() < 0.15 < masks[2].mean()  # the layer of small weights loses most


def test_the_largest_weights_survive():
    kernels = random_layers()
    masks = prune_by_magnitude(kernels, [np.ones(s) for s in SHAPES], 0.7)
    sizes = [np.abs(k) for k in kernels]
    kept = np.concatenate([s[m == 1] for s, m in zip(sizes, masks, strict=True)])
    cut = np.concatenate([s[m == 0] for s, m in zip(sizes, masks, strict=True)])
    assert kept.min() > cut.max()


def test_ties_stay_together_and_the_last_connection_survives():
    mask = np.ones(5, bool)
    (same,) = prune_by_magnitude([np.full(5, 0.3)], [mask], 0.9)
    assert same.dtype == bool
    assert same.all()
    (last,) = prune_by_magnitude([np.array([0.1, 0.2])], [np.array([0, 1])], 0.99)
    np.testing.assert_array_equal(last, [0, 1])
    (empty,) = prune_by_magnitude([np.array([0.1, 0.2])], [np.zeros(2)], 0.5)
    np.testing.assert_array_equal(empty, [0, 0])


def test_arguments_are_left_alone():
    kernels, masks = [RNG.normal(size=(4, 3))], [np.ones((4, 3))]
    before = kernels[0].copy()
    prune_by_magnitude(kernels, masks, 0.5)
    np.testing.assert_array_equal(kernels[0], before)
    np.testing.assert_array_equal(masks[0], np.ones((4, 3)))


def test_pruning_rate():
    assert pruning_rate(0.2, 4) == pytest.approx(0.3312597, abs=1e-7)  # 1 - e^(ln(.2) / 4)
    assert pruning_rate(0.25, 1) == pytest.approx(0.75)
    assert pruning_rate(1.0, 3) == 0.0


def test_overlap_by_hand():
    assert overlap([1, 1, 0, 0], [0, 1, 1, 0]) == pytest.approx(1 / 3)
    assert overlap([True, False], [True, False]) == 1.0
    assert overlap([1, 0], [0, 1]) == 0.0
    assert overlap([0, 0], [0, 0]) == 0.0


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.2), (0.5, 0.1), (1.0, 0.3)])
def test_overlap_of_independent_masks(a, b):
    first, second = RNG.random((1000, 500)) < a, RNG.random((1000, 500)) < b
    assert overlap(first, second) == pytest.approx(independent_overlap(a, b), abs=0.003)


def test_overlap_of_independent_tickets_of_a_fifth():
    assert independent_overlap(0.2, 0.2) == pytest.approx(0.04 / 0.36)
    ones = [np.ones(s) for s in SHAPES]
    first, second = (prune_by_magnitude(random_layers(), ones, 0.8, "layer") for _ in range(2))
    assert overlap(first[0], second[0]) == pytest.approx(0.111, abs=0.003)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_densities_outside_their_range_are_named(density):
    with pytest.raises(ValueError, match=f"final_density must be above 0 and at most 1, is {density}"):
        pruning_rate(density, 4)
    with pytest.raises(ValueError, match=f"density_b.*{density}"):
        independent_overlap(0.2, density)


def test_bad_arguments_are_named():
    kernel, mask = np.ones((2, 3)), np.ones((2, 3))
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"rate.*{rate}"):
            prune_by_magnitude([kernel], [mask], rate)
    with pytest.raises(ValueError, match="rounds must be at least 1, is 0"):
        pruning_rate(0.2, 0)
    with pytest.raises(ValueError, match="scope.*'row'"):
        prune_by_magnitude([kernel], [mask], 0.5, scope="row")
    with pytest.raises(ValueError, match="1 kernels and 2 masks"):
        prune_by_magnitude([kernel], [mask, mask], 0.5)
    with pytest.raises(ValueError, match=r"mask 1 must have shape \(2, 3\), has shape \(3, 2\)"):
        prune_by_magnitude([kernel, kernel], [mask, mask.T], 0.5)
    with pytest.raises(ValueError, match="mask 0 must hold 0 and 1 only, holds 0.5"):
        prune_by_magnitude([kernel], [mask / 2], 0.5)
    with pytest.raises(ValueError, match="kernel 0.*not finite"):
        prune_by_magnitude([kernel * np.nan], [mask], 0.5)
    with pytest.raises(ValueError, match=r"mask_b must have shape \(2, 3\)"):
        overlap(mask, mask[:1])
    with pytest.raises(ValueError, match="layer_3 must hold 0 and 1 only, holds nan"):
        checked_mask([1.0, np.nan], (2,), "layer_3")
