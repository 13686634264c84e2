"""Compressed shards: the same impressions in fewer bytes."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import pipelines
from mtlzoo.cli.app import app
from pipelines import DataError, read
from pipelines.tfds import write_tfds_metadata


@pytest.fixture(scope="module", params=["blocks", "rows"])
def both(request, raw_log, demo_schema, tmp_path_factory) -> tuple[pipelines.Dataset, pipelines.Dataset]:
    """The same log plain and compressed."""
    folder = tmp_path_factory.mktemp("compression")
    made = (
        pipelines.convert([raw_log.parquet], demo_schema, folder / name, request.param, shards=2, compression=name)
        for name in ("none", "gzip")
    )
    plain, compressed = map(pipelines.open_dataset, made)
    return plain, compressed


def flat(value) -> list[np.ndarray]:
    if isinstance(value, dict):
        return [array for key in sorted(value) for array in flat(value[key])]
    if isinstance(value, tuple):
        return [array for part in value for array in flat(part)]
    return [value.numpy()]


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "seed": 3}, {"worker": (1, 3)}, {"cache": True}])
def test_batches_are_the_same(both, options):
    plain, compressed = (dataset.read("train", 512, **options) for dataset in both)
    for one, other in zip(plain, compressed, strict=True):
        for left, right in zip(flat(one), flat(other), strict=True):
            np.testing.assert_array_equal(left, right)


def test_shards_are_smaller_and_records_as_large(both):
    plain, compressed = both
    assert compressed.manifest.compression == "gzip"
    for split, shards in plain.manifest.splits.items():
        for shard, smaller in zip(shards, compressed.manifest.splits[split], strict=True):
            assert smaller.bytes < 0.8 * shard.bytes
            assert smaller.record_bytes == shard.record_bytes < shard.bytes


def test_shuffle_buffer_counts_the_bytes_of_records(both, monkeypatch):
    monkeypatch.setattr(read, "_SHUFFLE_BYTES", 1 << 22)
    plain, compressed = (read._shuffled_blocks(dataset.manifest.splits["train"]) for dataset in both)
    assert compressed == pytest.approx(plain, rel=0.02)


def test_a_damaged_compressed_shard_is_named(both, tmp_path):
    compressed = shutil.copytree(both[1].folder, tmp_path / "damaged")
    shard = compressed / both[1].manifest.splits["train"][0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    shard.write_bytes(content)
    damaged = pipelines.open_dataset(compressed)
    with pytest.raises(DataError, match=re.escape(shard.name)), damaged.damaged_shards_named("train"):
        for _ in damaged.read("train"):
            pass


def test_tfds_does_not_read_them(both):
    if both[1].manifest.layout == "rows":
        with pytest.raises(DataError, match="convert the log again without `--compression`"):
            write_tfds_metadata(both[1])


def test_unknown_compression_is_refused(raw_log, demo_schema, tmp_path):
    with pytest.raises(DataError, match="compression must be 'none' or 'gzip', is 'brotli'"):
        pipelines.convert([raw_log.parquet], demo_schema, tmp_path / "out", compression="brotli")


def test_the_command_compresses_and_says_so(raw_log, demo_schema, tmp_path):
    pipelines.save_schema(demo_schema, tmp_path / "schema.yaml")
    command = ["data", "convert", raw_log.parquet, "--schema", tmp_path / "schema.yaml", "--out", tmp_path / "out"]
    shown = CliRunner().invoke(app, [*map(str, command), "--compression", "gzip"])
    assert shown.exit_code == 0, shown.output
    assert "(blocks, gzip)" in " ".join(shown.output.split())
