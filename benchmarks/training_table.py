"""The table of training speed from the results of `training_speed.py`: medians, spread, ratios round by round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from peers.limits import flop_per_impression
from rich.table import Table

OURS = "ours"
Runs = Mapping[str, Mapping[str, Any]]  # by `run_key`


def run_key(rows: int, mode: str, peer: str, turn: int) -> str:
    """Where the result of one run stands in the file."""
    return f"{rows}/{mode}/{peer}/{turn}"


def limits_key(rows: int, turn: int) -> str:
    """Where the limits measured before the runs of a size in a round stand."""
    return f"{rows}/{turn}"


def speeds(runs: Runs, rows: int, mode: str, peer: str) -> dict[int, float]:
    """By round the median impressions/s of a peer, for the rounds that it has."""
    prefix = run_key(rows, mode, peer, 0)[:-1]
    found = {key: run for key, run in runs.items() if key.startswith(prefix)}
    return {
        int(key.removeprefix(prefix)): run["impressions_per_second"]["median"] for key, run in sorted(found.items())
    }


def ratios(runs: Runs, rows: int, mode: str, peer: str) -> list[float]:
    """Ours over the peer's impressions/s, for each round that has both: machines drift, rounds do not."""
    ours, theirs = (speeds(runs, rows, mode, name) for name in (OURS, peer))
    return [ours[turn] / theirs[turn] for turn in sorted(ours.keys() & theirs.keys())]


def shares(
    entry: Mapping[str, Any], rows: int, mode: str, job: Mapping[str, Any], peer: str = OURS
) -> dict[str, list[float]]:
    """A peer's rate of matrix products as a part of TensorFlow's own, by kind of product, for each round with both."""
    flop = flop_per_impression(dict(job))
    found: dict[str, list[float]] = {}
    for turn, speed in speeds(entry["runs"], rows, mode, peer).items():
        limits = entry["limits"].get(limits_key(rows, turn))
        for kind, limit in limits["tensorflow"]["gflops"].items() if limits else ():
            found.setdefault(kind, []).append(speed * flop / (limit * 1e9))
    return found


def growth(runs: Runs, smallest: int, rows: int, mode: str) -> list[float]:
    """Time of our step over that with the smallest tables, for each round that has both."""
    base, larger = (speeds(runs, size, mode, OURS) for size in (smallest, rows))
    return [base[turn] / larger[turn] for turn in sorted(base.keys() & larger.keys())]


def fastest(runs: Runs, rows: int, mode: str, peers: Sequence[str]) -> str | None:
    """The peer with the greatest median; `None` where no peer has runs."""
    medians = {
        peer: statistics.median(found.values())
        for peer in peers
        if peer != OURS and (found := speeds(runs, rows, mode, peer))
    }
    return max(medians, key=medians.__getitem__, default=None)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and least and greatest."""
    if not values:
        return ""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table_of(entry: Mapping[str, Any], rows: int, mode: str, peers: Sequence[str], job: Mapping[str, Any]) -> Table:
    """One row per peer that has runs; below, how far ours is ahead of the fastest."""
    runs = entry["runs"]
    rounds = max((len(speeds(runs, rows, mode, peer)) for peer in peers), default=0)
    table = Table(title=f"{rows:,} embedding rows, {mode}, batch {job['batch']:,}, rounds: {rounds}")
    table.add_column("")
    headings = ("k impressions/s (range)", "mean over time", "ms/step", "ours/peer (range)", "peak GB", "M weights")
    for heading in (*headings, "of sgemm: square", "model"):
        table.add_column(heading, justify="right")
    for peer in peers:
        by_round = speeds(runs, rows, mode, peer)
        if not by_round:
            continue
        results = [runs[run_key(rows, mode, peer, turn)] for turn in by_round]
        mean = statistics.median(result["impressions_per_second"]["mean"] for result in results)
        share = shares(entry, rows, mode, job, peer)
        table.add_row(
            peer,
            spread([speed / 1e3 for speed in by_round.values()], 1),
            f"{mean / 1e3:.1f}",
            f"{1e3 * job['batch'] / statistics.median(by_round.values()):.0f}",
            "" if peer == OURS else spread(ratios(runs, rows, mode, peer)),
            f"{max(result['peak_mb'] for result in results) / 1e3:.2f}",
            f"{sum(results[0]['parameters'].values()) / 1e6:.1f}",
            *(f"{statistics.median(share[kind]):.0%}" if kind in share else "" for kind in ("square", "model")),
        )
    best = fastest(runs, rows, mode, peers)
    if best is not None and ratios(runs, rows, mode, best):
        table.caption = f"ours against the fastest peer, {best}: {spread(ratios(runs, rows, mode, best))} times as fast"
    return table
