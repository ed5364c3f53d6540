"""The paper's claims about curvature, each put to the records of one scale.

A verdict is a rule applied to an estimate with its interval; the rules were fixed before the runs were made and are in
the docstrings. A scale with fewer than three seeds is never judged: one run per cell cannot tell a difference
from seed noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from rctaf import paper
from rctaf.statistics import (
    Difference,
    Optimum,
    lower_beyond,
    minimum_detectable_difference,
    optimum,
    orders_coincide,
    paired_difference,
    seed_deviation,
)
from rctaf.statistics import rank_correlation as spearman

BAND = (4.0, 10.0)  # the paper's optimal range of max|sigma''|
MARGIN = 0.01  # accuracies closer than one percentage point count as equal
MIN_SEEDS = 3
OUTCOMES = ("supported", "not supported", "undecided", "not testable")


@dataclass(frozen=True)
class Verdict:
    """A claim, what the records say about it, and the outcome (one of :data:`OUTCOMES`)."""

    claim: str
    measured: str
    outcome: str


def complete_seeds(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """The RCT-AF rows that can be judged while a sweep is under way.

    First the cells that have at least ``MIN_SEEDS`` seeds (all cells where none has), then the seeds that have every
    one of these cells: no mean is ever compared with a mean over other seeds.
    """
    rows = frame[(frame["activation"] == "rctaf") & frame[value].notna()].astype({"beta": int})
    seeds = rows.groupby(["beta", "curvature"])["seed"].transform("nunique")
    if (seeds >= MIN_SEEDS).any():
        rows = rows[seeds >= MIN_SEEDS]
    cells = len(rows[["beta", "curvature"]].drop_duplicates())
    per_seed = rows.groupby("seed").size()
    return rows[rows["seed"].isin(per_seed.index[per_seed == cells])]


def _judge(claim: str, frame: pd.DataFrame, value: str) -> tuple[pd.DataFrame, Verdict | None]:
    rows = complete_seeds(frame, value)
    seeds = rows["seed"].nunique()
    if seeds < MIN_SEEDS:
        return rows, Verdict(claim, f"{seeds} complete seed(s); at least {MIN_SEEDS} are needed.", "not testable")
    return rows, None


def _optima(rows: pd.DataFrame, value: str, kind: Literal["max", "min"]) -> dict[int, Optimum]:
    return {beta: optimum(rows[rows["beta"] == beta], value, kind=kind) for beta in sorted(set(rows["beta"]))}


def _resolved(found: Optimum, tested: list[float]) -> tuple[float, float]:
    """The interval of an optimum, at least as wide as the step between the curvatures that were tested.

    Seeds say how far the fitted curve moves; what lies between two tested curvatures they cannot say.
    """
    nearest = int(np.abs(np.log(tested) - math.log(found.curvature.value)).argmin())
    low, high = tested[max(nearest - 1, 0)], tested[min(nearest + 1, len(tested) - 1)]
    return min(found.curvature.low, low), max(found.curvature.high, high)


def _places(rows: pd.DataFrame, value: str, kind: Literal["max", "min"]) -> dict[int, tuple[Optimum, float, float]]:
    """By order: the optimum and the ends of its interval (see :func:`_resolved`)."""
    places = {}
    for beta, found in _optima(rows, value, kind).items():
        places[beta] = (found, *_resolved(found, sorted(set(rows.loc[rows["beta"] == beta, "curvature"]))))
    return places


def _against_band(intervals: Sequence[tuple[float, float]]) -> str:
    """Supported: all lie inside the band. Not supported: some lies wholly outside. Else undecided."""
    if any(high < BAND[0] or low > BAND[1] for low, high in intervals):
        return "not supported"
    return "supported" if all(BAND[0] <= low and high <= BAND[1] for low, high in intervals) else "undecided"


def _place(rows: pd.DataFrame, value: str, kind: Literal["max", "min"]) -> tuple[str, str]:
    """The places of the optima in words, and the outcome for "between 4 and 10 in every order".

    Supported: every interval (see :func:`_resolved`) lies inside the band. Not supported: some interval lies wholly
    outside. Else undecided.
    """
    places = _places(rows, value, kind)
    words = [
        f"order {beta}: {found.curvature.value:.2g} (between {low:.2g} and {high:.2g}"
        + ("" if found.identified else "; a plateau or at the edge of the grid")
        + ")"
        for beta, (found, low, high) in places.items()
    ]
    words.append(f"{rows['seed'].nunique()} seeds; 95 % over seeds, and never finer than the curvatures tested")
    return "; ".join(words), _against_band([(low, high) for _, low, high in places.values()])


def _points(test: Difference) -> str:
    d = test.difference
    return f"{100 * d.value:+.2f} points (95 % interval {100 * d.low:+.2f} to {100 * d.high:+.2f}, {d.n} seeds)"


def _sign(test: Difference, expected: int) -> str:
    """Supported: the 95 % interval lies on the expected side of 0. Not supported: on the other. Else undecided."""
    low, high = sorted((expected * test.difference.low, expected * test.difference.high))
    return "supported" if low > 0 else "not supported" if high < 0 else "undecided"


def _mean_by_seed(rows: pd.DataFrame, value: str, chosen: pd.Series) -> np.ndarray:
    return rows[chosen].groupby("seed")[value].mean().to_numpy(float)


def peak_in_band(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3: robust accuracy is highest for max|sigma''| between 4 and 10, in every order. Rule: see ``_place``."""
    claim = "Robustness peaks when max|σ''| lies between 4 and 10, in every order."
    rows, stop = _judge(claim, frame, value)
    if stop:
        return stop
    words, outcome = _place(rows, value, "max")
    return Verdict(claim, f"Place of the peak: {words}.", outcome)


