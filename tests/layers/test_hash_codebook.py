"""HashCodebook against numpy, one pair at a time; its addresses against plain Python numbers and against chance."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers.hash_codebook import HashCodebook
from mtlzoo.layers.pair_hash import pair_addresses, pairs_by_distance
from mtlzoo.optimizers import LazyAdam

RNG = np.random.default_rng(0)
IDS = np.array([[3, 0, 7, 1], [3, 5, 7, 2], [0, 5, 9, 1]], "int32")
FIELDS = RNG.normal(size=(3, 4, 2)).astype("float32")
REST = RNG.normal(size=(3, 5)).astype("float32")
INPUTS = (IDS, FIELDS, REST)
WORD = 2**32 - 1


def mix(x: int) -> int:
    x = ((x ^ x >> 16) * 0x85EBCA6B) & WORD
    x = ((x ^ x >> 13) * 0xC2B2AE35) & WORD
    return x ^ x >> 16


def address(ids, pair, rows, function, salt) -> int:
    """The documented formula in Python's unbounded integers."""
    values = []
    for field in pair:
        seed = mix((mix((mix(salt) + function) & WORD) + field) & WORD)
        values.append(mix((int(ids[field]) & WORD) ^ seed))
    x = ((values[0] ^ values[1]) * 0x85EBCA6B) & WORD
    x = ((x ^ x >> 15) * 0xC2B2AE35) & WORD
    return x * rows >> 32


def grid(ids: int, fields: int = 2) -> np.ndarray:
    """Every id beside every other, in the first two fields and once more from there on."""
    pairs = np.array(list(itertools.product(range(ids), repeat=2)), "int32")
    return np.tile(pairs, (1, 2))[:, :fields]


def filled(layer: HashCodebook, inputs=INPUTS) -> HashCodebook:
    """The layer with all weights random, biases too."""
    layer(inputs)
    for weight in layer.weights:
        weight.assign(RNG.normal(size=weight.shape))
    return layer


def relu(x):
    return np.maximum(x, 0)


def reference(layer: HashCodebook, pairs, copy: int = 0) -> np.ndarray:
    """The output of one copy, from the formulas of the docstring, one example and one pair at a time."""
    weights = {weight.name: weight.numpy() for weight in layer.weights}
    codebook = weights[f"codebook_{copy}"]
    weights = {name: value[copy] for name, value in weights.items() if not name.startswith("codebook")}
    output = []
    for ids, fields, rest in zip(*INPUTS, strict=True):
        vectors = []
        for p, (i, j) in enumerate(pairs):
            rows = [address(ids, (i, j), layer.codebook_rows, h, layer.salt) for h in range(layer.num_hashes)]
            c = np.concatenate([codebook[row] for row in rows])
            if layer.restoring == "attentive":
                both = np.concatenate([fields[i], fields[j]])
                c = c * (relu(both @ weights["restoring_attention_0"]) @ weights["restoring_attention_1"])
            v = c @ weights["restoring_kernel"]
            if layer.shrinking == "attentive":
                v = v * (relu(fields.ravel() @ weights["shrinking_attention_0"]) @ weights["shrinking_attention_1"])[p]
            vectors.append(v)
        if layer.shrinking != "none":
            of_field = [[v for v, pair in zip(vectors, pairs, strict=True) if f in pair] for f in range(4)]
            vectors = [np.sum(vs, axis=0) if vs else np.zeros(2) for vs in of_field]
        output.append(np.concatenate([fields.ravel(), rest, *vectors]) @ weights["kernel"] + weights["bias"])
    return np.array(output)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("shrinking", ["none", "sum", "attentive"])
@pytest.mark.parametrize("restoring", ["linear", "attentive"])
def test_one_network_by_its_formulas(restoring, shrinking, in_graph):
    layer = filled(HashCodebook(6, 11, 3, num_hashes=2, restoring=restoring, shrinking=shrinking, salt=4))
    output = (tf.function(layer) if in_graph else layer)(INPUTS)
    assert output.shape == (3, 6)
    expected = reference(layer, pairs_by_distance(4, 6))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("restoring", "shrinking"), [("linear", "none"), ("attentive", "attentive")])
