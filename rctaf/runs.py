"""Run the experiments of a grid, each at most once, and say how far they are.

One cell of a grid is one execution of ``notebooks/experiments/run.ipynb``. A cell is done when its
``run.json`` exists, whatever else lies around, and the notebook writes that file last and whole. So
the worker can be killed at any moment, started twice, or given to any scheduler::

    python -m rctaf.runs plan    grids/quick.yaml         how many runs, how long
    python -m rctaf.runs run     grids/quick.yaml [-j 2]  all that are missing, through Snakemake
    python -m rctaf.runs status  grids/quick.yaml         0 when every run has its record
    python -m rctaf.runs exec    grids/quick.yaml ID      one run (what the schedulers call)
    python -m rctaf.runs replay  ID                       once more, and compare with the record

``run`` gives every run one GPU of this host to itself, where there are any. ``RCTAF_GPUS=0,1`` says which; a GPU
named twice takes two runs at a time. ``RCTAF_RESULTS`` is another store, ``RCTAF_NOTEBOOK`` another experiment.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn
from unittest import mock

import scipy  # its parts load when first used

from rctaf import records
from rctaf._startup import command, import_nbformat
from rctaf.config import Grid, RunConfig
from rctaf.records import ROOT, Record, kept_path, local_dir, results_dir


class RunError(RuntimeError):
    """An experiment did not reach its record; the message is one line saying why."""


class Busy(Exception):
    """Another process holds the lock."""


def notebook() -> Path:
    """The notebook that is one experiment: ``$RCTAF_NOTEBOOK`` if set, else the project's own."""
    return Path(os.environ.get("RCTAF_NOTEBOOK") or ROOT / "notebooks" / "experiments" / "run.ipynb")


def batch_dir() -> Path:
    """What the batch needs beside the runs: locks, logs, the scheduler's own files. May be deleted at rest."""
    return results_dir() / "local" / ".batch"


def finished(run_id: str) -> bool:
    """Whether the store holds the record of this run, committed or this machine's own."""
    return kept_path(run_id).exists() or (local_dir(run_id) / "run.json").exists()


