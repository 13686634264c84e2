"""The best AUC that any model can reach on a synthetic log, from its true probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.raw import read_raw
from pipelines.schema_file import load_schema
from pipelines.split import SPLITS, assign_split

KEY = "impression_id"
LOG, TRUTH = "impressions.parquet", "truth.parquet"


def best_auc_of_split(folder: str | Path, split: str = "test") -> dict[str, float]:
    """AUC of the true probabilities on the rows that the schema's split puts into one split.

    Args:
        folder: What `SyntheticFunnel.write` wrote.
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        As `best_auc`.

    Example:
        >>> from tempfile import mkdtemp
        >>> from pipelines.synthetic import SyntheticFunnel
        >>> folder = mkdtemp()
        >>> SyntheticFunnel("small").write(folder, rows=20_000)
        >>> best_auc_of_split(folder)["click"] > 0.7
        True
    """
    folder = Path(folder)
    schema = load_schema(folder / "schema.yaml")
    splits = np.concatenate([assign_split(batch, schema) for batch in read_raw([folder / LOG], schema)])
    return best_auc(folder / TRUTH, folder / LOG, rows=splits == SPLITS.index(split))


def best_auc(
    truth: str | Path | pa.Table, impressions: str | Path | pa.Table, rows: np.ndarray | None = None
) -> dict[str, float]:
    """AUC of the true probabilities on the labels that were drawn: what the perfect model gets on these rows.

    Args:
        truth: `truth.parquet`, or its table.
        impressions: `impressions.parquet`, or its table, the same rows in the same order.
        rows: Restricts to some rows: a boolean mask `[n]`, or impression ids `[m]`. Default: all.

    Returns:
        `click` (all rows), `conversion` (clicked rows) and `ctcvr` (all rows); NaN where a class is missing.

    Raises:
        DataError: The two tables do not hold the same impressions, or `rows` does not fit them.
    """
    true = _load(truth, [KEY, "p_click", "p_conversion", "p_ctcvr"])
    seen = _load(impressions, [KEY, "click", "conversion"])
    if not np.array_equal(true[KEY], seen[KEY]):
        raise DataError(f"{_named(truth)} and {_named(impressions)} do not hold the same impressions in the same order")
    keep = _mask(true[KEY], rows)
    click, conversion = seen["click"][keep] > 0, seen["conversion"][keep] > 0
    p_conversion = true["p_conversion"][keep]
    return {
        "click": _auc(true["p_click"][keep], click, ~click),
        "conversion": _auc(p_conversion[click], conversion[click], ~conversion[click]),
        "ctcvr": _auc(true["p_ctcvr"][keep], click & conversion, ~(click & conversion)),
    }


def expected_auc(truth: str | Path | pa.Table, rows: np.ndarray | None = None) -> dict[str, float]:
    """Best AUC with the chance of the draw integrated out: every row counts p as a positive, 1 - p as a negative.

    Args:
        truth: `truth.parquet`, or its table.
        rows: As for `best_auc`.

    Returns:
        `click` (all rows), `conversion` (rows weighted by their chance of a click), `ctcvr` (all rows), and
        `conversion_all`: of conversion given a click over all rows, which clicked rows alone cannot show.

    Raises:
        DataError: `rows` does not fit the table.
    """
    true = _load(truth, [KEY, "p_click", "p_conversion", "p_ctcvr"])
    keep = _mask(true[KEY], rows)
    click, conversion, both = (true[name][keep].astype(np.float64) for name in ("p_click", "p_conversion", "p_ctcvr"))
    return {
        "click": _auc(click, click, 1.0 - click),
        "conversion": _auc(conversion, click * conversion, click * (1.0 - conversion)),
        "ctcvr": _auc(both, both, 1.0 - both),
        "conversion_all": _auc(conversion, conversion, 1.0 - conversion),
    }


def _auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties half; `positive`, `negative` are weights `[n]`."""
    _, group = np.unique(scores, return_inverse=True)
    positives, negatives = (np.bincount(group, weights=w.astype(np.float64)) for w in (positive, negative))
    total = positives.sum() * negatives.sum()
    below = np.cumsum(negatives) - negatives / 2.0
    return float(positives @ below / total) if total > 0.0 else float("nan")


def _load(source: str | Path | pa.Table, columns: list[str]) -> dict[str, np.ndarray]:
    try:
        table = source.select(columns) if isinstance(source, pa.Table) else pq.read_table(source, columns=columns)
        return {name: table[name].to_numpy() for name in columns}
    except FileNotFoundError:
        raise DataError(f"{source}: there is no such file") from None
    except (KeyError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{_named(source)}: must be a Parquet file or table with {', '.join(columns)}: {error}"
        ) from None


def _named(source: str | Path | pa.Table) -> str:
    return "the table" if isinstance(source, pa.Table) else str(source)


def _mask(keys: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    if rows is None:
        return np.ones(len(keys), bool)
    rows = np.asarray(rows)
    if rows.dtype != bool:
        return np.isin(keys, rows)
    if rows.shape != keys.shape:
        raise DataError(f"rows: a mask of shape {rows.shape} does not fit {len(keys)} impressions")
    return rows