def test_pairs_of_the_user_and_one_hash_function(restoring, shrinking):
    pairs = ((2, 0), (0, 1))  # field 3 has no pair
    layer = filled(HashCodebook(6, 11, num_hashes=1, pairs=pairs, restoring=restoring, shrinking=shrinking))
    np.testing.assert_allclose(layer(INPUTS), reference(layer, pairs), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shrinking", ["none", "sum", "attentive"])
@pytest.mark.parametrize("restoring", ["linear", "attentive"])
def test_copies_are_separate_networks(restoring, shrinking):
    arguments = {"codebook_rows": 11, "restoring": restoring, "shrinking": shrinking}
    singles = [filled(HashCodebook(6, **arguments)) for _ in range(2)]
    both = HashCodebook(6, copies=2, **arguments)
    both(INPUTS)
    for codebook, single in zip(both.codebooks, singles, strict=True):
        codebook.assign(single.codebooks[0])
    joint = [weight for weight in both.weights if not weight.name.startswith("codebook")]
    for weight, *parts in zip(joint, *(single.weights[1:] for single in singles), strict=True):
        weight.assign(np.concatenate(parts))
    output = both(INPUTS)
    assert output.shape == (3, 2, 6)
    for c, single in enumerate(singles):
        np.testing.assert_allclose(output[:, c], single(INPUTS), rtol=1e-4, atol=1e-3)


def test_rest_may_be_absent_and_one_copy_keeps_its_axis():
    layer = filled(HashCodebook(6, 11, copies=1), INPUTS[:2])
    single = HashCodebook(6, 11)
    single(INPUTS[:2])
    single.set_weights(layer.get_weights())
    assert layer(INPUTS[:2]).shape == (3, 1, 6)
    np.testing.assert_array_equal(layer(INPUTS[:2])[:, 0], single(INPUTS[:2]))


@pytest.mark.parametrize("rows", [1, 7, 100_000, 2**31])
def test_addresses_are_the_documented_ones_in_eager_mode_graph_and_saved_model(rows, tmp_path):
    ids = np.concatenate([grid(4, 3), RNG.integers(-(2**31), 2**31, (20, 3))]).astype("int32")
    pairs = ((0, 1), (2, 1))
    module = tf.Module()
    module.addresses = tf.function(
        lambda ids: pair_addresses(ids, pairs, rows, num_hashes=3, salt=WORD),
        input_signature=[tf.TensorSpec((None, 3), "int32")],
    )
    tf.saved_model.save(module, tmp_path / "saved")
    expected = [[[address(row, pair, rows, h, WORD) for h in range(3)] for pair in pairs] for row in ids]
    assert max(np.ravel(expected)) < rows
    for addresses in (
        pair_addresses(ids, pairs, rows, num_hashes=3, salt=WORD),
        module.addresses(ids),
        tf.saved_model.load(tmp_path / "saved").addresses(ids),
    ):
        assert addresses.dtype == "int32"
        np.testing.assert_array_equal(addresses, expected)


def test_ids_count_by_their_lower_32_bits():
    ids = np.array([[2**32 + 5, -1]], "int64")
    expected = pair_addresses(np.array([[5, -1]], "int32"), ((0, 1),), 1000)
    np.testing.assert_array_equal(pair_addresses(ids, ((0, 1),), 1000), expected)


@pytest.mark.parametrize("salt", [0, 1, 2])
@pytest.mark.parametrize("rows", [10_000, 2**13])
def test_addresses_are_uniform(rows, salt):
    addresses = np.asarray(pair_addresses(grid(300), ((0, 1),), rows, num_hashes=2, salt=salt))
    for h in range(2):
        counts, mean = np.bincount(addresses[:, 0, h], minlength=rows), 300**2 / rows
        chi_square = np.sum((counts - mean) ** 2) / mean  # of rows - 1 degrees of freedom
        assert abs(chi_square - (rows - 1)) < 5 * np.sqrt(2 * (rows - 1))


@pytest.mark.parametrize("salt", [0, 1, 2])
def test_pairs_of_values_collide_as_often_as_by_chance(salt):
    rows, count = 2_000, 300**2
    addresses = np.asarray(pair_addresses(grid(300), ((0, 1),), rows, num_hashes=2, salt=salt))[:, 0].astype("int64")
    for joint, places in ((addresses[:, 0], rows), (addresses[:, 0] * rows + addresses[:, 1], rows**2)):
        sizes = np.unique(joint, return_counts=True)[1]
        collisions, expected = np.sum(sizes * (sizes - 1) / 2), count * (count - 1) / 2 / places
        assert abs(collisions - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("rows", [1_000, 2**10])
def test_ids_that_collide_beside_one_partner_do_not_beside_all(rows):
    of_partner = np.asarray(pair_addresses(grid(500), ((0, 1),), rows)).reshape(500, 500)
    # Over all pairs of ids: the number of partners beside which they collide, of which chance would make a Poisson.
    shared = np.concatenate([np.sum(of_partner[i] == of_partner[i + 1 :], axis=1) for i in range(499)])
    assert 0.97 < np.mean(shared) / (500 / rows) < 1.03
    assert 0.97 < np.var(shared) / (500 / rows) < 1.03


def test_addresses_depend_on_field_hash_function_and_salt():
    rows, count = 1_000, 100**2
    ids = grid(100, 4)  # fields 2 and 3 repeat the ids of 0 and 1
    here, there = np.moveaxis(np.asarray(pair_addresses(ids, ((0, 1), (2, 3)), rows, num_hashes=2)), 1, 0)
    salted = np.asarray(pair_addresses(ids, ((0, 1),), rows, salt=1))[:, 0, 0]
    equal_ids = ids[:, 0] == ids[:, 1]
    swapped = np.asarray(pair_addresses(ids[:, [1, 0]], ((0, 1),), rows))[:, 0, 0]
    for other, among in (
        (there[:, 0], slice(None)),
        (here[:, 1], slice(None)),
        (salted, slice(None)),
        (swapped, ~equal_ids),
    ):
        matches = np.sum(here[among, 0] == other[among])
        assert abs(matches - count / rows) < 5 * np.sqrt(count / rows)


@pytest.mark.parametrize("num_fields", [2, 3, 6, 17, 22, 23])
def test_few_fields_give_all_pairs(num_fields):
    pairs = pairs_by_distance(num_fields, HashCodebook().max_pairs)
    assert sorted(pairs) == list(itertools.combinations(range(num_fields), 2))


@pytest.mark.parametrize(("num_fields", "max_pairs"), [(30, 90), (30, 100), (24, 256), (300, 256), (17, 5)])
def test_more_pairs_are_bounded_and_spread_over_the_fields(num_fields, max_pairs):
    pairs = pairs_by_distance(num_fields, max_pairs)
    assert len(pairs) == len(set(pairs)) == max_pairs
    assert all(i < j for i, j in pairs)
    taken = np.bincount(np.ravel(pairs), minlength=num_fields)
    assert np.ptp(taken) <= (0 if max_pairs % num_fields == 0 else 2)  # a round takes each field twice


def test_equal_ids_give_equal_outputs_and_others_different_ones():
    ids = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 4], [2, 1, 3]], "int32")
    layer = HashCodebook(8, 1_000)
    output = np.asarray(layer((ids, np.zeros((4, 3, 5), "float32"))))
    np.testing.assert_array_equal(output[0], output[1])
    for i, j in ((0, 2), (0, 3), (2, 3)):
        assert np.max(np.abs(output[i] - output[j])) > 1e-4


