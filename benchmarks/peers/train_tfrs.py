"""Trains an MMoE built from TensorFlow Recommenders 0.7.7: see `measuring.py` for how it is called.

The library has no MMoE. It has the frame of a multi-task model (`tfrs.models.Model`), tasks that own loss and metrics
(`tfrs.tasks.Ranking`) and the block `MLP`; experts and towers are such blocks, and the gates are one `Dense` with
softmax for each task. It needs the old Keras (`TF_USE_LEGACY_KERAS=1`).

- documented: as in its tutorial on multi-task recommenders, an `Embedding` per field, the sum of both tasks' losses,
  and `fit` on a `tf.data.Dataset` of single impressions, `shuffle(100_000).batch(...).cache()`. Metrics of each task
  are the defaults of its `Ranking` model: AUC, accuracy, mean prediction, mean label.
- matched: AUC alone as a metric, and batches cut from the arrays at once.
- In both: Adam where the tutorial has Adagrad, since all peers have an optimizer of the Adam family; the old Keras's
  Adam decays the moments of all rows of a table at every step. `cache()` has no effect within one pass.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras
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

_SHUFFLED = 100_000


class MMoE(tfrs.models.Model):
    """Embeddings, experts, gates and towers, with a ranking task for each label."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.names = job.fields
        self.embeddings = [tf_keras.layers.Embedding(size, job.embedding_dim) for size in job.sizes]
        self.experts = [
            tfrs.layers.blocks.MLP(list(job.expert_units), final_activation="relu") for _ in range(job.experts)
        ]
        self.gates = [tf_keras.layers.Dense(job.experts, activation="softmax") for _ in LABELS]
        self.towers = [tfrs.layers.blocks.MLP([*job.tower_units, 1], final_activation="sigmoid") for _ in LABELS]
        self.tasks = [ranking_task(label, job) for label in LABELS]

    def call(self, features: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        """Probability of each label, `[batch, 1]`."""
        embedded = [embed(features[name]) for name, embed in zip(self.names, self.embeddings, strict=True)]
        x = tf.concat(embedded, axis=1)
        experts = tf.stack([expert(x) for expert in self.experts], axis=1)
        mixed = [tf.reduce_sum(experts * gate(x)[:, :, None], axis=1) for gate in self.gates]
        return [tower(m) for tower, m in zip(self.towers, mixed, strict=True)]

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Sum of both tasks' losses; `inputs` holds features and labels."""
        predicted = self(inputs)
        tasks = zip(LABELS, self.tasks, predicted, strict=True)
        return tf.add_n([task(labels=inputs[name], predictions=value) for name, task, value in tasks])


def ranking_task(label: str, job: Job) -> Any:
    """Binary cross-entropy and the metrics of the mode."""
    metrics = tf_keras.metrics
    auc = metrics.AUC(name=f"{label}_auc")
    if job.matched:
        return tfrs.tasks.Ranking(tf_keras.losses.BinaryCrossentropy(), metrics=[auc])
    return tfrs.tasks.Ranking(
        tf_keras.losses.BinaryCrossentropy(),
        metrics=[auc, metrics.BinaryAccuracy(name=f"{label}_accuracy")],
        prediction_metrics=[metrics.Mean(f"{label}_prediction_mean")],
        label_metrics=[metrics.Mean(f"{label}_label_mean")],
    )


def batches_of(job: Job) -> tf.data.Dataset:
    """Features and labels in one dict, as the library's models get them."""
    ids, labels = job.arrays()
    columns = {name: ids[:, i].copy() for i, name in enumerate(job.fields)}
    columns |= {label: labels[:, i : i + 1].copy() for i, label in enumerate(LABELS)}
    if not job.matched:
        return tf.data.Dataset.from_tensor_slices(columns).shuffle(_SHUFFLED).batch(job.batch).cache()
    by_batch = {name: column.reshape(-1, job.batch, *column.shape[1:]) for name, column in columns.items()}
    return tf.data.Dataset.from_tensor_slices(by_batch).prefetch(2)


def main() -> None:
    job, out = job_and_out(__doc__)
    if job.model != "mmoe":
        raise SystemExit(f"tfrs: there is no program for {job.model}, only for mmoe")
    tf_keras.utils.set_random_seed(job.seed)
    model, clock = MMoE(job), StepClock(job)
    model.compile(optimizer=tf_keras.optimizers.Adam(job.learning_rate))
    timing = keras_callback(tf_keras.callbacks.Callback, clock, mean_loss=False)
    model.fit(batches_of(job), epochs=1, verbose=0, callbacks=[timing])
    parameters = keras_parameters(model, [layer.embeddings for layer in model.embeddings])
    packages = ("tensorflow-recommenders", "tf-keras", "tensorflow", "numpy")
    write_result(out, "tfrs", job, clock, parameters, tensorflow_threads(tf), packages)


if __name__ == "__main__":
    main()
