"""Run the experiments of a grid, each at most once, and say how far they are.

One cell of a grid is one execution of ``notebooks/experiments/run.ipynb``. A cell is done when its
``run.json`` exists, whatever else lies around, and the notebook writes that file last and whole. So
the worker can be killed at any moment, started twice, or given to any scheduler::

    python -m rctaf.runs plan    grids/quick.yaml         how many runs, how long
    python -m rctaf.runs run     grids/quick.yaml [-j 2]  all that are missing, through Snakemake
    python -m rctaf.runs status  grids/quick.yaml [--all] 0 when every run has its record
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
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn
from unittest import mock

from rctaf import records
from rctaf._startup import Unreadable, command, import_nbformat, settle_threads
from rctaf.config import Grid, RunConfig
from rctaf.records import ROOT, Record, kept_path, local_dir, results_dir


class RunError(RuntimeError):
    """An experiment did not reach its record; the message is one line saying why."""


class Busy(Exception):
    """Another process holds the lock."""


def notebook() -> Path:
    """The notebook that is one experiment: ``$RCTAF_NOTEBOOK``, relative to the root, or the project's own.

    Raises:
        RunError: it is not there.
    """
    path = ROOT / (os.environ.get("RCTAF_NOTEBOOK") or "notebooks/experiments/run.ipynb")
    if not path.exists():
        raise RunError(f"no notebook {path}: experiments need a clone of the repository and pip install -e in it")
    return path


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
            except OSError as error:  # some cluster file systems are mounted without locks
                raise OSError(error.errno, f"{error.strerror} (every run locks a file)", str(path)) from None
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


def expect_gpu() -> None:
    """Refuse the CPU where a GPU was given, by a batch or by a cluster: the run would take weeks, and say nothing.

    Raises:
        RunError: ``CUDA_VISIBLE_DEVICES`` names a GPU, and PyTorch sees none.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if re.match(r"\d|GPU-|MIG-", given):  # not "-1", nor Slurm's "NoDevFiles"
        import torch

        if not torch.cuda.is_available():
            raise RunError(
                f"GPU {given} was given, but PyTorch {torch.__version__} sees none: is there one of that name, and is "
                "this PyTorch built for its driver? RCTAF_GPUS= CUDA_VISIBLE_DEVICES= (nothing) runs on the CPU"
            )


def execute(config: RunConfig) -> str:
    """Bring one experiment to its record: ``"done"``, or ``"already done"`` where it has one.

    A checkpoint left by a killed attempt is taken up by the notebook. Every run gets one CPU thread
    unless ``OMP_NUM_THREADS`` says otherwise.

    Raises:
        RunError: a cell failed (it is red in ``notebook.partial.ipynb``, and ``failed.json`` holds
            the message), the notebook left no record, the GPU it was given is none, or another job of the
            cluster has this run.
    """
    import_nbformat()
    from rctaf.notebooks import NotebookError, execute_notebook

    run_id, folder = config.run_id, local_dir(config.run_id)
    if finished(run_id):
        return "already done"
    experiment = notebook()
    # on a host the second of two waits and finds the work done; a cluster's machine must not idle
    patience = 5 if under_scheduler() else math.inf
    try:
        with locked(batch_dir() / "locks" / run_id, patience):
            if finished(run_id):
                return "already done"
            for partial in filter(Path.is_file, folder.glob(".*")):  # what a killed attempt was writing
                with suppress(OSError):  # a notebook started by hand takes no lock: what it writes now is left alone
                    if time.time() - partial.stat().st_mtime > 3600:
                        partial.unlink()
            with lent_gpu():
                failed = failure_path(run_id)
                failed.unlink(missing_ok=True)
                settle_threads()
                try:
                    expect_gpu()
                    execute_notebook(experiment, folder / "notebook.ipynb", config.model_dump(mode="json"), cwd=ROOT)
                    if not finished(run_id):
                        raise RunError(f"{experiment} ended without writing {folder / 'run.json'}")
                except Exception as error:
                    message = " ".join(str(error).split()) or type(error).__name__
                    with suppress(OSError):  # a full disk has no room for this either
                        records.write_text(failed, json.dumps({"error": message}) + "\n")
                    raise RunError(message) from (None if isinstance(error, NotebookError | RunError) else error)
    except Busy:
        raise RunError(f"{run_id}: another process has this run") from None
    return "done"


# --- a grid ------------------------------------------------------------------------------------

STATES = ("kept", "local", "running", "FAILED", "interrupted", "pending")


