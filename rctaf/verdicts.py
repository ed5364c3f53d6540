"""The paper's claims about curvature, each put to the records of one scale.

A verdict is a rule applied to an estimate with its interval; the rules are in the docstrings. They were last changed on
``RULES_CHANGED``, after the runs of ``SEEN`` had been looked at: for these they are post hoc. Two of the
rules in :func:`figure_3` came later (``ADDED_WHEN``). A scale with fewer than ``MIN_SEEDS`` seeds is never judged, as
one run per cell cannot tell a difference from seed noise; a rule that resamples seeds needs ``BOOTSTRAP_SEEDS``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from rctaf import paper
from rctaf.family import curvature
from rctaf.names import DATASETS, activation_name
from rctaf.statistics import (
    Estimate,
    Optimum,
    changes_beyond,
    critical_difference,
    falls,
    holm,
    inside_against_ends,
    lower_beyond,
    mean_interval,
    minimum_detectable_difference,
    optimum,
    orders_coincide,
    paired_difference,
    seed_deviation,
    trend,
    variance_between_orders,
)
from rctaf.statistics import rank_correlation as spearman
from rctaf.words import count, decimals, listed, p_value, points, typeset

BAND = (4.0, 10.0)  #: the paper's optimal range of max|sigma''|, called the band
TUNED = 7.0  # max|sigma''| of RCT-AF in its Table 1
MARGIN = 0.01  #: of a claim of sameness, as a share: one percentage point
CEILING = 0.95  # where every mean accuracy is above, a task hardly tells networks apart
MIN_SEEDS = 3  #: with fewer no estimate is printed
FIT_CURVATURES = 4  #: a curve through fewer has no place of its own to be best at
BOOTSTRAP_SEEDS = 5  #: with fewer, intervals by resampling seeds miss far too often (simulated in the tests)
OUTCOMES = ("supported", "not supported", "undecided", "not testable")

RULES_CHANGED = "2026-11-22"
SEEN = "seeds 0 to 4 of digits and of its standard training, and 0 to 2 of Fashion-MNIST (since made again)"  # by then
NEW_SEED = 5  # of digits: this seed and those after it were first run when the rules stood as they are

ADDED_WHEN = "on 2026-11-30, after all runs of digits and seeds 0 to 2 of Fashion-MNIST had been looked at"
ADDED = f"Post hoc: this rule was made {ADDED_WHEN}."  # at the end of what such a verdict measured
ADDED_MARK = "†"  # at its topic


@dataclass(frozen=True)
class Verdict:
    """A claim, what the records say about it, and the outcome (one of :data:`OUTCOMES`).

    ``topic`` names the claim in a few words that are the same at every scale; it is the row of an overview. The
    sentences are :func:`rctaf.words.typeset`.
    """

    claim: str
    measured: str
    outcome: str
    topic: str = ""

    def __post_init__(self) -> None:
        for name in ("claim", "measured"):
            object.__setattr__(self, name, typeset(getattr(self, name)))


def outcome_of(speaks_for: bool, speaks_against: bool) -> str:
    """The outcome of a rule whose two tests these are; where both hold, the claim's own wins."""
    return "supported" if speaks_for else "not supported" if speaks_against else "undecided"


def sign(e: Estimate) -> str:
    """Supported: the 95 % interval lies above 0. Not supported: below 0. Else undecided."""
    return outcome_of(e.low > 0, e.high < 0)


def alike(pairs: pd.DataFrame) -> str:
    """The outcome for pairs from :func:`rctaf.statistics.orders_coincide`.

    Supported: every pair is equivalent at every curvature (p < 0.05 each). Not supported: some pair differs at some
    curvature (p < 0.05 after Holm). Else undecided.
    """
    return outcome_of(pairs["p_equivalent"].max() < 0.05, pairs["p_different_holm"].min() < 0.05)


