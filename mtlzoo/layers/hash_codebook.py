"""Vectors of pairs of categorical values, remembered in a codebook that hash functions address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mtlzoo import backend
from mtlzoo.layers.mlp import checked_count
from mtlzoo.layers.pair_hash import checked_pairs, pair_addresses, pairs_by_distance
from mtlzoo.layers.per_part import PerPart

_RESTORING = ("linear", "attentive")
_SHRINKING = ("none", "sum", "attentive")
_MOST_ROWS = 2**31
_MOST_SALT = 2**32 - 1


@keras.saving.register_keras_serializable(package="mtlzoo")
class HashCodebook(keras.layers.Layer):
    """MemoNet's multi-hash codebook network (HCNet): each pair of values has its own vector, up to hash collisions.

    For each of P pairs of fields p = (i, j), with l the width of the codebook and e that of the fields' embeddings:

        c_p = [codebook[address_1(p)]; ...; codebook[address_H(p)]]            width H l
        v_p = (a_p * c_p) W_r,   a_p = ReLU([e_i; e_j] A_1) A_2                width e
        u_p = b_p v_p,           b = ReLU([e_1; ...; e_F] B_1) B_2             one number b_p per pair
        output = [e_1; ...; e_F; rest; s] W + b_0                              width units

    - `restoring="attentive"` weights the codewords by a_p; `"linear"` does not (a_p = 1).
    - `shrinking="none"`: s holds all v_p. `"sum"`: for each field, the sum of the v_p of its pairs. `"attentive"`: for
      each field, the sum of the u_p of its pairs.

    No map but the last has a bias, and the output has no activation. The addresses are those of
    `mtlzoo.layers.pair_hash.pair_addresses`: they depend on both fields, both ids and the hash function; all hash
    functions share the codebook.

    The gradient of the codebook is a `tf.IndexedSlices` of the rows that the batch looked up; `mtlzoo.optimizers`
    update only those.

    Args:
        units: Width of the output.
        codebook_rows: Rows of the codebook, from 1 to 2^31. Where there are more pairs of values they share rows, but
            two rarely share all H of them.
        codebook_width: Width l of a row; defaults to the width e of the fields' embeddings.
        num_hashes: Number of hash functions H, at least 1.
        max_pairs: Bound on the number of pairs P, at least 1. The default takes all pairs of up to 23 fields. Where
            there are more, `mtlzoo.layers.pair_hash.pairs_by_distance` takes the pairs of neighbouring fields, then
            those of fields two apart, and so on, so that every field takes part in as many pairs as any other.
        pairs: The pairs themselves, as `(i, j)`, indices of fields; `max_pairs` then has no effect.
        restoring: `"linear"` or `"attentive"`.
        shrinking: `"none"`, `"sum"` or `"attentive"`.
        copies: Number C of independent networks on the same input, computed together: each has its own codebook and
            maps; addresses are shared. None makes one network, and an output without that axis.
        salt: Chooses the hash functions, from 0 to 2^32 - 1: other pairs of values collide under another salt.
        kernel_initializer: Initializer of each map of one copy; a seed given in it is varied from copy to copy.
        codebook_initializer: Initializer of each copy's variable `[codebook_rows, l]`. Defaults to a normal
            distribution of standard deviation 0.01.
        sizes: For each field the rows of its embedding table, where ids outside of it count as 0, out of vocabulary, as
            `EmbeddingTable` takes them. By default every id counts as itself.
        **kwargs: Of `keras.layers.Layer`.

    Inputs: `(ids, fields)` or `(ids, fields, rest)`: the ids of F fields, integers `[B, F]` of any value; the
    embeddings of these fields `[B, F, e]`; further input `[B, R]`. Output: `[B, units]`, with `copies`
    `[B, C, units]`, in the compute dtype; the codebook has the variable dtype.

    Raises:
        ValueError: An argument outside its range, a pair of a field with itself, a pair twice or of no such field,
            fewer than 2 fields, ids that are not integers, inputs of other shapes.

    Example:
        >>> layer = HashCodebook(units=256, codebook_rows=1000)
        >>> ids, fields = np.array([[3, 1, 4], [1, 5, 9]]), np.zeros((2, 3, 16), "float32")
        >>> tuple(layer((ids, fields, np.zeros((2, 7), "float32"))).shape)
        (2, 256)

    Source: Zhang and Zhang, "MemoNet: memorizing all cross features' representations efficiently via multi-hash
    codebook network for CTR prediction" (arXiv 2211.01334). The equations are our reading of its authors' released code
    (RecAlg), which calls the two shrinkings sum and senetsum and has A_1 and B_1 square as here; they were not checked
    against the text. `shrinking="none"` and the last map are those of DTN's released code (arXiv 2408.11611). Both hash
    strings, and restore to the width l. Integer hashing, restoring to e, the bound on the pairs and the copies are our
    design.
    """

    def __init__(
        self,
        units: int = 256,
        codebook_rows: int = 100_000,
        codebook_width: int | None = None,
        num_hashes: int = 2,
        max_pairs: int = 256,
        pairs: Sequence[tuple[int, int]] | None = None,
        restoring: str = "linear",
        shrinking: str = "none",
        copies: int | None = None,
        salt: int = 0,
        kernel_initializer: Any = "glorot_uniform",
        codebook_initializer: Any = None,
        sizes: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # XLA has no sparse gradients: under jit_compile="auto" it would make a dense gradient of the whole codebook.
        self.supports_jit = False
        self.units = checked_count("units", units)
        self.codebook_rows = checked_count("codebook_rows", codebook_rows)
        if codebook_rows > _MOST_ROWS:
            raise ValueError(f"codebook_rows must be at most 2^31, is {codebook_rows!r}")
        self.codebook_width = None if codebook_width is None else checked_count("codebook_width", codebook_width)
        self.num_hashes = checked_count("num_hashes", num_hashes)
        self.max_pairs = checked_count("max_pairs", max_pairs)
        self.pairs = None if pairs is None else checked_pairs(pairs)
        if restoring not in _RESTORING:
            raise ValueError(f"restoring must be 'linear' or 'attentive', is {restoring!r}")
        if shrinking not in _SHRINKING:
            raise ValueError(f"shrinking must be 'none', 'sum' or 'attentive', is {shrinking!r}")
        self.restoring = restoring
        self.shrinking = shrinking
        self.copies = None if copies is None else checked_count("copies", copies)
        if not 0 <= salt <= _MOST_SALT:
            raise ValueError(f"salt must be from 0 to 2^32 - 1, is {salt!r}")
        self.salt = int(salt)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        if codebook_initializer is None:
            codebook_initializer = keras.initializers.RandomNormal(stddev=0.01)
        self.codebook_initializer = keras.initializers.get(codebook_initializer)
        self.sizes = None if sizes is None else tuple(checked_count("sizes", size) for size in sizes)

    def build(self, input_shape: Any) -> None:
        """Chooses the pairs, creates the codebook and the maps."""
        self._check_shapes(input_shape)
        _, num_fields, width = input_shape[1]
        self._pairs = self._pairs_of(num_fields)
        codeword = self.codebook_width or width
        codewords, flat = self.num_hashes * codeword, num_fields * width
        # A variable for each copy: looking up and updating rows of one, C times as wide, costs several times as much.
        initializer = PerPart(self.codebook_initializer.clone(), self._networks)
        self.codebooks = [
            self.add_weight(
                shape=(self.codebook_rows, codeword),
                initializer=initializer.of_part(i),
                name=f"codebook_{i}",
                # Mixed precision would otherwise cast the whole codebook at every step; `call` casts the rows.
                autocast=False,
            )
            for i in range(self._networks)
        ]
        self.restoring_kernel = self._add_kernel("restoring_kernel", codewords, width)
        if self.restoring == "attentive":
            self.restoring_attention = self._add_attention("restoring", 2 * width, codewords)
        if self.shrinking == "attentive":
            self.shrinking_attention = self._add_attention("shrinking", flat, len(self._pairs))
        vectors = len(self._pairs) if self.shrinking == "none" else num_fields
        self._direct = flat + (input_shape[2][1] if len(input_shape) == 3 else 0)
        self.kernel = self._add_kernel("kernel", self._direct + vectors * width, self.units)
        self.bias = self.add_weight(shape=(self._networks, self.units), initializer="zeros", name="bias")

    @property
    def _networks(self) -> int:
        return self.copies or 1

    def _check_shapes(self, input_shape: Any) -> None:
        shapes = [tuple(shape) if isinstance(shape, list | tuple) else () for shape in input_shape]
        ranks = [len(shape) for shape in shapes]
        if (
            ranks not in ([2, 3], [2, 3, 2])
            or any(None in shape[1:] for shape in shapes)
            or shapes[0][1] != shapes[1][1]
        ):
            raise ValueError(
                f"{self.name}: the inputs must be (ids [batch, F], fields [batch, F, e]) or (ids, fields, rest [batch, "
                f"R]); they have the shapes {input_shape}"
            )
        if shapes[0][1] < 2:
            raise ValueError(f"{self.name}: pairs need at least 2 fields; the inputs have {shapes[0][1]}")
        if self.sizes is not None and len(self.sizes) != shapes[0][1]:
            raise ValueError(f"{self.name}: sizes names {len(self.sizes)} fields; the inputs have {shapes[0][1]}")

    def _pairs_of(self, num_fields: int) -> tuple[tuple[int, int], ...]:
        if self.pairs is None:
            return pairs_by_distance(num_fields, self.max_pairs)
        outside = [pair for pair in self.pairs if max(pair) >= num_fields]
        if outside:
            raise ValueError(f"{self.name}: pairs must name fields 0 to {num_fields - 1}; they contain {outside[0]}")
        return self.pairs

    def _add_kernel(self, name: str, width_in: int, width_out: int) -> Any:
        initializer = PerPart(self.kernel_initializer.clone(), self._networks)
        return self.add_weight(shape=(self._networks, width_in, width_out), initializer=initializer, name=name)

    def _add_attention(self, name: str, width_in: int, width_out: int) -> list[Any]:
        """Both maps of an attention, the first of them square."""
        widths = (width_in, width_out)
        return [self._add_kernel(f"{name}_attention_{i}", width_in, width) for i, width in enumerate(widths)]

    def call(self, inputs: Any) -> Any:
        """Looks up, restores, shrinks, maps; see the class."""
        ids, fields = inputs[:2]
        dtype = keras.backend.standardize_dtype(ids.dtype)
        if "int" not in dtype:
            raise ValueError(f"{self.name}: ids must be integers, have dtype {dtype}; encode or cast them first")
        if self.sizes is not None:
            known = ops.logical_and(ids >= 0, ids < ops.convert_to_tensor(self.sizes, dtype=dtype))
            ids = ops.where(known, ids, ops.zeros_like(ids))
        addresses = pair_addresses(ids, self._pairs, self.codebook_rows, self.num_hashes, self.salt)  # [B, P, H]
        restored = self._restored(addresses, fields)
        vectors = [ops.reshape(v, (-1, v.shape[1] * v.shape[2])) for v in self._shrunk(restored, fields)]
        of_direct, of_vectors = ops.split(self.kernel, [self._direct], axis=1)
        kernels = ops.unstack(of_vectors)
        own = ops.stack([ops.matmul(v, k) for v, k in zip(vectors, kernels, strict=True)], axis=1)  # [B, C, units]

        direct = ops.concatenate([_flat(fields), *inputs[2:]], axis=1)  # [B, F * e + R]
        kernel = ops.reshape(ops.transpose(of_direct, (1, 0, 2)), (self._direct, -1))
        direct = ops.matmul(direct, kernel)  # [B, C * units]
        output = ops.reshape(direct, (-1, self._networks, self.units)) + own + self.bias
        return output if self.copies else ops.squeeze(output, axis=1)

    def _restored(self, addresses: Any, fields: Any) -> list[Any]:
        """For each copy the vectors of all pairs, `[B, P, e]`."""
        attentions: list[Any] = [None] * self._networks
        if self.restoring == "attentive":
            attentions = _attentions(self._both_fields(fields), self.restoring_attention)  # [B * P, H * l]
        vectors = []
        kernels = ops.unstack(self.restoring_kernel)
        for codebook, kernel, attention in zip(self.codebooks, kernels, attentions, strict=True):
            codewords = ops.cast(backend.gather_rows(codebook, addresses), self.compute_dtype)  # [B, P, H, l]
            codewords = ops.reshape(codewords, (-1, kernel.shape[0]))  # [B * P, H * l]
            codewords = codewords if attention is None else codewords * attention
            vectors.append(ops.reshape(ops.matmul(codewords, kernel), (-1, len(self._pairs), kernel.shape[1])))
        return vectors

    def _both_fields(self, fields: Any) -> Any:
        """The embeddings of each pair's fields side by side, `[B * P, 2 e]`."""
        _, num_fields, width = fields.shape
        both = ops.matmul(self._members(num_fields, (-1, num_fields)), fields)  # [B, 2 P, e]
        return ops.reshape(both, (-1, 2 * width))

    def _shrunk(self, vectors: list[Any], fields: Any) -> list[Any]:
        """For each copy the vectors that the last map reads: `[B, P, e]`, or one per field, `[B, F, e]`."""
        if self.shrinking == "none":
            return vectors
        if self.shrinking == "attentive":
            weights = _attentions(_flat(fields), self.shrinking_attention)  # [B, P]
            vectors = [v * ops.expand_dims(w, axis=-1) for v, w in zip(vectors, weights, strict=True)]
        members = ops.transpose(ops.sum(self._members(fields.shape[1], (len(self._pairs), 2, -1)), axis=1))  # [F, P]
        return [ops.matmul(members, v) for v in vectors]

    def _members(self, num_fields: int, shape: tuple[int, ...]) -> Any:
        """For both fields of each pair the row that has a 1 for the field, `[P, 2, F]` in another shape."""
        # Products with 0 and 1 in place of gathers, whose gradients scatter row by row and were slower.
        members = np.eye(num_fields)[np.array(self._pairs)]
        return ops.convert_to_tensor(members.reshape(shape), dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`([B, F], [B, F, e], [B, R])` to `[B, units]`, with copies to `[B, C, units]`."""
        copies = (self.copies,) if self.copies else ()
        return (input_shape[0][0], *copies, self.units)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "units": self.units,
            "codebook_rows": self.codebook_rows,
            "codebook_width": self.codebook_width,
            "num_hashes": self.num_hashes,
            "max_pairs": self.max_pairs,
            "pairs": self.pairs,
            "restoring": self.restoring,
            "shrinking": self.shrinking,
            "copies": self.copies,
            "salt": self.salt,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "codebook_initializer": keras.initializers.serialize(self.codebook_initializer),
            "sizes": self.sizes,
        }


def _attentions(x: Any, kernels: Sequence[Any]) -> list[Any]:
    """`ReLU(x K_1) K_2` of each copy: `[N, D]` to `[N, width]`."""
    pairs = zip(*map(ops.unstack, kernels), strict=True)
    return [ops.matmul(ops.relu(ops.matmul(x, first)), second) for first, second in pairs]


def _flat(fields: Any) -> Any:
    return ops.reshape(fields, (-1, fields.shape[1] * fields.shape[2]))
