"""Trains a model of DeepCTR 0.9.4 on TensorFlow 2.15.1: see `measuring.py` for how it is called.

What is taken from where:
- Model: `deepctr.models.MMOE` (`SharedBottom`, `PLE`) with one `SparseFeat` per field, as in its example of multi-task
  learning. No batch normalisation, no dropout by default; gates are single layers without bias.
- Training: `compile("adam", ["binary_crossentropy"] * 2, metrics=["binary_crossentropy"])` and `fit` on a dict of
  arrays, all from that example. Keras's Adam decays the moments of all rows of a table at every step.
- documented: the default `l2_reg_embedding=1e-5`, whose gradient is that of whole tables.
- matched: no regularisation. With a strength of 0 the library still adds a regularizer that squares all tables and
  multiplies the sum by 0, and so still has dense gradients; here a strength of 0 means none.
- Left out in both: `validation_split` and `verbose=2` of the example, which are not training steps. `fit` shuffles, as
  it does by default.

Imported, DeepCTR asks the package index for its newest version in a thread of its own; that request is refused here,
and a line on the output says so.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import requests
import tensorflow as tf
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


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise requests.ConnectionError("a benchmark asks nobody")


def model_of(job: Job) -> Any:
    """The model, compiled."""
    requests.get = _refuse
    import deepctr.inputs
    import deepctr.layers.core
    from deepctr.feature_column import SparseFeat
    from deepctr.models import MMOE, PLE, SharedBottom

    if job.matched:
        for module in (deepctr.inputs, deepctr.layers.core):
            module.l2 = lambda strength: None
    columns = [
        SparseFeat(name, vocabulary_size=size, embedding_dim=job.embedding_dim)
        for name, size in zip(job.fields, job.sizes, strict=True)
    ]
    common: dict[str, Any] = {
        "tower_dnn_hidden_units": job.tower_units,
        "task_types": ("binary",) * len(LABELS),
        "task_names": LABELS,
        **({"l2_reg_embedding": 0} if job.matched else {}),
    }
    if job.model == "shared_bottom":
        model = SharedBottom(columns, bottom_dnn_hidden_units=job.expert_units, **common)
    elif job.model == "ple":
        experts = {"shared_expert_num": job.shared_experts, "specific_expert_num": 1, "num_levels": job.levels}
        model = PLE(columns, **experts, expert_dnn_hidden_units=job.expert_units, **common)
    else:
        model = MMOE(columns, num_experts=job.experts, expert_dnn_hidden_units=job.expert_units, **common)
    # "adam" of the example is this with the learning rate 1e-3.
    optimizer = tf.keras.optimizers.Adam(job.learning_rate)
    model.compile(optimizer, loss=["binary_crossentropy"] * len(LABELS), metrics=["binary_crossentropy"])
    if job.matched and model.losses:
        raise SystemExit("deepctr: a regularizer is left in the model; the mode `matched` is to have none")
    return model


def main() -> None:
    job, out = job_and_out(__doc__)
    tf.keras.utils.set_random_seed(job.seed)
    ids, labels = job.arrays()
    x = {name: ids[:, i].copy() for i, name in enumerate(job.fields)}
    y = [labels[:, i].copy() for i in range(len(LABELS))]
    model, clock = model_of(job), StepClock(job)
    timing = keras_callback(tf.keras.callbacks.Callback, clock)
    model.fit(x, y, batch_size=job.batch, epochs=1, verbose=0, callbacks=[timing])
    tables = [layer.embeddings for layer in model.layers if isinstance(layer, tf.keras.layers.Embedding)]
    packages = ("deepctr", "tensorflow-cpu", "keras", "numpy")
    write_result(out, "deepctr", job, clock, keras_parameters(model, tables), tensorflow_threads(tf), packages)


if __name__ == "__main__":
    main()
