"""Sharing of connections, against loops over every connection and closed forms."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mtlzoo.callbacks.mask_density import masked_layers
from mtlzoo.inspection import sharing, total
from mtlzoo.inspection.sharing import pattern_map, pattern_names, sharing_of
from mtlzoo.layers import MaskedDense
from mtlzoo.layers.pruning import independent_overlap, overlap
from mtlzoo.models import NCS4CVR, SharedBottom

RNG = np.random.default_rng(0)
TASKS = ("click", "conversion")


def random_masks(*shape: int, density: float = 0.4) -> np.ndarray:
    return RNG.random(shape) < density


def pattern_of(users: list[str], tasks: tuple[str, ...]) -> str:
    """The pattern of one connection, in words."""
    if not users:
        return "dead"
    if len(users) == 1:
        return f"{users[0]} only"
    if len(tasks) == 2:
        return "shared"
    return "shared by all" if len(users) == len(tasks) else "shared by some"


@pytest.mark.parametrize("tasks", [("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_patterns_by_looking_at_every_connection(tasks):
    masks = random_masks(len(tasks), 9, 7, density=0.6)
    expected = dict.fromkeys(pattern_names(tasks), 0)
    for i in range(9):
        for j in range(7):
            pattern = pattern_of([t for t, mask in zip(tasks, masks, strict=True) if mask[i, j]], tasks)
            expected[pattern] += 1
            assert pattern_names(tasks)[pattern_map(masks)[i, j]] == pattern
    found = sharing_of(masks, "layer", tasks)
    assert found.patterns == expected
    assert found.open == {t: int(mask.sum()) for t, mask in zip(tasks, masks, strict=True)}
    assert sum(found.shares.values()) == pytest.approx(1)
    assert len(found.overlaps) == len(tasks) * (len(tasks) - 1) // 2


def test_overlaps_are_those_of_the_layers_package():
    tasks = ("a", "b", "c")
    masks = random_masks(3, 30, 20)
    found = sharing_of(masks, "layer", tasks)
    for pair, (i, j) in zip(found.overlaps, [(0, 1), (0, 2), (1, 2)], strict=True):
        assert pair.tasks == (tasks[i], tasks[j])
        assert pair.jaccard == overlap(masks[i], masks[j])
        assert pair.independent == pytest.approx(independent_overlap(masks[i].mean(), masks[j].mean()))


def test_closed_forms():
    half = np.zeros((4, 6), bool)
    half[:2] = True
    same, apart = sharing_of(np.stack([half, half]), "same", TASKS), sharing_of(np.stack([half, ~half]), "apart", TASKS)
    assert same.shares == {"click only": 0, "conversion only": 0, "shared": 0.5, "dead": 0.5}
    assert apart.shares == {"click only": 0.5, "conversion only": 0.5, "shared": 0, "dead": 0}
    assert (same.overlaps[0].jaccard, apart.overlaps[0].jaccard) == (1, 0)
    assert same.overlaps[0].independent == apart.overlaps[0].independent == pytest.approx(1 / 3)
    closed = sharing_of(np.zeros((2, 4, 6), bool), "closed", TASKS)
    assert closed.shares["dead"] == 1
    assert (closed.overlaps[0].jaccard, closed.overlaps[0].independent) == (0, 0)
    one_closed = sharing_of(np.stack([half, np.zeros_like(half)]), "one", TASKS)
    assert (one_closed.overlaps[0].jaccard, one_closed.overlaps[0].independent) == (0, 0)


def test_independent_masks_overlap_as_much_as_chance_says():
    masks = np.stack([random_masks(400, 300, density=0.2), random_masks(400, 300, density=0.5)])
    found = sharing_of(masks, "layer", TASKS).overlaps[0]
    assert found.jaccard == pytest.approx(found.independent, abs=4 * np.sqrt(0.2 / masks[0].size))


def test_the_total_counts_every_layer_and_takes_chance_layer_by_layer():
    sparse, dense = random_masks(2, 200, 100, density=0.05), random_masks(2, 100, 100, density=0.9)
    parts = [sharing_of(sparse, "sparse", TASKS), sharing_of(dense, "dense", TASKS)]
    together = total(parts)
    flat = np.concatenate([sparse.reshape(2, -1), dense.reshape(2, -1)], axis=1)
    assert together.connections == flat.shape[1]
    assert together.density == dict(zip(TASKS, flat.mean(axis=1), strict=True))
    assert together.shares["shared"] == pytest.approx(flat.all(axis=0).mean())
    assert together.overlaps[0].jaccard == overlap(*flat)
    # The layers' masks are independent; their densities pooled would call that agreement.
    assert together.overlaps[0].independent == pytest.approx(together.overlaps[0].jaccard, abs=0.01)
    assert independent_overlap(*flat.mean(axis=1)) < 0.7 * together.overlaps[0].jaccard


@pytest.fixture(scope="module")
def model(dataset):
    model = NCS4CVR(dataset.schema, trunk_units=(8, 4), mask="lottery", embedding_dim=2)
    for layer in masked_layers(model):
        layer.set_masks(random_masks(*layer.binary_masks.shape))
    return model


def test_layers_of_a_model(model):
    found = sharing(model)
    assert [layer.name for layer in found] == ["trunk_0", "trunk_1"]
    for layer, part in zip(masked_layers(model), found, strict=True):
        masks = layer.binary_masks.numpy() > 0
        assert part == sharing_of(masks, layer.name, TASKS)
        assert part.shape == layer.kernel.shape
        assert part.connections == masks[0].size


def test_a_clone_and_a_loaded_model_say_the_same(model, tmp_path):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert [list(part.patterns.values()) for part in sharing(clone)] == [
        list(part.patterns.values()) for part in sharing(model)
    ]
    model.save(tmp_path / "model.keras")
    assert sharing(keras.models.load_model(tmp_path / "model.keras")) == sharing(model)


@pytest.mark.parametrize("estimator", ["hard_concrete", "straight_through"])
def test_learned_masks_are_open_where_they_are_above_zero(estimator):
    x = keras.Input((6,))
    model = keras.Model(x, MaskedDense(4, num_tasks=2, estimator=estimator)(x))
    wanted = random_masks(2, 6, 4)
    layer = masked_layers(model)[0]
    # 0.5 is half open for hard-concrete gates: a value between 0 and 1.
    layer.gates.assign(np.where(wanted, 0.5, -10.0) / layer.gate_scale)
    assert sharing(model) == [sharing_of(wanted, layer.name, ("task_1", "task_2"))]


def test_plain_data_holds_the_same_numbers(model):
    part = sharing(model)[0]
    plain = part.to_dict()
    assert plain["density"] == part.density
    assert plain["shares"] == part.shares
    assert plain["overlap"][0]["jaccard"] == part.overlaps[0].jaccard
    assert plain["overlap"][0]["independent"] == part.overlaps[0].independent


def test_what_cannot_be_explained_is_said(dataset):
    plain = SharedBottom(dataset.schema, bottom_units=(4,), tower_units=(4,), embedding_dim=2)
    with pytest.raises(ValueError, match="shared_bottom has no masks to explain"):
        sharing(plain)
    with pytest.raises(ValueError, match="need as many tasks"):
        sharing_of(np.ones((2, 3, 4), bool), "layer", ("click",))
