"""Raw logs → dataset directory, in two passes: fit on the training split, then encode and write.

A conversion like another dataset fits nothing: it counts, and encodes with what that one has fitted.

All work goes into `<OUT>.partial`; the finished directory takes the place of OUT by rename, so an interruption leaves
the old output whole. The same call again goes on behind the last closed shard.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from pipelines.encode import Encoder
from pipelines.errors import DataError
from pipelines.fit import Progress, fit, take_over, usable
from pipelines.like import Like, load_like, refuse_overlap
from pipelines.manifest import MANIFEST, SCHEMA, VOCABULARIES, Manifest, Shard
from pipelines.raw import read_raw
from pipelines.records import BLOCK_ROWS, Compression, Layout, Storage
from pipelines.replace import put_back, replace_directory, set_aside
from pipelines.schema import Schema
from pipelines.schema_file import load_schema, save_schema
from pipelines.split import SPLITS
from pipelines.threads import in_order
from pipelines.vocabulary import Vocabulary, load_vocabularies, save_vocabularies
from pipelines.write import Record, SplitWriter

_PROGRESS = "progress.json"
_CHUNK_ROWS = 64 * BLOCK_ROWS


class _State(BaseModel):
    """What an interrupted conversion has done: kept in `progress.json`, replaced by rename."""

    inputs: str
    rows: dict[str, int] = {}
    dropped_rows: int = 0
    closed: dict[str, tuple[Shard, ...]] = {}


def convert(
    files: str | Path | Sequence[str | Path],
    schema: Schema | None = None,
    out: str | Path | None = None,
    layout: Layout = "blocks",
    shards: int = 8,
    progress: Progress | None = None,
    like: str | Path | None = None,
    compression: Compression = "none",
) -> Path:
    """Converts raw logs into a dataset directory.

    Args:
        files: Raw CSV or Parquet files, in order, or one of them.
        schema: What an impression is; an earlier `fitted` section is ignored. Only with `like` it may be left out.
        out: The dataset directory; must be given. An older dataset there is replaced when the new one is complete.
        layout: `"blocks"` (default; an Example per 1,024 impressions) or `"rows"` (an Example per impression).
        shards: Wanted number of shards per split.
        progress: Called with the name of the pass (`"fit"`, with `like` `"count"`; then `"write"`), rows done, and rows
            in all once known.
        like: A dataset whose vocabularies, means, deviations and bucket edges are used instead of fitting new ones:
            what was trained on it can be evaluated, scored and trained further on the new one, which needs no training
            rows. A value that it does not know is out of vocabulary. Labels, keys and split come from `schema` if that
            is given too (its features must be the dataset's), else from this dataset.
        compression: `"none"` (default) or `"gzip"`, for slow or remote disks: shards have .27 (census_income) to .8
            (random ids) of the size. From memory or a fast disk, plain ones are read with some 5 % less CPU time.

    Returns:
        The dataset directory.

    Raises:
        DataError: Bad input (file, row, column named), no training rows without `like`, a schema whose features are not
            those of `like`, or `out` is in use, is no dataset, or is `like` or inside it.

    Example:
        >>> convert(["log.parquet"], load_schema("schema.yaml"), "data/log")
        PosixPath('data/log')
        >>> convert(["next_week.parquet"], out="data/next_week", like="data/log")
        PosixPath('data/next_week')
    """
    if out is None:
        raise DataError("`out`, the dataset directory to write, must be given")
    out = Path(out)
    work = out.with_name(out.name + ".partial")
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    storage = Storage(layout, shards, compression)
    _check_arguments(paths, out, storage)
    if like is not None:
        refuse_overlap(Path(like), (out, work, set_aside(out)))
    fittable, source = _declared(schema, like)
    with _locked(work, out):
        state = _state_of(work, _fingerprint(paths, fittable, source, storage))
        report = progress or (lambda phase, done, total: None)
        if not state.rows:
            state = _first_pass(paths, fittable, source, work, state, report)
        fitted = load_schema(work / SCHEMA)
        vocabularies = load_vocabularies(_fitted_tables(fitted), work / VOCABULARIES)
        state = _write(paths, fitted, vocabularies, work, storage, state, report)
        if _fingerprint(paths, fittable, source, storage) != state.inputs:
            raise DataError(f"{out}: a raw file changed while it was being converted; convert again")
        _finish(work, out, fitted, vocabularies, storage, state, paths)
    return out


def _declared(schema: Schema | None, like: str | Path | None) -> tuple[Schema, Like | None]:
    """The schema to convert with, not fitted, and what the dataset to convert like gives."""
    if like is not None:
        source = load_like(Path(like), schema)
        return source.schema.model_copy(update={"fitted": None}), source
    if schema is not None:
        return schema.model_copy(update={"fitted": None}), None
    raise DataError(
        "nothing says what an impression is: give a schema (--schema), a dataset to convert like (--like), or both"
    )


def _check_arguments(paths: list[Path], out: Path, storage: Storage) -> None:
    if not paths:
        raise DataError("there are no raw files to convert")
    if storage.layout not in ("blocks", "rows"):
        raise DataError(f"layout must be 'blocks' or 'rows', is {storage.layout!r}")
    if storage.shards < 1:
        raise DataError(f"the number of shards must be at least 1, is {storage.shards}")
    if storage.compression not in ("none", "gzip"):
        raise DataError(f"compression must be 'none' or 'gzip', is {storage.compression!r}")
    if out.exists() and not (out / MANIFEST).exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is no dataset; choose another directory, nothing there was touched")


@contextlib.contextmanager
def _locked(work: Path, out: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    lock_path = out.with_name(out.name + ".lock")
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The conversion that held the lock before may have removed this very file on its way out.
            held = lock_path.exists() and os.path.samestat(os.fstat(lock.fileno()), lock_path.stat())
        except OSError:
            held = False
        if not held:
            raise DataError(f"{out}: another conversion is writing this dataset; wait for it or stop it")
        try:
            put_back(out)
            yield
        finally:
            if not (work / _PROGRESS).exists():
                shutil.rmtree(work, ignore_errors=True)
            lock_path.unlink(missing_ok=True)


def _fingerprint(paths: list[Path], schema: Schema, like: Like | None, storage: Storage) -> str:
    parts = [schema.digest(), repr(storage), *(like.marks if like is not None else ())]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: there is no such raw file")
        stat = path.stat()
        parts.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _state_of(work: Path, inputs: str) -> _State:
    with contextlib.suppress(OSError, ValidationError):
        state = _State.model_validate_json((work / _PROGRESS).read_text(encoding="utf-8"))
        shards = [shard for closed in state.closed.values() for shard in closed]
        if state.inputs == inputs and all((work / shard.file).stat().st_size == shard.bytes for shard in shards):
            return state
    shutil.rmtree(work)
    work.mkdir()
    return _State(inputs=inputs)


def _save_state(work: Path, state: _State) -> None:
    temporary = work / (_PROGRESS + ".new")
    temporary.write_text(state.model_dump_json(), encoding="utf-8")
    os.replace(temporary, work / _PROGRESS)


def _first_pass(
    paths: list[Path], schema: Schema, like: Like | None, work: Path, state: _State, report: Progress
) -> _State:
    found = fit(paths, schema, report) if like is None else take_over(paths, like, report)
    save_vocabularies(found.vocabularies, work / VOCABULARIES)
    save_schema(found.schema, work / SCHEMA)
    state = state.model_copy(update={"rows": found.rows, "dropped_rows": found.dropped_rows})
    _save_state(work, state)
    return state


def _write(
    paths: list[Path],
    schema: Schema,
    vocabularies: dict[str, Vocabulary],
    work: Path,
    storage: Storage,
    state: _State,
    report: Progress,
) -> _State:
    closed = dict(state.closed)

    def journal(split: str) -> Callable[[tuple[Shard, ...]], None]:
        def save(shards_of_split: tuple[Shard, ...]) -> None:
            closed[split] = shards_of_split
            _save_state(work, state.model_copy(update={"closed": closed}))

        return save

    writers = [SplitWriter(work, s, schema, storage, state.rows[s], closed.get(s, ()), journal(s)) for s in SPLITS]
    encoder = Encoder(schema, vocabularies)

    def records(chunk: tuple[int, pa.RecordBatch]) -> tuple[int, list[Record]]:
        index, batch = chunk
        return index, writers[index].records(encoder(batch), batch.num_rows)

    written = [sum(shard.rows for shard in writer.closed) for writer in writers]
    total = sum(state.rows.values()) + state.dropped_rows
    chunks = _chunks(paths, schema, written, lambda done: report("write", done, total))
    try:
        with contextlib.closing(in_order(records, chunks)) as results:
            for index, of_chunk in results:
                writers[index].add(of_chunk)
    finally:
        for writer in writers:
            writer.abandon()
    return state.model_copy(update={"closed": {s: w.closed for s, w in zip(SPLITS, writers, strict=True)}})


def _chunks(
    paths: list[Path], schema: Schema, written: list[int], report: Callable[[int], None]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Splits by number and their rows, in whole blocks but for each split's end; without the first `written` rows."""
    waiting: list[list[pa.RecordBatch]] = [[] for _ in SPLITS]
    to_skip, done = list(written), 0
    for raw in read_raw(paths, schema):
        batch, splits, _ = usable(raw, schema)
        for index in range(len(SPLITS)):
            rows = batch.filter(pa.array(splits == index))
            skipped = min(to_skip[index], rows.num_rows)
            to_skip[index] -= skipped
            if skipped < rows.num_rows:
                waiting[index].append(rows.slice(skipped))
            yield from ((index, chunk) for chunk in _drained(waiting[index], last=False))
        done += raw.batch.num_rows
        report(done)
    for index in range(len(SPLITS)):
        yield from ((index, chunk) for chunk in _drained(waiting[index], last=True))


def _drained(waiting: list[pa.RecordBatch], last: bool) -> Iterator[pa.RecordBatch]:
    """Takes waiting rows out in chunks of whole blocks; what is left over waits on, unless it is the last."""
    rows = sum(batch.num_rows for batch in waiting)
    if rows == 0 or (rows < _CHUNK_ROWS and not last):
        return
    table = pa.Table.from_batches(waiting)
    waiting.clear()
    whole = rows if last else rows - rows % _CHUNK_ROWS
    if whole < rows:
        waiting.extend(table.slice(whole).to_batches())
    for start in range(0, whole, _CHUNK_ROWS):
        (batch,) = table.slice(start, min(_CHUNK_ROWS, whole - start)).combine_chunks().to_batches()
        yield batch


def _fitted_tables(schema: Schema) -> set[str]:
    return {f.table_name for f in schema.categoricals if f.hash_buckets is None}


def _finish(
    work: Path,
    out: Path,
    schema: Schema,
    vocabularies: dict[str, Vocabulary],
    storage: Storage,
    state: _State,
    paths: list[Path],
) -> None:
    manifest = Manifest(
        layout=storage.layout,
        compression=storage.compression,
        schema_digest=schema.digest(),
        sources=tuple(path.name for path in paths),
        dropped_rows=state.dropped_rows,
        inexact_vocabularies=tuple(sorted(n for n, v in vocabularies.items() if not v.exact)),
        splits=state.closed,
    )
    known = {shard.file for shards in manifest.splits.values() for shard in shards}
    for stray in work.glob("*.tfrecord"):
        if stray.name not in known:
            stray.unlink()
    temporary = work / (MANIFEST + ".new")
    temporary.write_text(json.dumps(manifest.model_dump(mode="json"), indent=1), encoding="utf-8")
    os.replace(temporary, work / MANIFEST)
    replace_directory(work, out)
    # Only now: killed before, the same call again must not begin anew.
    (out / _PROGRESS).unlink(missing_ok=True)