def why_alike(outcome: str, where: str, difference: float, p: float) -> str:
    """In words, what made the outcome of :func:`alike`, or of another rule with these two tests.

    Args:
        where, difference, p: the comparison with the smallest p, its difference, and that p after Holm's correction.
    """
    margin = f"{100 * MARGIN:g} point"
    if outcome == "supported":
        return f"every difference is shown to lie within the margin of {margin} (two one-sided tests, p < 0.05 each)"
    if outcome == "not supported":
        below = f", though it is below the margin of {margin}: not all are shown to lie within that"
        small = below if abs(difference) < MARGIN else ""
        return f"a difference is shown ({p_value(p)} after Holm for the clearest, {where}){small}"
    return (
        f"no difference is shown ({p_value(p)} after Holm for the clearest, {where}), and not every one is shown to "
        f"lie within the margin of {margin}"
    )


def why_orders_alike(pairs: pd.DataFrame, name: str) -> str:
    """:func:`why_alike` for pairs of orders, along a label ``name``."""
    clearest = pairs.iloc[int(pairs["p_different_holm"].argmin())]
    where = f"order {clearest['orders']} at {name} {clearest['clearest_at']:.3g}"
    return why_alike(alike(pairs), where, float(clearest["clearest"]), float(clearest["p_different_holm"]))


def too_few_seeds(seeds: int, needed: int) -> str:
    """The sentence of a verdict that lacks complete seeds."""
    have = f"Only {count(seeds, 'complete seed')}" if seeds else "No complete seed"
    return f"{have}; {needed} are needed."


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


def orders_of(frame: pd.DataFrame) -> str:
    """The orders a claim can be about, in words: those in the frame."""
    orders = sorted(set(frame.loc[frame["activation"] == "rctaf", "beta"].astype(int)))
    if orders in ([], [0, 1, 2]):  # none: the claim as the paper makes it
        return "every order"
    return f"order{'s' if len(orders) > 1 else ''} {' and '.join(map(str, orders))}"


def _judge(
    claim: str, frame: pd.DataFrame, value: str, needed: int = MIN_SEEDS, curvatures: int = 1
) -> tuple[str, pd.DataFrame, Verdict | None]:
    """The claim with its ``{orders}`` filled in, the rows to judge it on, and a verdict where these are too few.

    Args:
        needed: seeds that the verdict takes; said where there are fewer than ``MIN_SEEDS``, which no estimate is
            printed for.
        curvatures: how many an order must have been run at.
    """
    rows = complete_seeds(frame, value)
    claim = claim.format(orders=orders_of(rows if len(rows) else frame))
    seeds = rows["seed"].nunique()
    if seeds < MIN_SEEDS:
        return claim, rows, Verdict(claim, too_few_seeds(seeds, needed), "not testable")
    fewest = rows.groupby("beta")["curvature"].nunique().min()
    if fewest < curvatures:
        words = f"An order has {MIN_SEEDS} seeds at only {count(fewest, 'curvature')}; {curvatures} are needed."
        return claim, rows, Verdict(claim, words, "not testable")
    return claim, rows, None


