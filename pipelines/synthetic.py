"""A synthetic click and conversion log whose true probabilities are known.

The log is written as raw Parquet, ready for conversion like anybody's own; the truth lies beside it and never among
the features. So the best AUC that any model can reach is known for each task, and so are the true conversion rate of
impressions that nobody clicked and the true importance of every field. The generator is our design.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.schema import HashSplit, Keys, Label, Schema
from pipelines.schema_file import save_schema
from pipelines.synthetic_columns import HistoryColumn, RawColumn, declare, declare_history
from pipelines.synthetic_history import HISTORY
from pipelines.synthetic_presets import PRESETS
from pipelines.synthetic_truth import KEY, LOG, TRUTH
from pipelines.synthetic_world import CHUNK_ROWS, TASKS, Impressions, Population, World
from pipelines.threads import in_order

SCHEMA, WORLD = "schema.yaml", "world.json"


@dataclass(frozen=True)
class SyntheticFunnel:
    """A world of users and items, and the log of what was shown, clicked and bought in it.

    The logits of click, and of conversion given click, are sums of effects of fields and of pairs of fields:

        z = b + sum_f e_f(x_f) + sum_(f,g) e_fg(x_f, x_g),        p = sigmoid(z)

    Conversion's effect in a term is, by the term's role: correlated with click's (shared), minus click's (opposite), or
    one of the two is zero (specific). Terms draw their roles at random; fields and pairs have the same shares of roles.

    With `history_length` the log has one more column, `click_history`: a list in the order of time, the oldest value
    first, of values of the item's category (`category`, or `f206` in `ali_ccp`). Every impression has a list of its
    own, mostly of the few values that its user likes: the last of up to twice `history_length` clicks, none among them.
    It adds to the logits what depends on the order:

        sum_a 0.6**a E[h_a, c],        h_a the value of age a (0 the most recent), c the candidate's category

    with a random table E of low rank for either task. The history's term is always shared, whatever the shares of roles
    are: `task_correlation` is the correlation of its two effects. All other columns but the labels stay what they are
    without a history.

    The same knobs give the same rows on every machine (with the same NumPy), and the first n rows do not depend on how
    many follow.

    Args:
        preset: `"small"`: 14 fields, among them two numbers and a list of strings. `"ali_ccp"`: 23 single-valued
            integer fields with sizes like Ali-CCP's.
        seed: Seed of the world and of its rows.
        users: Number of users; default 10,000 (`small`) or 238,635 (`ali_ccp`).
        items: Number of items; default 2,000 or 467,298.
        user_zipf: Zipf exponent of the users' activity; default 0.5.
        item_zipf: Zipf exponent of the items' popularity; default 0.9.
        click_rate: Mean probability of a click.
        conversion_rate: Mean probability of a conversion given a click, over clicked impressions.
        task_correlation: Correlation, in each shared term, between its effect on click and on conversion.
        specific_share: Share of the fields (and of the pairs) that only one task feels, half of them either task.
        opposite_share: Share of the fields (and of the pairs) whose conversion effect is minus the click effect. What
            is neither specific nor opposite is shared.
        main_strength: Standard deviation of the sum of the fields' effects in each logit.
        interaction_strength: Standard deviation of the sum of the pairs' effects in each logit.
        interaction_rank: Rank of a pair's table of effects, and of the history's (of each of the two parts that a
            shared one mixes).
        history_length: Longest click history, at most 100; about half of the lists are that long. 0: no such column.
        history_strength: Standard deviation of the history's effect in each logit.
        observe_conversions: `"clicked"`: conversions are seen on clicked impressions only (selection bias).
            `"all"`: the log says for every impression whether it converts if clicked.

    Raises:
        DataError: A knob is out of its range.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> out = Path(mkdtemp())
        >>> SyntheticFunnel("small", seed=1, opposite_share=0.5).write(out, rows=20_000)
        >>> from pipelines.synthetic_truth import best_auc
        >>> sorted(best_auc(out / "truth.parquet", out / "impressions.parquet"))
        ['click', 'conversion', 'ctcvr']
    """

    preset: str = "small"
    seed: int = 0
    users: int | None = None
    items: int | None = None
    user_zipf: float | None = None
    item_zipf: float | None = None
    click_rate: float = 0.04
    conversion_rate: float = 0.03
    task_correlation: float = 0.8
    specific_share: float = 0.2
    opposite_share: float = 0.2
    main_strength: float = 1.1
    interaction_strength: float = 0.5
    interaction_rank: int = 2
    history_length: int = 0
    history_strength: float = 0.8
    observe_conversions: Literal["clicked", "all"] = "clicked"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise DataError(f"preset={self.preset!r} is unknown; choose one of {', '.join(map(repr, PRESETS))}")
        for name in ("users", "items", "user_zipf", "item_zipf"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(PRESETS[self.preset], name))
        _check_knobs(self)

    @cached_property
    def world(self) -> World:
        """The population and its true logits; built on first use (a second or less)."""
        preset = PRESETS[self.preset]
        population = Population(preset, self.users, self.items, self.user_zipf, self.item_zipf, self.seed)  # type: ignore[arg-type]
        return World(
            preset,
            population,
            seed=self.seed,
            rates=(self.click_rate, self.conversion_rate),
            correlation=self.task_correlation,
            specific_share=self.specific_share,
            opposite_share=self.opposite_share,
            strengths=(self.main_strength, self.interaction_strength),
            history=(self.history_length, self.history_strength),
            rank=self.interaction_rank,
        )

    def schema(self) -> Schema:
        """The schema of the log: features, the funnel, users as groups, a split by hash of the impression."""
        parent = "click" if self.observe_conversions == "clicked" else None
        preset = PRESETS[self.preset]
        features = [declare(field) for field in preset.fields]
        if self.history_length:
            features.append(declare_history(preset.history_field, self.history_length))
        return Schema(
            features=tuple(features),
            labels=(Label(name="click"), Label(name="conversion", parent=parent)),
            keys=Keys(group=preset.fields[0].name),
            split=HashSplit(by="hash", key=KEY, valid=0.1, test=0.1),
        )

    def write(self, out: str | Path, rows: int, progress: Callable[[int], None] | None = None) -> None:
        """Writes the log, its truth, its schema and a description of the world into a directory.

        - `impressions.parquet`: `impression_id` (int64), the features, `click` and `conversion` (int8).
        - `truth.parquet`: `impression_id`, and float32 `p_click`, `p_conversion` (given a click), `p_ctcvr`.
        - `schema.yaml`: see `schema`.
        - `world.json`: the knobs, the realised rates and `description`; written last.

        The files get their names when all of them are complete; an interrupted call leaves what was there before.

        Args:
            out: The directory; made if it does not exist.
            rows: Number of impressions.
            progress: Called after every chunk with the number of rows written so far.

        Raises:
            DataError: `rows` is not a positive integer.
        """
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise DataError(f"rows={rows!r}: the number of rows must be an integer of at least 1")
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as name:
            partial = Path(name)
            counts = self._write_parquet(partial, rows, progress)
            save_schema(self.schema(), partial / SCHEMA)
            world = {"rows": rows, **_rates(rows, counts), **self.description()}
            (partial / WORLD).write_text(json.dumps(world, indent=2) + "\n", encoding="utf-8")
            (out / WORLD).unlink(missing_ok=True)
            for file in (LOG, TRUTH, SCHEMA, WORLD):
                os.replace(partial / file, out / file)

    def tables(self, rows: int) -> Generator[tuple[pa.Table, pa.Table], None, None]:
        """Draws the rows in memory, two threads at work ahead of the caller.

        Args:
            rows: Number of impressions.

        Yields:
            A table of the log and one of its truth, in chunks of at most 65,536 rows.
        """
        columns = self._columns()
        chunks = range(-(-rows // CHUNK_ROWS))
        yield from in_order(lambda chunk: self._tables_of(chunk, columns, rows), chunks, threads=2)

    def description(self) -> dict[str, Any]:
        """The knobs, and the truth about fields and pairs, as plain data.

        `importance[task][field]` is the variance that the field brings into the task's logit: of its own effect plus
        half of each pair that it is in. `fields` and `interactions` give the parts, and every term's role. The history
        and the candidate's category are such a pair: half of its variance counts for either.
        """
        parts = self.world.variances()
        names = [*self.world.population.fields, *([HISTORY] if self.history_length else [])]
        # A history acts only together with the candidate: it has no effect of its own.
        mains = {n: parts.get((n,), ("shared", [0.0, 0.0])) for n in names}
        pairs = {key: part for key, part in parts.items() if len(key) == 2}
        halves = {n: [sum(v[t] for key, (_, v) in pairs.items() if n in key) / 2 for t in range(2)] for n in names}
        z_click, z_conversion = (z.astype(np.float64) for z in self.world.logits(self.world.sample))
        return {
            "knobs": {knob.name: getattr(self, knob.name) for knob in fields(self)},
            "importance": {task: {n: mains[n][1][t] + halves[n][t] for n in names} for t, task in enumerate(TASKS)},
            "fields": {
                n: {
                    "role": mains[n][0],
                    "main": dict(zip(TASKS, mains[n][1], strict=True)),
                    "interaction": dict(zip(TASKS, halves[n], strict=True)),
                }
                for n in names
            },
            "interactions": [
                {"fields": list(key), "role": role, "variance": dict(zip(TASKS, variance, strict=True))}
                for key, (role, variance) in pairs.items()
            ],
            "logits": {
                "intercept": dict(zip(TASKS, self.world.intercepts, strict=True)),
                "deviation": {"click": float(z_click.std()), "conversion": float(z_conversion.std())},
                "correlation": _correlation(z_click, z_conversion),
            },
        }

    def _columns(self) -> dict[str, RawColumn | HistoryColumn]:
        preset, population = PRESETS[self.preset], self.world.population
        columns: dict[str, RawColumn | HistoryColumn] = {f.name: RawColumn(f, population) for f in preset.fields}
        if self.history_length:
            columns[HISTORY] = HistoryColumn(preset.history_field, population)
        return columns

    def _write_parquet(self, partial: Path, rows: int, progress: Callable[[int], None] | None) -> tuple[int, int, int]:
        counts = np.zeros(3, np.int64)
        done = 0
        writers: list[pq.ParquetWriter] = []
        try:
            with closing(self.tables(rows)) as tables:
                for log, truth in tables:
                    if not writers:
                        features = [n for n in log.column_names if n != KEY]
                        writers.append(_writer(partial / LOG, log.schema, features))
                        writers.append(_writer(partial / TRUTH, truth.schema, []))
                    writers[0].write_table(log)
                    writers[1].write_table(truth)
                    click, conversion = (log[name].to_numpy() for name in ("click", "conversion"))
                    counts += [click.sum(), (click & conversion).sum(), conversion.sum()]
                    done += log.num_rows
                    if progress is not None:
                        progress(done)
        finally:
            for writer in writers:
                writer.close()
        return int(counts[0]), int(counts[1]), int(counts[2])

    def _tables_of(
        self, chunk: int, columns: dict[str, RawColumn | HistoryColumn], rows: int
    ) -> tuple[pa.Table, pa.Table]:
        drawn = self.world.impressions(chunk)
        start = chunk * CHUNK_ROWS
        keys = pa.array(np.arange(start, start + CHUNK_ROWS, dtype=np.int64))
        log = {KEY: keys} | {name: column.array(drawn.ids[name]) for name, column in columns.items()}
        log |= self._labels(drawn)
        truth = {KEY: keys, "p_click": drawn.p_click, "p_conversion": drawn.p_conversion}
        truth["p_ctcvr"] = drawn.p_click * drawn.p_conversion
        kept = min(CHUNK_ROWS, rows - start)
        return pa.table(log).slice(0, kept), pa.table(truth).slice(0, kept)

    def _labels(self, drawn: Impressions) -> dict[str, np.ndarray]:
        seen = drawn.would_convert & drawn.click if self.observe_conversions == "clicked" else drawn.would_convert
        return {"click": drawn.click.astype(np.int8), "conversion": seen.astype(np.int8)}


def _writer(path: Path, schema: pa.Schema, dictionaries: list[str]) -> pq.ParquetWriter:
    # Without Arrow's own schema in the file, dictionaries read back as plain strings, as from any other tool.
    return pq.ParquetWriter(
        path, schema, compression="snappy", use_dictionary=dictionaries or False, store_schema=False
    )


def _rates(rows: int, counts: tuple[int, int, int]) -> dict[str, Any]:
    clicks, both, conversions = counts
    rates = {"click": clicks / rows, "conversion": both / clicks if clicks else None, "ctcvr": both / rows}
    return {"realised_rates": rates, "counts": {"click": clicks, "ctcvr": both, "conversion": conversions}}


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0.0 and b.std() > 0.0 else None


def _check_knobs(knobs: SyntheticFunnel) -> None:
    for name, low in (("seed", 0), ("users", 100), ("items", 100), ("interaction_rank", 1)):
        value = getattr(knobs, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise DataError(f"{name}={value!r}: must be an integer of at least {low}")
    length = knobs.history_length
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= 100:
        raise DataError(f"history_length={length!r}: must be an integer from 0 to 100")
    for name, low_, high in (
        ("user_zipf", 0.0, 5.0),
        ("item_zipf", 0.0, 5.0),
        ("click_rate", 0.0001, 0.9),
        ("conversion_rate", 0.0001, 0.9),
        ("task_correlation", -1.0, 1.0),
        ("specific_share", 0.0, 1.0),
        ("opposite_share", 0.0, 1.0),
        ("main_strength", 0.0, 10.0),
        ("interaction_strength", 0.0, 10.0),
        ("history_strength", 0.0, 10.0),
    ):
        value = getattr(knobs, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low_ <= value <= high:
            raise DataError(f"{name}={value!r}: must be a number from {low_:g} to {high:g}")
    if knobs.specific_share + knobs.opposite_share > 1.0 + 1e-9:
        raise DataError(
            f"specific_share={knobs.specific_share} and opposite_share={knobs.opposite_share} are more than 1 together"
        )
    if knobs.observe_conversions not in ("clicked", "all"):
        raise DataError(f"observe_conversions={knobs.observe_conversions!r}: must be 'clicked' or 'all'")
