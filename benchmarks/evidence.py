"""Does a model of the zoo beat others? Test AUCs of contenders, and a subject's gains over the rest, paired over seeds.

    python benchmarks/evidence.py NAME [--knobs opposite_share=0.4 ...] [--rows N] [--work DIR]
    python benchmarks/evidence.py NAME --data DIR [--raw DIR]
        [--contenders single_task single_task:esmm_product shared_bottom ncs4cvr ...] [--subject dtn ...]
        [--seeds 5] [--learning-rates 0.0005 0.001 0.002] [--trunk 256 128 64] [--set key=value ...] [--epochs N]
        [--batch-size N] [--jobs 2]

--subject names the contenders whose gains over the others are shown; `evidence_runs.CONTENDERS` says what a name stands
for.

Without --data it runs on the synthetic funnel, where each seed has a log of its own (another world, other rows), so
that pairing over seeds pairs worlds and initial weights, and intervals speak of worlds. With --data all seeds share one
dataset, and intervals speak of training noise only (initial weights, order, dropout), not of the sample: another sample
may turn a gain around. --raw, a directory with the publisher's files, makes DIR if it is not there (NAME: hillstrom or
census_income).

--set goes to all contenders; what one of them does not know stands behind its name: `ncs4cvr:l0=1e-7`. A bare label
space there is short for `label_space=...`; each model has its own default, SingleTask's is `cvr_clicked`.

With --learning-rates each contender first gets its own: that of the least mean validation loss over --tune-seeds runs,
on seeds (and worlds) that are not measured on afterwards. These runs are kept in NAME_tuning.json.

Every run is a training run as `mtlzoo train` makes it (selection on validation) and one evaluation on the test split,
in a process of its own. Results are kept in `benchmarks/results/NAME.json` as they come; what is there already is not
run again, unless a default that it was run with has changed. Ctrl-C loses only the runs in progress. Worlds are written
to --work on demand (one call per directory at a time) and removed after their last run unless --keep.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence_runs import (
    SUBJECTS,
    Trial,
    add_arguments,
    paired_results,
    parse_knobs,
    positive,
    run_missing,
    seeds_of,
    trial_of,
    world_of,
)
from paired import Gain, holm, mean_interval, paired_gain, verdict
from rich.console import Console
from rich.table import Table

from pipelines import DataError, open_dataset
from pipelines.datasets import prepare

_CONTENDERS = ["single_task", "shared_bottom", "ncs4cvr", "ncs4cvr_lottery"]
_FIRST_TUNING_SEED = 1001


def aucs(results: Sequence[dict], task: str) -> list[float]:
    """Test AUC of a task, per seed."""
    return [result["tasks"][task]["auc"] for result in results]


def means_table(results: dict[str, list[dict]]) -> Table:
    """Per contender and task the mean AUC, its interval, and the share of the way from 0.5 to the best reachable."""
    first = next(iter(results.values()))
    tasks = list(first[0]["tasks"])
    table = Table(title=f"test AUC, mean of {len(first)} seeds with its 95 % interval")
    table.add_column("contender")
    for task in tasks:
        table.add_column(task, justify="right")
    table.add_column("weights", justify="right")
    for contender, runs in results.items():
        cells = [mean_interval(aucs(runs, task)).text() + _share_of_way(runs, task) for task in tasks]
        weights = runs[0].get("parameters")
        table.add_row(contender, *cells, f"{weights / 1e6:.2f} M" if weights else "")
    if "best" in first[0]:
        bests = [mean_interval([run["best"][task] for run in first]) for task in tasks]
        table.add_row("best reachable", *(best.text() for best in bests))
    return table


def _share_of_way(runs: list[dict], task: str) -> str:
    if "best" not in runs[0]:
        return ""
    shares = [(run["tasks"][task]["auc"] - 0.5) / (run["best"][task] - 0.5) for run in runs]
    return f", {mean_interval(shares).mean:.1%}"


def _number(value: float, form: str) -> str:
    return "?" if math.isnan(value) else format(value, form)


def connections_table(results: dict[str, list[dict]]) -> Table | None:
    """Per contender with masks the open connections per task, and how many of them are common; means over seeds."""
    masked = {contender: runs for contender, runs in results.items() if "density" in runs[0]}
    if not masked:
        return None
    labels = list(next(iter(masked.values()))[0]["density"])
    table = Table("contender", *labels, "in common", title="open connections of the trunk")
    for contender, runs in masked.items():
        shares = [[run["density"][label] for run in runs] for label in labels] + [[run["overlap"] for run in runs]]
        table.add_row(contender, *(f"{mean_interval(values).mean:.1%}" for values in shares))
    return table


def gains_table(results: dict[str, list[dict]], task: str, named: Sequence[str] = SUBJECTS) -> Table:
    """The subjects' paired gains in a task over the other contenders, and the verdicts after Holm's correction."""
    subjects = [contender for contender in results if _is_of(contender, named)]
    pairs = [(subject, other) for subject in subjects for other in results if other not in subjects]
    gains = [paired_gain(aucs(results[subject], task), aucs(results[other], task)) for subject, other in pairs]
    corrected = holm([gain.p for gain in gains])
    table = Table(title=f"gain in test AUC of {task}")
    table.add_column("of")
    table.add_column("over")
    for heading in ("gain", "95 % interval", "p", "p (Holm)", "wins", "verdict"):
        table.add_column(heading, justify="right")
    for (subject, other), gain, p in zip(pairs, gains, corrected, strict=True):
        table.add_row(subject, other, *gain_cells(gain, p))
    return table


def _is_of(contender: str, subjects: Sequence[str]) -> bool:
    return contender.partition(":")[0] in subjects


def gain_cells(gain: Gain, corrected_p: float) -> tuple[str, ...]:
    """A gain as six cells: mean, interval, p, corrected p, wins, verdict."""
    interval = gain.interval
    bounds = f"{_number(interval.low, '+.4f')} to {_number(interval.high, '+.4f')}"
    chances = (_chance(gain.p), _chance(corrected_p))
    wins = f"{gain.wins}/{gain.pairs}"
    return (f"{interval.mean:+.4f}", bounds, *chances, wins, verdict(gain, corrected_p))


def _chance(p: float) -> str:
    return "<0.0001" if p < 0.0001 else _number(p, ".4f")


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """Options that fit together; prepares the data where they ask for it."""
    if not any(_is_of(contender, options.subject) for contender in options.contenders):
        raise ValueError(f"no contender is a subject ({', '.join(options.subject)}): name one with --subject")
    if options.raw and not options.data:
        raise ValueError("--raw needs --data, the directory to convert to")
    if options.raw and not options.data.exists():
        prepare(options.name, options.raw, options.data)
    if options.data and options.knobs:
        raise ValueError("--knobs are of the synthetic funnel, which --data leaves out")
    if options.data:
        open_dataset(options.data)  # refused now, not by every run
    return options


def trials_of(contenders: Sequence[str], seeds: Sequence[int], options: argparse.Namespace) -> list[Trial]:
    """All runs, seed by seed."""
    knobs = parse_knobs(options.knobs)
    return [
        trial_of(contender, options, seed, options.data or world_of(options, seed, knobs))
        for seed in seeds
        for contender in dict.fromkeys(contenders)
    ]


def tuned(options: argparse.Namespace, console: Console) -> list[str]:
    """The contenders, each with the learning rate that served it best on validation."""
    if not options.learning_rates:
        return options.contenders
    name = f"{options.name}_tuning"
    candidates = {c: [f"{c}:learning_rate={rate}" for rate in options.learning_rates] for c in options.contenders}
    seeds = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + options.tune_seeds)
    trials = trials_of([candidate for of_one in candidates.values() for candidate in of_one], seeds, options)
    run_missing(trials, name, options, console)
    losses = {
        candidate: mean_interval([run["valid_loss"] for run in runs]).mean
        for candidate, runs in paired_results(trials, name).items()
    }
    chosen = [min(of_one, key=losses.__getitem__) for of_one in candidates.values()]
    table = Table("contender", *(f"{rate:g}" for rate in options.learning_rates), "chosen", title="validation loss")
    for (contender, of_one), choice in zip(candidates.items(), chosen, strict=True):
        table.add_row(contender, *(f"{losses[candidate]:.5f}" for candidate in of_one), choice.rpartition("=")[2])
    console.print(table)
    return chosen


def main(words: Sequence[str] | None = None) -> int:
    """Runs what is missing and prints the tables; the exit code is 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--contenders", nargs="+", default=_CONTENDERS, metavar="NAME[:LABEL_SPACE][:KEY=VALUE]")
    parser.add_argument("--data", type=Path, help="dataset directory; without it: the synthetic funnel")
    parser.add_argument("--raw", type=Path, help="publisher's files, to make --data of")
    parser.add_argument("--subject", nargs="+", default=list(SUBJECTS), metavar="NAME", help="whose gains are shown")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[], help="to choose from for each contender")
    parser.add_argument("--tune-seeds", type=positive, default=2)
    options = parser.parse_args(words)
    console = Console(width=120, highlight=False)
    try:
        trials = trials_of(tuned(checked(options), console), seeds_of(options), options)
        succeeded = run_missing(trials, options.name, options, console)
        results = paired_results(trials, options.name)
    except (DataError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the same call goes on\n")
    console.print(means_table(results))
    if table := connections_table(results):
        console.print(table)
    for task in next(iter(results.values()))[0]["tasks"]:
        console.print(gains_table(results, task, options.subject))
    noise = "training noise only, not of the sample" if options.data else "worlds, rows and initial weights"
    console.print(f"Intervals speak of {noise}. Holm's correction is over the rows of a table.")
    return 0 if succeeded else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends the runs in progress, too
    sys.exit(main())
