"""The store: whole or absent, honest about its id, committed evidence first."""

import csv
import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from rctaf import records
from rctaf._startup import Unreadable
from rctaf.config import Grid, RunConfig
from rctaf.data import load
from rctaf.models import from_config
from rctaf.records import Record
from rctaf.training import train


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    return tmp_path


def record(**settings):
    return Record(
        config=RunConfig(**settings),
        metrics={"accuracy": 0.9, "autoattack": {"robust_accuracy": 0.5, "version": "screening"}, "layers": [1.0, 2.0]},
        history={"epoch": [1, 2], "loss": [2.0, 1.0]},
        provenance={"device": "x86_64 CPU", "threads": 1},
    )


def test_round_trip():
    written = record(alpha=3, seed=2)
    path = records.write(written)
    assert path == records.local_dir(written.run_id) / "run.json"
    assert records.read(path) == written
    assert not records.read(path).kept
    assert records.load(written.run_id) == written
    assert records.load("0" * 12) is None


def test_committed_evidence_comes_first():
    mine = record()
    records.write(mine)
    records.write_text(records.kept_path(mine.run_id), mine.to_json().replace('"accuracy": 0.9', '"accuracy": 0.8'))
    found = records.load(mine.run_id)
    assert found.kept
    assert found.metrics["accuracy"] == 0.8
    assert [r.run_id for r in records.find([RunConfig(seed=9).run_id, mine.run_id])] == [mine.run_id]
    other = record(seed=3)
    records.write(other)
    everything = records.load_all()  # a run with two records counts once
    assert [r.run_id for r in everything] == sorted([mine.run_id, other.run_id])
    assert {r.run_id: r.kept for r in everything} == {mine.run_id: True, other.run_id: False}


def test_keep_copies_what_is_finished_once():
    grid = Grid(name="g", scale="s", blocks=[{"axes": {"seed": [0, 1]}}])
    finished = record(seed=0)
    records.write(finished)
    assert [kept.run_id for kept in records.keep(grid)] == [finished.run_id]
    assert records.keep(grid) == []
    assert records.read(records.kept_path(finished.run_id)).kept
    assert not records.kept_path(record(seed=1).run_id).exists()


def test_keep_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = tmp_path / "mine.yaml"
    grid.write_text("name: g\nscale: s\nblocks: [{axes: {seed: [0, 1]}}]")
    records.write(record(seed=0))
    assert records.main(["keep", str(grid)]) == 0
    assert capsys.readouterr().out.endswith("/runs\nnow: git add runs mine.yaml, then git commit\n")
    assert records.main(["keep", str(grid)]) == 0
    assert "git add" not in capsys.readouterr().out  # nothing is new


def test_keep_into_a_store_that_cannot_be_written_is_one_line(tmp_path):
    grid = tmp_path / "mine.yaml"
    grid.write_text("name: g\nscale: s\nblocks: [{axes: {seed: [0]}}]")
    records.write(record(seed=0))
    (records.results_dir() / "runs").write_text("a file, not a folder")
    done = subprocess.run(
        [sys.executable, "-m", "rctaf.records", "keep", str(grid)], capture_output=True, text=True, cwd=records.ROOT
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert str(records.results_dir() / "runs") in done.stderr


def test_keep_names_what_cannot_be_repeated_exactly(tmp_path, capsys):
    sources = {
        0: {"git_dirty": False},
        1: {"git_dirty": True},
        2: {"git_dirty": None},
        3: {},
        4: {"git_dirty": False, "resumed_from": [{"git_commit": None, "git_dirty": None}]},
    }
    grid = tmp_path / "mine.yaml"
    grid.write_text("name: g\nscale: s\nblocks: [{axes: {seed: [0, 1, 2, 3, 4]}}]")
    for seed, source in sources.items():
        records.write(replace(record(seed=seed), provenance=source))
    ids = {config.seed: run_id for run_id, config in Grid.load(grid).cells().items()}
    assert records.main(["keep", str(grid)]) == 0
    dirty, mixed = capsys.readouterr().err.splitlines()
    assert dirty == f"not of a commit, so nobody can repeat them exactly: {ids[1]} {ids[2]} {ids[3]}"
    assert mixed == f"begun by other code (resumed_from), so a replay may differ: {ids[4]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda doc: doc["config"].update(seed=7), "the settings hash to"),
        (lambda doc: doc.update(id="0" * 12), "the record says 000000000000"),
        (lambda doc: doc.update(schema=0), "record schema 0, this code reads 1"),
        (lambda doc: doc["config"].update(kurtosis=3), "no such setting: kurtosis; there are dataset"),
        (lambda doc: doc.pop("metrics"), "lacks 'metrics'"),
    ],
)
def test_unreadable_records_say_why(change, message):
    path = records.write(record())
    doc = json.loads(path.read_text())
    change(doc)
    path.write_text(json.dumps(doc))
    with pytest.raises(ValueError, match=message) as error:
        records.read(path)
    assert str(path) in str(error.value)


