"""The one place where layers, losses and optimizers meet TensorFlow.

Everything else in `mtlzoo.layers`, `mtlzoo.losses` and `mtlzoo.optimizers` is written with `keras.ops`. What stands
here is what `keras.ops` does not offer or cannot do at a cost that is independent of the size of a table. Another
backend would need its own version of this file and of nothing else.

A variable may be a Keras variable or a `tf.Variable`: Keras hands the first to layers and the second to `update_step`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def gather_rows(variable: Any, ids: Any) -> Any:
    """Rows of a variable, read from the resource itself.

    `keras.ops.take` first reads the whole variable; once a sparse update has touched it, each such read copies the
    whole table. Gathering from the resource copies the wanted rows only, and its gradient is a `tf.IndexedSlices`.

    Args:
        variable: Variable `[rows, ...]`, created with `autocast=False` where mixed precision may be on.
        ids: int32 or int64, any shape, each in `[0, rows)`.

    Returns:
        `[*ids.shape, ...]` in the dtype of the variable.
    """
    return tf.gather(_resource(variable), ids)


def logits_of(probabilities: Any) -> Any:
    """The logits behind probabilities, float32.

    The exact ones where the sigmoid that made the probabilities is known: Keras attaches them to the output of
    `keras.ops.sigmoid`, and a graph remembers the operation. Otherwise `log(p / (1 - p))` with p clipped to
    `[1e-7, 1 - 1e-7]`, beyond which the gradient is 0.

    Args:
        probabilities: Any shape, in [0, 1].

    Returns:
        float32, of the same shape.
    """
    logits = getattr(probabilities, "_keras_logits", None)
    if logits is None and tf.is_symbolic_tensor(probabilities) and probabilities.op.type == "Sigmoid":
        logits = probabilities.op.inputs[0]
    if logits is not None:
        return tf.cast(logits, tf.float32)
    clipped = tf.clip_by_value(tf.cast(probabilities, tf.float32), 1e-7, 1.0 - 1e-7)
    return tf.math.log(clipped) - tf.math.log1p(-clipped)


def is_row_sparse(gradient: Any) -> bool:
    """Whether a gradient names the rows that it is about (`tf.IndexedSlices`)."""
    return isinstance(gradient, tf.IndexedSlices)


def is_stream(x: Any) -> bool:
    """Whether it is a `tf.data.Dataset`."""
    return isinstance(x, tf.data.Dataset)


def is_distributed(model: Any) -> bool:
    """Whether a model trains under a distribution strategy, or code runs in the scope of one."""
    return tf.distribute.has_strategy() or model.distribute_strategy is not tf.distribute.get_strategy()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of an accelerator, was exhausted."""
    return isinstance(error, MemoryError | tf.errors.ResourceExhaustedError)


def compiled(function: Any, batches: Any) -> Any:
    """A function of features as one graph for batches of any size; Keras traces anew where a last batch is shorter.

    Args:
        function: From features to a structure of tensors.
        batches: A `tf.data.Dataset` of tuples that begin with the features.

    Returns:
        The function, traced at its first call.
    """
    return tf.function(function, input_signature=[batches.element_spec[0]], autograph=False)


def mover(averages: list[Any], variables: list[Any]) -> Any:
    """A function of a share, as one graph: each average goes that share of the way to its variable."""
    pairs = [(average.value, variable.value) for average, variable in zip(averages, variables, strict=True)]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([], tf.float32)])
    def move(share: Any) -> None:
        for average, variable in pairs:
            average.assign_add(tf.cast(share, average.dtype) * (variable - average))

    return move