def same_peak(frame: pd.DataFrame, value: str, series: str) -> Verdict:
    """Fig. 4-6: the best curvature is the same for every network, or for every method (the column ``series``).

    Supported: the interval of every peak (see :func:`_resolved`) lies inside the band. Not supported: two intervals
    have no curvature in common, or one lies wholly outside the band. Else undecided. Not testable: fewer than two of
    them have enough seeds.
    """
    claim = f"Robustness peaks at the same max|σ''|, between 4 and 10, for every {series}."
    words, intervals, few = [], [], []
    groups = frame.groupby(series)
    for name, part in groups:
        rows, stop = _judge(claim, part, value)
        if stop:
            few.append(f"{name}: {rows['seed'].nunique()} complete seed(s), at least {MIN_SEEDS} are needed")
            continue
        for beta, (found, low, high) in _places(rows, value, "max").items():
            words.append(f"{name}, order {beta}: {found.curvature.value:.2g} (between {low:.2g} and {high:.2g})")
            intervals.append((low, high))
    measured = f"Place of the peak: {'; '.join([*words, *few])}."
    if len(groups) - len(few) < 2:
        return Verdict(claim, measured, "not testable")
    apart = max(low for low, _ in intervals) > min(high for _, high in intervals)
    return Verdict(claim, measured, "not supported" if apart else _against_band(intervals))


