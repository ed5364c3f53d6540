"""A record made once more: how the comparison judges, and five committed digits records with the code of today.

On the machine that made them, with the same code, they come out bit by bit. On another processor, or after any change
of rounding in training, they come out like another seed, and the criterion is that of ``replay``: it cannot see less
than some ten points of accuracy on 500 images, but it sees an attack that does not attack or a network that does not
learn.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic import record_of

from rctaf import records, runs
from rctaf._startup import Unreadable
from rctaf.config import Grid, RunConfig
from rctaf.replay import LEVEL, compare, counting_error, tolerance

ROOT = Path(__file__).resolve().parent.parent


def test_replay_of_the_same_experiment_is_bit_identical(store, cell, capsys):
    records.write(record_of(cell))
    assert runs.main(["replay", cell.run_id]) == 0
    said = capsys.readouterr().out
    assert "bit-identical: all 6 values" in said
    assert "activations" not in said  # computed alike
    with pytest.raises(Unreadable, match="no record"):
        runs.main(["replay", "0" * 12])


def test_a_replay_says_where_the_activations_are_computed_otherwise(store, cell, capsys):
    elsewhere = record_of(cell)
    elsewhere.provenance["activation_kernel"] = "PyTorch"
    records.write(elsewhere)
    assert runs.main(["replay", cell.run_id]) == 0
    assert "activations by PyTorch in the record, by C here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recorded", "here", "said"),
    [("A 1", "B 2", "  on A 1 in the record, on B 2 here\n"), ("A 1", "A 1", ""), (None, "B 2", ""), ("A 1", None, "")],
)
def test_a_replay_names_two_processors(store, cell, capsys, recorded, here, said):
    elsewhere, made = record_of(cell), record_of(cell)
    for made_on, one in ((recorded, elsewhere), (here, made)):
        one.provenance.update({} if made_on is None else {"processor": made_on})
    records.write(elsewhere)
    (store / f"seed-{cell.seed}.json").write_text(made.to_json())
    assert runs.main(["replay", cell.run_id]) == 0
    said_all = capsys.readouterr().out
    assert said in said_all
    assert ("  on " in said_all) == bool(said)


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_replay_says_how_weak_it_was(store, grid, cell, capsys, seeds):
    """Two accuracies differ, of which the one over fewer images may differ by more."""
    records.write(record_of(cell, 0.8, pgd20_accuracy=0.5, n_eval=100))
    (store / f"seed-{cell.seed}.json").write_text(record_of(cell, 0.81, pgd20_accuracy=0.51, n_eval=100).to_json())
    siblings = [c for c in Grid.load(grid).cells().values() if c.seed != cell.seed][:seeds]
    for config, value in zip(siblings, [0.3, 0.5, 0.7], strict=False):
        records.write(record_of(config, 0.8, pgd20_accuracy=value, n_eval=100))
    assert runs.main(["replay", cell.run_id]) == 0
    # 8 numbers: two-sided 0.01 / 8. Normal 3.2272 on sqrt(0.5 0.5 / 100), or t with 3 degrees of freedom
    # 11.984 on the deviation of 0.5, 0.3, 0.5, 0.7; both times sqrt 2
    want = {2: "22.8 points, of counting images; 2 other seeds, too few", 3: "276.8 points, from 3 other seeds"}[seeds]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"(the widest tolerance of an accuracy: {want})")


def test_a_seed_counts_once_however_often_it_was_attacked(store, grid, cell, capsys):
    """The other tier of the replayed seed has the same weights; of another seed's two records, the one attacked alike
    says more."""

    def attacked_otherwise(config, tier, **metrics):
        records.write(record_of(RunConfig(**{**config.model_dump(), "autoattack": tier}), **metrics))

    records.write(record_of(cell, screening_accuracy=0.5, n_eval=100))
    attacked_otherwise(cell, "standard", screening_accuracy=0.5, n_eval=100)
    others = [c for c in Grid.load(grid).cells().values() if c.seed != cell.seed]
    for config, value in zip(others, [0.3, 0.5, 0.7], strict=False):
        records.write(record_of(config, screening_accuracy=value, n_eval=100))
        attacked_otherwise(config, "none", n_eval=100)
    (store / f"seed-{cell.seed}.json").write_text(record_of(cell, screening_accuracy=0.51, n_eval=100).to_json())
    assert runs.main(["replay", cell.run_id]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("points, from 3 other seeds)")


def test_a_replay_of_which_nothing_that_changed_can_be_judged_says_so(store, cell, capsys):
    """No other seed tells how far a loss may move."""
    records.write(record_of(cell, clean_loss=0.5))
    (store / f"seed-{cell.seed}.json").write_text(record_of(cell, clean_loss=0.6).to_json())
    assert runs.main(["replay", cell.run_id]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "not judged: 6 identical, 1 not judged"


def test_a_replay_that_fails_says_where_its_notebook_is(store, grid, monkeypatch):
    (failing,) = (config for config in Grid.load(grid).cells().values() if config.seed == 2)
    records.write(record_of(failing))
    monkeypatch.setenv("TMPDIR", str(store))
    command = [sys.executable, "-m", "rctaf.runs", "replay", failing.run_id]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (left,) = store.glob("rctaf-replay-*")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]  # above it, the libraries of the dying kernel may have said something too
    assert said.startswith(f"{failing.run_id}: ")
    assert said.endswith(f"ValueError: made to fail; what it left is in {left}")
    assert "made to fail" in (left / "local" / failing.run_id / "notebook.partial.ipynb").read_text()


def test_a_replay_has_the_threads_of_the_record_and_says_how_it_ended(store, cell, monkeypatch, capsys):
    old = record_of(cell)
    old.provenance["threads"] = 3
    records.write(old)
    monkeypatch.setattr(tempfile, "tempdir", str(store))
    ends = {0.8: (0, "bit-identical: all 6 values"), 0.81: (0, "within tolerance: "), 0.2: (1, "different: ")}
    for clean, (status, words) in ends.items():

        def execute(config, clean=clean):
            assert os.environ["OMP_NUM_THREADS"] == "3"
            records.write(record_of(config, clean))

        monkeypatch.setattr("rctaf.replay.execute", execute)
        assert runs.main(["replay", cell.run_id]) == status
        assert capsys.readouterr().out.splitlines()[-1].startswith(words)
    assert not list(store.glob("rctaf-replay-*"))
    assert records.load(cell.run_id).metrics == old.metrics


def test_counting_images_near_none_and_all_is_uncertain_by_one():
    one = (0.01 * 0.99 / 100) ** 0.5  # of 100 images
    for none, every, name in ((0.0, 1.0, "pgd20_accuracy"), (0, 100, "autoattack.robust")):
        scale = 1 if name == "pgd20_accuracy" else 100
        for value in (none, every):
            assert counting_error(f"metrics.{name}", value, {"n_eval": 100, "n_test": 7}) == pytest.approx(scale * one)
    assert counting_error("metrics.clean_accuracy", 0.5, {"n_eval": 7, "n_test": 100}) == pytest.approx(0.05)
    assert counting_error("metrics.clean_loss", 0.5, {"n_eval": 100, "n_test": 100}) == 0


@pytest.mark.parametrize("seeds", [4, 10])
def test_a_run_as_far_away_as_another_seed_is_rarely_called_different(seeds):
    """Chaos makes the replay another draw: 20 values of unequal scale, none may leave its tolerance but in 1 %."""
    rng, values, replays = np.random.default_rng(0), 20, 500
    scale = 10.0 ** rng.integers(-3, 4, size=values)
    wrong = 0
    for _ in range(replays):
        draws = scale * rng.normal(5, 1, size=(seeds + 1, values))  # the last is the replay
        allowed = [tolerance(d[0], list(d[1:-1]), 0.0, values) for d in draws.T]
        wrong += bool((abs(draws[0] - draws[-1]) > np.array(allowed)).any())
    share = wrong / replays
    assert share <= LEVEL + 4 * (LEVEL / replays) ** 0.5  # Bonferroni is an upper bound; 4 standard errors
    assert tolerance(5.0, [4.0, 5.0, 6.0], 0.0, values) < tolerance(5.0, [4.0, 5.0, 6.0], 0.0, 10 * values)


def test_comparison_of_two_records(cell):
    def measured(clean, hessian, attack="a", robust=250, last=2.0, **other):
        attacked = {"robust": robust, "implementation": attack, "seconds": time.time()}
        return record_of(cell, clean, hessian=hessian, autoattack=attacked, layers=[1.0, last], n_eval=400, **other)

    def verdicts(new, siblings=()):
        return {name: (allowed, verdict) for name, *_, allowed, verdict in compare(old, new, list(siblings))}

    old = measured(0.8, 2.0)
    assert {verdict for _, verdict in verdicts(measured(0.8, 2.0)).values()} == {"identical"}  # durations apart

    said = verdicts(measured(0.83, 2.1, "b", robust=260, last=2.5))
    # the deviation of the difference of two counts, of 500 images for clean accuracy, of 400 that were attacked, times
    # the normal quantile that one of the 11 numbers exceeds in 1 % of all cases
    z = 3.317  # two-sided 0.01 / 11
    assert said["metrics.clean_accuracy"] == (
        pytest.approx(z * (2 * 0.8 * 0.2 / 500) ** 0.5, rel=1e-2),
        "within tolerance",
    )
    assert said["metrics.autoattack.robust"] == (
        pytest.approx(z * (2 * 250 * 150 / 400) ** 0.5, rel=1e-2),
        "within tolerance",
    )
    assert said["metrics.hessian"] == said["metrics.layers.1"] == (None, "not judged")
    assert said["metrics.autoattack.implementation"] == (None, "not judged")
    assert said["metrics.layers.0"] == (None, "identical")

    assert verdicts(measured(0.8, 2.00001))["metrics.hessian"] == (None, "within tolerance")  # rounding

    siblings = [measured(0.8, hessian) for hessian in (1.9, 2.0, 2.1)]
    spread = tolerance(2.0, [1.9, 2.0, 2.1], 0.0, 11)
    assert verdicts(measured(0.8, 2 + 0.99 * spread), siblings)["metrics.hessian"] == (spread, "within tolerance")
    assert verdicts(measured(0.8, 2 + 1.01 * spread), siblings)["metrics.hessian"] == (spread, "different")
    assert verdicts(measured(0.5, 2.0))["metrics.clean_accuracy"][1] == "different"
    assert verdicts(measured(None, 2.0))["metrics.clean_accuracy"][1] == "different"
    assert verdicts(measured(0.8, 2.0, extra=1))["metrics.extra"][1] == "not judged"  # the code has learnt it since
    # what every seed has is known to have no scatter; but where a measurement stopped is a rule's choice
    siblings = [measured(0.8, hessian, parameters=100, probes=64) for hessian in (1.9, 2.0, 2.1)]
    fixed = measured(0.8, 2.0, parameters=100, probes=64)
    changed = measured(0.8, 2.0, parameters=200, probes=96)
    found = {name: verdict for name, *_, verdict in compare(fixed, changed, siblings)}
    assert found["metrics.parameters"] == "different"
    assert found["metrics.probes"] == "not judged"
    lost = {name: verdict for name, *_, verdict in compare(measured(0.8, 2.0, extra=1), old, [])}
    assert lost["metrics.extra"] == "different"


RECORDS = {  # all from a clean commit
    "2ee70a417259": "TRADES, order 2 at max|σ″| = 7, seed 1",
    "cc154e1f6be9": "TRADES, GELU, seed 1",
    "3e016d04cf74": "ACAT, order 1 at max|σ″| = 7, seed 0",
    "23a5fbd35782": "DKL, order 1 at max|σ″| = 7, seed 0",
    "cb95755b3b28": "standard training, order 1 at max|σ″| = 7, seed 1",
}


@pytest.mark.parametrize("run_id", RECORDS)
def test_record_replays(run_id):
    done = subprocess.run([sys.executable, "-m", "rctaf.runs", "replay", run_id], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(("bit-identical:", "within tolerance:", "not judged:"))
