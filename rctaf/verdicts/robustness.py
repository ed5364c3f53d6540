"""The rules on Figures 3 to 6: robustness along the curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from rctaf.family import curvature
from rctaf.statistics import (
    Estimate,
    changes_beyond,
    holm,
    lower_beyond,
    mean_interval,
    orders_coincide,
    paired_difference,
    variance_between_orders,
)
from rctaf.verdicts.common import (
    ADDED,
    ADDED_MARK,
    BAND,
    BOOTSTRAP_SEEDS,
    CHANGED,
    FIT_CURVATURES,
    MARGIN,
    MIN_SEEDS,
    Place,
    Verdict,
    against_band,
    alike,
    in_band,
    inside_best,
    orders_of,
    outcome_of,
    places,
    rows_to_judge,
    shared_rows,
    sign,
    trend_below,
    why_orders_alike,
)
from rctaf.words import decimals, p_value, points


def peak_in_band(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3: robust accuracy is highest for max|sigma''| between 4 and 10. Rule: see :func:`in_band`."""
    claim = "Robustness peaks when max|σ″| lies between 4 and 10, in {orders}."
    return in_band(claim, "Place of the peak", frame, value, "max")


def same_peak(frame: pd.DataFrame, value: str, series: str) -> Verdict:
    """Fig. 4-6: the best curvature is the same for every network, or for every method (the column ``series``).

    Supported: the interval of every peak (see :func:`resolved`) lies inside the band. Not supported: two intervals
    have no curvature in common, or one lies wholly outside the band; for this the intervals are widened to the level
    0.05 divided by their number (Bonferroni). Else undecided. Not testable: fewer than two have ``BOOTSTRAP_SEEDS``
    complete seeds, or those that have do not refute the claim.
    """
    claim = f"Robustness peaks at the same max|σ″|, between 4 and 10, for every {series}, in {orders_of(frame)}."
    topic = f"Figs. 4 to 6: one peak between 4 and 10 for every {series}"
    words, few = [], []
    settled: list[Place] = []
    enough: list[pd.DataFrame] = []
    groups = frame.groupby(series)
    for name, part in groups:
        _, rows, stop = rows_to_judge(claim, part, value, curvatures=FIT_CURVATURES)
        found, seeds = [] if stop else places(rows, value, "max"), rows["seed"].nunique()
        words += [f"{name}, {place.words}" for place in found]
        if stop or seeds < BOOTSTRAP_SEEDS:
            few.append(f"{name} ({seeds})")
        else:
            settled += found
            enough.append(rows)
    if few:
        words.append(
            f"fewer than {BOOTSTRAP_SEEDS} complete seeds, or than {FIT_CURVATURES} curvatures, so not testable: "
            f"{', '.join(few)}"
        )
    measured = f"Place of the peak: {'; '.join(words)}."
    if len(groups) - len(few) < 2:
        return Verdict(claim, measured, "not testable", topic)
    wider = [place for rows in enough for place in places(rows, value, "max", 0.05 / len(settled))]
    apart = max(place.low for place in wider) > min(place.high for place in wider)
    refuted = apart or against_band(wider) == "not supported"
    outcome = outcome_of(against_band(settled) == "supported", refuted)
    if few and outcome != "not supported":  # some suffice to refute a claim about all, not to settle it
        outcome = "not testable"
    return Verdict(claim, measured, outcome, topic)


def _single_order_stops(claim: str, rows: pd.DataFrame) -> Verdict | None:
    """Orders cannot be compared where there is one."""
    if len(set(rows["beta"])) > 1:
        return None
    return Verdict(claim, f"Only order {rows['beta'].iloc[0]} has at least {MIN_SEEDS} seeds.", "not testable")