def test_record_in_another_run_s_folder_is_refused():
    mine, other = record(), record(seed=1)
    elsewhere = records.local_dir(other.run_id) / "run.json"
    records.write_text(elsewhere, mine.to_json())
    grid = Grid(name="g", scale="s", blocks=[{"axes": {"seed": [1]}}])
    for asking in (lambda: records.load(other.run_id), records.load_all, lambda: records.keep(grid)):
        with pytest.raises(ValueError, match=f"^{elsewhere}: the record of run {mine.run_id} is in the folder of"):
            asking()


def test_a_record_can_be_read_wherever_somebody_saved_it(tmp_path):
    written = record()
    path = tmp_path / "downloads" / f"{written.run_id}.json"  # as the pages of the book offer it
    records.write_text(path, written.to_json())
    assert records.read(path) == written


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_number_that_json_lacks(bad):
    broken = record()
    broken.metrics["accuracy"] = bad
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write(broken)
    assert not records.local_dir(broken.run_id).exists()


def test_history_columns_have_one_length():
    broken = record()
    broken.history["loss"].append(0.5)
    with pytest.raises(ValueError, match="'loss': 3"):
        records.write(broken)


def test_a_file_is_whole_at_every_moment(store, monkeypatch):
    """A reader sees one of the texts and never a part, and so does whoever comes after a sudden death."""
    path, texts = store / "file", ["a" * 300_000, "b" * 200_000]
    records.write_text(path, texts[0])
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for text in texts:
                records.write_text(path, text)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert all(path.read_text() in texts for _ in range(100))
    finally:
        stop.set()
        writer.join()

    def dies(number):
        raise KeyboardInterrupt  # when everything is written and nothing is safe yet

    before = path.read_text()
    monkeypatch.setattr("os.fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        records.write_text(path, "c" * 100_000)
    assert path.read_text() == before
    assert [left.name for left in store.iterdir()] == ["file"]


def test_table_is_one_row_per_record():
    table = records.table([record(alpha=28, beta=0), record(activation="relu")])
    assert list(table["curvature"].fillna(-1)) == [7.0, -1]
    assert list(table["autoattack.robust_accuracy"]) == [0.5, 0.5]
    assert list(table["activation"]) == ["rctaf", "relu"]
    assert "layers" not in table
    assert set(RunConfig.model_fields) <= set(table)


def test_orders_at_one_curvature_have_it_alike_in_a_table():
    """The maximum of order 5 is no power of 2 times alpha, alpha has twelve digits, a record all of the maximum."""
    cells = Grid(name="g", scale="s", blocks=[{"axes": {"beta": [1, 2, 5, 6], "curvature": [0.3, 7]}}]).cells().values()
    made = [record(alpha=config.alpha, beta=config.beta) for config in cells]
    for one in made:  # as the notebook of an experiment does
        one.metrics["curvature"] = one.config.curvature
    assert len({one.metrics["curvature"] for one in made}) > 2
    assert set(records.table(made)["curvature"]) == {0.3, 7}


def test_one_file_holds_what_the_records_hold(capsys):
    """Every cell against the committed files, read without the package; and the whole against the table."""
    assert records.main(["csv"]) == 1
    assert "no committed record under" in capsys.readouterr().err
    records.write(record(seed=9))  # made here, not committed
    made = [record(seed=0), record(seed=1, activation="relu", method="pgd", epsilon="8/255"), record(beta=0, alpha=0.1)]
    hessian = {"rms": 1e-17, "converged": True, "by_parameter": {"a.b": 1}}
    made[2].metrics.update(third=1 / 3, hessian_clean=hessian)
    for one in made:
        records.write_text(records.kept_path(one.run_id), one.to_json())
    assert records.main(["csv"]) == 0
    text = capsys.readouterr().out
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(text))}
    docs = {path.parent.name: json.loads(path.read_text()) for path in records.results_dir().glob("runs/*/run.json")}
    assert rows.keys() == docs.keys() == {one.run_id for one in made}
    for run_id, row in rows.items():
        metrics, settings = docs[run_id]["metrics"], docs[run_id]["config"]
        measured = {"accuracy": metrics["accuracy"], "third": metrics.get("third")}
        measured |= {f"autoattack.{name}": metrics["autoattack"][name] for name in ("robust_accuracy", "version")}
        estimate = metrics.get("hessian_clean", {})
        measured |= {f"hessian_clean.{name}": estimate.get(name) for name in ("rms", "converged")}
        wanted = {"id": run_id, "kept": True, **settings, **measured}
        assert row.keys() == wanted.keys() | {"curvature"}
        for name, value in wanted.items():
            if type(value) in (int, float):
                assert float(row[name]) == value, name
            else:
                assert row[name] == ("" if value is None else str(value)), name
    table = records.table(record for record in records.load_all() if record.kept)
    table = table.drop(columns="hessian_clean.by_parameter.a.b")
    texts = [name for name in table if any(isinstance(value, str) for value in table[name])]  # budgets, for example
    back = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(texts, str))
    assert list(back) == list(table)
    for name in table:
        assert [None if pd.isna(v) else v for v in back[name]] == [None if pd.isna(v) else v for v in table[name]], name


