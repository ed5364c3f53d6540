"""What a grid will cost: measured times, multiplied."""

import json
import shlex
from dataclasses import replace

import pytest
from synthetic import record_of

from rctaf import records
from rctaf.config import Grid, RunConfig
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


def test_times_are_medians_and_a_resumed_run_says_nothing_of_its_evaluation(store, grid, cell, capsys):
    # epochs of 2 s, 2 s and 50 s; 26 s after training, 26 s, and none: that run's first attempt is not in its time
    first, second, third, *_ = Grid.load(grid).cells().values()
    for config, seconds, wall in ((first, 2.0, 30.0), (second, 2.0, 30.0), (third, 50.0, 4.0)):
        made = record_of(config)
        made.history["seconds"] = [seconds] * 2
        records.write(replace(made, provenance=made.provenance | {"wall_s": wall}))
    plan(grid)
    assert f"about {3 * 30 / 3600:.2g} hours of one CPU thread (x86_64 CPU) for 3 of" in capsys.readouterr().out
    for config in (first, second):
        records.local_dir(config.run_id).joinpath("run.json").unlink()
    plan(grid)
    assert "training alone" in capsys.readouterr().out  # nothing is known of what comes after it


def test_hours_of_eight_threads_are_not_those_of_one(store, grid, capsys):
    first, second, third, *_ = Grid.load(grid).cells().values()
    for config, seconds, place in (
        (first, 2.0, {}),
        (second, 0.5, {"threads": 8}),
        (third, 0.25, {"device": "H200", "threads": 8}),
    ):
        made = record_of(config)
        made.history["seconds"] = [seconds] * 2
        records.write(replace(made, provenance=made.provenance | {"wall_s": 3 * seconds} | place))
    plan(grid)
    said = capsys.readouterr().out.splitlines()[2:]
    assert sorted(said) == [
        f"  about {3 * 0.75 / 3600:.2g} GPU-hours (H200) for 3 of them",
        f"  about {3 * 1.5 / 3600:.2g} hours of 8 CPU threads (x86_64 CPU) for 3 of them",
        f"  about {3 * 6 / 3600:.2g} hours of one CPU thread (x86_64 CPU) for 3 of them",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        *(
            (settings, "no epoch like those of 1 was timed yet")
            for settings in (
                {"attack_steps": 4}, {"attack_schedule": "as_released"}, {"method": "mart"}, {"awp": 0.005},
                {"precision": "bf16"}, {"compiled": True}, {"network": "resnet18"}, {"width": 4}, {"norm": "none"},
                {"n_train": 100}, {"augment": "crop"}, {"batch_size": 64}, {"dataset": "fashion_mnist"},
            )
        ),
        *(
            (settings, "for the training alone of 1 of them")
            for settings in (
                {"n_eval": 7}, {"epsilon_larger": "0.3"}, {"autoattack": "standard"}, {"hessian_images": 3},
                {"hessian_probes": 64},
            )
        ),
        *(
            (settings, f"about {30 / 3600:.2g} hours of one CPU thread (x86_64 CPU) for 1 of them")
            for settings in ({"seed": 8}, {"alpha": 3}, {"beta": 2}, {"activation": "relu"}, {"lr": 0.2})
        ),
    ],
)  # fmt: skip
def test_what_a_time_depends_on(store, grid, cell, capsys, settings, said):
    records.write(record_of(cell))
    base = json.dumps({"epochs": 2, **settings})
    grid.write_text(f"name: g\nscale: s\nblocks: [{{base: {base}}}]")
    plan(grid)
    assert said in capsys.readouterr().out


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
