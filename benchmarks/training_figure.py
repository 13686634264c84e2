"""Training speed as a figure: for each number of embedding rows a bar per peer and mode, on the machine's limit."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from peers.limits import flop_per_impression
from training_table import OURS, speeds

_COLOURS = {"documented": "#777777", "matched": "#0072B2"}
_LIMIT = "#D55E00"
_NAMES = {OURS: "mtlzoo", "torch_rechub": "torch-rechub", "deepctr": "DeepCTR", "keras_textbook": "Keras 3, textbook"}
_NAMES["tfrs"] = "TF Recommenders"


def training_figure(
    entry: Mapping[str, Any],
    sizes: Sequence[int],
    modes: Sequence[str],
    peers: Sequence[str],
    job: Mapping[str, Any],
) -> Figure:
    """One panel for each number of embedding rows that has runs.

    Args:
        entry: Runs and limits, as `training_speed.py` keeps them.
        sizes: Numbers of embedding rows.
        modes: Of the peers.
        peers: From top to bottom.
        job: What was trained.
    """
    shown = [rows for rows in sizes if any(speeds(entry["runs"], rows, mode, p) for mode in modes for p in peers)]
    figure = Figure(figsize=(2.2 + 3.1 * len(shown), 1.3 + 0.42 * len(peers)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, rows in zip(panels, shown, strict=True):
        for place, mode in enumerate(modes):
            _bars(panel, entry, rows, mode, peers, place, len(modes))
        limits = product_limits(entry, rows, job)
        if limits:
            panel.axvline(statistics.median(limits) / 1e3, color=_LIMIT, linewidth=1.2)
        panel.set_title(f"{rows:,} embedding rows", fontsize=10)
        panel.set_xlabel("thousand impressions/s")
        panel.set_xlim(left=0)
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(peers)), [_NAMES.get(peer, peer) for peer in peers])
    panels[0].invert_yaxis()
    handles: list[Any] = [Patch(color=_COLOURS[mode], label=mode) for mode in modes]
    handles.append(Line2D([], [], color=_LIMIT, label="matrix products of a step alone, TensorFlow, float32"))
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper center", frameon=False)
    return figure


def product_limits(entry: Mapping[str, Any], rows: int, job: Mapping[str, Any]) -> list[float]:
    """Impressions/s, for each round, if a step were nothing but its matrix products at the rate TensorFlow has them."""
    flop = flop_per_impression(dict(job))
    found = [limits for key, limits in entry["limits"].items() if key.split("/")[0] == str(rows)]
    return [limits["tensorflow"]["gflops"]["model"] * 1e9 / flop for limits in found]


def _bars(
    panel: Axes, entry: Mapping[str, Any], rows: int, mode: str, peers: Sequence[str], place: int, count: int
) -> None:
    height = 0.8 / count
    for row, peer in enumerate(peers):
        found = [speed / 1e3 for speed in speeds(entry["runs"], rows, mode, peer).values()]
        if not found:
            continue
        middle = statistics.median(found)
        y = row + (place - (count - 1) / 2) * height
        error = [[middle - min(found)], [max(found) - middle]]
        panel.barh(y, middle, height=0.92 * height, color=_COLOURS[mode], xerr=error, ecolor="0.25", capsize=2)
        inside = middle > 8.0  # where the limit's line does not run through it
        panel.annotate(
            f"{middle:.1f}",
            (0.0 if inside else max(found), y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="white" if inside else "0.25",
        )