def test_lazy_adam_moves_the_rows_looked_up_and_no_others():
    layer = filled(HashCodebook(6, 50, copies=2))
    before = [codebook.numpy() for codebook in layer.codebooks]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(INPUTS) ** 2)
    gradients = tape.gradient(loss, [variable.value for variable in layer.trainable_variables])
    touched = np.unique(pair_addresses(IDS, pairs_by_distance(4, 6), 50, num_hashes=2))
    assert touched.size < 40
    sparse = [gradient for gradient in gradients if isinstance(gradient, tf.IndexedSlices)]
    assert [sorted(set(gradient.indices.numpy())) for gradient in sparse] == [touched.tolist()] * 2
    LazyAdam(0.01).apply(gradients, layer.trainable_variables)
    for codebook, start in zip(layer.codebooks, before, strict=True):
        moved = np.any(codebook.numpy() != start, axis=1)
        assert np.flatnonzero(moved).tolist() == touched.tolist()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_one_gather_for_all_hash_functions_and_pairs_of_a_copy(policy):
    layer = filled(HashCodebook(6, 50, copies=3, dtype=policy))
    spec = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in INPUTS]
    graph = tf.function(lambda *inputs: layer(inputs)).get_concrete_function(*spec).graph
    nested = [f.graph.get_operations() for f in graph._functions.values() if hasattr(f, "graph")]
    operations = [op for ops in [graph.get_operations(), *nested] for op in ops]
    assert [op.type for op in operations].count("ResourceGather") == 3
    read = [op.outputs[0].shape for op in operations if op.type == "ReadVariableOp"]
    assert layer.kernel.shape in read
    assert layer.codebooks[0].shape not in read


