"""Hillstrom's e-mail campaign: a strict funnel from visit to conversion, small enough for a quick look.

64,000 customers of a shop were sent a men's e-mail, a women's e-mail or none; within two weeks 14.7 % visited the shop
and 0.90 % bought (6.15 % of the visitors, never without a visit).
"""

from __future__ import annotations

from pathlib import Path

from pipelines.convert import Progress, convert
from pipelines.datasets.public import PublicDataset, find_file, missing_files
from pipelines.records import Layout
from pipelines.schema import Categorical, HashSplit, Label, Numeric, Schema

FILE = "hillstrom.csv"
URL = "https://blog.minethatdata.com/2008/03/minethatdata-e-mail-analytics-and-data.html"

# `spend` is in the file and in no feature: it is known only after the fact, and above 0 exactly where conversion is 1.
SCHEMA = Schema(
    features=(
        Numeric(name="recency", buckets=12, keep_value=True),  # months since the last purchase, 1 to 12
        Categorical(name="history_segment"),  # `history` in seven ranges
        # Dollars spent in the past year: a long tail, and 12 % at the floor of 29.99.
        Numeric(name="history", transform="symlog", buckets=32, keep_value=True),
        Categorical(name="mens", dtype="int"),  # bought men's merchandise in the past year
        Categorical(name="womens", dtype="int"),
        Categorical(name="zip_code"),  # kind of area; the publisher writes "Surburban"
        Categorical(name="newbie", dtype="int"),  # customer since the past year
        Categorical(name="channel"),
        Categorical(
            name="treatment"
        ),  # which e-mail was sent, "segment" in the publisher's file; decided before the visit
    ),
    labels=(Label(name="visit"), Label(name="conversion", parent="visit")),
    # 15 % each instead of 10 %: of 578 conversions in all, 87 per split tell models apart better than 58.
    split=HashSplit(key="row", valid=0.15, test=0.15),
)


def prepare(
    raw_dir: Path, out: Path, progress: Progress | None = None, layout: Layout = "blocks", shards: int = 8
) -> Path:
    """Converts `hillstrom.csv` (plain, .gz or .zst) of a directory; see `pipelines.datasets.prepare`."""
    file = find_file(raw_dir, FILE)
    if file is None:
        raise missing_files(raw_dir, f"{FILE} (or {FILE}.gz)", URL)
    return convert([file], SCHEMA, out, layout=layout, shards=shards, progress=progress)


HILLSTROM = PublicDataset(
    name="hillstrom",
    description="MineThatData e-mail challenge 2008: 64,000 customers, tasks visit and conversion (given a visit)",
    licence="Published openly by Kevin Hillstrom for the challenge; no licence text",
    url=URL,
    files=(FILE,),
    prepare=prepare,
)
