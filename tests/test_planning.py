"""What a grid will cost: measured times, multiplied."""

import json
import shlex

import pytest
from synthetic import record_of

from rctaf import records
from rctaf.config import RunConfig
from rctaf.planning import plan


def test_plan_multiplies_measured_times(store, grid, cell, capsys):
    # 2 epochs of 2 s and 26 s of evaluation, of 30 s in all; a sibling of 200 epochs: 426 s
    records.write(record_of(cell))
    plan(grid)
    out = capsys.readouterr().out
    assert "6 runs, 1 done, 5 to run" in out
    assert f"about {5 * 30 / 3600:.2g} hours of one CPU thread (x86_64 CPU) for 5 of them\n" in out
    longer = grid.with_name("longer.yaml")
    longer.write_text(
        "name: longer\nscale: none\nblocks: [{axes: {epochs: [200], method: [trades, standard]}}, "
        "{axes: {epochs: [100], seed: [1, 2], n_eval: [50]}}]"
    )
    plan(longer)
    out = capsys.readouterr().out
    assert f"about {426 / 3600:.2g} hours of one CPU thread (x86_64 CPU) for 1 of them\n" in out
    # 100 images attacked were never timed, epochs of this network were
    assert f"about {2 * 200 / 3600:.2g} hours of one CPU thread (x86_64 CPU) for the training alone of 2 of" in out
    assert "no epoch like those of 1 was timed yet" in out


AVERAGED = "base: {method: dkl, awp: 0.005, awp_from: 5, averaging: epoch, averaging_decay: 0.9, averaging_from: 7}"


@pytest.mark.parametrize("settings", ["", AVERAGED, "base: {recipe: trades, network: resnet18, activation: relu}"])
def test_what_nobody_timed_is_timed_by_one_command(store, grid, capsys, settings):
    grid.write_text(f"name: g\nscale: s\n{settings}\nblocks: [{{axes: {{seed: [0, 1]}}}}]")
    plan(grid)
    *_, said, typed = capsys.readouterr().out.splitlines()
    assert "no epoch like those of 2 was timed yet" in said
    command, notebook, _, option, given = shlex.split(typed)
    assert (command, notebook, option) == ("papermill", "notebooks/experiments/run.ipynb", "-y")
    short = RunConfig(**json.loads(given))
    assert (short.epochs, short.n_eval) == (1, 100)
    assert short.awp_from in (None, 1)
    records.write(record_of(short))
    plan(grid)
    assert "for the training alone of 2 of them" in capsys.readouterr().out
