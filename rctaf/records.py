"""One ``run.json`` per experiment: written once, whole or not at all; queried as one table.

A machine's own runs land in ``results/local/<id>/`` (ignored by git); :func:`keep` copies the
finished ones to ``results/runs/<id>/run.json``, the committed evidence.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from rctaf._startup import Unreadable, command
from rctaf.config import Grid, RunConfig, explain

RECORD_SCHEMA = 1
ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "torchvision", "triton", "numpy", "scikit-learn", "autoattack", "pyautoattack", "papermill")


def results_dir() -> Path:
    """The store: ``results/`` beside the package, or ``$RCTAF_RESULTS``, relative to that too."""
    return ROOT / (os.environ.get("RCTAF_RESULTS") or "results")


def local_dir(run_id: str) -> Path:
    """Where this machine writes a run: its record, checkpoint and executed notebook."""
    return results_dir() / "local" / run_id


def kept_path(run_id: str) -> Path:
    """The committed record of a run."""
    return results_dir() / "runs" / run_id / "run.json"


@dataclass(frozen=True)
class Record:
    """One finished experiment.

    Attributes:
        config: what was asked for.
        metrics: what was measured, by name (see ``notebooks/experiments/run.ipynb``).
        history: columns over epochs, all of one length.
        provenance: commit, versions, device, threads, duration.
        kept: True for committed evidence, False for this machine's own run.
        path: the file it was read from; None before it is written.
    """

    config: RunConfig
    metrics: dict[str, Any]
    history: dict[str, list[float]]
    provenance: dict[str, Any]
    kept: bool = field(default=False, compare=False)
    path: Path | None = field(default=None, compare=False)

    @property
    def run_id(self) -> str:
        """The name of the experiment, :attr:`rctaf.config.RunConfig.run_id`."""
        return self.config.run_id

    def to_json(self) -> str:
        """The text of its ``run.json``.

        Raises:
            ValueError: a metric is NaN or infinite.
        """
        doc = {
            "schema": RECORD_SCHEMA,
            "id": self.run_id,
            "config": self.config.model_dump(mode="json"),
            "metrics": self.metrics,
            "history": self.history,
            "provenance": self.provenance,
        }
        return json.dumps(doc, indent=1, sort_keys=True, allow_nan=False) + "\n"


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears whole or not at all, also when the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as handle:
        handle.write(text.encode())


def write(record: Record) -> Path:
    """Write a record into this machine's part of the store; returns the file.

    Raises:
        ValueError: a metric is NaN or infinite (nothing is written), or history columns differ in length.
    """
    lengths = {name: len(column) for name, column in record.history.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"history: the columns differ in length: {lengths}")
    path = local_dir(record.run_id) / "run.json"
    write_text(path, record.to_json())
    return path


def read(path: Path) -> Record:
    """Read one ``run.json``.

    Raises:
        Unreadable: not a record of this schema, or its id is not that of its settings.
    """
    try:
        doc = json.loads(path.read_text())
        if doc["schema"] != RECORD_SCHEMA:
            raise ValueError(f"record schema {doc['schema']}, this code reads {RECORD_SCHEMA}")
        record = Record(
            config=RunConfig(**doc["config"]),
            metrics=doc["metrics"],
            history=doc["history"],
            provenance=doc["provenance"],
            kept=path.parent.parent.name == "runs",
            path=path,
        )
        if record.run_id != doc["id"]:
            raise ValueError(f"the settings hash to {record.run_id}, the record says {doc['id']}")
    except (KeyError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else explain(error)
        raise Unreadable(f"{path}: not a readable record: {why}") from None
    return record


def _of_store(path: Path) -> Record:
    """Read a record of the store, whose folder has its name.

    Raises:
        Unreadable: as :func:`read`, or it is in the folder of another run.
    """
    record = read(path)
    if record.run_id != path.parent.name:
        raise Unreadable(f"{path}: the record of run {record.run_id} is in the folder of another")
    return record


def load(run_id: str) -> Record | None:
    """The record of a run, committed evidence first; None where there is none."""
    for path in (kept_path(run_id), local_dir(run_id) / "run.json"):
        if path.exists():
            return _of_store(path)
    return None


def existing(run_id: str) -> Record:
    """The record of a run that somebody named, as :func:`load` finds it.

    Raises:
        Unreadable: there is no record of it, or none that can be read.
    """
    record = load(run_id)
    if record is None:
        raise Unreadable(f"no record {run_id!r} under {results_dir()} (looked in runs/ and local/)")
    return record


def find(cells: Iterable[str]) -> list[Record]:
    """The records that exist among these run ids, in the same order."""
    return [record for run_id in cells if (record := load(run_id)) is not None]


def load_all() -> list[Record]:
    """Every record of the store, by id; where a run has two, the committed one."""
    paths = {path.parent.name: path for kind in ("local", "runs") for path in results_dir().glob(f"{kind}/*/run.json")}
    return [_of_store(path) for _, path in sorted(paths.items())]


def table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per record: ``id``, ``kept``, every setting, every scalar metric, ``curvature`` (of the settings).

    Nested metrics are flattened with dots, e.g. ``autoattack.robust_accuracy``. Of no record: all but the metrics.
    """
    rows = [
        {
            "id": record.run_id,
            "kept": record.kept,
            **record.config.model_dump(mode="json"),
            **_flat(record.metrics),
            "curvature": record.config.equal_curvature,  # after the metrics, which hold it with all its digits
        }
        for record in records
    ]
    return pd.DataFrame(rows, columns=None if rows else ["id", "kept", *RunConfig.model_fields, "curvature"])


