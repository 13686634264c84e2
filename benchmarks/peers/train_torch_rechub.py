"""Trains a model of torch-rechub 0.9.0 on PyTorch 2.13.0: see `measuring.py` for how it is called.

What is taken from where:
- Model: `MMOE(features, task_types, n_expert, expert_params, tower_params_list)` with one `SparseFeature` per field, as
  in the README and in the script for Ali-CCP; `SharedBottom` and `PLE` likewise. Its `MLP` always has batch
  normalisation and dropout (rate 0) behind every linear layer, the gates' included.
- Training: `MTLTrainer.train_one_epoch`, as `MTLTrainer.fit` calls it: Adam for all weights (which is dense: each step
  reads and writes all tables with their slots), each task's `BCELoss` from probabilities, and their values fetched at
  every step. Training has no further metrics; the library computes AUC on a validation split alone, so none is here.
- documented: the trainer's own defaults (Adam with learning rate 1e-3 and weight decay 1e-5), and batches from its
  `DataGenerator`, which collates impression by impression in the same process (`num_workers=0` is its default).
- matched: batch normalisation and dropout are taken out of the model, there is no weight decay, and batches are slices
  of tensors in memory, int64 as `torch.nn.Embedding` gets them, so that the data loader costs nothing.

A step lasts from one request for a batch to the next. PyTorch computes on the CPU at once, and the trainer fetches the
losses, so nothing is left over. `torch.optim.Adam(fused=True)` and `SparseAdam` exist, but the library uses neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from measuring import LABELS, Job, StepClock, job_and_out, write_result
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import MMOE, PLE, SharedBottom
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator

TASKS = ["classification"] * len(LABELS)


class TimedBatches:
    """Batches that tick when the next one is asked for, and end when it is enough."""

    def __init__(self, batches: Any, clock: StepClock) -> None:
        self._batches, self._clock = batches, clock

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield batch
            if self._clock.tick():
                return


def model_of(job: Job) -> torch.nn.Module:
    """The model, without batch normalisation and dropout where the mode wants it so."""
    features = [
        SparseFeature(name, vocab_size=size, embed_dim=job.embedding_dim)
        for name, size in zip(job.fields, job.sizes, strict=True)
    ]
    towers = [{"dims": list(job.tower_units)} for _ in LABELS]
    units = {"dims": list(job.expert_units)}
    if job.model == "shared_bottom":
        model = SharedBottom(features, TASKS, units, towers)
    elif job.model == "ple":
        model = PLE(features, TASKS, job.levels, 1, job.shared_experts, units, towers)
    else:
        model = MMOE(features, TASKS, job.experts, units, towers)
    if job.matched:
        for module in list(model.modules()):
            if isinstance(module, torch.nn.Sequential):
                for index, layer in enumerate(module):
                    if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.Dropout):
                        module[index] = torch.nn.Identity()
    return model


def batches_of(job: Job) -> Any:
    """Batches as the mode wants them."""
    ids, labels = job.arrays()
    if job.matched:
        return list(_slices(ids, labels, job))
    x = {name: ids[:, i].astype(np.int64) for i, name in enumerate(job.fields)}
    few = {name: column[: job.batch] for name, column in x.items()}
    data = DataGenerator(x, labels.astype(np.int64))
    # Validation and test splits must be there to ask for the three loaders; only the first is read.
    splits = {"x_val": few, "y_val": labels[: job.batch], "x_test": few, "y_test": labels[: job.batch]}
    return data.generate_dataloader(**splits, batch_size=job.batch)[0]


def _slices(ids: np.ndarray, labels: np.ndarray, job: Job) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    columns = torch.from_numpy(ids.astype(np.int64).T.copy())  # a field's ids lie side by side
    targets = torch.from_numpy(labels)
    for start in range(0, len(ids), job.batch):
        stop = start + job.batch
        yield {name: columns[i, start:stop] for i, name in enumerate(job.fields)}, targets[start:stop]


def main() -> None:
    job, out = job_and_out(__doc__)
    torch.manual_seed(job.seed)
    model, batches = model_of(job), batches_of(job)
    optimizer = {"lr": job.learning_rate, "weight_decay": 0.0 if job.matched else 1e-5}
    trainer = MTLTrainer(model, TASKS, optimizer_params=optimizer, n_epoch=1)
    clock, losses = StepClock(job), []

    def kept(loss: Any) -> Any:
        def call(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            value = loss(predicted, wanted)
            losses.append(value.detach())
            return value

        return call

    trainer.loss_fns = [kept(loss) for loss in trainer.loss_fns]
    trainer.train_one_epoch(TimedBatches(batches, clock))
    values = torch.stack(losses).reshape(-1, len(LABELS)).sum(dim=1)
    clock.losses = [float(value) for value in values]
    tables = sum(p.numel() for p in model.embedding.parameters())
    parameters = {"tables": tables, "rest": sum(p.numel() for p in model.parameters()) - tables}
    threads = {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()}
    write_result(out, "torch_rechub", job, clock, parameters, threads, ("torch", "torch-rechub", "numpy"))


if __name__ == "__main__":
    main()
