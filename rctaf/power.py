"""How often the rules of Fig. 3 find what is true: their outcomes in simulated experiments.

A simulated run of order and curvature is a true value, plus what the runs of its seed share, plus noise of its own,
both normal with the deviations of the records (:func:`rctaf.statistics.noise_parts`). An experiment has the cells of
the records' grid; :func:`rctaf.verdicts.figure_3` judges it like any other. ``python -m rctaf.power`` makes
``results/power.json`` from the records of ``GRID``, in some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML

from rctaf._startup import command
from rctaf.evidence import Evidence
from rctaf.records import results_dir, write_text
from rctaf.statistics import noise_parts
from rctaf.tables import html_table
from rctaf.verdicts import BAND, complete_seeds, figure_3
from rctaf.words import count, listed, typeset

GRID = "grids/digits/figure_3.yaml"
EXPERIMENTS = 200
ENOUGH = 0.8  # of the experiments: the power that is usually asked for
TRUE, MEASURED, FLAT = "as the paper has it", "as measured", "flat"
CASES = ((TRUE, 5), (TRUE, 10), (MEASURED, 10), (FLAT, 10))  #: which curves, over how many seeds
TRUE_IF_FLAT = "Fig. 3: orders coincide below 4"
VALUE = "accuracy"
LETTERS = {"supported": "s", "undecided": "u", "not supported": "n", "not testable": "-"}

Document = dict[str, Any]


def true_curves(means: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The curves that are simulated, like ``means``: a row per curvature, a column per order, accuracies as shares.

    ``as measured``: the means. ``flat``: their mean everywhere, so that neither max|sigma''| nor the order has an
    effect. ``as the paper has it``: every claim of Fig. 3 is true, with the rise, the fall and the differences between
    orders that the means have. The curvature where the mean of the orders is highest is moved to the middle of the
    band, √(4 · 10), with a factor of two on either side; beyond, the axis is stretched so that the ends of the grid
    stay. Up to the peak all orders are the mean of the orders; from there each falls as its own means do. Between the
    tested curvatures lies a straight line in the logarithm.
    """
    tested = np.log(means.index.to_numpy(float))
    mean = means.mean(axis=1)
    top, middle, two = tested[mean.to_numpy().argmax()], math.log(BAND[0] * BAND[1]) / 2, math.log(2)
    low, high = tested[0], tested[-1]
    source = np.interp(tested, [low, middle - two, middle + two, high], [low, top - two, top + two, high])
    falls = {order: np.interp(source, tested, m) - np.interp(top, tested, m) for order, m in means.items()}
    claimed = {
        order: np.where(source <= top, np.interp(source, tested, mean), mean.max() + fall)
        for order, fall in falls.items()
    }
    return {
        TRUE: pd.DataFrame(claimed, index=means.index),
        MEASURED: means,
        FLAT: means * 0 + float(mean.mean()),
    }


def experiment(curves: pd.DataFrame, noise: tuple[float, float], seeds: int, rng: np.random.Generator) -> pd.DataFrame:
    """The rows of one simulated experiment; ``noise`` is that of a whole seed and that of a run."""
    orders, places = curves.columns.to_numpy(), curves.index.to_numpy(float)
    shape = (seeds, len(orders), len(places))
    shared, own = rng.standard_normal((seeds, 1, 1)), rng.standard_normal(shape)
    seed, beta, curvature = (part.ravel() for part in np.indices(shape))
    return pd.DataFrame(
        {
            "activation": "rctaf",
            "beta": orders[beta],
            "curvature": places[curvature],
            "seed": seed,
            VALUE: (curves.to_numpy(float).T + noise[0] * shared + noise[1] * own).ravel(),
        }
    )


def outcomes(curves: pd.DataFrame, noise: tuple[float, float], seeds: int, experiments: int) -> dict[str, str]:
    """By topic, a letter of :data:`LETTERS` per experiment; the first of them are the same however many follow."""
    found: dict[str, str] = {}
    for k in range(experiments):
        for verdict in figure_3(experiment(curves, noise, seeds, np.random.default_rng([seeds, k])), VALUE):
            found[verdict.topic] = found.get(verdict.topic, "") + LETTERS[verdict.outcome]
    return found


def estimated(frame: pd.DataFrame, value: str) -> tuple[pd.DataFrame, tuple[float, float]]:
    """The mean of every cell of RCT-AF (a row per curvature, a column per order), and the noise of a seed and a run."""
    rows = complete_seeds(frame, value)[["activation", "beta", "curvature", "seed", value]]
    return rows.pivot_table(values=value, index="curvature", columns="beta"), noise_parts(rows, value)