# --- one cell ----------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel frees it at any death of its holder, kill -9 included.

    Raises:
        Busy: somebody else held it for all of ``patience`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with open(path, "a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(path) from None
                time.sleep(0.2)
        yield


def gpu_slots() -> list[str]:
    """The GPUs that a batch lends to its runs, one per slot: those of ``RCTAF_GPUS``, or all that PyTorch sees."""
    if "RCTAF_GPUS" in os.environ:
        return _listed("RCTAF_GPUS")
    import torch

    count = torch.cuda.device_count()
    return (_listed("CUDA_VISIBLE_DEVICES") or [str(number) for number in range(count)])[:count]


def _listed(variable: str) -> list[str]:
    return [name for name in os.environ.get(variable, "").replace(" ", "").split(",") if name]


def under_scheduler() -> bool:
    """Whether a cluster gave this process its machine, and with it its GPU."""
    return "SLURM_JOB_ID" in os.environ or "KUBERNETES_SERVICE_HOST" in os.environ


@contextmanager
def lent_gpu() -> Iterator[None]:
    """Wait for one of the GPUs in ``RCTAF_GPUS`` and make it the only one that this run sees.

    Without that, as where a cluster started the run, it sees what it was given.
    """
    names = _listed("RCTAF_GPUS")
    slots = [(names[:place].count(gpu), gpu) for place, gpu in enumerate(names)]  # of one GPU: 0, 1, ...
    if not slots:
        yield
        return
    # one folder per host and user, whatever the store: two stores share the GPUs all the same
    folder = Path(tempfile.gettempdir()) / f"rctaf-gpus-{os.getuid()}"
    for turn in itertools.count():
        number, gpu = slots[turn % len(slots)]
        try:
            with locked(folder / f"{number}-{gpu}", patience=0):
                with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=gpu):
                    yield
                return
        except Busy:
            time.sleep(0.5 if (turn + 1) % len(slots) == 0 else 0)


def execute(config: RunConfig) -> str:
    """Bring one experiment to its record: ``"done"``, or ``"already done"`` where it has one.

    A checkpoint left by a killed attempt is taken up by the notebook. Every run gets one CPU thread
    unless ``OMP_NUM_THREADS`` says otherwise: results repeat bit by bit only at a fixed number.

    Raises:
        RunError: a cell failed (it is red in ``notebook.partial.ipynb``, and ``failed.json`` holds
            the message), the notebook left no record, or another job of the cluster has this run.
    """
    import_nbformat()
    from rctaf.notebooks import NotebookError, execute_notebook

    run_id, folder = config.run_id, local_dir(config.run_id)
    if finished(run_id):
        return "already done"
    # on a host the second of two waits and finds the work done; a cluster's machine must not idle
    patience = 5 if under_scheduler() else math.inf
    try:
        with locked(batch_dir() / "locks" / run_id, patience):
            if finished(run_id):
                return "already done"
            for partial in filter(Path.is_file, folder.glob(".*")):  # what a killed attempt was writing
                partial.unlink(missing_ok=True)
            with lent_gpu():
                failure = folder / "failed.json"
                failure.unlink(missing_ok=True)
                os.environ.setdefault("OMP_NUM_THREADS", "1")
                try:
                    execute_notebook(notebook(), folder / "notebook.ipynb", config.model_dump(mode="json"), cwd=ROOT)
                    if not finished(run_id):
                        raise RunError(f"{notebook()} ended without writing {folder / 'run.json'}")
                except Exception as error:
                    message = " ".join(str(error).split()) or type(error).__name__
                    records.write_text(failure, json.dumps({"error": message}) + "\n")
                    raise RunError(message) from (None if isinstance(error, NotebookError | RunError) else error)
    except Busy:
        raise RunError(f"{run_id}: another process has this run") from None
    return "done"


# --- a grid ------------------------------------------------------------------------------------

STATES = ("kept", "local", "running", "FAILED", "interrupted", "pending")


def state(run_id: str) -> tuple[str, str]:
    """One of :data:`STATES`, and the error of a failed run (otherwise an empty string)."""
    if kept_path(run_id).exists():
        return "kept", ""
    folder = local_dir(run_id)
    if (folder / "run.json").exists():
        return "local", ""
    lock = batch_dir() / "locks" / run_id
    if lock.exists():
        try:
            with locked(lock, patience=0):
                pass
        except Busy:
            return "running", ""
    if error := failure(run_id):
        return "FAILED", error
    return ("interrupted" if folder.exists() else "pending"), ""


def failure(run_id: str) -> str:
    """The message that a failed attempt left; empty where there is none."""
    try:
        return str(json.loads((local_dir(run_id) / "failed.json").read_text())["error"])
    except FileNotFoundError:
        return ""


def status(path: Path) -> int:
    """Print how far a grid is and name what needs attention; 0 only when every run has its record."""
    cells = Grid.load(path).cells()
    states = {run_id: state(run_id) for run_id in cells}
    count = {name: sum(now == name for now, _ in states.values()) for name in STATES}
    done = count["kept"] + count["local"]
    parts = [f"{done} done" + (f" ({count['kept']} kept, {count['local']} local)" if done else "")]
    parts += [f"{count[name]} {name}" for name in STATES[2:] if count[name]]
    print(f"{path}: {len(cells)} runs: " + ", ".join(parts))
    for run_id, (now, error) in states.items():
        if now in ("running", "FAILED", "interrupted"):
            print(f"  {now:11} {run_id}  {cells[run_id].label}")
        if error:
            print(f"  {'':11} {error}")
            red = local_dir(run_id) / "notebook.partial.ipynb"
            if red.exists():  # it does not where the notebook could not even start
                print(f"  {'':11} {_shown(red)}")
    return 0 if done == len(cells) else 1


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def default_jobs() -> int:
    """Runs at a time: one per slot where there are GPUs, else one per CPU core."""
    return len(gpu_slots()) or (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)


def run(path: Path, jobs: int | None = None) -> int:
    """Run what a grid lacks, ``jobs`` at a time, with a progress bar; ends with :func:`status`.

    A failing run leaves the others going and is tried again by the next call. Snakemake only
    schedules: what is done is read from the store, here and in the ``Snakefile``.
    """
    from tqdm import tqdm

    grid = Grid.load(path)
    cells = grid.cells()
    todo = [run_id for run_id in cells if not finished(run_id)]
    if not todo:
        return status(path)
    if importlib.util.find_spec("snakemake") is None:
        raise SystemExit(
            "snakemake is not installed: pip install -e '.[batch]' in the clone, or run the cells one by one with exec"
        )
    for run_id in todo:
        (local_dir(run_id) / "failed.json").unlink(missing_ok=True)
    log = batch_dir() / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "snakemake", "--profile", str(ROOT / "profiles" / "laptop")]
    environment = os.environ | {"RCTAF_GPUS": ",".join(gpu_slots())}  # asked once for all runs
    command += ["--cores", str(jobs or default_jobs()), "--config", f"grid={path.resolve()}"]
    failed: set[str] = set()
    # the average of all runs so far (smoothing=0): single runs differ, their mean does not
    bar = tqdm(total=len(cells), initial=len(cells) - len(todo), desc=path.stem, unit="run", smoothing=0)
    live = sys.stderr.isatty()
    if not live:
        bar.mininterval = 30  # a log file wants a line now and then
    with open(log, "w") as output, bar, _ending_with_this(command, environment, output) as scheduler:
        running = True
        while running:
            running = scheduler.poll() is None  # asked before the store is read: the last look misses nothing
            for run_id in set(todo) - failed:
                if error := failure(run_id):
                    failed.add(run_id)
                    bar.write(f"FAILED {run_id}  {cells[run_id].label}: {error}", file=sys.stderr)
            done = sum(map(finished, cells))
            bar.set_postfix_str(f"{len(failed)} failed" if failed else "", refresh=False)
            if done > bar.n:
                bar.update(done - bar.n)
            elif live:
                bar.refresh()  # the clock goes on between two runs
            time.sleep((0.5 if live else 5) if running else 0)  # a look costs a few ms for every cell
    if scheduler.returncode and not failed:
        print(f"snakemake stopped with status {scheduler.returncode}; its output: {_shown(log)}", file=sys.stderr)
    return status(path)


@contextmanager
def _ending_with_this(
    command: list[str], environment: dict[str, str], output: IO[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive this one, nor do the runs it started, when this one is told to end.

    Snakemake alone, when terminated, would first finish the runs that it has begun. kill -9 cannot be heard.
    """
    import psutil  # comes with snakemake

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output) as process:
            try:
                yield process
            except BaseException:
                with suppress(psutil.NoSuchProcess):
                    first = psutil.Process(process.pid)
                    everyone = [first, *first.children(recursive=True)]
                    for end in (psutil.Process.terminate, psutil.Process.kill):  # some hang when told twice
                        for each in everyone:
                            with suppress(psutil.NoSuchProcess):
                                end(each)
                        _, everyone = psutil.wait_procs(everyone, timeout=10)
                process.wait()
                print("stopped; the same command goes on from here", file=sys.stderr)
                raise
    finally:
        signal.signal(signal.SIGTERM, before)


# --- how long ----------------------------------------------------------------------------------

# what the time of an epoch, and of the evaluation, depends on; activations differ by a third at most
_NETWORK = ("dataset", "network", "width", "norm")
_TRAINING = ("method", "attack_steps", "attack_schedule", "auto_views", "awp", "precision", "compiled")
_EPOCH = (*_NETWORK, "n_train", "augment", "batch_size", *_TRAINING)
_EVALUATION = (*_NETWORK, "n_eval", "epsilon_larger", "autoattack", "hessian_images", "hessian_probes")


def plan(path: Path) -> int:
    """Print the number of runs of a grid, how many are done, and hours for the rest from measured times.

    An epoch costs the median over the records with the same data, network and method; what follows
    training (attacks, Hessian) likewise. A device is named with each estimate: hours on another are
    not hours on this one.
    """
    grid = Grid.load(path)
    cells = grid.cells()
    todo = [config for run_id, config in cells.items() if not finished(run_id)]
    print(f"{grid.name}: {grid.scale}")
    print(f"{path}: {len(cells)} runs, {len(cells) - len(todo)} done, {len(todo)} to run")
    if not todo:
        return 0
    measured = _measured()
    for device, (epoch, evaluation) in measured.items():
        costs = [_cost(config, epoch, evaluation) for config in todo]
        known = [cost for cost in costs if cost is not None]
        if known:
            hours = sum(known) / 3600
            what = "GPU-hours" if not device.endswith("CPU") else "hours of one CPU thread"
            missing = f"; no measured step time yet for the other {len(todo) - len(known)}" * (len(known) < len(todo))
            print(f"  about {hours:.2g} {what} ({device}) for {len(known)} of them{missing}")
    if not any(_cost(config, *times) is not None for config in todo for times in measured.values()):
        print("  no measured step time yet: run one cell with exec, then ask again")
    return 0


Times = dict[tuple[Any, ...], float]


def _measured() -> dict[str, tuple[Times, Times]]:
    """By device: median seconds of one epoch, and of everything after training."""
    samples: dict[str, tuple[dict[tuple[Any, ...], list[float]], ...]] = {}
    for record in records.load_all():
        seconds = record.history.get("seconds")
        if not seconds:
            continue
        epoch, evaluation = samples.setdefault(record.provenance["device"], ({}, {}))
        epoch.setdefault(_key(record.config, _EPOCH), []).append(statistics.median(seconds))
        # a resumed run's wall time lacks the epochs of its first attempt: never below zero
        rest = max(0.0, record.provenance["wall_s"] - sum(seconds))
        evaluation.setdefault(_key(record.config, _EVALUATION), []).append(rest)
    return {
        device: tuple({key: statistics.median(values) for key, values in kind.items()} for kind in kinds)  # type: ignore[misc]
        for device, kinds in samples.items()
    }


def _key(config: RunConfig, fields: Iterable[str]) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in fields)


def _cost(config: RunConfig, epoch: Times, evaluation: Times) -> float | None:
    one, rest = epoch.get(_key(config, _EPOCH)), evaluation.get(_key(config, _EVALUATION))
    return None if one is None or rest is None else one * config.epochs + rest


# --- once more ---------------------------------------------------------------------------------


def replay(run_id: str) -> int:
    """Execute a record's experiment again in an empty store and compare; 0 unless something is different.

    Same code, versions, device and thread count repeat a run bit by bit. Elsewhere sums round
    differently, training amplifies that within its first epoch, and the new run is as far from the old one as
    another seed would be: so a metric is *within tolerance* when it differs by at most :func:`tolerance`, or by
    rounding. A correct replay is then called different in at most one of 1 / :data:`LEVEL` cases; how small
    a fault it can find depends on how many seeds are known.
    """
    old = records.load(run_id)
    if old is None:
        raise SystemExit(f"no record {run_id!r} under {results_dir()} (looked in runs/ and local/)")
    siblings = [r for r in records.load_all() if _but_seed(r.config) == _but_seed(old.config) and r.run_id != run_id]
    threads = str(old.provenance["threads"])
    print(f"{run_id}  {old.config.label}\n  recorded {_conditions(old)}", flush=True)
    store = tempfile.mkdtemp(prefix="rctaf-replay-")
    with mock.patch.dict(os.environ, RCTAF_RESULTS=store, OMP_NUM_THREADS=threads):
        try:
            execute(old.config)
        except RunError as error:
            raise RunError(f"{error}; what it left is in {store}") from None
        new = records.load(run_id)
    shutil.rmtree(store)
    assert new is not None  # execute ends with a record or raises
    print(f"  replayed {_conditions(new)}")
    verdicts = compare(old, new, siblings)
    changed = [row for row in verdicts if row[-1] != "identical"]
    changed.sort(key=lambda row: row[-1] != "different")
    for name, before, after, allowed, verdict in changed[:SHOWN]:
        margin = "" if allowed is None else f"  (tolerance {allowed:.3g})"
        print(f"  {verdict:16} {name}: {before} -> {after}{margin}")
    if len(changed) > SHOWN:
        print(f"  and {len(changed) - SHOWN} more that are not identical")
    number = {kind: sum(row[-1] == kind for row in verdicts) for kind in VERDICTS}
    if number["identical"] == len(verdicts):
        print(f"bit-identical: all {len(verdicts)} values")
    else:
        outcome = "different" if number["different"] else "within tolerance"
        print(f"{outcome}: " + ", ".join(f"{n} {kind}" for kind, n in number.items() if n))
    return 1 if number["different"] else 0


SHOWN = 20  # lines of a replay's report
LEVEL = 0.01  # how often at most a faultless replay on another machine is called different
ROUNDING = 1e-5  # relative; float32 sums over the same weights in another order differ by a few 1e-7, amplified
VERDICTS = ("identical", "within tolerance", "different", "not judged")


def compare(old: Record, new: Record, siblings: list[Record]) -> list[tuple[str, Any, Any, float | None, str]]:
    """Every measured value of two records of one experiment: (name, old, new, tolerance, verdict).

    Durations are left out. What differs by more than :data:`ROUNDING` and has no known scatter (a number
    measured for one seed only), text (the version of an attack), and what
    only the newer code measures, is ``not judged``: shown, no more.
    """
    before, after = (dict(_leaves({"metrics": r.metrics, "history": r.history})) for r in (old, new))
    others = [dict(_leaves({"metrics": r.metrics, "history": r.history})) for r in siblings]
    compared = sum(isinstance(before[name], int | float) for name in before.keys() & after.keys())
    rows: list[tuple[str, Any, Any, float | None, str]] = []
    for name in before | after:
        a, b = before.get(name), after.get(name)
        allowed, verdict = None, "different"
        if a == b:
            verdict = "identical"
        elif isinstance(a, int | float) and isinstance(b, int | float):
            scatter = [o[name] for o in others if isinstance(o.get(name), int | float)]
            allowed = tolerance(a, scatter, counting_error(name, a, old.metrics), compared)
            if abs(a - b) <= max(allowed or 0.0, ROUNDING * abs(a)):
                verdict = "within tolerance"
            elif allowed is None:
                verdict = "not judged"
        elif type(a) is type(b) or name not in before:
            verdict = "not judged"
        rows.append((name, a, b, allowed, verdict))
    return rows


def tolerance(value: float, others: list[float], counting: float, compared: int = 1) -> float | None:
    """How far a value may move when its run is repeated with other rounding; None where that is unknown.

    Two independent draws of spread s differ by a deviation of sqrt(2) s. With s known, their difference over
    that is normal; with s estimated from k values it is t distributed on k - 1 degrees of freedom. The tolerance is the
    quantile that one of ``compared`` values exceeds in a share :data:`LEVEL` of replays (Bonferroni).
    s is the deviation between seeds, where ``others`` are at least three, and never less than the
    ``counting`` error (0 where the value is no count).
    """
    tail = LEVEL / (2 * compared)
    reach = counting * float(scipy.stats.norm.isf(tail))
    if len(others) >= 3:
        reach = max(reach, statistics.stdev([value, *others]) * float(scipy.stats.t.isf(tail, len(others))))
    return math.sqrt(2) * reach or None


def counting_error(name: str, value: float, metrics: dict[str, Any]) -> float:
    """sqrt(p (1 - p) / n) of a share of n test images, times n for a count of them; 0 for anything else."""
    n = metrics.get("n_test" if name == "metrics.clean_accuracy" else "n_eval")
    share = name.startswith("metrics.") and name.endswith("_accuracy")
    count = name.startswith("metrics.autoattack.") and name.endswith((".robust", ".clean"))
    if not n or not (share or count):
        return 0.0
    p = value if share else value / n
    p = min(max(p, 1 / n), 1 - 1 / n)  # at 0 and 1 the formula would allow no image at all
    return math.sqrt(p * (1 - p) / n) * (1 if share else n)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of nested dicts and lists under a dotted name, durations left out."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if not str(key).endswith(("seconds", "_s")):
                yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def _but_seed(config: RunConfig) -> dict[str, Any]:
    # the attack tier may differ too: a deviation between seeds needs the same training only
    return config.model_dump(exclude={"seed", "autoattack"})


def _conditions(record: Record) -> str:
    p = record.provenance
    commit = f"{str(p['git_commit'])[:10]}{' with uncommitted changes' if p['git_dirty'] else ''}"
    return f"at {commit}, torch {p['packages']['torch']}, {p['device']}, {p['threads']} thread(s), {p['wall_s']} s"


def main(argv: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m rctaf.runs", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in {
        "plan": "how many runs, what is done, how long the rest takes",
        "run": "run everything that is missing",
        "status": "what is done, running, failed",
        "exec": "run one cell",
    }.items():
        verbs.add_parser(verb, help=text).add_argument("grid", type=Path)
    verbs.choices["run"].add_argument("-j", "--jobs", type=int, help="at a time; default: one per GPU, else per core")
    verbs.choices["exec"].add_argument("id", help="of the run, or its place in the grid from 0 (for job arrays)")
    verbs.add_parser("replay", help="execute a record again and compare").add_argument("id")
    args = parser.parse_args(argv)
    if args.verb == "plan":
        return plan(args.grid)
    if args.verb == "run":
        return run(args.grid, args.jobs)
    if args.verb == "status":
        return status(args.grid)
    if args.verb == "replay":
        try:
            return replay(args.id)
        except RunError as error:
            print(f"{args.id}: {error}", file=sys.stderr)
            return 1
    cells = Grid.load(args.grid).cells()
    config = cells.get(args.id) or dict(enumerate(cells.values())).get(int(args.id) if args.id.isdecimal() else -1)
    if config is None:
        raise SystemExit(f"{args.grid} has no run {args.id!r}; its {len(cells)} ids are: {' '.join(cells)}")
    try:
        print(config.run_id, config.label, execute(config), flush=True)
    except RunError as error:
        print(f"{config.run_id} {config.label}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command(main)