def random_bytes(shape: Any, seed: Any) -> Any:
    """Random integers from 0 to 255, each as likely; the same ones for the same seed.

    Args:
        shape: Of the result; entries may be scalar tensors.
        seed: Integers `[2]`, as a `keras.random.SeedGenerator` gives.

    Returns:
        uint8 of that shape.
    """
    count = tf.reduce_prod(tf.stack(shape))
    words = tf.random.stateless_uniform(
        [(count + 3) // 4], tf.cast(seed, tf.int32), minval=None, maxval=None, dtype=tf.uint32
    )
    drawn = tf.reshape(tf.bitcast(words, tf.uint8), [-1])
    return tf.reshape(drawn[:count], shape)


def sums_of_rows(gradient: Any) -> tuple[Any, Any, Any]:
    """What a row-sparse gradient says of each row, over the row's occurrences in the batch.

    Args:
        gradient: `tf.IndexedSlices`; rows may repeat.

    Returns:
        The rows' ids `[distinct]`, each once; the sums of their gradients `[distinct, width]`; and the sums of the
        squares of their gradients, element by element, of the same shape.
    """
    if gradient.dense_shape is None:
        return _summed_by_unique(gradient)
    rows = gradient.dense_shape[0]
    return tf.cond(
        tf.size(gradient.indices, rows.dtype) < rows,
        lambda: _summed_by_unique(gradient),
        lambda: _summed_by_row(gradient),
    )


def _summed_by_unique(gradient: Any) -> tuple[Any, Any, Any]:
    ids, places = tf.unique(gradient.indices)
    return ids, *(_sums(x, places, tf.size(ids)) for x in (gradient.values, tf.square(gradient.values)))


def _summed_by_row(gradient: Any) -> tuple[Any, Any, Any]:
    """For gradients that name more rows than there are: finding the distinct ones by hashing would cost more."""
    indices, rows = gradient.indices, gradient.dense_shape[0]
    named = tf.raw_ops.DenseBincount(
        input=indices, size=tf.cast(rows, indices.dtype), weights=tf.zeros([0]), binary_output=True
    )
    ids = tf.cast(tf.where(named > 0)[:, 0], indices.dtype)
    sums = (_sums(x, indices, rows) for x in (gradient.values, tf.square(gradient.values)))
    return ids, *(tf.gather(x, ids) for x in sums)


def _sums(values: Any, places: Any, count: Any) -> Any:
    """Sums of the rows that share a place: `sums[p] = sum of values[i] with places[i] = p`, for `count` places.

    As a product with the sparse matrix that has a 1 for each row at its place. On a CPU `unsorted_segment_sum` takes
    2 to 7 times as long, most at widths below 32.
    """
    if values.shape.rank != 2 or values.dtype not in (tf.float32, tf.float64):
        return tf.math.unsorted_segment_sum(values, places, count)
    rows = tf.size(places, tf.int64)
    return tf.raw_ops.SparseTensorDenseMatMul(
        a_indices=tf.stack([tf.cast(places, tf.int64), tf.range(rows)], axis=1),
        a_values=tf.ones(rows, values.dtype),
        a_shape=tf.stack([tf.cast(count, tf.int64), rows]),
        b=values,
    )


def map_summed_rows(function: Any, gradients: list[Any]) -> list[Any]:
    """Applies a function of dense gradients where some are row-sparse.

    A row-sparse gradient takes part as its summed rows followed by zeros: the dense gradient but for the number of its
    zeros, which is the same to norms and to elementwise functions that keep 0. It keeps its length and its set of rows:
    replicas of a distributed step must agree on lengths.

    Args:
        function: From a list of tensors to a list of tensors of the same shapes.
        gradients: Tensors and `tf.IndexedSlices`.

    Returns:
        Gradients of the same kinds.
    """
    padded = [_summed_and_padded(g) if is_row_sparse(g) else g for g in gradients]
    mapped = function([_values(g) for g in padded])
    return [
        tf.IndexedSlices(m, g.indices, g.dense_shape) if is_row_sparse(g) else m
        for g, m in zip(padded, mapped, strict=True)
    ]


def scale_summed_rows(function: Any, gradients: list[Any]) -> list[Any]:
    """As `map_summed_rows`, for a function that multiplies each tensor by one number; occurrences stay apart.

    Args:
        function: From a list of tensors to the same tensors, each times a number of its own.
        gradients: Tensors and `tf.IndexedSlices`.

    Returns:
        Gradients of the same kinds; the row-sparse ones with every occurrence of a row times that number.
    """
    padded = [_values(_summed_and_padded(g) if is_row_sparse(g) else g) for g in gradients]
    scaled = function(padded)
    return [
        tf.IndexedSlices(g.values * tf.math.divide_no_nan(tf.norm(s), tf.norm(p)), g.indices, g.dense_shape)
        if is_row_sparse(g)
        else s
        for g, p, s in zip(gradients, padded, scaled, strict=True)
    ]


def _values(gradient: Any) -> Any:
    return gradient.values if is_row_sparse(gradient) else gradient


def _summed_and_padded(gradient: Any) -> Any:
    ids, places = tf.unique(gradient.indices)
    length = tf.size(gradient.indices)
    sums = _sums(gradient.values, places, length)
    padding = tf.repeat(gradient.indices[:1], length - tf.size(ids))
    return tf.IndexedSlices(sums, tf.concat([ids, padding], axis=0), gradient.dense_shape)


def set_rows(variable: Any, ids: Any, rows: Any) -> None:
    """Sets `variable[ids]` to `rows`; the ids must be distinct."""
    _resource(variable).scatter_update(tf.IndexedSlices(rows, ids))


def subtract_from_rows(variable: Any, ids: Any, rows: Any) -> None:
    """Subtracts `rows` from `variable[ids]`."""
    _resource(variable).scatter_sub(tf.IndexedSlices(rows, ids))


def _resource(variable: Any) -> Any:
    """The `tf.Variable` behind a Keras variable; any other is one already."""
    return variable.value if isinstance(variable, keras.Variable) else variable