def orders_agree_below(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3b: below 4 the orders nearly coincide.

    Supported: every pair is equivalent within ``MARGIN`` (TOST, p < 0.05). Not supported: some pair differs
    (p < 0.05 after Holm). Else undecided.
    """
    claim = "Below 4 the three orders nearly coincide: max|σ''| decides, not the functional form."
    rows, stop = _judge(claim, frame, value)
    if stop:
        return stop
    if rows["beta"].nunique() < 2:
        return Verdict(claim, f"Only order {rows['beta'].iloc[0]} has {MIN_SEEDS} seeds so far.", "not testable")
    pairs = orders_coincide(rows, value, below=math.nextafter(BAND[0], 0), margin=MARGIN)
    words = "; ".join(
        f"orders {p['orders']}: {100 * p['difference']:+.2f} points ({100 * p['low']:+.2f} to {100 * p['high']:+.2f})"
        for p in pairs.to_dict("records")
    )
    equal, differ = pairs["p_equivalent"].max() < 0.05, pairs["p_different_holm"].min() < 0.05
    outcome = "supported" if equal else "not supported" if differ else "undecided"
    return Verdict(claim, f"Mean difference below 4: {words}; equal means within {100 * MARGIN:g} point.", outcome)


def rises_below(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3: too little curvature costs robustness. Contrast: mean over the band minus mean below 4, by seed."""
    claim = "Below 4, more curvature means more robustness."
    return _band_against_below(claim, frame, value)


def falls_beyond(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3: beyond 10 robustness falls. Contrast: mean beyond 10 minus mean over the band, by seed, in each order.

    Supported: lower in every order (p < 0.05 after Holm). Not supported: the mean over orders is higher, its
    interval above 0. Else undecided.
    """
    claim = "Beyond 10, robustness falls in every order, order 2 the fastest."
    rows, stop = _judge(claim, frame, value)
    if stop:
        return stop
    result = lower_beyond(rows, value, band=BAND, beyond=BAND[1])
    single, every = result[result["order"] != "all"], result[result["order"] == "all"]
    words = "; ".join(
        f"{'all orders' if r['order'] == 'all' else 'order ' + r['order']} {100 * r['difference']:+.2f} points "
        f"({100 * r['low']:+.2f} to {100 * r['high']:+.2f})"
        for r in result.to_dict("records")
    )
    lower = (single["p_lower_holm"] < 0.05).all()
    outcome = "supported" if lower else "not supported" if every["low"].item() > 0 else "undecided"
    return Verdict(claim, f"Beyond 10 against 4 to 10: {words}.", outcome)


NORMS = {"rms": "Hessian diagonal norm", "scale_free": "scale-free Hessian diagonal norm"}


def with_scale_free_norms(frame: pd.DataFrame) -> pd.DataFrame:
    """The records with columns ``hessian_clean.scale_free`` and ``hessian_adversarial.scale_free``: ‖d ⊙ w²‖ / √P.

    d is the Hessian's diagonal, w the weights. Two networks of one function whose weights differ by factors that
    cancel (Theorem "Absorption" of the book) have different ‖d‖ and the same ‖d ⊙ w²‖. NaN where the unbiased estimate
    of its square is negative or was not measured.
    """
    for loss in ("clean", "adversarial"):
        square = frame.get(f"hessian_{loss}.scale_free_square", pd.Series(np.nan, frame.index)).astype(float)
        parameters = frame.get(f"hessian_{loss}.parameters", pd.Series(np.nan, frame.index)).astype(float)
        frame = frame.assign(**{f"hessian_{loss}.scale_free": np.sqrt(square.where(square > 0) / parameters)})
    return frame


def hessian_least_in_band(frame: pd.DataFrame, loss: str, norm: str = "rms") -> Verdict:
    """Fig. 7 left: the normalised Hessian diagonal norm is least for max|sigma''| between 4 and 10.

    Args:
        loss: ``clean`` or ``adversarial``. The curve is fitted to the logarithm of the norm. Rule: see ``_place``.
        norm: one of :data:`NORMS`.
    """
    name = {"clean": "the clean loss", "adversarial": "the loss on attacked images"}[loss]
    claim = f"The {NORMS[norm]} of {name} is U-shaped, least between 4 and 10."
    frame = frame.assign(log_rms=np.log(frame[f"hessian_{loss}.{norm}"].astype(float)))
    rows, stop = _judge(claim, frame, "log_rms")
    if stop:
        return stop
    words, outcome = _place(rows, "log_rms", "min")
    return Verdict(claim, f"Place of the minimum: {words}.", outcome)


def hessian_goes_with_robustness(frame: pd.DataFrame, value: str, loss: str, norm: str = "rms") -> Verdict:
    """Fig. 7, the mechanism: a smaller Hessian diagonal goes with more robustness (Spearman within orders).

    Supported: the interval lies below 0. Not supported: above 0. Else undecided. A correlation over one family of
    activations cannot show a cause either way.
    """
    claim = f"A smaller {NORMS[norm]} goes with higher robustness."
    rows, stop = _judge(claim, frame.dropna(subset=[f"hessian_{loss}.{norm}"]), value)
    if stop:
        return stop
    result = {row["order"]: row for row in spearman(rows, f"hessian_{loss}.{norm}", value).to_dict("records")}
    within = result["within"]
    words = "; ".join(
        f"{label} {row['correlation']:+.2f} (95 % interval {row['low']:+.2f} to {row['high']:+.2f})"
        for label, row in (("within orders", within), ("all cells together", result["across"]))
    )
    outcome = "supported" if within["high"] < 0 else "not supported" if within["low"] > 0 else "undecided"
    return Verdict(claim, f"Spearman's correlation over the grid, {loss} loss: {words}; {within['n']} seeds.", outcome)


def relu_is_sharper(frame: pd.DataFrame, loss: str) -> Verdict:
    """Sect. 4.4: ReLU's effectively infinite curvature makes a sharp loss. Contrast: log of the norm, ReLU minus the
    mean over the band of all orders, by seed; expected above 0."""
    claim = "ReLU, with effectively infinite curvature at its kink, has a sharper loss than RCT-AF within 4 to 10."
    frame = frame.assign(log_rms=np.log(frame[f"hessian_{loss}.rms"].astype(float)))
    rows, stop = _judge(claim, frame, "log_rms")
    if stop:
        return stop
    relu = frame[(frame["activation"] == "relu") & frame["log_rms"].notna()].set_index("seed")["log_rms"]
    both = rows[rows["seed"].isin(relu.index)]
    if both["seed"].nunique() < MIN_SEEDS:
        return Verdict(claim, f"ReLU has {len(relu)} of these seeds.", "not testable")
    band = both[both["curvature"].between(*BAND)].groupby("seed")["log_rms"].mean()
    test = paired_difference(relu.loc[band.index].to_numpy(float), band.to_numpy(float))
    d = test.difference
    words = (
        f"Norm of ReLU over norm in the band, {loss} loss: {math.exp(d.value):.2g} "
        f"(95 % interval {math.exp(d.low):.2g} to {math.exp(d.high):.2g}, {d.n} seeds). "
        "Automatic differentiation does not see the kink itself."
    )
    return Verdict(claim, words, _sign(test, +1))


def clean_accuracy_falls_below(frame: pd.DataFrame) -> Verdict:
    """Fig. 7 right: standard training loses clean accuracy below 4. Contrast as in :func:`rises_below`."""
    return _band_against_below("In standard training, clean accuracy falls below 4.", frame, "clean_accuracy")


def _band_against_below(claim: str, frame: pd.DataFrame, value: str) -> Verdict:
    rows, stop = _judge(claim, frame, value)
    if stop:
        return stop
    inside, below = rows["curvature"].between(*BAND), rows["curvature"] < BAND[0]
    test = paired_difference(_mean_by_seed(rows, value, inside), _mean_by_seed(rows, value, below))
    return Verdict(claim, f"Between 4 and 10 against below 4, all orders: {_points(test)}.", _sign(test, +1))


PRINTED_IMAGES = 10_000  # the test set of CIFAR-10, behind every number of the paper's Table 1


def single_runs_differ(frame: pd.DataFrame, value: str, claim: str, points: float) -> Verdict:
    """Table 1: can ``points`` percentage points between two single runs of the paper be told from seed noise?

    The noise is that of the records: the deviation s between seeds within a cell, pooled (see
    :func:`rctaf.statistics.seed_deviation`). Carried over to the paper's larger test set it lies between s (each run
    as a whole is better or worse) and s √(n / 10,000) (single images fall either way, independently; n were attacked
    here). From each end follows the smallest difference that two single runs mostly show (5 % level, 80 % power).

    Supported: the printed difference is above both. Not testable: below both. Else undecided. The noise of another data
    set and network is a stand-in for the paper's own, which one run per row does not reveal; the deviation at which the
    outcome would turn is therefore part of the sentence.
    """
    needed = points / minimum_detectable_difference(1.0)
    printed = (
        f"Printed: {points:.2f} points between two single runs; that is told from noise (5 % level, 80 % power) "
        f"only where runs of different seeds deviate by less than {needed:.2g} points"
    )
    rows = frame[frame[value].notna()] if value in frame else frame.iloc[:0]
    cells = rows.groupby(["activation", "beta", "curvature"], dropna=False)
    if rows.empty or cells["seed"].nunique().max() < MIN_SEEDS:
        return Verdict(claim, f"{printed}. No cell of these records has {MIN_SEEDS} seeds.", "not testable")
    s, df = seed_deviation(rows.assign(points=100 * rows[value].astype(float)), "points")
    images = float(rows["n_eval"].min())
    shrunk = s.value * math.sqrt(min(1.0, images / PRINTED_IMAGES))
    low, high = (minimum_detectable_difference(sd, df=df) for sd in (shrunk, s.value))
    words = (
        f"{printed}. The records here deviate by {s.value:.2g} points (95 % interval {s.low:.2g} to {s.high:.2g}, "
        f"{df} degrees of freedom, {images:.0f} images attacked): two single runs show differences from "
        f"{high:.2g} points on. If all of that noise came from single images, {PRINTED_IMAGES:,} of them would bring "
        f"this down to {low:.2g} points"
    )
    outcome = "supported" if points > high else "not testable" if points < low else "undecided"
    return Verdict(claim, f"{words}.", outcome)


def table_1(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """What the single runs of the paper's Table 1 can say, given the seed noise of these records."""
    orders = {name: row[1] for name, row in paper.TABLE_1.items() if name.startswith("rctaf")}
    others = {name: row[1] for name, row in paper.TABLE_1.items() if name not in orders}
    best, worst, rival = max(orders, key=orders.__getitem__), min(orders.values()), max(others, key=others.__getitem__)
    return [
        single_runs_differ(
            frame,
            value,
            f"At max|σ''| = 7, {best} is the best of the three orders "
            f"({orders[best]:.2f} % against {', '.join(f'{v:.2f} %' for k, v in orders.items() if k != best)}).",
            orders[best] - worst,
        ),
        single_runs_differ(
            frame,
            value,
            f"Every order at max|σ''| = 7 is more robust than every common activation "
            f"(at least {worst:.2f} % against at most {others[rival]:.2f} %, {rival}).",
            worst - others[rival],
        ),
    ]


def figure_3(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """The claims of Fig. 3 (and of Fig. 4-6, which repeat them elsewhere), in the order of the text."""
    return [rule(frame, value) for rule in (peak_in_band, orders_agree_below, rises_below, falls_beyond)]


def figure_7(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """The claims of Fig. 7 left and of the mechanism behind it, for each of the two losses."""
    return [
        verdict
        for loss in ("clean", "adversarial")
        for verdict in (
            hessian_least_in_band(frame, loss),
            hessian_goes_with_robustness(frame, value, loss),
            relu_is_sharper(frame, loss),
        )
    ]


def figure_7_scale_free(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """The same claims for a norm that no rescaling of weights changes (:func:`with_scale_free_norms`); not the paper's.

    Proposed after the first runs had been seen, unlike all other rules.
    """
    frame = with_scale_free_norms(frame)
    return [
        verdict
        for loss in ("clean", "adversarial")
        for verdict in (
            hessian_least_in_band(frame, loss, "scale_free"),
            hessian_goes_with_robustness(frame, value, loss, "scale_free"),
        )
    ]
