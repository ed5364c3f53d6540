"""Simulated experiments: truth and noise are as asked for, and the committed ones are of the committed records."""

import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from synthetic import fill

from rctaf import power
from rctaf.config import Grid
from rctaf.evidence import Evidence
from rctaf.records import ROOT
from rctaf.statistics import noise_parts
from rctaf.verdicts import BAND

CURVATURES = [0.25, 0.5, 1, 2, 4, 7, 10, 15, 25, 50]
BEYOND = {0: 0.03, 1: 0.04, 2: 0.06}  # what each order loses within a factor of four from the peak


def measured(at: float = 1.0) -> pd.DataFrame:
    """Curves of three orders that peak at ``at`` and differ on both sides of it."""
    log_c = np.log2(np.array(CURVATURES) / at)
    curves = {
        order: 0.8 + 0.02 * (1 + 0.1 * order) * np.minimum(log_c, 0) - lost * np.clip(log_c / 2, 0, 1)
        for order, lost in BEYOND.items()
    }
    return pd.DataFrame(curves, index=pd.Index(CURVATURES, name="curvature"))


def test_the_noise_is_as_asked_for():
    rng = np.random.default_rng(0)
    curves = measured()
    squares = []
    for _ in range(100):
        rows = power.experiment(curves, (0.02, 0.01), 5, rng)
        assert len(rows) == 3 * 10 * 5
        seed, run = noise_parts(rows, power.VALUE)
        squares.append((seed**2, run**2))
    for found, truth in zip(np.transpose(squares), (0.02, 0.01), strict=True):
        assert found.mean() == pytest.approx(truth**2, abs=4 * found.std() / 10)
    for row in power.experiment(curves, (0.0, 0.0), 2, rng).to_dict("records"):
        assert row[power.VALUE] == curves.loc[row["curvature"], row["beta"]]


def test_the_paper_is_right_on_the_curves_made_for_it():
    means = measured()
    curves = power.true_curves(means)[power.TRUE]
    middle = math.sqrt(BAND[0] * BAND[1])
    rise = curves[curves.index < middle]
    assert (rise.diff().dropna() > 0).all().all()
    np.testing.assert_allclose(rise, np.repeat(rise[[0]], 3, axis=1))  # one curve up to the peak
    assert rise.loc[0.25, 0] == pytest.approx(means.loc[0.25].mean())  # and all of the measured rise
    for order, lost in BEYOND.items():
        assert curves.loc[50, order] == pytest.approx(0.8 - lost)  # and of the fall
    # a factor of two from the peak is one: at 7 and 10 as at 7 / 6.3 and 10 / 6.3
    for c in (7, 10):
        expected = [np.interp(math.log(c / middle), np.log(means.index), means[order]) for order in means]
        assert curves.loc[c].tolist() == pytest.approx(expected)
    flat = power.true_curves(means)[power.FLAT]
    np.testing.assert_allclose(flat, means.mean().mean())
    assert power.true_curves(means)[power.MEASURED] is means


@pytest.mark.parametrize("noise", [(0.0, 0.0), (0.01, 1e-6)])
def test_without_noise_the_right_outcome_comes_every_time(noise):
    curves = power.true_curves(measured())
    for seeds in (5, 10):
        assert list(power.outcomes(curves[power.TRUE], noise, seeds, 2).values()) == ["ss"] * 7
    # of the curves made here: no peak in the band, orders apart and a turn below 4; the rest is true of them
    found = list(power.outcomes(curves[power.MEASURED], noise, 5, 2).values())
    assert found == ["nn", "nn", "nn", *found[3:5], "ss", "ss"]
    assert power.outcomes(curves[power.FLAT], (0.01, 1e-6), 5, 2)[power.TRUE_IF_FLAT] == "ss"