def by_order(rows: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """The rows of each order."""
    return {int(beta): rows[rows["beta"] == beta] for beta in sorted(set(rows["beta"]))}


def shared_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at curvatures that every order was run at."""
    return rows[rows.groupby("curvature")["beta"].transform("nunique") == rows["beta"].nunique()]


def _resampled(seeds: int) -> tuple[str, str]:
    """What to call an interval from resampling this many seeds, and what to add where they are too few to judge by."""
    if seeds < BOOTSTRAP_SEEDS:
        return "range over resamples", f"{seeds} seeds; not testable: fewer than {BOOTSTRAP_SEEDS} seeds"
    return "95 % interval", f"{seeds} seeds"


def _resolved(found: Optimum, tested: list[float]) -> tuple[float, float]:
    """The interval of an optimum, at least as wide as the spacing of the curvatures that were tested.

    Seeds say how far the fitted curve moves; what lies between two tested curvatures they cannot say. So the interval
    reaches at least half-way to either neighbour of the tested curvature nearest to the optimum, on the log axis
    (to the geometric mean). It must not reach to the neighbours themselves: the ends of the paper's band are
    tested curvatures, and an optimum beside one would then always touch the band.
    """
    nearest = int(np.abs(np.log(tested) - math.log(found.curvature.value)).argmin())
    low, high = (math.sqrt(tested[nearest] * tested[min(max(nearest + step, 0), len(tested) - 1)]) for step in (-1, 1))
    return min(found.curvature.low, low), max(found.curvature.high, high)


@dataclass(frozen=True)
class Place:
    """The optimum of an order: the fitted place, the ends of its interval (see :func:`_resolved`), and all in words.

    ``widened``: whether the interval reaches beyond that over seeds. ``identified``: see
    :class:`rctaf.statistics.Optimum`.
    """

    order: int
    value: float
    low: float
    high: float
    words: str
    widened: bool = False
    identified: bool = True


def places(rows: pd.DataFrame, value: str, kind: Literal["max", "min"], level: float = 0.05) -> list[Place]:
    """The optimum of each order; with too few seeds, the words have the range over resamples as it is."""
    found_places = []
    for beta, part in by_order(rows).items():
        found = optimum(part, value, kind=kind, level=level)
        low, high = _resolved(found, sorted(set(part["curvature"])))
        c = found.curvature
        few = c.n < BOOTSTRAP_SEEDS
        reach = f"range over resamples {c.low:.2g} to {c.high:.2g}" if few else f"{low:.3g} to {high:.3g}"
        means = part.groupby("curvature")[value].mean()
        tested = f"highest mean at {means.idxmax():g}" if kind == "max" else f"lowest mean at {means.idxmin():g}"
        plateau = "" if found.identified else ", a plateau or at the edge of the grid"
        words = f"order {beta}: {c.value:.2g} ({reach}, {tested}{plateau})"
        widened = (low, high) != (c.low, c.high)
        found_places.append(Place(beta, c.value, low, high, words, widened, found.identified))
    return found_places


def _against_band(found: Sequence[Place]) -> str:
    """Supported: all lie inside the band. Not supported: some lies wholly outside. Else undecided."""
    if any(place.high < BAND[0] or place.low > BAND[1] for place in found):
        return "not supported"
    return "supported" if all(BAND[0] <= place.low and place.high <= BAND[1] for place in found) else "undecided"


def _in_band(claim: str, what: str, frame: pd.DataFrame, value: str, kind: Literal["max", "min"]) -> Verdict:
    """Is the optimum between 4 and 10, in each order that was run?

    Supported: every interval (see :func:`_resolved`) lies inside the band. Not supported: some interval lies wholly
    outside. Else undecided. Not testable: fewer than ``BOOTSTRAP_SEEDS`` complete seeds.
    """
    claim, rows, stop = _judge(claim, frame, value, BOOTSTRAP_SEEDS, FIT_CURVATURES)
    if stop:
        return stop
    found, seeds = places(rows, value, kind), rows["seed"].nunique()
    words = [place.words for place in found]
    if seeds < BOOTSTRAP_SEEDS:
        return Verdict(claim, f"{what}: {'; '.join([*words, _resampled(seeds)[1]])}.", "not testable")
    words.append(
        f"{seeds} seeds; the interval is that of the fitted place (95 % over seeds, at least as wide as the spacing of "
        "the tested curvatures)"
    )
    return Verdict(claim, f"{what}: {'; '.join(words)}.", _against_band(found))


def peak_in_band(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3: robust accuracy is highest for max|sigma''| between 4 and 10. Rule: see :func:`_in_band`."""
    claim = "Robustness peaks when max|σ″| lies between 4 and 10, in {orders}."
    return _in_band(claim, "Place of the peak", frame, value, "max")


def same_peak(frame: pd.DataFrame, value: str, series: str) -> Verdict:
    """Fig. 4-6: the best curvature is the same for every network, or for every method (the column ``series``).

    Supported: the interval of every peak (see :func:`_resolved`) lies inside the band. Not supported: two intervals
    have no curvature in common, or one lies wholly outside the band; for this the intervals are widened to the level
    0.05 divided by their number (Bonferroni). Else undecided. Not testable: fewer than two have ``BOOTSTRAP_SEEDS``
    complete seeds, or those that have do not refute the claim.
    """
    claim = f"Robustness peaks at the same max|σ″|, between 4 and 10, for every {series}, in {orders_of(frame)}."
    topic = f"Figs. 4 to 6: one peak for every {series}"
    words, few = [], []
    settled: list[Place] = []
    enough: list[pd.DataFrame] = []
    groups = frame.groupby(series)
    for name, part in groups:
        _, rows, stop = _judge(claim, part, value, curvatures=FIT_CURVATURES)
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
    refuted = apart or _against_band(wider) == "not supported"
    outcome = outcome_of(_against_band(settled) == "supported", refuted)
    if few and outcome != "not supported":  # some suffice to refute a claim about all, not to settle it
        outcome = "not testable"
    return Verdict(claim, measured, outcome, topic)


def orders_agree_below(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3b: below 4 the orders nearly coincide, at every curvature.

    Supported: every pair is equivalent within ``MARGIN`` at every curvature below 4 that all orders were run at (TOST,
    p < 0.05 each). Not supported: some pair differs at some curvature (p < 0.05 after Holm). Else undecided.
    """
    claim = "Below 4 the three orders nearly coincide: max|σ″| decides, not the functional form."
    claim, rows, stop = _judge(claim, frame, value)
    if stop:
        return stop
    if rows["beta"].nunique() < 2:
        return Verdict(claim, f"Only order {rows['beta'].iloc[0]} has {MIN_SEEDS} seeds so far.", "not testable")
    shared = shared_rows(rows)
    if not (shared["curvature"] < BAND[0]).any():
        return Verdict(claim, "The orders were not run at the same curvatures below 4.", "not testable")
    pairs = orders_coincide(shared, value, below=math.nextafter(BAND[0], 0), margin=MARGIN)
    words = "; ".join(
        f"order {p['orders']}: {points(Estimate(p['largest'], p['largest_low'], p['largest_high'], p['n']))} "
        f"at {p['at']:g}"
        for p in pairs.to_dict("records")
    )
    measured = (
        f"Largest of the mean differences, first minus second, at {pairs['curvatures'].iloc[0]} curvatures below 4: "
        f"{words}; {pairs['n'].iloc[0]} seeds. In all, {why_orders_alike(pairs, 'max|σ″|')}."
    )
    return Verdict(claim, measured, alike(pairs))


def rises_below(frame: pd.DataFrame, value: str) -> Verdict:
    """Fig. 3: too little curvature costs robustness. Rule: see :func:`_trend_below`."""
    return _trend_below("Below 4, robustness rises with max|σ″| (trend, mean of the orders).", frame, value)


def clean_accuracy_falls_below(frame: pd.DataFrame) -> Verdict:
    """Fig. 7 right: standard training loses clean accuracy below 4. Rule: see :func:`_trend_below`."""
    claim = "In standard training, clean accuracy falls as max|σ″| decreases below 4 (trend, mean of the orders)."
    found = replace(_trend_below(claim, frame, "clean_accuracy"), topic="Fig. 7: clean accuracy falls below 4")
    if found.outcome == "not testable":
        return found
    rows = complete_seeds(frame, "clean_accuracy")
    means = rows.groupby(["beta", "curvature"])["clean_accuracy"].mean()
    high = trend(rows[rows["curvature"] < BAND[0]], "clean_accuracy").high
    most = f"a fall of more than {100 * high:.2f} points" if high > 0 else "any fall"
    words = (
        f"The interval rules out {most} per halving of max|σ″|. Over all orders and curvatures the means lie between "
        f"{100 * means.min():.2f} % and {100 * means.max():.2f} %"
    )
    if means.min() > CEILING:
        words += "; this close to 100 %, the task can hardly show a loss of expressivity"
    return replace(found, measured=f"{found.measured} {words}.")


def _trend_below(claim: str, frame: pd.DataFrame, value: str) -> Verdict:
    """Per seed, the slope over log curvature below 4, averaged over the orders (:func:`rctaf.statistics.trend`).

    Supported: its t-interval lies above 0, and nowhere up to 4 is the mean of the orders lower at a larger curvature
    than at a smaller (p < 0.05 after Holm, over all pairs of curvatures). Not supported: the interval lies below 0, or
    there is such a fall (two-sided). Else undecided. A slope alone would not see a rise that turns into a fall.
    """
    claim, rows, stop = _judge(claim, frame, value)
    if stop:
        return stop
    below = rows[rows["curvature"] < BAND[0]]
    if set(below["beta"]) != set(rows["beta"]) or below.groupby("beta")["curvature"].nunique().min() < 3:
        return Verdict(claim, "An order was run at fewer than three curvatures below 4.", "not testable")
    until = shared_rows(rows[rows["curvature"] <= BAND[0]])
    if until["curvature"].nunique() < 2:
        return Verdict(claim, "The orders were not run at two of the same curvatures up to 4.", "not testable")
    slope = trend(below, value)
    fall = falls(until, value).iloc[0]
    means = until.groupby("curvature")[value].mean()
    words = ", ".join(f"{100 * mean:.2f} % at {c:g}" for c, mean in means.items())
    p = float(fall["p_lower_holm"])
    fallen = Estimate(fall["difference"], fall["low"], fall["high"], slope.n)
    words = (
        f"Per doubling of max|σ″|: {points(slope)}. Means: {words}; highest at {means.idxmax():g}. Clearest fall: "
        f"from {fall['smaller']:g} to {fall['larger']:g}, {points(fallen)}, {p_value(p)} after Holm; "
        f"95 % intervals over {slope.n} seeds."
    )
    return Verdict(claim, words, outcome_of(slope.low > 0 and p >= 0.05, slope.high < 0 or p < 0.025))


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
    claim, rows, stop = _judge("Beyond 10, robustness falls in {orders}.", frame, value)
    if stop := stop or _beyond_stops(claim, rows):
        return stop
    result = lower_beyond(rows, value, band=BAND, beyond=BAND[1])
    single, every = result[result["order"] != "all"], result[result["order"] == "all"]
    words = "; ".join(
        f"{'all orders' if r['order'] == 'all' else 'order ' + r['order']} "
        f"{points(Estimate(r['difference'], r['low'], r['high'], r['n']))}"
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
    claim, rows, stop = _judge("Beyond 10, order 2 falls the fastest.", frame, value)
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

    Contrast: inside minus end, by seed, in each order and at each of its two ends
    (:func:`rctaf.statistics.inside_against_ends`, which also says how a curvature inside is chosen without favour).

    Supported: every interval lies above 0. Not supported: some end is above every curvature inside (one-sided,
    p < 0.05 after Holm over all ends). Else undecided. Three seeds keep the level, though the two differences that they
    leave hardly decide. Where the top lies is another claim, :func:`peak_in_band`, and so is a fall beyond 10,
    :func:`falls_beyond`.
    """
    claim = (
        "Robustness first rises and then falls along max|σ″|: both ends of the tested grid are below its inside, in "
        "{orders}."
    )
    claim, rows, stop = _judge(claim, frame, value, curvatures=3)
    if stop:
        return stop
    found = inside_against_ends(rows, value)
    words = []
    for order, ends in found.groupby("order"):
        differences = [
            f"{points(Estimate(r['difference'], r['low'], r['high'], r['n']))} to {r['end']:g}"
            for r in ends.to_dict("records")
        ]
        chosen = [f"{c:g}" for c in sorted(set(ends["chosen"].iloc[0]))]
        words.append(f"order {order} {listed(differences)}, with the inside at {listed(chosen)}")
    outcome = outcome_of(bool((found["low"] > 0).all()), bool((found["p_end_above_holm"] < 0.05).any()))
    why = f"95 % intervals over {count(found['n'].iloc[0], 'seed')}, after a first that only chooses"
    if outcome != "supported":
        why += f"; {p_value(found['p_end_above_holm'].min())} (after Holm) for the clearest end above all of its inside"
    return Verdict(claim, f"Inside minus end: {'; '.join(words)}; {why}.", outcome)


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
    claim, rows, stop = _judge(claim, frame, value)
    if stop:
        return stop
    if rows["beta"].nunique() < 2:
        return Verdict(claim, f"Only order {rows['beta'].iloc[0]} has {MIN_SEEDS} seeds so far.", "not testable")
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


#: which norm, and its name in a claim
NORMS = {"rms": "Hessian diagonal norm", "scale_free": "scale-free Hessian diagonal norm"}


def with_scale_free_norms(frame: pd.DataFrame) -> pd.DataFrame:
    """The records with columns ``hessian_clean.scale_free`` and ``hessian_adversarial.scale_free``: ‖d ⊙ w²‖ / √P.

    d is the Hessian's diagonal, w the weights. Two networks of one function whose weights differ by factors that
    cancel (Theorem "Absorption" of the book) have different ‖d‖ and the same ‖d ⊙ w²‖. NaN where the unbiased estimate
    of its square is negative or was not measured.
    """
    for loss in ("clean", "adversarial"):
        square = column_of(frame, f"hessian_{loss}.scale_free_square")
        parameters = column_of(frame, f"hessian_{loss}.parameters")
        frame = frame.assign(**{f"hessian_{loss}.scale_free": np.sqrt(square.where(square > 0) / parameters)})
    return frame


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """A measured column; NaN where no record has it."""
    return frame.get(name, pd.Series(np.nan, frame.index)).astype(float)


#: which loss, and its name in a claim
LOSSES = {"clean": "clean loss", "adversarial": "loss on attacked images"}


def hessian_least_in_band(frame: pd.DataFrame, loss: str, norm: str = "rms") -> Verdict:
    """Fig. 7 left: the normalised Hessian diagonal norm is least for max|sigma''| between 4 and 10.

    Args:
        loss: one of :data:`LOSSES`. The curve is fitted to the logarithm of the norm. Rule: see :func:`_in_band`.
        norm: one of :data:`NORMS`.
    """
    claim = f"The {NORMS[norm]} of the {LOSSES[loss]} is least for max|σ″| between 4 and 10, in {{orders}}."
    frame = frame.assign(log_rms=np.log(column_of(frame, f"hessian_{loss}.{norm}")))
    return _in_band(claim, "Place of the minimum", frame, "log_rms", "min")


def hessian_goes_with_robustness(frame: pd.DataFrame, value: str, loss: str, norm: str = "rms") -> Verdict:
    """Fig. 7, the mechanism: a smaller Hessian diagonal goes with more robustness (Spearman within orders).

    Supported: the interval lies below 0. Not supported: above 0. Else undecided. Not testable: fewer than
    ``BOOTSTRAP_SEEDS`` complete seeds. A correlation over one family of activations cannot show a cause either way.
    """
    claim = f"A smaller {NORMS[norm]} of the {LOSSES[loss]} goes with higher robustness, within {{orders}}."
    column = f"hessian_{loss}.{norm}"
    measured = frame.assign(**{value: frame[value].where(column_of(frame, column).notna())})
    claim, rows, stop = _judge(claim, measured, value, BOOTSTRAP_SEEDS, curvatures=3)
    if stop:
        return stop
    result = {row["order"]: row for row in spearman(rows, column, value).to_dict("records")}
    within = result["within"]
    interval, seeds = _resampled(within["n"])
    orders = [order for order in result if order.isdigit()]
    each = listed([f"{result[order]['correlation']:+.2f}" for order in orders])
    mean = f", the mean of {each} in orders {listed(orders)}" if len(orders) > 1 else ""
    words = "; ".join(
        f"{label} {row['correlation']:+.2f} ({interval} {row['low']:+.2f} to {row['high']:+.2f}){more}"
        for label, row, more in (("within orders", within, mean), ("all cells together", result["across"], ""))
    )
    if pulled_to_0(within):
        seeds += "; resampled means are noisier, which pulls a correlation and so its interval towards 0"
    judged = outcome_of(within["high"] < 0, within["low"] > 0)
    outcome = judged if within["n"] >= BOOTSTRAP_SEEDS else "not testable"
    return Verdict(claim, f"Spearman's correlation over the grid: {words}; {seeds}.", outcome)


def pulled_to_0(row: dict) -> bool:
    """Whether a correlation lies in the quarter of its interval that is the farthest from 0."""
    far = row["low"] if row["correlation"] < 0 else row["high"]
    return bool(abs(row["correlation"] - far) < (row["high"] - row["low"]) / 4)


def relu_is_sharper(frame: pd.DataFrame, loss: str) -> Verdict:
    """Sect. 4.4: ReLU's effectively infinite curvature makes a sharp loss. Contrast: log of the norm, ReLU minus the
    mean over the band of all orders, by seed; expected above 0. Rule: see :func:`sign`."""
    claim = (
        f"ReLU, with effectively infinite curvature at its kink, has a larger {NORMS['rms']} of the {LOSSES[loss]} "
        "than RCT-AF within 4 to 10."
    )
    frame = frame.assign(log_rms=np.log(column_of(frame, f"hessian_{loss}.rms")))
    claim, rows, stop = _judge(claim, frame, "log_rms")
    if stop:
        return stop
    relu, band = relu_and_band(frame, rows, "log_rms")
    if len(relu) < MIN_SEEDS:
        return Verdict(claim, f"ReLU has {len(relu)} of these seeds; {MIN_SEEDS} are needed.", "not testable")
    if band.empty:
        return Verdict(claim, "No order was run between 4 and 10.", "not testable")
    d = paired_difference(relu.to_numpy(float), band.to_numpy(float)).difference
    words = (
        f"Norm of ReLU over norm in the band: {math.exp(d.value):.2g} "
        f"(95 % interval {math.exp(d.low):.2g} to {math.exp(d.high):.2g}, {d.n} seeds). "
        "Automatic differentiation does not see the kink itself."
    )
    return Verdict(claim, words, sign(d))


def relu_and_band(frame: pd.DataFrame, rows: pd.DataFrame, value: str) -> tuple[pd.Series, pd.Series]:
    """ReLU, and the mean of ``rows`` within the band, over the seeds that both have; the second may be empty."""
    relu = frame[(frame["activation"] == "relu") & frame[value].notna()].set_index("seed")[value]
    both = rows[rows["seed"].isin(relu.index)]
    band = both[both["curvature"].between(*BAND)].groupby("seed")[value].mean()
    return relu[relu.index.isin(both["seed"])].sort_index(), band


PRINTED_IMAGES = 10_000  # the test set of CIFAR-10, behind every number of the paper's Table 1


def single_runs_differ(frame: pd.DataFrame, value: str, claim: str, printed_points: float) -> Verdict:
    """Table 1: can ``printed_points`` percentage points between two single runs of the paper be told from seed noise?

    The noise is that of the records: the deviation s between seeds within a cell, pooled (see
    :func:`rctaf.statistics.seed_deviation`). Carried over to the paper's larger test set it lies between s (each run
    as a whole is better or worse) and s √(n / 10,000) (single images fall either way, independently; n were attacked
    here). From each end follows what two single runs must differ by to be told apart at the 5 % level
    (:func:`rctaf.statistics.critical_difference`).

    Supported: the printed difference is above both. Not testable: below both. Else undecided. The noise of another data
    set and network is a stand-in for the paper's own, which one run per row does not reveal; the deviation at which the
    outcome would turn is therefore part of the sentence.
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
    images = float(rows["n_eval"].min())
    shrunk = s.value * math.sqrt(min(1.0, images / PRINTED_IMAGES))
    low, high = (critical_difference(sd, df=df) for sd in (shrunk, s.value))
    data = " and ".join(DATASETS[name] for name in sorted(set(rows["dataset"])))
    instead = "" if data == DATASETS["cifar10"] else f", not {DATASETS['cifar10']}"
    words = (
        f"{printed}. In the records here, of {data}{instead}, it is {count(f'{s.value:.2g}', 'point')} (95 % interval "
        f"{s.low:.2g} to {s.high:.2g}, {df:.0f} degrees of freedom, {images:.0f} images attacked): two single runs "
        f"differ significantly from {count(f'{high:.2g}', 'point')} on; 80 % power would need a true difference of "
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


def figure_3(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """The claims of Fig. 3 (and of Fig. 4-6, which repeat them elsewhere), in the order of the text; the last two rules
    were ``ADDED``, which their verdicts say and ``ADDED_MARK`` at their topics."""
    rules: dict[str, Callable[[pd.DataFrame, str], Verdict]] = {
        "Fig. 3: peak between 4 and 10": peak_in_band,
        "Fig. 3: orders coincide below 4": orders_agree_below,
        "Fig. 3: rise below 4": rises_below,
        "Fig. 3: fall beyond 10": falls_beyond,
        "Fig. 3: order 2 falls the fastest": order_2_falls_fastest,
    }
    found = [replace(rule(frame, value), topic=topic) for topic, rule in rules.items()]
    added = {
        "Fig. 3: a hill (both ends lower)": hill(frame, value),
        "Fig. 3: orders closer along max|σ″| than along α": orders_closer_along_curvature(frame, value),
    }
    for topic, verdict in added.items():
        found.append(replace(verdict, topic=f"{topic} {ADDED_MARK}", measured=f"{verdict.measured} {ADDED}"))
    return found


def figure_7(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """The claims of Fig. 7 left and of the mechanism behind it, for each of the two losses."""
    return [
        replace(verdict, topic=f"Fig. 7, {name}: {topic}")
        for loss, name in LOSSES.items()
        for topic, verdict in {
            "Hessian least between 4 and 10": hessian_least_in_band(frame, loss),
            "smaller Hessian, more robust": hessian_goes_with_robustness(frame, value, loss),
            "larger Hessian for ReLU": relu_is_sharper(frame, loss),
        }.items()
    ]


def figure_7_scale_free(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """The same for a norm that no rescaling of weights changes (:func:`with_scale_free_norms`); not the paper's."""
    frame = with_scale_free_norms(frame)
    return [
        verdict
        for loss in LOSSES
        for verdict in (
            hessian_least_in_band(frame, loss, "scale_free"),
            hessian_goes_with_robustness(frame, value, loss, "scale_free"),
        )
    ]


# --- many verdicts at once -------------------------------------------------------------------------------------------


def overview(found: Iterable[tuple[str, Verdict]]) -> pd.DataFrame:
    """Outcomes by topic (rows) and scale (columns), both in the order of their first appearance; "" where none is.

    Args:
        found: a scale and a verdict at it, each topic once per scale.
    """
    table: dict[str, dict[str, str]] = {}
    for scale, verdict in found:
        if scale in table.setdefault(verdict.topic, {}):
            raise ValueError(f"{verdict.topic!r} has two verdicts at {scale}")
        table[verdict.topic][scale] = verdict.outcome
    scales = dict.fromkeys(scale for row in table.values() for scale in row)
    rows = [[row.get(scale, "") for scale in scales] for row in table.values()]
    return pd.DataFrame(rows, index=list(table), columns=list(scales))
