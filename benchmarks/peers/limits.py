"""How fast a framework multiplies matrices on this machine, and how fast TensorFlow reads raw TFRecords.

    python limits.py --framework tensorflow|torch --config config.json --out result.json [--records DATASET]

Called by `benchmarks/machine_limits.py` in the environment of each framework. `--config` is that of a training program:
besides a product of two 2048 x 2048 matrices, all products of one training step are timed, each by itself, at the
shapes and with the transpositions that the step has.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TASKS = 2


@dataclass(frozen=True)
class Product:
    """`[m, k] x [k, n]`, done `count` times in a step; a transposed factor lies in memory as its transpose."""

    m: int
    k: int
    n: int
    transposed: tuple[bool, bool] = (False, False)
    count: int = 1

    @property
    def flop(self) -> int:
        """Floating-point operations of one such product."""
        return 2 * self.m * self.k * self.n


def layer_products(batch: int, width_in: int, width: int, count: int = 1) -> list[Product]:
    """The three products of a dense layer: forward, gradient of the kernel, gradient of the input."""
    return [
        Product(batch, width_in, width, count=count),
        Product(width_in, batch, width, (True, False), count),
        Product(batch, width, width_in, (False, True), count),
    ]


def mlp_products(batch: int, width_in: int, units: list[int], count: int = 1) -> list[Product]:
    """The products of `count` MLPs, each by itself."""
    widths = [width_in, *units]
    return [
        product
        for before, after in zip(widths, units, strict=False)
        for product in layer_products(batch, before, after, count)
    ]


def step_products(job: dict[str, Any]) -> list[Product]:
    """All products of a training step of the model, each expert's by itself."""
    batch, experts = job["batch"], job["experts"]
    fields = len(job["sizes"]) * job["embedding_dim"]
    products: list[Product] = []
    if job["model"] == "shared_bottom":
        products += mlp_products(batch, fields, job["expert_units"])
    elif job["model"] == "ple":
        for level, width in enumerate([fields] + [job["expert_units"][-1]] * (job["levels"] - 1), start=1):
            products += mlp_products(batch, width, job["expert_units"], experts)
            products += layer_products(batch, width, experts - TASKS + 1, TASKS)
            products += layer_products(batch, width, experts) if level < job["levels"] else []
    else:
        products += mlp_products(batch, fields, job["expert_units"], experts)
        products += layer_products(batch, fields, experts, TASKS)
    tower = [job["expert_units"][-1], *job["tower_units"], 1]
    for width_in, width in zip(tower, tower[1:], strict=False):
        products += layer_products(batch, width_in, width, TASKS)
    return products


def flop_per_impression(job: dict[str, Any]) -> float:
    """Floating-point operations of a training step's matrix products, per impression."""
    return sum(product.flop * product.count for product in step_products(job)) / job["batch"]


def tensorflow_product(product: Product) -> Callable[[], object]:
    """A function that does the product once, with TensorFlow."""
    import tensorflow as tf

    a, b = (tf.constant(array) for array in _factors(product))
    left, right = product.transposed

    @tf.function
    def multiply() -> tf.Tensor:
        return tf.linalg.matmul(a, b, transpose_a=left, transpose_b=right)

    return multiply


def torch_product(product: Product) -> Callable[[], object]:
    """The same with PyTorch."""
    import torch

    left, right = (torch.from_numpy(array) for array in _factors(product))
    left = left.T if product.transposed[0] else left
    right = right.T if product.transposed[1] else right
    return lambda: torch.mm(left, right)


def _factors(product: Product) -> tuple[np.ndarray, np.ndarray]:
    """Both factors as they lie in memory."""
    random = np.random.default_rng(0)
    shapes = [(product.m, product.k), (product.k, product.n)]
    shapes = [shape[::-1] if flip else shape for shape, flip in zip(shapes, product.transposed, strict=True)]
    left, right = (random.random(shape, np.float32) for shape in shapes)
    return left, right


def median_seconds(call: Callable[[], object], seconds: float) -> float:
    """Median time of a call, called for about so long, at least three times, after two that do not count."""
    call()
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gigaflops(framework: str, job: dict[str, Any], square: int, seconds: float) -> dict[str, float]:
    """GFLOP/s of the square product, and of a step's products one after the other."""
    of = {"tensorflow": tensorflow_product, "torch": torch_product}[framework]
    product = Product(square, square, square)
    whole = product.flop / median_seconds(of(product), seconds)
    products = step_products(job)
    spent = sum(p.count * median_seconds(of(p), seconds / len(products)) for p in products)
    return {"square": whole / 1e9, "model": sum(p.flop * p.count for p in products) / spent / 1e9}


def records_megabytes_per_second(dataset: Path, seconds: float) -> float:
    """MB/s (10**6 bytes) of reading a dataset's TFRecord files from the page cache, nothing parsed."""
    import tensorflow as tf

    files = sorted(str(path) for path in dataset.glob("*.tfrecord"))
    size = sum(os.path.getsize(file) for file in files)

    def read() -> None:
        records = tf.data.TFRecordDataset(files, buffer_size=1 << 20)
        int(records.reduce(np.int64(0), lambda count, record: count + 1))

    return size / median_seconds(read, seconds) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=("tensorflow", "torch"), required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=Path, help="a dataset directory")
    parser.add_argument("--square", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    arguments = parser.parse_args()
    job = json.loads(arguments.config.read_text(encoding="utf-8"))
    result: dict[str, Any] = {"gflops": gigaflops(arguments.framework, job, arguments.square, arguments.seconds)}
    if arguments.records:
        result["records_mb_per_s"] = records_megabytes_per_second(arguments.records, arguments.seconds)
    result["version"] = importlib.metadata.version(arguments.framework)
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
