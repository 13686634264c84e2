"""Trains a model written with plain Keras 3 as its guides write them: see `measuring.py` for how it is called.

It imports nothing of this project, and runs on the TensorFlow and Keras that this project runs on.

- documented: an `Input` and an `Embedding` per field, experts and towers of `Dense` layers, gates of a `Dense` with
  softmax, sigmoid outputs, `compile("adam", "binary_crossentropy", AUC)`, `fit` on a dict of arrays, everything else
  as Keras has it by default. By default Keras compiles the training step with XLA (`jit_compile="auto"`), in which the
  gradient of an embedding is dense.
- matched: what somebody would write who wants it fast without leaving Keras: one `Embedding` for all fields, ids in one
  array with offsets added beforehand, and no XLA (`jit_compile=False`), so that only the rows of a batch are summed.
  Keras's Adam makes a dense update of the table all the same. There was no normalisation or regularisation to take out.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from measuring import (
    LABELS,
    Job,
    StepClock,
    job_and_out,
    keras_callback,
    keras_parameters,
    tensorflow_threads,
    write_result,
)


def inputs_and_embedded(job: Job) -> tuple[Any, Any]:
    """Symbolic inputs, and all embeddings of an impression side by side."""
    if job.matched:
        ids = keras.Input((len(job.sizes),), dtype="int32", name="ids")
        return ids, layers.Flatten()(layers.Embedding(sum(job.sizes), job.embedding_dim)(ids))
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in job.fields}
    embedded = [
        layers.Embedding(size, job.embedding_dim)(field) for field, size in zip(inputs.values(), job.sizes, strict=True)
    ]
    return inputs, layers.Concatenate()(embedded)


def mlp(x: Any, units: tuple[int, ...]) -> Any:
    """Dense layers with ReLU."""
    for width in units:
        x = layers.Dense(width, activation="relu")(x)
    return x


def mixed(x: Any, experts: list[Any]) -> Any:
    """Experts' outputs, weighted by a gate over `x`."""
    gate = layers.Dense(len(experts), activation="softmax")(x)
    return ops.sum(ops.stack(experts, axis=1) * ops.expand_dims(gate, -1), axis=1)


def task_inputs(x: Any, job: Job) -> list[Any]:
    """What each task's tower reads."""
    if job.model == "shared_bottom":
        return [mlp(x, job.expert_units)] * len(LABELS)
    if job.model == "mmoe":
        experts = [mlp(x, job.expert_units) for _ in range(job.experts)]
        return [mixed(x, experts) for _ in LABELS]
    own, common = [x] * len(LABELS), x
    for level in range(job.levels):
        of_tasks = [mlp(task, job.expert_units) for task in own]
        shared = [mlp(common, job.expert_units) for _ in range(job.shared_experts)]
        own = [mixed(task, [expert, *shared]) for task, expert in zip(own, of_tasks, strict=True)]
        if level < job.levels - 1:
            common = mixed(common, [*of_tasks, *shared])
    return own


def model_of(job: Job) -> keras.Model:
    """The model, compiled."""
    inputs, x = inputs_and_embedded(job)
    outputs = {}
    for label, shared in zip(LABELS, task_inputs(x, job), strict=True):
        tower = mlp(shared, job.tower_units)
        outputs[label] = layers.Dense(1, activation="sigmoid", dtype="float32", name=label)(tower)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(job.learning_rate),
        loss=dict.fromkeys(LABELS, "binary_crossentropy"),
        metrics={label: [keras.metrics.AUC(name="auc")] for label in LABELS},
        jit_compile=False if job.matched else "auto",
    )
    return model


def arrays_of(job: Job) -> tuple[Any, dict[str, np.ndarray]]:
    """Inputs and labels in memory."""
    ids, labels = job.arrays()
    y = {label: labels[:, i : i + 1].copy() for i, label in enumerate(LABELS)}
    if job.matched:
        offsets = np.cumsum((0, *job.sizes[:-1]), dtype=np.int64)
        return (ids + offsets).astype(np.int32), y
    return {name: ids[:, i].copy() for i, name in enumerate(job.fields)}, y


def main() -> None:
    job, out = job_and_out(__doc__)
    keras.utils.set_random_seed(job.seed)
    keras.config.set_dtype_policy(job.dtype)
    x, y = arrays_of(job)
    model, clock = model_of(job), StepClock(job)
    model.fit(
        x, y, batch_size=job.batch, epochs=1, verbose=0, callbacks=[keras_callback(keras.callbacks.Callback, clock)]
    )
    tables = [layer.embeddings for layer in model.layers if isinstance(layer, layers.Embedding)]
    packages = ("keras", "tensorflow", "numpy")
    write_result(out, "keras_textbook", job, clock, keras_parameters(model, tables), tensorflow_threads(tf), packages)


if __name__ == "__main__":
    main()
