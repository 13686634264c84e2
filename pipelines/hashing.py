"""One hash for everything: buckets of features, splits, group keys; the same function inside a serving graph."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import tensorflow as tf

GROUP_SPACE = 2**63 - 1


def hash_strings(values: np.ndarray | list[str], buckets: int) -> np.ndarray:
    """`tf.strings.to_hash_bucket_fast` (FarmHash Fingerprint64 modulo `buckets`).

    Args:
        values: Strings `[n]`.
        buckets: Size of the range.

    Returns:
        int64 `[n]` in `[0, buckets)`.
    """
    return tf.strings.to_hash_bucket_fast(tf.constant(values, tf.string), buckets).numpy()


def as_strings(column: pa.Array) -> np.ndarray:
    """A column as text, null as the empty string, so that a hash does not depend on the file format it came from."""
    text = column.cast(pa.string())
    return text.fill_null("").to_numpy(zero_copy_only=False)