def orders_agree_below(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3b: below 4 the orders nearly coincide, at every curvature.

    Supported: every pair is equivalent within ``MARGIN`` at every curvature below 4 that all orders were run at (TOST,
    p < 0.05 each). Not supported: some pair differs at some curvature (p < 0.05 after Holm). Else undecided.
    """
    claim = "Below 4 the three orders nearly coincide: max|σ″| decides, not the functional form."
    claim, rows, stop = rows_to_judge(claim, frame, value)
    if stop := stop or _single_order_stops(claim, rows):
        return stop
    shared = shared_rows(rows)
    if not (shared["curvature"] < BAND[0]).any():
        return Verdict(claim, "The orders were not run at the same curvatures below 4.", "not testable")
    pairs = orders_coincide(shared, value, below=math.nextafter(BAND[0], 0), margin=MARGIN)
    words = "; ".join(
        f"order {p['orders']}: {points(Estimate.of(p, 'largest'))} at {p['at']:g}" for p in pairs.to_dict("records")
    )
    measured = (
        f"Largest of the mean differences, first minus second, at {pairs['curvatures'].iloc[0]} curvatures below 4: "
        f"{words}; {pairs['n'].iloc[0]} seeds. In all, {why_orders_alike(pairs, 'max|σ″|')}."
    )
    return Verdict(claim, measured, alike(pairs))


def rises_below(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3: too little curvature costs robustness. Rule: see :func:`trend_below`."""
    return trend_below("Below 4, robustness rises with max|σ″| (trend, mean of the orders).", frame, value)


def _beyond_stops(claim: str, rows: pd.DataFrame) -> Verdict | None:
    """A grid without a curvature in the band, or without one beyond it, cannot be judged."""
    for _, part in rows.groupby("beta"):
        if not part["curvature"].between(*BAND).any() or not (part["curvature"] > BAND[1]).any():
            return Verdict(claim, "An order was not run both between 4 and 10 and beyond 10.", "not testable")
    return None


def falls_beyond(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3: beyond 10 robustness falls. Contrast: mean beyond 10 minus mean over the band, by seed, in each order.

    Supported: lower in every order (p < 0.05 after Holm). Not supported: higher in some order (p < 0.05 after Holm,
    two-sided), or on the mean over orders (its interval above 0). Else undecided.
    """
    claim, rows, stop = rows_to_judge("Beyond 10, robustness falls in {orders}.", frame, value)
    if stop := stop or _beyond_stops(claim, rows):
        return stop
    result = lower_beyond(rows, value, band=BAND, beyond=BAND[1])
    single, every = result[result["order"] != "all"], result[result["order"] == "all"]
    words = "; ".join(
        f"{'all orders' if r['order'] == 'all' else 'order ' + r['order']} {points(Estimate.of(r))}"
        for r in (result if len(single) > 1 else single).to_dict("records")
    )
    lower = bool((single["p_lower_holm"] < 0.05).all())
    rise = min(1.0, 2 * holm(1 - single["p_lower"].to_numpy(float)).min())
    outcome = outcome_of(lower, rise < 0.05 or every["low"].item() > 0)
    if len(single) > 1:  # else the interval says it
        words += f"; {p_value(rise)} (after Holm) for the clearest rise"
    return Verdict(claim, f"Beyond 10 against 4 to 10: {words}; {result['n'].iloc[0]} seeds.", outcome)


def order_2_falls_fastest(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3: beyond 10, order 2 falls the fastest. Contrast: its change (see :func:`falls_beyond`) minus that of
    each other order, by seed.

    Supported: order 2 is lower beyond 10 and its change is below every other's (one-sided p < 0.05 each: the claim is
    all of these at once). Not supported: its change is above some other's (p < 0.05 after Holm, two-sided), or order 2
    is higher beyond 10 (interval above 0). Else undecided.
    """
    claim, rows, stop = rows_to_judge("Beyond 10, order 2 falls the fastest.", frame, value)
    if stop := stop or _beyond_stops(claim, rows):
        return stop
    changes = changes_beyond(rows, value, band=BAND, beyond=BAND[1])
    if 2 not in changes or len(changes) < 2:
        return Verdict(claim, "Needs runs of order 2 and of at least one other order.", "not testable")
    own = paired_difference(changes[2], np.zeros(len(changes[2])))
    tests = {beta: paired_difference(changes[2], change) for beta, change in changes.items() if beta != 2}
    words = "; ".join(f"order 2 minus order {beta} {points(t.difference)}" for beta, t in tests.items())
    fastest = all(t.p_lower < 0.05 for t in (own, *tests.values()))
    slower = min(holm([1 - t.p_lower for t in tests.values()])) < 0.025 or own.difference.low > 0
    outcome = outcome_of(fastest, slower)
    measured = f"Change from 4 to 10 to beyond 10: {words}; {own.difference.n} seeds."
    return Verdict(claim, measured, outcome)


def hill(frame: pd.DataFrame, value: str) -> Verdict:
    """The paper's core finding, that robustness is not monotonic: both ends of the tested grid are below its inside.

    Rule: see :func:`inside_best`. Where the top lies is another claim, :func:`peak_in_band`, and so is a fall beyond
    10, :func:`falls_beyond`.
    """
    claim = (
        "Robustness first rises and then falls along max|σ″|: both ends of the tested grid are below its inside, in "
        "{orders}."
    )
    return inside_best(claim, frame, value, "max", "Inside minus end", points)


def orders_closer_along_curvature(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3a against 3b: at equal alpha the orders differ, at equal max|sigma''| they nearly coincide.

    Scatter along a label: the variance between the orders at equal label, without seed noise, over the part of the
    label that every order covers under both labels (:func:`rctaf.statistics.variance_between_orders`). The labels are
    max|sigma''| and alpha / 2, which is the same number for order 1. Contrast: the scatter along alpha minus that
    along max|sigma''|, by the jackknife over seeds. Rule: see :func:`sign`. It only compares: that the orders coincide
    along max|sigma''| is another claim, :func:`orders_agree_below`.

    In simulated experiments without a difference the interval lies on either side of 0 in at most 2.5 % each, with
    three, five or ten seeds.
    """
    claim = "The curves of the orders lie closer together along max|σ″| than along α."
    claim, rows, stop = rows_to_judge(claim, frame, value)
    if stop := stop or _single_order_stops(claim, rows):
        return stop
    unit = rows["beta"].map({beta: curvature(1.0, beta) for beta in set(rows["beta"])})
    labels = {"max|σ″|": "curvature", "α": "half_alpha"}
    rows = rows[["beta", "seed", "curvature"]].assign(
        half_alpha=rows["curvature"] / unit / 2, points=100 * rows[value].astype(float)
    )
    ends = rows.groupby("beta")[list(labels.values())]
    low, high = float(ends.min().to_numpy().max()), float(ends.max().to_numpy().min())
    if not low < high:
        return Verdict(claim, "The orders have no part of max|σ″| and α in common.", "not testable")
    squares = {name: variance_between_orders(rows, "points", label, low, high) for name, label in labels.items()}
    apart = [f"{math.sqrt(max(0.0, square.mean())):.2f} points along {name}" for name, square in squares.items()]
    d = mean_interval(squares["α"] - squares["max|σ″|"])
    k = decimals(d.low, d.high)
    words = (
        f"Standard deviation between orders, without seed noise: {' and '.join(apart)} (max|σ″| and α/2 from {low:g} "
        f"to {high:g}). Difference of the squares, α minus max|σ″|: {d.value:+.{k}f} ({d.low:+.{k}f} to "
        f"{d.high:+.{k}f}) squared points, 95 % interval over {d.n} seeds."
    )
    return Verdict(claim, words, sign(d))


def figure_3(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """The claims of Fig. 3 (and of Fig. 4-6, which repeat them elsewhere), in the order of the text; the last two rules
    were ``ADDED``, the one on the rise was ``CHANGED``, which their verdicts say and ``ADDED_MARK`` at their topics."""
    rules: dict[str, tuple[Callable[[pd.DataFrame, str], Verdict], str]] = {
        "Fig. 3: peak between 4 and 10": (peak_in_band, ""),
        "Fig. 3: orders coincide below 4": (orders_agree_below, ""),
        "Fig. 3: rise below 4": (rises_below, CHANGED),
        "Fig. 3: fall beyond 10": (falls_beyond, ""),
        "Fig. 3: order 2 falls the fastest": (order_2_falls_fastest, ""),
        "Fig. 3: a hill (both ends lower)": (hill, ADDED),
        "Fig. 3: orders closer along max|σ″| than along α": (orders_closer_along_curvature, ADDED),
    }
    found = []
    for topic, (rule, post_hoc) in rules.items():
        verdict, mark = rule(frame, value), ADDED_MARK if post_hoc else ""
        measured = f"{verdict.measured} {post_hoc}".strip()
        found.append(replace(verdict, topic=f"{topic} {mark}".strip(), measured=measured))
    return found