def test_start_of_the_codebook_and_of_the_maps():
    layer = HashCodebook(40, 5_000, copies=2)
    layer((np.zeros((1, 3), "int32"), np.zeros((1, 3, 10), "float32")))
    for codebook in layer.codebooks:
        np.testing.assert_allclose(np.std(codebook.numpy()), 0.01, rtol=0.05)
    assert np.any(layer.codebooks[0].numpy() != layer.codebooks[1].numpy())
    first, second = layer.kernel.numpy()
    assert np.any(first != second)
    limit = np.sqrt(6 / (30 + 30 + 40))  # fields and 3 pairs to 40 units, of one copy
    assert 0.95 * limit < np.max(np.abs(first)) <= limit


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_casts_rows_and_not_the_codebook(policy):
    arguments = {"codebook_rows": 50, "restoring": "attentive", "shrinking": "attentive", "copies": 2}
    layer, full = HashCodebook(6, dtype=policy, **arguments), HashCodebook(6, **arguments)
    full(INPUTS)
    with tf.GradientTape() as tape:
        output = layer(INPUTS)
        loss = tf.reduce_sum(tf.cast(output, "float32"))
    assert output.dtype == keras.dtype_policies.get(policy).compute_dtype
    assert all(weight.dtype == "float32" for weight in layer.weights)
    gradient = tape.gradient(loss, layer.codebooks[1].value)
    assert isinstance(gradient, tf.IndexedSlices)
    assert gradient.values.dtype == tf.float32
    full.set_weights(layer.get_weights())
    np.testing.assert_allclose(tf.cast(output, "float32"), full(INPUTS), atol=0.05)


def test_save_load_and_clone(tmp_path):
    inputs = [keras.Input((4,), dtype="int32"), keras.Input((4, 2)), keras.Input((5,))]
    layer = HashCodebook(
        6, 50, 3, 3, 4, ((0, 1), (3, 2)), "attentive", "attentive", 2, 7, "he_normal", "uniform", name="memory"
    )
    model = keras.Model(inputs, layer(tuple(inputs)))
    assert model.output_shape == (None, 2, 6)
    assert layer.compute_output_shape(((None, 4), (None, 4, 2))) == (None, 2, 6)
    assert HashCodebook(6).compute_output_shape(((None, 4), (None, 4, 2))) == (None, 6)
    model.save(tmp_path / "m.keras")
    again, clone = keras.models.load_model(tmp_path / "m.keras"), keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (again, clone):
        np.testing.assert_array_equal(other(list(INPUTS)), model(list(INPUTS)))
        assert other.get_layer("memory").get_config() == layer.get_config()
        assert not other.get_layer("memory").supports_jit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, "units .*0"),
        ({"codebook_rows": 0}, "codebook_rows .*0"),
        ({"codebook_rows": 2**31 + 1}, r"codebook_rows .*2\^31.*2147483649"),
        ({"codebook_width": 0}, "codebook_width .*0"),
        ({"num_hashes": 0}, "num_hashes .*0"),
        ({"max_pairs": 0}, "max_pairs .*0"),
        ({"copies": 0}, "copies .*0"),
        ({"salt": -1}, "salt .*-1"),
        ({"salt": 2**32}, "salt .*4294967296"),
        ({"restoring": "sum"}, "restoring .*'sum'"),
        ({"shrinking": "linear"}, "shrinking .*'linear'"),
        ({"pairs": ()}, "pairs .*empty"),
        ({"pairs": (0, 1)}, "pairs .*contain 0"),
        ({"pairs": ((0, 1), (2, 2))}, r"pairs .*\(2, 2\)"),
        ({"pairs": ((0, -1),)}, r"pairs .*\(0, -1\)"),
        ({"pairs": ((0, 1), (1, 0))}, r"pairs .*once.*\(1, 0\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        HashCodebook(**arguments)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((IDS.astype("float32"), FIELDS), "ids must be integers, have dtype float32"),
        (IDS, r"must be \(ids .*\(3, 4\)"),
        ((IDS, FIELDS[:, 0]), r"must be \(ids .*\(3, 2\)"),
        ((IDS[:, :3], FIELDS), r"must be \(ids .*\(3, 3\)"),
        ((IDS, FIELDS, REST, REST), r"must be \(ids .*\(3, 5\)"),
        ((IDS[:, :1], FIELDS[:, :1]), "at least 2 fields.*have 1"),
        ((IDS[:, :3], FIELDS[:, :3]), r"pairs must name fields 0 to 2; they contain \(0, 3\)"),
    ],
)
def test_bad_inputs_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        HashCodebook(6, 50, pairs=((0, 3),))(inputs)


def test_ids_outside_a_fields_table_count_as_out_of_vocabulary():
    layer = filled(HashCodebook(6, 50, sizes=(10, 10, 10, 10)))
    outside, unknown = IDS.copy(), IDS.copy()
    outside[0, 0], outside[1, 2], unknown[0, 0], unknown[1, 2] = 10, -3, 0, 0
    assert np.all((IDS >= 0) & (IDS < 10))
    np.testing.assert_array_equal(layer((outside, *INPUTS[1:])), layer((unknown, *INPUTS[1:])))
    with pytest.raises(ValueError, match="sizes names 3 fields; the inputs have 4"):
        HashCodebook(6, sizes=(9, 9, 9))(INPUTS)
