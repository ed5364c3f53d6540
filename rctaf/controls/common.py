"""What the rules of the controls share: which runs are judged, and the comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from rctaf.config import Grid, RunConfig
from rctaf.records import Record, table
from rctaf.statistics import Estimate, holm, orders_coincide, paired_difference
from rctaf.verdicts import (
    MARGIN,
    MIN_SEEDS,
    Verdict,
    alike,
    outcome_of,
    sign,
    too_few_seeds,
    why_alike,
    why_orders_alike,
)
from rctaf.words import points

POST_HOC = "Post hoc: this rule was made or changed after runs had been seen."
ORDERS = (0, 1, 2)  # of the paper's figures


def complete(grid: Grid, records: Sequence[Record], chosen: Callable[[RunConfig], bool] = bool) -> pd.DataFrame:
    """The records (see :func:`rctaf.records.table`) of the seeds for which every chosen run of the grid has one."""
    wanted = {run_id: config for run_id, config in grid.cells().items() if chosen(config)}
    have = {record.run_id: record for record in records if record.run_id in wanted}
    missing = {config.seed for run_id, config in wanted.items() if run_id not in have}
    return table(record for record in have.values() if record.config.seed not in missing)


def of_family(config: RunConfig) -> bool:
    """Whether the activation is RCT-AF."""
    return config.activation == "rctaf"


def twins(grid: Grid) -> Callable[[RunConfig], bool]:
    """Chooses the RCT-AF runs of another grid that have a curvature, seed and length of this one."""

    def place(config: RunConfig) -> tuple[float | None, int, int]:
        return config.equal_curvature, config.seed, config.epochs

    places = {place(config) for config in grid.cells().values()}
    return lambda config: of_family(config) and place(config) in places


def common_seeds(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the seeds that both frames have."""
    seeds = set(a["seed"]) & set(b["seed"])
    return a[a["seed"].isin(seeds)], b[b["seed"].isin(seeds)]


def verdict_on(
    claim: str, frame: pd.DataFrame, judge: Callable[[pd.DataFrame], tuple[str, str]], *, post_hoc: bool = False
) -> Verdict:
    """A claim judged on complete seeds by a rule, which gives words and an outcome; not testable where they are few."""
    seeds = frame["seed"].nunique()
    if seeds < MIN_SEEDS:
        words, outcome = too_few_seeds(seeds, MIN_SEEDS), "not testable"
    else:
        words, outcome = judge(frame)
    return Verdict(claim, f"{words} {POST_HOC}" if post_hoc else words, outcome)


def by_seed(rows: pd.DataFrame, value: str) -> np.ndarray:
    """The mean of each seed, in the order of the seeds."""
    return rows.groupby("seed")[value].mean().to_numpy(float)


def same(pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]], value: str) -> tuple[str, str]:
    """Do two kinds of run end alike, in every comparison?

    Supported: every mean difference is equivalent to 0 within ``MARGIN`` (two one-sided tests, p < 0.05). Not
    supported: some differs from 0 (p < 0.05 after Holm). Else undecided.
    """
    tests = {name: paired_difference(by_seed(a, value), by_seed(b, value), MARGIN) for name, (a, b) in pairs.items()}
    words = "; ".join(f"{name}: {points(test.difference)}" for name, test in tests.items())
    n = next(iter(tests.values())).difference.n
    equal = all(test.p_equivalent < 0.05 for test in tests.values())
    p = min(holm([test.p_different for test in tests.values()]))
    outcome = outcome_of(equal, p < 0.05)
    clearest = min(tests, key=lambda name: tests[name].p_different)
    why = why_alike(outcome, clearest, tests[clearest].difference.value, float(p))
    return f"{words}; 95 % intervals over {n} seeds. In all, {why}.", outcome


def orders_alike(rows: pd.DataFrame, value: str, label: str, name: str) -> tuple[str, str]:
    """Do the orders end alike at every place of a label, in words ``name``?

    Supported: every pair is equivalent within ``MARGIN`` at every place (two one-sided tests, p < 0.05 each). Not
    supported: some pair differs at some place (p < 0.05 after Holm). Else undecided.
    """
    pairs = orders_coincide(rows.assign(curvature=rows[label]), value, below=math.inf, margin=MARGIN)
    words = "; ".join(
        f"order {p['orders']}: {100 * p['difference']:+.2f} on average, largest "
        f"{points(Estimate.of(p, 'largest'))} at {name} {p['at']:.3g}"
        for p in pairs.to_dict("records")
    )
    n, places = pairs["n"].iloc[0], pairs["curvatures"].iloc[0]
    why = why_orders_alike(pairs, name)
    return f"Differences, first minus second: {words}; {n} seeds, {places} places. In all, {why}.", alike(pairs)


def higher(words: str, a: np.ndarray, b: np.ndarray) -> tuple[str, str]:
    """Is a above b? Rule: see :func:`rctaf.verdicts.sign`.

    *Barely* is said where the end of the interval that decides is closer to 0 than a tenth of the estimate.
    """
    d = paired_difference(a, b).difference
    outcome = sign(d)
    end = d.low if outcome == "supported" else d.high
    side = "above" if outcome == "supported" else "below"
    barely = f", barely {side} 0" if outcome != "undecided" and abs(end) < abs(d.value) / 10 else ""
    return f"{words}: {points(d)}, 95 % interval over {d.n} seeds{barely}.", outcome
