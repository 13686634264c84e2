"""What DTN and its controls cost: weights, FLOPs of an impression, impressions per second, and time beyond products.

    python benchmarks/interaction_cost.py [--batch 4096] [--rounds 7] [--steps 3] [--clock wall|cpu] [--dim 16]

23 fields of width --dim, click and conversion, batches from memory, defaults of every model but for interaction modules
256 wide. Three times are taken in turn, in rounds, and the ratio within a round is what counts: machines drift, rounds
do not.

    step        the compiled training function of `fit`: reading, forward, backward, LazyAdam, metrics
    products    only the matrix products of the model's interaction modules, forward and both products of each backward,
                on tensors of the shapes that they have in the model's graph
    modules     each module of each group by itself, one after the other: forward and backward of its layer alone, with
                neither gates, towers, optimizer nor embedding table

Wanted of DTN: a step of at most 1.25 times its products. FLOPs count the products of one impression's forward pass,
2 per multiplication and addition.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from mask_cost import CLOCKS, batches, schema, stepper
from rich.console import Console
from rich.table import Table

from mtlzoo.layers import GatedCrossNetwork, HashCodebook, MaskNet
from mtlzoo.models import create

_WIDE = {"interaction_units": 256}  # as in the released code, and as the modules are that serve MMoE as experts
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "shared_bottom": ("shared_bottom", {}),
    "mmoe": ("mmoe", {}),
    "mmoe, modules as experts": ("mmoe", {"experts": ("masknet", "gdcn", "memonet"), "expert_units": (256,)}),
    "dtn": ("dtn", _WIDE),
    "dtn without tsn": ("dtn", {**_WIDE, "tsn_pairs": ()}),
    "dtn, shared group only": ("dtn", {**_WIDE, "task_groups": False}),
    "dtn, gdcn three times": ("dtn", {**_WIDE, "interactions": ("gdcn",) * 3}),
    "dtn without memonet": ("dtn", {**_WIDE, "interactions": ("masknet", "gdcn")}),
}
WANTED = 1.25
_MODULES = (GatedCrossNetwork, HashCodebook, MaskNet)
Product = tuple[int, int, int, int]  # how many, rows, inner width, columns


def graph_of(function: Any, *signature: Any) -> list[Any]:
    """All operations of a function's graph, those of the functions that it calls included."""
    graph = tf.function(function).get_concrete_function(*signature).graph
    nested = [f.graph.get_operations() for f in graph._functions.values() if hasattr(f, "graph")]
    return [op for ops in [graph.get_operations(), *nested] for op in ops]


def products_in(function: Any, *signature: Any) -> list[Product]:
    """The matrix products that a function computes."""
    found = []
    for op in graph_of(function, *signature):
        if op.type in ("MatMul", "BatchMatMulV2", "BatchMatMul"):
            (*many, rows, columns), inner = op.outputs[0].shape.as_list(), op.inputs[0].shape.as_list()
            flipped = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
            found.append((int(tf.reduce_prod(many or [1])), rows, inner[-2 if flipped else -1], columns))
    return found


def flops(products: list[Product]) -> int:
    """Two per multiplication and addition."""
    return sum(2 * many * rows * inner * columns for many, rows, inner, columns in products)


def signature_of(model: Any, batch: int) -> dict[str, tf.TensorSpec]:
    """The inputs of a model, for a batch of known size."""
    return {x.name: tf.TensorSpec((batch, *x.shape[1:]), x.dtype) for x in model.inputs}


def interaction_layers(model: Any) -> list[Any]:
    """The layers of a model that are modules of feature interaction."""
    return [layer for layer in model.layers if isinstance(layer, _MODULES)]


def inputs_of(layer: Any, batch: int) -> Any:
    """Tensors of the shapes and dtypes that a layer reads in its model."""

    def tensor(symbolic: Any) -> Any:
        shape = (batch, *symbolic.shape[1:])
        if "int" in symbolic.dtype:
            return tf.random.uniform(shape, 0, 4000, tf.int32)
        return tf.random.normal(shape, stddev=0.1)

    return tf.nest.map_structure(tensor, layer.input)