def test_the_store_is_the_same_wherever_a_run_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, folder in (("", "results"), ("other", "other"), ("/a", "/a")):
        monkeypatch.setenv("RCTAF_RESULTS", given)
        assert records.results_dir() == records.ROOT / folder


def test_provenance_says_where_and_with_what(monkeypatch):
    said = records.provenance(time.time() - 2, {"git_commit": "abc", "git_dirty": True})
    assert said["wall_s"] == pytest.approx(2, abs=1)
    assert said["packages"]["torch"]
    assert said["threads"] >= 1
    if Path("/proc/cpuinfo").exists():
        assert said["processor"] is None or f": {said['processor']}\n" in Path("/proc/cpuinfo").read_text()
    assert (said["git_commit"], said["git_dirty"]) == ("abc", True)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "EST5")
        time.tzset()
        assert records.provenance(86400.0, {})["started"] == "1970-01-02T00:00:00Z"  # UTC everywhere
    time.tzset()


def test_a_run_that_went_on_names_the_code_that_began_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    old, new = ({"git_commit": commit, "git_dirty": False} for commit in ("abc", "def"))
    folder = records.local_dir("1234")
    assert records.resumed_from("1234", old) == []
    assert records.resumed_from("1234", new) == []  # the first attempt left nothing behind
    assert records.resumed_from("1234", old) == []
    (folder / "checkpoint.pt").touch()
    assert records.resumed_from("1234", old) == []
    assert records.resumed_from("1234", new) == [old]
    assert records.resumed_from("1234", new) == [old]  # a third attempt
    said = records.provenance(time.time(), new, [old])
    assert (said["git_commit"], said["resumed_from"]) == ("def", [old])
    assert "resumed_from" not in records.provenance(time.time(), new)
    (folder / "sources.json").unlink()  # as code left it that took no notes
    assert records.resumed_from("1234", new) == [{"git_commit": None, "git_dirty": None}]
    (folder / "checkpoint.pt").unlink()
    (folder / "autoattack.json").touch()  # an evaluation alone has other code's part too
    assert records.resumed_from("1234", old)[-1] == new