def test_what_was_simulated_is_of_the_committed_records():
    document = power.load()
    scale = Evidence.of(power.GRID)
    means, noise = power.estimated(scale.frame, scale.robustness)
    assert (document["seed_deviation"], document["run_deviation"]) == pytest.approx(noise)
    np.testing.assert_allclose(np.transpose(list(document["means"].values())), means)
    assert document["runs"] == 3 * 10 * 10
    curves = power.true_curves(means)
    assert [(case["curves"], case["seeds"]) for case in document["cases"]] == list(power.CASES)
    for case in document["cases"]:
        again = power.outcomes(curves[case["curves"]], noise, case["seeds"], 2)
        assert {topic: found[:2] for topic, found in case["outcomes"].items()} == again
        assert {len(found) for found in case["outcomes"].values()} == {document["experiments"]}


def test_the_table_and_its_lessons(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    assert power.load() is None
    made = {
        power.TRUE_IF_FLAT: {(power.TRUE, 5): "uuuu", (power.TRUE, 10): "suuu", (power.FLAT, 10): "ssss"},
        "Fig. 3: a rise": {(power.TRUE, 5): "ssun", (power.TRUE, 10): "ssss", (power.FLAT, 10): "uuns"},
    }
    document = {
        "grid": power.GRID, "runs": 300, "experiments": 4, "seed_deviation": 0.01, "run_deviation": 0.02,
        "cases": [
            {"curves": name, "seeds": seeds,
             "outcomes": {topic: cases.get((name, seeds), "nnnn") for topic, cases in made.items()}}
            for name, seeds in power.CASES
        ],
    }  # fmt: skip
    (tmp_path / "power.json").write_text(json.dumps(document))
    assert power.load() == document
    table = power.table(document).data
    heads = ["claim", *(f"{name}, {seeds} seeds" for name, seeds in power.CASES)]
    assert re.findall('<th scope="col">(.*?)</th>', table) == heads
    assert "<td>50 / 25 / 25</td><td>100 / 0 / 0</td><td>0 / 0 / 100</td><td>25 / 50 / 25</td>" in table
    assert power.lessons(document) == (
        "Were every claim true, 10 seeds would show it in at least 80\u00a0% of experiments for: a rise (100\u00a0%). "
        "For the others *undecided* is what a true claim often gets, and refutes nothing: orders coincide below 4 "
        "(25\u00a0%). A true claim is called *not supported* in at most 25.0\u00a0% of experiments; one that is false "
        "because nothing has an effect is called *supported* in at most 25.0\u00a0%."
    )
    document["cases"] = [case for case in document["cases"] if (case["curves"], case["seeds"]) != (power.TRUE, 10)]
    assert power.table(document).data.count('<th scope="col">') == 1 + 3  # what is in the file, whatever CASES are now
    assert power.lessons(document).startswith("Were every claim true, 5 seeds would show it in at least 80\u00a0% of")
    words = power.describe(document)
    assert words.startswith("4 simulated experiments of each kind, with the orders and curvatures of digits/figure_3.")
    assert "(standard deviation 1.00 points) and noise of its own (2.00 points), as estimated from 300 runs." in words


@pytest.mark.parametrize("words", [["--help"], []])
def test_nothing_is_simulated_for_who_asks_for_help_or_has_no_records(tmp_path, words):
    command = [sys.executable, "-m", "rctaf.power", *words]
    environment = os.environ | {"RCTAF_RESULTS": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if words:
        assert (done.returncode, done.stdout.split()[:2]) == (0, ["usage:", "python"])
    else:
        said = f"the records of {power.GRID} under {tmp_path} have 0 complete seeds, expected at least two: "
        assert (done.returncode, done.stderr) == (1, f"{said}python -m rctaf.runs run {power.GRID}\n")
    assert not list(tmp_path.iterdir())


def test_a_simulation_is_written_into_the_store(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    monkeypatch.setattr(power, "EXPERIMENTS", 1)
    monkeypatch.setattr(power, "CASES", ((power.TRUE, 5),))
    fill(Grid.load(ROOT / power.GRID), peak=7, hessian_least=7, seeds=3)
    assert power.main([]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'power.json'}\n"
    document = power.load()
    assert (document["runs"], document["experiments"]) == (3 * 10 * 3, 1)