def products_timer(model: Any, batch: int, clock: Callable[[], float]) -> Callable[[], float] | None:
    """A function that computes the modules' products, forward and backward, and returns its seconds."""
    products = [p for layer in interaction_layers(model) for p in products_in(layer, inputs_of(layer, batch))]
    if not products:
        return None
    sides = [(tf.random.normal((c, m, k)), tf.random.normal((c, k, n))) for c, m, k, n in products]

    @tf.function
    def run() -> list[tf.Tensor]:
        ends = []
        for a, b in sides:
            for i in range(a.shape[0]):  # unbatched, as fast as a product can be
                out = tf.matmul(a[i], b[i])
                ends += [tf.matmul(out, b[i], transpose_b=True)[0, 0], tf.matmul(a[i], out, transpose_a=True)[0, 0]]
        return ends

    return timer(run, clock)


def modules_timer(model: Any, batch: int, clock: Callable[[], float]) -> Callable[[], float] | None:
    """A function that runs each module of each group by itself, forward and backward, and returns its seconds."""
    singles, read = [], []
    for layer in interaction_layers(model):
        for _ in range(layer.copies):
            singles.append(type(layer).from_config({**layer.get_config(), "copies": None}))
            read.append(inputs_of(layer, batch))
    if not singles:
        return None
    for single, x in zip(singles, read, strict=True):
        single(x)

    @tf.function
    def run() -> list[tf.Tensor]:
        ends = []
        for single, x in zip(singles, read, strict=True):
            watched = [t for t in tf.nest.flatten(x) if t.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(watched)
                loss = tf.reduce_sum(single(x))
            gradients = tape.gradient(loss, [v.value for v in single.trainable_variables] + watched)
            ends += [tf.reduce_sum(g.values if isinstance(g, tf.IndexedSlices) else g) for g in gradients]
        return ends

    return timer(run, clock)


def timer(run: Callable[[], list[tf.Tensor]], clock: Callable[[], float]) -> Callable[[], float]:
    """A function that runs, waits for the results, and returns the seconds; one run that traces is done."""

    def timed() -> float:
        start = clock()
        for end in run():
            end.numpy()
        return clock() - start

    timed()
    return timed


def main() -> None:
    """Measures model by model and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    clock, data = CLOCKS[options.clock], batches(options.batch)
    table = Table(title=f"batch {options.batch:,}, 23 fields x {options.dim}, {options.clock} time")
    table.add_column("model")
    for heading in ("weights", "without tables", "MFLOP", "impressions/s", "step / products", "step / modules"):
        table.add_column(heading, justify="right")
    console = Console(width=130, highlight=False)
    for name, (kind, arguments) in MODELS.items():
        model = create(kind, schema(), embedding_dim=options.dim, **arguments)
        step = stepper(model, data, clock)
        parts = [products_timer(model, options.batch, clock), modules_timer(model, options.batch, clock)]
        times: list[list[float]] = [[], [], []]
        for _ in range(options.rounds):
            for i, run in enumerate([step, *parts]):
                times[i].append(statistics.median(run() for _ in range(options.steps)) if run else float("nan"))
        ratios = [[a / b for a, b in zip(times[0], part, strict=True)] for part in times[1:]]
        cells = [
            f"{statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f})" if run else ""
            for r, run in zip(ratios, parts, strict=True)
        ]
        tables = sum(v.shape[0] * v.shape[1] for v in model.weights if v.name.startswith(("embeddings", "codebook")))
        forward = flops(products_in(model, signature_of(model, options.batch))) / options.batch
        speed = options.batch / statistics.median(times[0])
        table.add_row(
            name,
            f"{model.count_params() / 1e6:.2f} M",
            f"{(model.count_params() - tables) / 1e6:.2f} M",
            f"{forward / 1e6:.2f}",
            f"{speed:,.0f}",
            *cells,
        )
        console.print(f"{name}: {1000 * statistics.median(times[0]):.0f} ms a step")
    console.print(table)


if __name__ == "__main__":
    main()
