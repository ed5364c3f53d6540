"""The batch: what is executed, what is not executed twice, and what the reader is told."""

import errno
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from synthetic import record_of

from rctaf import notebooks, records, runs
from rctaf.config import Grid, RunConfig

ROOT = Path(__file__).resolve().parent.parent


def executions(store):
    """The process of every execution so far, by seed."""
    lines = (store / "executions").read_text().split("\n") if (store / "executions").exists() else []
    pids = {}
    for seed, pid in (map(int, line.split()) for line in lines if line):
        pids.setdefault(seed, []).append(pid)
    return pids


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "rctaf.runs", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell's background command ignores Ctrl-C, and so would all that it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="counts the orphans in /proc")
def test_batch_survives_kill_and_repeats_nothing(store, grid):
    (store / "hold").touch()  # seeds 3 and up run until this file goes
    batch = start("run", grid, "-j", 2)
    wait_for(lambda: {3, 4} <= executions(store).keys())
    os.killpg(batch.pid, signal.SIGKILL)  # the command, Snakemake and both workers, in the middle of two runs
    batch.communicate()
    orphans = [pid for seed in (3, 4) for pid in executions(store)[seed]]
    wait_for(lambda: not any(map(alive, orphans)), 30)  # no kernel trains on without its worker

    ids = {config.seed: run_id for run_id, config in Grid.load(grid).cells().items()}
    assert [runs.state(ids[seed])[0] for seed in range(6)] == ["local", "local", "FAILED"] + ["interrupted"] * 2 + [
        "pending"
    ]

    (store / "hold").unlink()
    batch = start("run", grid, "-j", 2)
    out, err = batch.communicate()
    assert batch.returncode == 1, err
    # finished runs were left alone, killed ones and the failed one got a second try
    assert {seed: len(pids) for seed, pids in executions(store).items()} == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 1}
    assert "6 runs: 5 done (0 kept, 5 local), 1 FAILED" in out
    assert "ValueError: made to fail" in out
    assert err.count("FAILED") == 1  # said at once, and once
    assert "5/6" in err  # the progress bar
    red = records.local_dir(ids[2]) / "notebook.partial.ipynb"
    assert "made to fail" in red.read_text()
    assert str(red) in out
    assert (records.local_dir(ids[5]) / "notebook.ipynb").exists()


