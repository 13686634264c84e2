"""Where does NCS4CVR's gain begin? Its paired gain in CVR AUC against the share of conflicting fields, as a plot.

    python benchmarks/sharing_sweep.py NAME [--shares 0 .1 .2 .4 .6 .8] [--sweep opposite_share specific_share]
        [--subject ncs4cvr] [--rivals shared_bottom single_task] [--plot docs/images/ncs4cvr_sweep.png]
        [--seeds 5] [--trunk 256 128 64] [--set key=value ...] [--knobs click_rate=0.1 ...] [--rows N] [--jobs 2]

While one share is swept the other is 0, unless --knobs says otherwise. Each seed has a world of its own at every share;
the same seed's worlds differ by the roles of their terms only. Contenders, settings, resumption, and what the
intervals speak of, are as in `evidence.py`. Seeds are the outer loop: after an interruption every share has its
first seeds.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence import aucs, gain_cells
from evidence_runs import (
    SUBJECT,
    Trial,
    add_arguments,
    paired_results,
    parse_knobs,
    run_missing,
    seeds_of,
    trial_of,
    world_of,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paired import Gain, holm, paired_gain
from rich.console import Console
from rich.table import Table

from pipelines import DataError

LABELS = {
    "opposite_share": "share of fields that act in opposite directions on the two tasks",
    "specific_share": "share of fields that only one of the two tasks feels",
}
PLOT = Path(__file__).parents[1] / "docs" / "images" / "ncs4cvr_sweep.png"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # told apart by colour-blind readers as well
_MARKERS = ("o", "s", "^", "D")

Gains = dict[str, list[Gain]]  # per rival, one for each share


def trials_of(options: argparse.Namespace) -> dict[str, dict[float, list[Trial]]]:
    """Per knob and share the runs of all seeds and contenders.

    Raises:
        ValueError: An unknown contender, setting or knob.
        DataError: A knob out of its range.
    """
    base = {**dict.fromkeys(LABELS, 0.0), **parse_knobs(options.knobs)}
    contenders = list(dict.fromkeys([options.subject, *options.rivals]))
    if len(contenders) == 1:
        raise ValueError(f"--rivals must name a contender other than the subject {options.subject!r}")
    trials: dict[str, dict[float, list[Trial]]] = {}
    for knob in options.sweep:
        for share in sorted(set(options.shares)):
            worlds = {seed: world_of(options, seed, {**base, knob: share}) for seed in seeds_of(options)}
            trials.setdefault(knob, {})[share] = [
                trial_of(contender, options, seed, world) for seed, world in worlds.items() for contender in contenders
            ]
    return trials


def gains_of(trials: dict[float, list[Trial]], options: argparse.Namespace) -> Gains:
    """The subject's gains over each rival, share by share.

    Raises:
        ValueError: At some share there is no seed with which every contender has finished.
    """
    gains: Gains = {}
    for of_share in trials.values():
        results = paired_results(of_share, options.name)
        values = {contender: aucs(runs, options.task) for contender, runs in results.items()}
        for rival, others in values.items():
            if rival != options.subject:
                gains.setdefault(rival, []).append(paired_gain(values[options.subject], others))
    return gains


def sweep_table(knob: str, shares: Sequence[float], gains: Gains, options: argparse.Namespace) -> Table:
    """Every gain with its verdict; Holm's correction is over the whole table."""
    table = Table(title=f"gain of {options.subject} in test AUC of {options.task}, by {knob}")
    table.add_column(knob, justify="right")
    table.add_column("over")
    for heading in ("gain", "95 % interval", "p", "p (Holm)", "wins", "verdict"):
        table.add_column(heading, justify="right")
    rows = [(share, rival, gain) for rival in gains for share, gain in zip(shares, gains[rival], strict=True)]
    corrected = holm([gain.p for _, _, gain in rows])
    for (share, rival, gain), p in zip(rows, corrected, strict=True):
        table.add_row(f"{share:g}", rival, *gain_cells(gain, p))
    return table


def sweep_figure(shares: Sequence[float], gains: dict[str, Gains], subject: str, task: str) -> Figure:
    """One panel per knob: gain against share, a line per rival, with 95 % intervals.

    Args:
        shares: In ascending order.
        gains: Per knob and rival one gain per share.
        subject: Whose gain it is.
        task: In which task's AUC.
    """
    figure = Figure(figsize=(1.6 + 4.8 * len(gains), 4.3), layout="constrained")
    panels = figure.subplots(1, len(gains), sharey=True, squeeze=False)[0]
    for panel, (knob, of_knob) in zip(panels, gains.items(), strict=True):
        _draw_panel(panel, shares, of_knob)
        panel.set_xlabel(LABELS[knob])
    panels[0].set_ylabel(f"gain of {subject}\nin test AUC of {task}")
    pairs = sorted({gain.pairs for of_knob in gains.values() for line in of_knob.values() for gain in line})
    worlds = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    handles, labels = panels[0].get_legend_handles_labels()
    title = f"mean of {worlds} paired worlds, with its 95 % interval"
    figure.legend(handles, labels, title=title, ncols=len(labels), loc="outside upper center", frameon=False)
    return figure


def _draw_panel(panel: Axes, shares: Sequence[float], gains: Gains) -> None:
    panel.axhline(0.0, color="0.35", linewidth=1.0)
    step = 0.012 * (max(shares) - min(shares) or 1.0)
    for i, (rival, line) in enumerate(gains.items()):
        # Set side by side, so that one line's bars do not hide the other's.
        places = [share + (i - (len(gains) - 1) / 2.0) * step for share in shares]
        means = [gain.interval.mean for gain in line]
        halves = [gain.interval.half for gain in line]
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
        panel.errorbar(
            places, means, yerr=halves, label=f"over {rival}", color=colour, marker=marker, capsize=3, markersize=5
        )
    panel.set_xticks(shares)
    panel.grid(axis="y", color="0.9")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def in_order(trials: dict[str, dict[float, list[Trial]]]) -> list[Trial]:
    """All runs, the first seed's before the second's."""
    everything = [trial for of_knob in trials.values() for of_share in of_knob.values() for trial in of_share]
    return sorted(everything, key=lambda trial: trial.config.seed)


def main(words: Sequence[str] | None = None) -> int:
    """Runs what is missing, prints the tables and draws the plot; the exit code is 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--sweep", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--subject", default=SUBJECT)
    parser.add_argument("--rivals", nargs="+", default=["shared_bottom", "single_task"])
    parser.add_argument("--task", choices=("click", "conversion", "ctcvr"), default="conversion")
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args(words)
    console = Console(width=120, highlight=False)
    try:
        trials = trials_of(options)
        succeeded = run_missing(in_order(trials), options.name, options, console)
        gains = {knob: gains_of(by_share, options) for knob, by_share in trials.items()}
    except (DataError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the same call goes on\n")
    shares = sorted(set(options.shares))
    for knob, of_knob in gains.items():
        console.print(sweep_table(knob, shares, of_knob, options))
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    sweep_figure(shares, gains, options.subject, options.task).savefig(options.plot, dpi=150)
    console.print(f"plot: {options.plot}")
    return 0 if succeeded else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends the runs in progress, too
    sys.exit(main())
