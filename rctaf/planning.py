"""How many runs a grid still needs, and how long they take by the times of those that there are."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rctaf import records
from rctaf.config import Grid, RunConfig
from rctaf.runs import finished

# what the time of an epoch, and of the evaluation, depends on; activations differ by a third at most
_NETWORK = ("dataset", "network", "width", "norm")
_TRAINING = ("method", "attack_steps", "attack_schedule", "auto_views", "awp", "precision", "compiled")
_EPOCH = (*_NETWORK, "n_train", "augment", "batch_size", *_TRAINING)
_EVALUATION = (*_NETWORK, "n_eval", "epsilon_larger", "autoattack", "hessian_images", "hessian_probes")


def plan(path: Path) -> int:
    """Print the number of runs of a grid, how many are done, and hours for the rest from measured times.

    An epoch costs the median over the records with the same data, network and method; what follows
    training (attacks, Hessian) likewise. Where only an epoch was timed, the hours are those of training alone. A
    device is named with each estimate, and how many threads of a CPU: hours on another are not hours on this one.
    """
    grid = Grid.load(path)
    cells = grid.cells()
    todo = [config for run_id, config in cells.items() if not finished(run_id)]
    print(f"{grid.name}: {grid.scale}")
    print(f"{path}: {len(cells)} runs, {len(cells) - len(todo)} done, {len(todo)} to run")
    unknown = todo
    epoch, evaluation = _measured()
    for place in dict.fromkeys(place for place, *_ in epoch):
        whole: list[float] = []
        training: list[float] = []
        for config in todo:
            one, rest = epoch.get(_key(place, config, _EPOCH)), evaluation.get(_key(place, config, _EVALUATION))
            if one is not None:
                (training if rest is None else whole).append(one * config.epochs + (rest or 0.0))
        unknown = [config for config in unknown if _key(place, config, _EPOCH) not in epoch]
        device, threads = place
        what = {None: "GPU-hours", 1: "hours of one CPU thread"}.get(threads, f"hours of {threads} CPU threads")
        if whole:
            print(f"  about {sum(whole) / 3600:.2g} {what} ({device}) for {len(whole)} of them")
        if training:
            of_whom = f"the training alone of {len(training)} of them; no evaluation like theirs was timed yet"
            print(f"  about {sum(training) / 3600:.2g} {what} ({device}) for {of_whom}")
    if unknown:
        print(f"  no epoch like those of {len(unknown)} was timed yet; this runs one of them, then ask again:")
        print(f"    papermill notebooks/experiments/run.ipynb out.ipynb -y '{json.dumps(_short(unknown[0]).chosen())}'")
    return 0


def _short(config: RunConfig) -> RunConfig:
    """The same network, data and method for one epoch, with all that training does, and 100 images attacked."""
    return RunConfig(**{**config.model_dump(), "epochs": 1, "awp_from": 1, "averaging_from": 1, "n_eval": 100})


def _measured() -> list[dict[tuple[Any, ...], float]]:
    """Median seconds of one epoch, and of everything after training, by :func:`_key`."""
    epoch: defaultdict[tuple[Any, ...], list[float]] = defaultdict(list)
    evaluation: defaultdict[tuple[Any, ...], list[float]] = defaultdict(list)
    for record in records.load_all():
        seconds = record.history.get("seconds")
        if not seconds:
            continue
        device = record.provenance["device"]
        place = (device, record.provenance["threads"] if device.endswith("CPU") else None)
        epoch[_key(place, record.config, _EPOCH)].append(statistics.median(seconds))
        # a resumed run's wall time lacks the epochs of its first attempt, and says nothing where that leaves nothing
        if (rest := record.provenance["wall_s"] - sum(seconds)) > 0:
            evaluation[_key(place, record.config, _EVALUATION)].append(rest)
    return [{key: statistics.median(values) for key, values in kind.items()} for kind in (epoch, evaluation)]


def _key(place: tuple[str, int | None], config: RunConfig, fields: Iterable[str]) -> tuple[Any, ...]:
    """What a time depends on: the device, and how many threads of a CPU; and some settings."""
    return (place, *(getattr(config, name) for name in fields))