@pytest.mark.skipif(not Path("/proc").exists(), reason="counts the orphans in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_batch_that_is_told_to_end(store, number):
    (store / "hold").touch()
    grid = store / "two.yaml"
    grid.write_text("name: two\nscale: trains nothing\nblocks: [{base: {epochs: 2}, axes: {seed: [3, 4]}}]")
    batch = start("run", grid, "-j", 2)
    wait_for(lambda: {3, 4} <= executions(store).keys())
    # kill tells one process, Ctrl-C all of them
    (os.kill if number == signal.SIGTERM else os.killpg)(batch.pid, number)
    _, err = batch.communicate(timeout=60)
    assert batch.returncode == 128 + number
    assert "stopped; the same command goes on" in err
    assert "Traceback" not in err
    orphans = [pid for pids in executions(store).values() for pid in pids]
    wait_for(lambda: not any(map(alive, orphans)), 30)
    states = [runs.state(run_id)[0] for run_id in Grid.load(grid).cells()]
    assert states == ["interrupted", "interrupted"]  # no failure: the next call takes them up


def test_exec_names_what_is_wrong(store, grid, cell, monkeypatch, capsys):
    for wrong in ("nonsense", "6"):
        with pytest.raises(SystemExit, match=f"has no run '{wrong}'"):
            runs.main(["exec", str(grid), wrong])

    def fails(*args, **kwargs):
        raise notebooks.NotebookError("cell 7: out\nof luck")

    monkeypatch.setattr(notebooks, "execute_notebook", fails)
    assert runs.main(["exec", str(grid), cell.run_id]) == 1
    assert "cell 7: out of luck" in capsys.readouterr().err
    assert runs.state(cell.run_id) == ("FAILED", "cell 7: out of luck")

    records.write(record_of(cell))
    for name in (cell.run_id, "0"):  # by its id, and by its place in the grid
        assert runs.main(["exec", str(grid), name]) == 0
        assert capsys.readouterr().out == f"{cell.run_id} {cell.label} already done\n"


def test_what_a_killed_attempt_was_writing_is_removed(store, cell, monkeypatch):
    folder = records.local_dir(cell.run_id)
    records.write_text(folder / "checkpoint.pt", "whole")
    torn = folder / ".checkpoint.pt.4711"  # as records.written_whole leaves it when its process is killed
    torn.write_text("to")
    os.utime(torn, (0, time.time() - 3700))
    being = folder / ".checkpoint.pt.4712"  # of a notebook that was started by hand and is at work
    being.write_text("to")
    monkeypatch.setattr(notebooks, "execute_notebook", lambda *args, **kwargs: records.write(record_of(cell)))
    assert runs.execute(cell) == "done"
    assert not torn.exists()
    assert being.exists()
    assert (folder / "checkpoint.pt").read_text() == "whole"


def test_notebook_that_ends_without_a_record_has_failed(store, cell, monkeypatch):
    monkeypatch.setattr(notebooks, "execute_notebook", lambda *args, **kwargs: None)
    with pytest.raises(runs.RunError, match=r"ended without writing .*run\.json"):
        runs.execute(cell)
    assert runs.state(cell.run_id)[0] == "FAILED"


def test_whoever_waited_for_a_run_finds_it_done(store, cell, monkeypatch):
    monkeypatch.setattr(notebooks, "execute_notebook", lambda *a, **k: pytest.fail("executed again"))
    held = threading.Event()

    def other():
        with runs.locked(runs.batch_dir() / "locks" / cell.run_id, patience=0):
            held.set()
            time.sleep(0.3)
            records.write(record_of(cell))

    first = threading.Thread(target=other)
    first.start()
    held.wait()
    assert runs.execute(cell) == "already done"
    first.join()


@pytest.mark.parametrize(("asked", "threads"), [("", "1"), ("2", "2")])
def test_a_run_gets_the_threads_it_was_given_or_one(store, cell, monkeypatch, asked, threads):
    def execute(*args, **kwargs):
        assert os.environ["OMP_NUM_THREADS"] == threads
        records.write(record_of(cell))

    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(notebooks, "execute_notebook", execute)
    assert runs.execute(cell) == "done"


@pytest.mark.parametrize("place", [records.kept_path, lambda i: records.local_dir(i) / "run.json"])
def test_either_store_counts_as_done(store, grid, cell, monkeypatch, place, capsys):
    records.write_text(place(cell.run_id), record_of(cell).to_json())
    monkeypatch.setattr(notebooks, "execute_notebook", lambda *a, **k: pytest.fail("executed again"))
    assert runs.execute(cell) == "already done"
    assert runs.status(grid) == 1  # five others are pending
    assert "1 done" in capsys.readouterr().out


def test_status_of_every_run(store, grid, capsys):
    first, second, third, *_, last = Grid.load(grid).cells().values()
    records.write(record_of(first, 0.81, robust_accuracy=0.25, screening_accuracy=0.3))
    records.write_text(records.kept_path(second.run_id), record_of(second, 0.5, screening_accuracy=0.125).to_json())
    records.write(record_of(third, 0.9))
    assert runs.main(["status", str(grid), "--all"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1 + 6
    assert lines[1] == f"local {first.run_id} {first.label}: clean 81.0%, robust 25.0%"
    assert lines[2] == f"kept {second.run_id} {second.label}: clean 50.0%, screening 12.5%"
    assert lines[3] == f"local {third.run_id} {third.label}: clean 90.0%"
    assert lines[6] == f"pending {last.run_id} {last.label}"
    assert runs.main(["status", str(grid)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_status_is_zero_only_when_all_is_done(store, grid, capsys):
    for config in Grid.load(grid).cells().values():
        records.write(record_of(config))
    assert runs.status(grid) == 0
    assert runs.run(grid, 1) == 0  # and there is nothing to run
    assert capsys.readouterr().out.count("6 done (0 kept, 6 local)") == 2


def test_run_says_that_snakemake_is_missing(store, grid, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="snakemake is not installed"):
        runs.run(grid, 1)


def test_one_process_has_a_run(store, cell):
    lock = runs.batch_dir() / "locks" / cell.run_id
    with runs.locked(lock, patience=0):
        assert runs.state(cell.run_id)[0] == "running"
        with pytest.raises(runs.Busy), runs.locked(lock, patience=0.3):
            pass
    assert runs.state(cell.run_id)[0] == "pending"


def test_a_machine_of_a_cluster_does_not_idle_for_a_run_that_another_has(store, cell, monkeypatch):
    waited = []

    def held(path, patience):
        waited.append(patience)
        raise runs.Busy(path)

    monkeypatch.setattr(runs, "locked", held)
    clusters = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
    for given in (None, *clusters):
        for name in clusters:
            monkeypatch.delenv(name, raising=False)
        if given:
            monkeypatch.setenv(given, "1")
        with pytest.raises(runs.RunError, match=f"^{cell.run_id}: another process has this run$"):
            runs.execute(cell)
    assert waited == [math.inf, 5, 5]  # seconds; elsewhere whoever waits finds the work done


def test_status_reads_the_store_of_somebody_else(store, grid, cell, monkeypatch, capsys):
    partial = records.local_dir(cell.run_id) / "notebook.partial.ipynb"
    records.write_text(partial, "the epochs so far")
    lock = runs.batch_dir() / "locks" / cell.run_id

    def readable(path, mode="r", *args, **kwargs):
        if mode != "r":
            raise PermissionError(13, "Permission denied", str(path))
        return Path(path).open(mode, *args, **kwargs)

    with runs.locked(lock, patience=0), monkeypatch.context() as others:
        others.setattr("builtins.open", readable)
        assert runs.status(grid) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"  running     {cell.run_id}  {cell.label}",
        f"  {'':11} {partial}",
    ]


@pytest.mark.parametrize("verb", ["exec", "run"])
def test_a_store_that_cannot_be_written_is_one_line(store, grid, cell, verb):
    (store / "results").write_text("a file, not a folder")
    words = [grid, cell.run_id] if verb == "exec" else [grid]
    out, err = (process := start(verb, *words)).communicate()
    assert (process.returncode, out) == (1, "")
    assert err.count("\n") == 1
    assert f"{store / 'results'}" in err


def test_a_file_system_without_locks_is_named(store, grid, cell, monkeypatch, capsys):
    def flock(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    assert runs.main(["exec", str(grid), cell.run_id]) == 1
    lock = runs.batch_dir() / "locks" / cell.run_id
    assert capsys.readouterr().err.strip().endswith(f"Function not implemented (every run locks a file): '{lock}'")
    assert runs.main(["status", str(grid)]) == 1
    assert "6 pending" in capsys.readouterr().out


def test_on_a_full_disk_the_error_itself_is_told(store, grid, cell, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(notebooks, "execute_notebook", full)
    monkeypatch.setattr(records, "write_text", full)
    assert runs.main(["exec", str(grid), cell.run_id]) == 1
    said = f"{cell.run_id} {cell.label}: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("verb", ["exec", "run"])
def test_without_a_clone_the_experiment_is_missed_first(store, grid, verb, monkeypatch, capsys):
    monkeypatch.setenv("RCTAF_NOTEBOOK", str(store / "none.ipynb"))
    assert runs.main([verb, str(grid), *(["0"] if verb == "exec" else [])]) == 1
    assert f"no notebook {store / 'none.ipynb'}: experiments need a clone" in capsys.readouterr().err
    assert not runs.results_dir().exists()


def test_the_experiment_is_the_same_wherever_a_run_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Snakemake starts its runs in the root
    own, other = "notebooks/experiments/run.ipynb", "notebooks/explore.ipynb"
    for given, path in (("", own), (other, other)):
        monkeypatch.setenv("RCTAF_NOTEBOOK", given)
        assert runs.notebook() == ROOT / path


def test_a_record_that_cannot_be_read_is_not_done(store, grid, cell, monkeypatch, capsys):
    for config in Grid.load(grid).cells().values():
        records.write(record_of(config))
    path = records.local_dir(cell.run_id) / "run.json"
    path.write_text("<<<<<<< HEAD")
    for words in (["status", str(grid)], ["status", str(grid), "--all"], ["run", str(grid)]):
        assert runs.main(words) == 1
        out = capsys.readouterr().out
        assert "5 done (0 kept, 5 local), 1 FAILED" in out
        assert f"{path}: not a readable record" in out
        assert "restore it, or delete it and run again" in out


@pytest.mark.parametrize("given", ["0", "GPU-8932f937", "3,4"])
def test_a_gpu_that_is_given_must_be_there(store, cell, monkeypatch, given):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(notebooks, "execute_notebook", lambda *a, **k: pytest.fail("trains on the CPU"))
    with pytest.raises(runs.RunError, match=f"GPU {given} was given, but PyTorch .* sees none"):
        runs.execute(cell)
    assert runs.state(cell.run_id)[0] == "FAILED"


@pytest.mark.parametrize("given", ["", "-1", "NoDevFiles"])
def test_the_cpu_is_used_where_no_gpu_is_given(store, cell, monkeypatch, given):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(notebooks, "execute_notebook", lambda *args, **kwargs: records.write(record_of(cell)))
    assert runs.execute(cell) == "done"


def test_gpus_are_lent_one_per_run(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("RCTAF_GPUS", "4,4,7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "unset")
    assert runs.default_jobs() == 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert runs.gpu_slots() == ["4", "4", "7"]
    seen = []
    with runs.lent_gpu():
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        with runs.lent_gpu():
            seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
            with runs.lent_gpu():
                seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["4", "4", "7"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "unset"
    monkeypatch.setenv("RCTAF_GPUS", "7,4")
    with runs.lent_gpu(), runs.lent_gpu():
        monkeypatch.setenv("RCTAF_GPUS", "4,5")  # another batch, in whose list GPU 4 has another place
        with runs.lent_gpu():
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.delenv("RCTAF_GPUS")  # as where a cluster chose
    with runs.lent_gpu():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "unset"


def test_all_gpus_are_lent_unless_told(monkeypatch):
    monkeypatch.delenv("RCTAF_GPUS", raising=False)
    for visible, count, slots in [("", 0, []), ("", 2, ["0", "1"]), ("5, 3", 2, ["5", "3"]), ("5,9", 1, ["5"])]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        assert runs.gpu_slots() == slots
    monkeypatch.setenv("RCTAF_GPUS", "")  # none: every run sees every GPU
    assert runs.gpu_slots() == []


def test_experiment_takes_every_setting():
    assert set(notebooks.parameter_names(ROOT / "notebooks/experiments/run.ipynb")) == set(RunConfig.model_fields)


@pytest.mark.parametrize("command", [["runs", "plan", "GRID"], ["records", "show", "ID"]])
def test_a_record_that_cannot_be_read_is_one_line(store, grid, cell, command):
    path = records.write(record_of(cell))
    path.write_text('{"schema": 1}')
    words = [{"GRID": str(grid), "ID": cell.run_id}.get(word, word) for word in command[1:]]
    done = subprocess.run(
        [sys.executable, "-m", f"rctaf.{command[0]}", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, f"{path}: not a readable record: it lacks 'config'\n")


@pytest.mark.parametrize("command", [["runs", "replay"], ["records", "show"], ["records", "robustbench"]])
def test_a_record_that_is_not_there_is_one_line(store, command):
    done = subprocess.run(
        [sys.executable, "-m", f"rctaf.{command[0]}", command[1], "0" * 12], cwd=ROOT, capture_output=True, text=True
    )
    said = f"no record '000000000000' under {store / 'results'} (looked in runs/ and local/)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.parametrize("command", [["runs", "plan"], ["runs", "run"], ["runs", "status"], ["records", "keep"]])
def test_a_grid_that_cannot_be_used_is_one_line(store, command):
    path = store / "empty.yaml"
    path.write_text("name: g\nscale: s\nblocks: [{axes: {seed: []}}]")
    done = subprocess.run(
        [sys.executable, "-m", f"rctaf.{command[0]}", command[1], path], cwd=ROOT, capture_output=True, text=True
    )
    said = f"grid {path}: axes: seed: at least one value is expected, or there would be no run\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.parametrize(("asked", "threads"), [(None, "1"), ("", "1"), ("2", "2")])
def test_one_thread_unless_told(monkeypatch, asked, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", asked or "")
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    program = "from rctaf._startup import settle_threads as s; s(); import torch; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [threads]


def test_the_command_line_starts_without_pytorch():
    program = "import sys, rctaf.runs; print('torch' in sys.modules); from rctaf import RCTAF; print(RCTAF(7, 2))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split("\n")[:2] == ["False", "RCTAF(alpha=7, beta=2)"]


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_a_number_of_jobs_is_above_0(grid, capsys, jobs):
    with pytest.raises(SystemExit):
        runs.main(["run", str(grid), f"--jobs={jobs}"])
    assert f"expected a whole number above 0, got '{jobs}'" in capsys.readouterr().err