def to_csv(records: Iterable[Record]) -> str:
    """:func:`table` as comma-separated text, without its columns ``….by_parameter.…``, of which every layer has some.

    Numbers have all their digits. Ids and budgets are text but may look like numbers, unless ``dtype`` tells pandas.
    """
    frame = table(records)
    return frame.loc[:, ~frame.columns.str.contains(".by_parameter.", regex=False)].to_csv(index=False)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            flat[prefix + key] = value
    return flat


def source(*also: str) -> dict[str, Any]:
    """Which code this is: ``git_commit`` and ``git_dirty``, both None where git cannot say.

    Asked when a run begins: while it goes on, the checkout may move to another commit.

    Args:
        also: folders of the repository, beside the package and the experiment's notebook, that are executed.
    """
    # a hook of another repository, from which this may be called, sets where git is to look
    elsewhere = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}

    def git(*words: str) -> str | None:
        # without the locks of `git status`, in whose way a commit made meanwhile would be
        command = ["git", "--no-optional-locks", "-C", str(ROOT), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
        except OSError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--", "rctaf"):  # no repository, or a copy within another one
        return {"git_commit": None, "git_dirty": None}
    # whether what a run executes differs from that commit; prose and other records do not matter
    executed = ("rctaf", "notebooks/experiments", *also)
    changes = git("status", "--porcelain", "--untracked-files=normal", "--", *executed)
    return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": None if changes is None else bool(changes)}


def begin(config: RunConfig) -> str:
    """Make ready for an experiment in this machine's part of the store; returns one line that says where it starts.

    An unfinished run goes on from its checkpoint. A finished one is made anew: its weights may be those of other code,
    and would be recorded as the work of this one. Its former record is kept beside the new one until somebody deletes
    it. (A grid, in :func:`rctaf.runs.execute`, does not come here with a finished run.)

    Raises:
        ValueError: the checkpoint is not readable.
    """
    folder = local_dir(config.run_id)
    checkpoint, record = folder / "checkpoint.pt", folder / "run.json"
    if record.exists():
        former = folder / f"run.former.{datetime.fromtimestamp(record.stat().st_mtime, UTC):%Y%m%dT%H%M%S.%fZ}.json"
        # the record goes last: a death in between leaves a finished run, never one that would go on
        for progress in (checkpoint, folder / "autoattack.json"):
            progress.unlink(missing_ok=True)
        os.replace(record, former)
        return f"this run was finished before: it is made anew from the start; the former record is {former}"
    if checkpoint.exists():
        from rctaf.training import epochs_done

        return f"goes on from its checkpoint after epoch {epochs_done(checkpoint)} of {config.epochs}"
    return f"starts at epoch 1 of {config.epochs}"


def resumed_from(run_id: str, now: dict[str, Any]) -> list[dict[str, Any]]:
    """The code, other than ``now``'s, that had a part in what an interrupted attempt left; notes ``now`` beside it.

    Each as :func:`source` gives it, the oldest first; empty for a run that begins anew.
    """
    folder, unknown = local_dir(run_id), {"git_commit": None, "git_dirty": None}
    note = folder / "sources.json"
    left = any((folder / name).exists() for name in ("checkpoint.pt", "autoattack.json"))
    before = (json.loads(note.read_text()) if note.exists() else [unknown]) if left else []
    write_text(note, json.dumps([*(code for code in before if code != now), now]) + "\n")
    return [code for code in before if code != now]


def provenance(started: float, source: dict[str, Any], resumed_from: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Where, when and with what a run was made.

    Args:
        started: ``time.time()`` when it began.
        source: :func:`source` when it began.
        resumed_from: :func:`resumed_from`, for a run that went on from what an earlier attempt left.
    """
    import torch

    from rctaf import _kernels

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        **source,
        **({"resumed_from": list(resumed_from)} if resumed_from else {}),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "wall_s": round(time.time() - started, 2),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "activation_kernel": _kernels.fused_by("cuda" if cuda else "cpu"),
        "python": platform.python_version(),
        "packages": versions,
        # what else decides the last bits on a GPU
        **({"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if cuda else {}),
    }


def processor() -> str | None:
    """The model of this machine's CPU, which ``device`` names by its architecture only; None where it is not told."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def keep(grid: Grid) -> list[Record]:
    """Copy this machine's finished records of a grid to the committed evidence; returns them."""
    copied = []
    for run_id in grid.cells():
        path = local_dir(run_id) / "run.json"
        if path.exists() and not kept_path(run_id).exists():
            copied.append(_of_store(path))
            write_text(kept_path(run_id), copied[-1].to_json())
    return copied


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rctaf.records", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("show", help="print one record").add_argument("id")
    verbs.add_parser("robustbench", help="print one record as RobustBench lists a model").add_argument("id")
    verbs.add_parser("csv", help="print all committed records as one table, a row per run")
    verbs.add_parser("keep", help="make a grid's finished runs committed evidence").add_argument("grid")
    args = parser.parse_args(argv)
    if args.verb == "csv":
        committed = [record for record in load_all() if record.kept]
        if not committed:
            print(f"no committed record under {results_dir()}", file=sys.stderr)
            return 1
        print(to_csv(committed), end="")
        return 0
    if args.verb == "keep":
        copied = keep(Grid.load(args.grid))
        kept = results_dir() / "runs"
        print(f"{len(copied)} records copied to {kept}")
        if unknown := [record.run_id for record in copied if record.provenance.get("git_dirty") is not False]:
            print(f"not of a commit, so nobody can repeat them exactly: {' '.join(unknown)}", file=sys.stderr)
        if mixed := [record.run_id for record in copied if "resumed_from" in record.provenance]:
            print(f"begun by other code (resumed_from), so a replay may differ: {' '.join(mixed)}", file=sys.stderr)
        if copied:
            print(f"now: git add {os.path.relpath(kept)} {os.path.relpath(args.grid)}, then git commit")
        return 0
    record = existing(args.id)
    if args.verb == "robustbench":
        from rctaf.evaluation import robustbench_entry

        try:
            print(json.dumps(robustbench_entry(record), indent=2))
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    print(record.path, file=sys.stderr)  # so that `show ID | jq` reads the record alone
    print(record.to_json(), end="")
    return 0


if __name__ == "__main__":
    command(main)