def test_an_unfinished_run_goes_on_and_a_finished_one_is_made_anew(monkeypatch):
    config = RunConfig(epochs=2, method="standard", n_train=50, width=4)
    folder = records.local_dir(config.run_id)
    assert records.begin(config) == "starts at epoch 1 of 2"

    def kill(done, total, row):
        if row and row["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("rctaf.training.loop.CHECKPOINT_EVERY", -1)
    model = from_config(config, in_channels=1, n_classes=10)
    with pytest.raises(KeyboardInterrupt):
        train(model, load("digits", 50), config, checkpoint=folder / "checkpoint.pt", progress=kill)
    (folder / "autoattack.json").write_text("{}")
    assert records.begin(config) == "goes on from its checkpoint after epoch 1 of 2"
    assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "autoattack.json"}

    done = Record(config, {"accuracy": 0.5}, {}, {})
    records.write(done)
    os.utime(folder / "run.json", (0, 1_700_000_000.5))
    former = folder / "run.former.20231114T221320.500000Z.json"
    said = f"this run was finished before: it is made anew from the start; the former record is {former}"
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", kill_at_once)
        with pytest.raises(KeyboardInterrupt):
            records.begin(config)
    assert records.begin(config) == said  # a death in the middle of it changes nothing
    assert [path.name for path in folder.iterdir()] == [former.name]
    assert former.read_text() == done.to_json()
    assert records.load(config.run_id) is None
    assert records.begin(config) == "starts at epoch 1 of 2"
    records.write(done)
    records.begin(config)
    assert len(list(folder.glob("run.former.*.json"))) == 2  # a third time does not replace what the second left


def kill_at_once(*args):
    raise KeyboardInterrupt


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_source_is_the_commit_and_whether_the_code_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.source() == {"git_commit": None, "git_dirty": None}  # no repository
    (tmp_path / "rctaf").mkdir()
    (tmp_path / "rctaf" / "code.py").write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "prose.md").write_text("of no matter")
    assert records.source() == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "rctaf" / "code.py").write_text("2")
    assert records.source() == {"git_commit": commit, "git_dirty": True}
    (tmp_path / "rctaf" / "code.py").write_text("1")
    assert records.source()["git_dirty"] is False
    (tmp_path / "notebooks" / "experiments").mkdir(parents=True)
    (tmp_path / "notebooks" / "experiments" / "run.ipynb").touch()
    assert records.source() == {"git_commit": commit, "git_dirty": True}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "second")
    commit = git(tmp_path, "rev-parse", "HEAD")
    git(tmp_path, "config", "status.showUntrackedFiles", "no")
    (tmp_path / "rctaf" / "new.py").touch()
    assert records.source() == {"git_commit": commit, "git_dirty": True}
    (tmp_path / "rctaf" / "new.py").unlink()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "new.py").touch()
    assert [records.source(*also)["git_dirty"] for also in ((), ("benchmarks",))] == [False, True]
    copy = tmp_path / "copy"  # which the repository around it takes no notice of
    (copy / "rctaf").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("copy")
    (copy / "rctaf" / "code.py").write_text("3")
    with monkeypatch.context() as patch:
        patch.setattr(records, "ROOT", copy)
        assert records.source() == {"git_commit": None, "git_dirty": None}
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init")
    with monkeypatch.context() as patch:  # as in a hook of another repository
        patch.setenv("GIT_DIR", str(other / ".git"))
        assert records.source() == {"git_commit": commit, "git_dirty": False}
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert records.source() == {"git_commit": None, "git_dirty": None}


def test_show(capsys):
    path = records.write(record())
    assert records.main(["show", record().run_id]) == 0
    said = capsys.readouterr()
    assert said.out == record().to_json()  # and nothing else, for programs that read it
    assert said.err == f"{path}\n"
    with pytest.raises(Unreadable, match="no record 'nothing'"):
        records.main(["show", "nothing"])


def test_robustbench(capsys):
    attacked = {"version": "standard", "implementation": "autoattack", "implementation_version": "0.1", "warnings": []}
    attacked |= {"n": 400, "clean": 301, "robust": 150, "robust_accuracy": 0.375}
    whole = record(epsilon="8/255", autoattack="standard")
    whole.metrics["autoattack"] = attacked
    records.write(whole)
    assert records.main(["robustbench", whole.run_id]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert (entry["clean_acc"], entry["autoattack_acc"], entry["eps"]) == ("75.25", "37.50", "8/255")
    assert entry["footnote"] == "autoattack 0.1, 400 images"

    without = record(seed=1)
    del without.metrics["autoattack"]
    for other, version in [(record(), "screening"), (without, "none")]:
        records.write(other)
        assert records.main(["robustbench", other.run_id]) == 1
        said = f"record {other.run_id} holds no standard AutoAttack, only '{version}'"
        assert capsys.readouterr() == ("", f"{said}; make the run with autoattack=standard\n")


def test_a_reader_that_leaves_early_is_no_error():
    path = records.write(record())
    # the reader is gone long before the program has started and prints
    program = f"{sys.executable} -m rctaf.records show {record().run_id} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"{path}\n")
