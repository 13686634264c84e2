"""Trains this project's model from TFRecords, with `model.fit`: see `measuring.py` for how it is called.

- Both modes: read from disk (`open_dataset(DIR).read("train", shuffle=True)`), the label space `ctcvr` (a head of its
  own for click and for click-and-conversion, each trained on all impressions, as the peers have it), the default
  optimizer, and the default metrics: the AUCs of CTR, CVR and CTCVR, one more than the peers have.
- documented: all other arguments as they are by default, dropout of 0.1 included.
- matched: no dropout.

The log is read again and again, so that reading and shuffling go on beside the steps that are measured.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from measuring import (
    Job,
    StepClock,
    job_and_out,
    keras_callback,
    keras_parameters,
    tensorflow_threads,
    write_result,
)

from mtlzoo.layers import EmbeddingTable
from mtlzoo.models import PLE, MMoE, MultiTaskModel, SharedBottom
from mtlzoo.optimizers import LazyAdam
from pipelines import Schema, open_dataset


def model_of(job: Job, schema: Schema) -> MultiTaskModel:
    """The model, compiled."""
    common: dict[str, Any] = {
        "tower_units": job.tower_units,
        "embedding_dim": job.embedding_dim,
        "label_space": "ctcvr",
        "dtype": job.dtype,
        **({"dropout": 0.0} if job.matched else {}),
    }
    model: MultiTaskModel
    if job.model == "shared_bottom":
        model = SharedBottom(schema, bottom_units=job.expert_units, **common)
    elif job.model == "ple":
        experts = {"own_experts": 1, "shared_experts": job.shared_experts, "expert_units": job.expert_units}
        model = PLE(schema, num_levels=job.levels, **experts, **common)
    else:
        model = MMoE(schema, num_experts=job.experts, expert_units=job.expert_units, **common)
    model.compile(LazyAdam(job.learning_rate), steps_per_execution=job.steps_per_execution)
    return model


def main() -> None:
    job, out = job_and_out(__doc__)
    keras.utils.set_random_seed(job.seed)
    dataset = open_dataset(Path(job.data) / "dataset")
    model, clock = model_of(job, dataset.schema), StepClock(job)
    batches = dataset.read("train", job.batch, shuffle=True, seed=job.seed, repeat=True)
    # One execution more than is needed: the first always belongs to the warm-up.
    steps = job.warmup + job.steps + 2 * job.steps_per_execution
    steps -= steps % job.steps_per_execution
    timing = keras_callback(keras.callbacks.Callback, clock)
    model.fit(batches, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0, callbacks=[timing])
    tables = [layer.embeddings for layer in model.layers if isinstance(layer, EmbeddingTable)]
    packages = ("mtlzoo", "keras", "tensorflow", "numpy")
    write_result(out, "ours", job, clock, keras_parameters(model, tables), tensorflow_threads(tf), packages)


if __name__ == "__main__":
    main()
