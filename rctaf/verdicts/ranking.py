"""The rules on Table 1: RCT-AF against the common activations."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd

from rctaf import paper
from rctaf.names import DATASETS, activation_name
from rctaf.statistics import critical_difference, holm, minimum_detectable_difference, paired_difference, seed_deviation
from rctaf.verdicts.common import MIN_SEEDS, TUNED, Verdict, outcome_of, too_few_seeds
from rctaf.words import count, listed, points

PRINTED_IMAGES = 10_000  # the test set of CIFAR-10, behind every number of the paper's Table 1


def single_runs_differ(frame: pd.DataFrame, value: str, claim: str, printed_points: float) -> Verdict:
    """Table 1: can ``printed_points`` percentage points between two single runs of the paper be told from seed noise?

    The noise is that of the records: the deviation s between seeds within a cell, pooled (see
    :func:`rctaf.statistics.seed_deviation`). Carried over to the paper's larger test set it lies between s (each run
    as a whole is better or worse) and s √(n / 10,000) (single images fall either way, independently; n were attacked
    here). From each end follows what two single runs must differ by to be told apart at the 5 % level
    (:func:`rctaf.statistics.critical_difference`).

    Supported: the printed difference is above both. Not testable: below both, or no run here differs from that of
    another seed. Else undecided. The noise of another data set and network is a stand-in for the paper's own, which one
    run per row does not reveal; the deviation at which the outcome would turn is therefore part of the sentence.
    """
    needed = printed_points / critical_difference(1.0)
    printed = (
        f"Printed: {printed_points:.2f} points between two single runs; significant at the 5 % level only if the "
        f"standard deviation between seeds is below {count(f'{needed:.2g}', 'point')}"
    )
    rows = frame[frame[value].notna()] if value in frame else frame.iloc[:0]
    cells = rows.groupby(["activation", "beta", "curvature"], dropna=False)["seed"]
    seeds = sorted((set(cell) for _, cell in cells), key=len)
    if not seeds or len(seeds[-1]) < MIN_SEEDS:
        return Verdict(claim, f"{printed}. No cell of these records has {MIN_SEEDS} seeds.", "not testable")
    if len(set.intersection(*(cell for cell in seeds if len(cell) == len(seeds[-1])))) < MIN_SEEDS:
        words = f"{printed}. The cells with the most seeds have fewer than {MIN_SEEDS} in common"
        return Verdict(claim, f"{words}.", "not testable")
    s, df = seed_deviation(rows.assign(points=100 * rows[value].astype(float)), "points")
    if s.value == 0:  # as where a network learned nothing, or an attack everything
        return Verdict(claim, f"{printed}. The runs here do not differ between seeds.", "not testable")
    images = float(rows["n_eval"].min())
    shrunk = s.value * math.sqrt(min(1.0, images / PRINTED_IMAGES))
    low, high = (critical_difference(sd, df=df) for sd in (shrunk, s.value))
    data = " and ".join(DATASETS[name] for name in sorted(set(rows["dataset"])))
    instead = "" if data == DATASETS["cifar10"] else f", not {DATASETS['cifar10']}"
    words = (
        f"{printed}. In the records here, of {data}{instead}, it is {count(f'{s.value:.2g}', 'point')} (95 % interval "
        f"{s.low:.2g} to {s.high:.2g}, {df:.0f} degrees of freedom, {images:.0f} images attacked): two single runs "
        f"must differ by {count(f'{high:.2g}', 'point')} to be told apart; 80 % power would need a true difference of "
        f"{minimum_detectable_difference(s.value, df=df):.2g} points. If all noise were per image, "
        f"{PRINTED_IMAGES:,} test images would lower the threshold to {count(f'{low:.2g}', 'point')}"
    )
    outcome = "supported" if printed_points > high else "not testable" if printed_points < low else "undecided"
    return Verdict(claim, f"{words}.", outcome)


def tuned_beat_common(frame: pd.DataFrame, value: str) -> Verdict:
    """Table 1, with the runs of this scale: every order at max|sigma''| = 7 against every common activation of the
    table, by seed.

    Supported: every difference is above 0 (its 95 % interval; the claim is all of them at once). Not supported:
    some is below 0 (p < 0.05 after Holm). Else undecided. Not testable: an activation of the table has no run here, or
    fewer than ``MIN_SEEDS`` seeds have a run of each.
    """
    claim = f"Here, every order at max|σ″| = {TUNED:g} is more robust than every common activation of Table 1."
    family = frame["activation"] == "rctaf"
    at_tuned = np.isclose(frame["curvature"].astype(float), TUNED)
    rows = frame[(~family | at_tuned) & (frame[value].notna() if value in frame else False)]
    names = [f"rctaf β={int(r['beta'])}" if r["activation"] == "rctaf" else r["activation"] for _, r in rows.iterrows()]
    if missing := [name for name in paper.TABLE_1 if name not in names]:
        return Verdict(claim, f"No run here of {listed([activation_name(name) for name in missing])}.", "not testable")
    runs = rows.assign(name=names).pivot_table(values=value, index="seed", columns="name")
    runs = runs[list(paper.TABLE_1)].dropna()
    if len(runs) < MIN_SEEDS:
        return Verdict(claim, too_few_seeds(len(runs), MIN_SEEDS), "not testable")
    tuned = [name for name in paper.TABLE_1 if name.startswith("rctaf")]
    common = [name for name in paper.TABLE_1 if name not in tuned]
    tests = {(a, b): paired_difference(runs[a].tolist(), runs[b].tolist()) for a, b in itertools.product(tuned, common)}
    differences = [test.difference for test in tests.values()]
    corrected = holm([test.p_different for test in tests.values()])
    lower = any(p < 0.05 and d.value < 0 for p, d in zip(corrected, differences, strict=True))
    above = all(d.low > 0 for d in differences)
    a, b = min(tests, key=lambda pair: tests[pair].difference.value)
    means = runs.mean().sort_values()[::-1]
    ranking = ", ".join(f"{activation_name(str(name))} {100 * mean:.2f} %" for name, mean in means.items())
    words = (
        f"Means: {ranking}. {sum(d.value > 0 for d in differences)} of {len(tests)} mean differences are above 0; the "
        f"lowest, {activation_name(a)} minus {activation_name(b)}: {points(tests[a, b].difference)}, "
        f"{len(runs)} seeds."
    )
    return Verdict(claim, words, outcome_of(above, lower))


def table_1(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """Table 1: its ranking in the runs of this scale, and what its single runs can say, given the seed noise here."""
    ranking = replace(tuned_beat_common(frame, value), topic="Table 1: RCT-AF beats all others, in the runs here")
    return [ranking, *table_1_as_printed(frame, value)]


def table_1_as_printed(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """What the single runs that the paper printed in Table 1 can say, given the seed noise here."""
    orders = {name: row[1] for name, row in paper.TABLE_1.items() if name.startswith("rctaf")}
    others = {name: row[1] for name, row in paper.TABLE_1.items() if name not in orders}
    best, rival = max(orders, key=orders.__getitem__), max(others, key=others.__getitem__)
    worst, second, _ = sorted(orders.values())
    return [
        replace(
            single_runs_differ(
                frame,
                value,
                f"The table's single runs show that every order at max|σ″| = {TUNED:g} is more robust than every "
                f"common activation (at least {worst:.2f} % against at most {others[rival]:.2f} %, "
                f"{activation_name(rival)}).",
                worst - others[rival],
            ),
            topic="Table 1: RCT-AF beats all others, in its single runs",
        ),
        replace(
            single_runs_differ(
                frame,
                value,
                f"A ranking that the table might suggest, not claimed by the paper: at max|σ″| = {TUNED:g}, "
                f"{activation_name(best)} is the best of the three orders "
                f"({orders[best]:.2f} % against {', '.join(f'{v:.2f} %' for k, v in orders.items() if k != best)}).",
                orders[best] - second,
            ),
            topic="Table 1: best order, in its single runs (no claim)",
        ),
    ]