def simulate(frame: pd.DataFrame, value: str) -> Document:
    """What ``results/power.json`` holds: the curves and the noise, and the outcomes of every case."""
    means, noise = estimated(frame, value)
    curves = true_curves(means)
    return {
        "grid": GRID,
        "value": value,
        "runs": int(means.size * complete_seeds(frame, value)["seed"].nunique()),
        "experiments": EXPERIMENTS,
        "seed_deviation": noise[0],
        "run_deviation": noise[1],
        "means": {str(order): column.tolist() for order, column in means.items()},
        "cases": [
            {"curves": name, "seeds": seeds, "outcomes": outcomes(curves[name], noise, seeds, EXPERIMENTS)}
            for name, seeds in CASES
        ],
    }


def load() -> Document | None:
    """What was simulated last; None where nothing was."""
    path = results_dir() / "power.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def shares(document: Document) -> pd.DataFrame:
    """A row per topic, and columns (curves, seeds, outcome): the share of the experiments with this outcome."""
    return pd.DataFrame(
        {
            (case["curves"], case["seeds"], outcome): {
                topic: found.count(letter) / len(found) for topic, found in case["outcomes"].items()
            }
            for case in document["cases"]
            for outcome, letter in LETTERS.items()
        }
    )


def _cases(document: Document) -> list[tuple[str, int]]:
    """Which curves were simulated over how many seeds: :data:`CASES`, unless they have changed since."""
    return [(case["curves"], case["seeds"]) for case in document["cases"]]


def table(document: Document) -> HTML:
    """A row per claim, a column per case: supported / undecided / not supported, in per cent of the experiments."""
    found, simulated = shares(document), _cases(document)
    shown = ("supported", "undecided", "not supported")
    heads = "".join(f'<th scope="col">{name}, {seeds} seeds</th>' for name, seeds in simulated)
    lines = []
    for topic, row in found.iterrows():
        cells = (" / ".join(f"{100 * row[(*case, outcome)]:.0f}" for outcome in shown) for case in simulated)
        lines.append(
            f'<tr><th scope="row" style="font-weight: normal">{topic}</th>'
            f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    return html_table("table power", f'<tr><th scope="col">claim</th>{heads}</tr>', lines)


def describe(document: Document) -> str:
    """What was simulated, in a sentence or two."""
    return (
        f"{document['experiments']} simulated experiments of each kind, with the orders and curvatures of "
        f"{document['grid'].removeprefix('grids/').removesuffix('.yaml')}. A run is a true value, plus noise that its "
        f"seed shares (standard deviation {100 * document['seed_deviation']:.2f} points) and noise of its own "
        f"({100 * document['run_deviation']:.2f} points), as estimated from {document['runs']} runs."
    )


def lessons(document: Document) -> str:
    """What the table says about the rules, in sentences."""
    found = shares(document)
    claimed, flat = ([case for case in _cases(document) if case[0] == name] for name in (TRUE, FLAT))
    most = max(seeds for _, seeds in claimed)
    power = found[TRUE, most, "supported"].sort_values(ascending=False, kind="stable").to_dict()
    named = {f"{str(topic).removeprefix('Fig. 3: ')} ({100 * share:.0f} %)": share for topic, share in power.items()}
    often, seldom = (
        listed([name for name, share in named.items() if (share >= ENOUGH) is wanted]) for wanted in (True, False)
    )
    refuted = max(found[(*case, "not supported")].max() for case in claimed)
    believed = max(found[(*case, "supported")].drop(TRUE_IF_FLAT).max() for case in flat)
    words = [
        f"Were every claim true, {most} seeds would show it in at least {100 * ENOUGH:.0f} % of experiments for: "
        f"{often or 'none'}."
    ]
    if seldom:
        words.append(f"For the others *undecided* is what a true claim often gets, and refutes nothing: {seldom}.")
    words.append(
        f"A true claim is called *not supported* in at most {100 * refuted:.1f} % of experiments; one that is false "
        f"because nothing has an effect is called *supported* in at most {100 * believed:.1f} %."
    )
    return typeset(" ".join(words))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rctaf.power", description=f"Simulate from the records of {GRID}, into results/power.json."
    )
    parser.parse_args(argv)
    scale = Evidence.of(GRID)
    frame, value, path = scale.frame, scale.robustness, results_dir() / "power.json"
    seeds = complete_seeds(frame, value)["seed"].nunique() if value in frame else 0
    if seeds < 2:  # no noise can be told from one
        said = (
            f"the records of {GRID} under {results_dir()} have {count(seeds, 'complete seed')}, expected at least two"
        )
        print(f"{said}: python -m rctaf.runs run {GRID}", file=sys.stderr)
        return 1
    write_text(path, json.dumps(simulate(frame, value), indent=1, ensure_ascii=False) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    command(main)
