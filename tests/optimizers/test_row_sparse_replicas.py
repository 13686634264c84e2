"""Row-sparse steps on two replicas: the same weights as on one."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: a second logical device must be asked for before TensorFlow starts.
SCRIPT = """
import contextlib
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from mtlzoo.layers import EmbeddingTable, Probability
from mtlzoo.losses import BinaryCrossentropy
from mtlzoo.optimizers import LazyAdam

rng = np.random.default_rng(0)
ids = rng.integers(0, 20, (64, 2)).astype("int32")
labels = (ids[:, :1] % 2).astype("float32")

def train(scope, options):
    keras.utils.set_random_seed(0)
    with scope:
        inputs = keras.Input((2,), dtype="int32")
        x = keras.layers.Flatten()(EmbeddingTable([50, 30], [0, 1], 4)(inputs))
        model = keras.Model(inputs, Probability()(keras.layers.Dense(1)(x)))
        model.compile(optimizer=LazyAdam(0.05, **options), loss=BinaryCrossentropy())
    model.fit(tf.data.Dataset.from_tensor_slices((ids, labels)).batch(32), epochs=2, verbose=0)
    return model.get_weights()

# The largest norm is out of reach, since each replica clips its own part, as in Keras.
for options in ({}, {"global_clipnorm": 100.0, "weight_decay": 0.1}):
    one = train(contextlib.nullcontext(), options)
    two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope(), options)
    for a, b in zip(one, two):
        np.testing.assert_allclose(a, b, atol=1e-5)
print("equal")
"""


def test_two_replicas_train_to_the_weights_of_one():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
