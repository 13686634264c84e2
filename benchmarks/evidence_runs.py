"""Runs of the benchmarks of accuracy: contenders, synthetic worlds, and processes that train and evaluate.

Used by `evidence.py` and `sharing_sweep.py`; `python benchmarks/evidence_runs.py FOLDER` is what a run's process
does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from accuracy import RESULTS, UNAVERAGED, key_of
from rich.console import Console

from mtlzoo.cli.settings import parse_settings, parse_value, validated
from mtlzoo.layers import MaskedDense
from mtlzoo.models import MultiTaskModel, arguments_of
from mtlzoo.tasks import LABEL_SPACES
from mtlzoo.training import RunConfig, evaluate, train
from mtlzoo.training.run import read_json, write_json
from pipelines import DataError, convert, open_dataset, save_schema
from pipelines.schema import HashSplit
from pipelines.synthetic import SyntheticFunnel
from pipelines.synthetic_truth import KEY, LOG, best_auc_of_split

SUBJECT, LOTTERY = "ncs4cvr", "ncs4cvr_lottery"
SUBJECTS = (SUBJECT, LOTTERY)
# DTN's modules at a size that leaves DTN about as many weights as the wide baselines have.
_SMALL_MASKNET = "masknet: {mask_units: 128, block_units: 64, units: [64, 64]}"
_SMALL_MODULES = f"{{{_SMALL_MASKNET}, memonet: {{codebook_rows: 20000}}}}"
_DTN = ["interaction_units=64", f"interaction_settings={_SMALL_MODULES}"]
_ONE_KIND = ["interaction_units=64", "interactions=[gdcn, gdcn, gdcn]"]
_EXPERTS = ["expert_units=[64]", "experts=[masknet, gdcn, memonet]", f"expert_settings={_SMALL_MODULES}"]
CONTENDERS = {
    "single_task": ("single_task", ["units={trunk}"]),
    "shared_bottom": ("shared_bottom", ["bottom_units={trunk}", "tower_units=[]"]),
    SUBJECT: ("ncs4cvr", ["trunk_units={trunk}", "mask=learned"]),
    LOTTERY: ("ncs4cvr", ["trunk_units={trunk}", "mask=lottery"]),
    "shared_bottom_wide": ("shared_bottom", ["bottom_units=[1024, 512, 256]"]),
    "mmoe": ("mmoe", []),
    "mmoe_wide": ("mmoe", ["num_experts=12"]),
    "ple_wide": ("ple", ["own_experts=4", "shared_experts=3", "expert_units=[256, 128]"]),
    "mmoe_interactions": ("mmoe", _EXPERTS),
    "dtn": ("dtn", _DTN),
    "dtn_no_tsn": ("dtn", [*_DTN, "tsn_pairs=[]"]),
    "dtn_shared_only": ("dtn", [*_DTN, "task_groups=false"]),
    "dtn_one_kind": ("dtn", _ONE_KIND),
    "dcrnn": ("dcrnn", []),
    # With every gate open and weights of its own per depth, a wholly shared recurrence is DCN-v2.
    "dcn_shared_bottom": ("dcrnn", ["sharing=1", "gates=open", "tied=false", "transfer=false"]),
    "separate_crosses": ("dcrnn", ["sharing=0", "transfer=false"]),
}
FIRST_WORLD = 100  # the seed of a run's world is this plus its own
_VALID_SHARE = 0.1


@dataclass(frozen=True)
class World:
    """A synthetic log of its own, whose test split is large enough to measure by."""

    funnel: SyntheticFunnel
    rows: int
    test_share: float

    def knobs(self) -> dict[str, Any]:
        """All that decides what the log holds."""
        return {**asdict(self.funnel), "rows": self.rows, "test_share": self.test_share}

    def folder(self, work: Path) -> Path:
        """Where it lies: a name of its own for every world."""
        digest = sha256(json.dumps(self.knobs(), sort_keys=True).encode()).hexdigest()
        return work / f"world-{digest[:16]}"

    def write(self, folder: Path) -> None:
        """Writes and converts the log, and notes the best reachable AUCs; what is there already stays."""
        if (folder / "best.json").is_file():
            return
        data, raw = folder / "data", folder / "raw"
        split = validated(HashSplit, key=KEY, valid=_VALID_SHARE, test=self.test_share)
        funnel = replace(self.funnel)  # a copy, so that the world it builds is forgotten with it
        schema = funnel.schema().model_copy(update={"split": split})
        funnel.write(raw, self.rows)
        save_schema(schema, raw / "schema.yaml")
        convert([raw / LOG], schema, data)
        write_json(folder / "best.json", best_auc_of_split(raw))
        shutil.rmtree(raw)


@dataclass(frozen=True)
class Trial:
    """One run of one contender; on the synthetic funnel with the world that it runs in."""

    contender: str
    config: RunConfig
    world: World | None = None

    @property
    def key(self) -> str:
        """What identifies it in the results: the settings and knobs that are not the default."""
        if self.world is None:
            return key_of(self.config)
        preset = self.world.funnel.preset
        usual = {**asdict(SyntheticFunnel(preset)), "preset": None}
        knobs = {name: value for name, value in self.world.knobs().items() if name not in usual or value != usual[name]}
        return json.dumps({"world": knobs, **json.loads(key_of(self.config))}, sort_keys=True)

    def settings(self) -> dict[str, Any]:
        """All settings, also those left at their defaults: they tell when a default has changed since."""
        settings = self.config.model_dump(mode="json", exclude={"data", "arguments", "lottery"})
        arguments = arguments_of(self.config.model) | self.config.arguments
        data = self.world.knobs() if self.world else {"schema": open_dataset(self.config.data).schema.digest()}
        groups = {"arguments": arguments, "data": data}
        if arguments.get("mask") == "lottery":
            groups["lottery"] = self.config.lottery.model_dump(mode="json")
        settings |= {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
        return json.loads(json.dumps(settings, default=str))

    def is_answered_by(self, result: dict[str, Any] | None) -> bool:
        """Whether a kept result is of this very run; settings that came into the project later do not count."""
        if result is None:
            return False
        then = result.get("settings", {})
        return all(then.get(name, value) == value for name, value in self.settings().items())


def trial_of(contender: str, options: argparse.Namespace, seed: int, data: Path | World) -> Trial:
    """The run of a contender as it was written on the command line: `NAME[:LABEL_SPACE][:KEY=VALUE]...`.

    Raises:
        ValueError: An unknown contender or setting.
    """
    name, *own = contender.split(":")
    if name not in CONTENDERS:
        raise ValueError(f"there is no contender {name!r}; known are {', '.join(CONTENDERS)}")
    model, fixed = CONTENDERS[name]
    fixed = [setting.replace("{trunk}", str(options.trunk)) for setting in fixed]
    own = [f"label_space={part}" if part in LABEL_SPACES else part for part in own]
    arguments, training = parse_settings(model, [*fixed, *options.settings, *own])
    world = data if isinstance(data, World) else None
    place = data.folder(options.work) / "data" if isinstance(data, World) else data
    config = validated(
        RunConfig, model=model, arguments=arguments, data=str(place), epochs=options.epochs,
        batch_size=options.batch_size, seed=seed, **{**UNAVERAGED, **training},
    )  # fmt: skip
    return Trial(contender, config, world)


def parse_knobs(words: Sequence[str]) -> dict[str, Any]:
    """`KNOB=VALUE` words → knobs of the synthetic funnel.

    Raises:
        ValueError: A word that is none.
    """
    known = {field.name: str(field.type) for field in fields(SyntheticFunnel) if field.name != "seed"}
    knobs = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--knobs takes KNOB=VALUE, got {word!r}; knobs: {', '.join(known)}")
        value = parse_value(text)
        # 0 and 0.0 are one knob and must be one key.
        knobs[name] = float(value) if type(value) is int and "float" in known[name] else value
    return knobs


def world_of(options: argparse.Namespace, seed: int, knobs: dict[str, Any]) -> World:
    """The world of a seed.

    Raises:
        DataError: A knob out of its range.
    """
    return World(SyntheticFunnel(seed=FIRST_WORLD + seed, **knobs), options.rows, options.test_share)


class _Process:
    """A run in progress, in a process and a directory of its own."""

    def __init__(self, trial: Trial, jobs: int) -> None:
        self.trial = trial
        self._folder = tempfile.TemporaryDirectory(prefix="mtlzoo-run-")
        self._path = Path(self._folder.name)
        (self._path / "config.json").write_text(trial.config.model_dump_json(), encoding="utf-8")
        environment = {**os.environ, "TMPDIR": self._folder.name}
        if jobs > 1:
            environment["TF_NUM_INTRAOP_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        with (self._path / "log").open("w") as log:
            command = [sys.executable, __file__, self._folder.name]
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._start = time.perf_counter()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> dict[str, Any] | str:
        """The result of an ended run, or what it died of."""
        if self._process.returncode == 0:
            return {**read_json(self._path / "result.json"), "seconds": time.perf_counter() - self._start}
        log = (self._path / "log").read_text(encoding="utf-8", errors="replace").strip()
        return log.splitlines()[-1] if log else f"exit code {self._process.returncode}"

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


def run_in(folder: Path) -> None:
    """What the process of a run does."""
    config = RunConfig.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
    for label, positives in open_dataset(config.data).manifest.positives("test").items():
        if positives == 0:
            raise DataError(f"{config.data}: the label {label!r} has no positives in the test split to measure by")
    run = train(config, folder / "run")
    model = run.model()
    result = {
        "tasks": evaluate(model, run.dataset(), "test")["tasks"],
        "valid_loss": run.history[run.metrics["best_epoch"] - 1]["val_loss"],
        "best_epoch": run.metrics["best_epoch"],
        "parameters": model.count_params(),
        "impressions_per_second": run.history[-1]["impressions_per_second"],
    }
    write_json(folder / "result.json", result | connections(model))


def connections(model: MultiTaskModel) -> dict[str, Any]:
    """Open connections of a model's trunk, as a share of all; nothing where it has no masks.

    Returns:
        `{"density": {label: share}, "overlap": share}`; the overlap is what all tasks use of what any of them uses.
    """
    layers = [layer for layer in model.layers if isinstance(layer, MaskedDense)]
    if not layers:
        return {}
    of_layers = [np.asarray(layer.masks()).reshape(layer.num_tasks, -1) > 0.0 for layer in layers]
    masks = np.concatenate(of_layers, axis=1)  # [T, connections]
    density = {label.name: float(mask.mean()) for label, mask in zip(model.schema.labels, masks, strict=True)}
    return {"density": density, "overlap": float(masks.all(axis=0).sum() / max(1, masks.any(axis=0).sum()))}


def load_results(name: str) -> dict[str, dict]:
    """The results kept under a name."""
    path = RESULTS / f"{name}.json"
    return read_json(path) if path.exists() else {}


def run_missing(trials: Sequence[Trial], name: str, options: argparse.Namespace, console: Console) -> bool:
    """Runs what the results of a name lack, and adds it to them.

    Returns:
        Whether every run succeeded.
    """
    RESULTS.mkdir(exist_ok=True)
    kept = load_results(name)
    missing = {trial.key: trial for trial in trials if not trial.is_answered_by(kept.get(trial.key))}
    waiting, failed = list(missing.values()), 0
    running: list[_Process] = []
    changed = sum(key in kept for key in missing)
    again = f" ({changed} again, because a default has changed)" if changed else ""
    console.print(f"{len({trial.key for trial in trials})} runs, {len(missing)} of them to do{again}")
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                if waiting[0].world:
                    waiting[0].world.write(waiting[0].world.folder(options.work))
                running.append(_Process(waiting.pop(0), options.jobs))
            time.sleep(0.2)
            for process in [process for process in running if process.ended]:
                trial, result = process.trial, process.result()
                process.end()
                running.remove(process)
                failed += isinstance(result, str)
                _keep(name, trial, result, options)
                done = len(missing) - len(waiting) - len(running)
                console.print(f"{done}/{len(missing)} {_line(trial, result)}", soft_wrap=True, markup=False)
                if not options.keep and trial.world not in [t.world for t in (*waiting, *(p.trial for p in running))]:
                    _remove(trial, options.work)
    finally:
        for process in running:
            process.end()
    return not failed


def _keep(name: str, trial: Trial, result: dict[str, Any] | str, options: argparse.Namespace) -> None:
    if isinstance(result, str):
        return
    result["settings"] = trial.settings()
    if trial.world:
        result["best"] = read_json(trial.world.folder(options.work) / "best.json")
    # Read again, so that another call's results under this name stay.
    write_json(RESULTS / f"{name}.json", {**load_results(name), trial.key: result})


def _remove(trial: Trial, work: Path) -> None:
    if trial.world:
        shutil.rmtree(trial.world.folder(work), ignore_errors=True)


def _line(trial: Trial, result: dict[str, Any] | str) -> str:
    world = ""
    if trial.world:
        funnel = trial.world.funnel
        world = f" (opposite {funnel.opposite_share:g}, specific {funnel.specific_share:g})"
    who = f"{trial.contender} seed {trial.config.seed}{world}:"
    if isinstance(result, str):
        return f"{who} FAILED: {result}"
    aucs = ", ".join(f"{task} {values['auc']:.4f}" for task, values in result["tasks"].items())
    return f"{who} {aucs}; best epoch {result['best_epoch']}, {result['seconds']:.0f} s"


def paired_results(trials: Sequence[Trial], name: str) -> dict[str, list[dict]]:
    """Per contender its results, all over the same seeds: those that every contender has finished.

    Raises:
        ValueError: There is no such seed.
    """
    kept = load_results(name)
    found: dict[str, dict[int, dict]] = {}
    for trial in trials:
        of_contender = found.setdefault(trial.contender, {})
        if trial.is_answered_by(kept.get(trial.key)):
            of_contender[trial.config.seed] = kept[trial.key]
    seeds = sorted(set.intersection(*(set(results) for results in found.values())))
    if not seeds:
        raise ValueError(f"{name}: there is no seed with which every contender has finished")
    return {contender: [results[seed] for seed in seeds] for contender, results in found.items()}


def seeds_of(options: argparse.Namespace) -> range:
    """The seeds that the options ask for."""
    return range(options.first_seed, options.first_seed + options.seeds)


def positive(text: str) -> int:
    """A number of the command line, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, is {text!r}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line that the benchmarks have in common."""
    parser.add_argument("name", help="of the results")
    parser.add_argument("--seeds", type=positive, default=5, help="how many")
    parser.add_argument("--first-seed", type=positive, default=1)
    parser.add_argument("--trunk", type=positive, nargs="+", default=[256, 128, 64])
    parser.add_argument("--set", dest="settings", nargs="*", default=[], help="KEY=VALUE, for all contenders")
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--batch-size", type=positive, default=4096)
    parser.add_argument("--rows", type=positive, default=1_000_000, help="of each synthetic log")
    parser.add_argument("--test-share", type=float, default=0.4, help="of each synthetic log")
    parser.add_argument("--knobs", nargs="*", default=[], help="KNOB=VALUE, of the synthetic funnel")
    parser.add_argument("--work", type=Path, default=Path("data/worlds"), help="where synthetic logs are put")
    parser.add_argument("--keep", action="store_true", help="leave the synthetic logs there")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time; they share the cores")


if __name__ == "__main__":
    run_in(Path(sys.argv[1]))