def state(run_id: str) -> tuple[str, str]:
    """One of :data:`STATES`, and what is to be said: the accuracies of a finished run, the error of a failed one."""
    try:
        record = records.load(run_id)
    except Unreadable as unreadable:
        return "FAILED", f"{unreadable}; restore it, or delete it and run again"
    if record is not None:
        return ("kept" if record.kept else "local"), _accuracies(record)
    # opened for reading, as the store may be somebody else's
    with suppress(OSError), open(batch_dir() / "locks" / run_id) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "running", ""
    if error := failure(run_id):
        return "FAILED", error
    return ("interrupted" if local_dir(run_id).exists() else "pending"), ""


def failure_path(run_id: str) -> Path:
    """Where a failed attempt leaves its message."""
    return local_dir(run_id) / "failed.json"


def failure(run_id: str) -> str:
    """The message that a failed attempt left; empty where there is none."""
    try:
        return str(json.loads(failure_path(run_id).read_text())["error"])
    except FileNotFoundError:
        return ""


def status(path: Path, every: bool = False) -> int:
    """Print how far a grid is and name what needs attention, or ``every`` run; 0 only when every run has its record."""
    cells = Grid.load(path).cells()
    states = {run_id: state(run_id) for run_id in cells}
    count = {name: sum(now == name for now, _ in states.values()) for name in STATES}
    done = count["kept"] + count["local"]
    parts = [f"{done} done" + (f" ({count['kept']} kept, {count['local']} local)" if done else "")]
    parts += [f"{count[name]} {name}" for name in STATES[2:] if count[name]]
    print(f"{path}: {len(cells)} runs: " + ", ".join(parts))
    for run_id, (now, said) in states.items():
        if every or now in ("running", "FAILED", "interrupted"):
            accuracies = f": {said}" if said and now != "FAILED" else ""
            print(f"  {now:11} {run_id}  {cells[run_id].label}{accuracies}")
        if now == "FAILED":
            print(f"  {'':11} {said}")
        # with the red cell, or the epochs so far; it is not there where the notebook could not even start
        partial = local_dir(run_id) / "notebook.partial.ipynb"
        if now in ("running", "FAILED") and partial.exists():
            print(f"  {'':11} {_shown(partial)}")
    return 0 if done == len(cells) else 1


def _accuracies(record: Record) -> str:
    """What a finished run measured, clean and under its strongest attack."""
    strongest = "robust" if "robust_accuracy" in record.metrics else "screening"
    shares = {word: record.metrics.get(f"{word}_accuracy") for word in ("clean", strongest)}
    return ", ".join(f"{word} {share:.1%}" for word, share in shares.items() if share is not None)


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
    try:
        notebook()  # no use in starting runs without it
    except RunError as missing:
        print(missing, file=sys.stderr)
        return 1
    if importlib.util.find_spec("snakemake") is None:
        raise SystemExit(
            "snakemake is not installed: pip install -e '.[batch]' in the clone, or run the cells one by one with exec"
        )
    for run_id in todo:
        failure_path(run_id).unlink(missing_ok=True)
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


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


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
    verbs.choices["run"].add_argument("-j", "--jobs", type=_jobs, help="at a time; default: one per GPU, else per core")
    verbs.choices["status"].add_argument("--all", action="store_true", help="one line per run, with its accuracies")
    verbs.choices["exec"].add_argument("id", help="of the run, or its place in the grid from 0 (for job arrays)")
    verbs.add_parser("replay", help="execute a record again and compare").add_argument("id")
    args = parser.parse_args(argv)
    if args.verb == "plan":
        from rctaf.planning import plan

        return plan(args.grid)
    if args.verb == "run":
        return run(args.grid, args.jobs)
    if args.verb == "status":
        return status(args.grid, args.all)
    if args.verb == "replay":
        from rctaf.replay import replay

        return replay(args.id)
    cells = Grid.load(args.grid).cells()
    config = cells.get(args.id) or dict(enumerate(cells.values())).get(int(args.id) if args.id.isdecimal() else -1)
    if config is None:
        raise SystemExit(f"{args.grid} has no run {args.id!r}; its {len(cells)} ids are: {' '.join(cells)}")
    try:
        outcome = execute(config)
    except (RunError, OSError) as error:  # a store that cannot be written or locked, or is full
        print(f"{config.run_id} {config.label}: {error}", file=sys.stderr)
        return 1
    print(config.run_id, config.label, outcome, flush=True)
    return 0


if __name__ == "__main__":
    command(main)
