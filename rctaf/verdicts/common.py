"""What the rules share: their numbers, which runs are judged, places with intervals, and what several claims ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from rctaf.statistics import KNOTS, Estimate, Optimum, falls, inside_against_ends, optimum, trend
from rctaf.words import count, listed, p_value, points, typeset

BAND = (4.0, 10.0)  #: the paper's optimal range of max|sigma''|, called the band
TUNED = 7.0  # max|sigma''| of RCT-AF in its Table 1
MARGIN = 0.01  #: one percentage point, as a share, within which two accuracies count as the same
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
ADDED_LAST = (  # likewise, of the rule on the U
    "Post hoc: this rule was made on 2026-11-30, after all runs of digits and seeds 0 to 4 of Fashion-MNIST had been "
    "looked at."
)
CHANGED_WHEN = (
    "on 2026-11-30, after all runs of digits, and seeds 0 to 4 of order 1 on Fashion-MNIST, had been looked at"
)
CHANGED = f"Post hoc: this rule was made stricter {CHANGED_WHEN}."
WIDENED = (  # of the interval of a place
    "on 2026-12-01, when all runs that it judges had been seen, by fits with one knot fewer and one more. That can "
    "only make a verdict more careful. On digits it left three *undecided* that had been *not supported*: one peak for "
    "every method, and, of both losses, that the scale-free norm is least between 4 and 10"
)
ADDED_MARK = "†"  # at the topic of each of them


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


def rows_to_judge(
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
        words = (
            f"An order has at least {MIN_SEEDS} seeds at only {count(fewest, 'curvature')}; {curvatures} are needed."
        )
        return claim, rows, Verdict(claim, words, "not testable")
    return claim, rows, None


def by_order(rows: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """The rows of each order."""
    return {int(beta): rows[rows["beta"] == beta] for beta in sorted(set(rows["beta"]))}


def shared_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at curvatures that every order was run at."""
    return rows[rows.groupby("curvature")["beta"].transform("nunique") == rows["beta"].nunique()]


def resampled(seeds: int) -> tuple[str, str]:
    """What to call an interval from resampling this many seeds, and what to add where they are too few to judge by."""
    if seeds < BOOTSTRAP_SEEDS:
        return "range over resamples", f"{seeds} seeds; not testable: fewer than {BOOTSTRAP_SEEDS} seeds"
    return "95 % interval", f"{seeds} seeds"


def resolved(fits: Sequence[Optimum], tested: list[float]) -> tuple[float, float]:
    """The interval of an optimum: over seeds, over fits with other numbers of knots, and no narrower than the grid.

    Seeds say how far one fitted curve moves. What they cannot say:

    - Whether another smooth curve would be best elsewhere. So the interval covers what curves with one knot fewer and
      one more say too; with few curvatures these can lie far apart.
    - What lies between two tested curvatures. So in each fit it reaches at least half-way to either neighbour of the
      tested curvature nearest to the optimum, on the log axis (to the geometric mean). It must not reach to the
      neighbours themselves: the ends of the paper's band are tested curvatures, and an optimum beside one would then
      always touch the band.

    The fits came last (``WIDENED``). They can only make an interval wider and a verdict more careful.
    """
    ends = []
    for fit in fits:
        nearest = int(np.abs(np.log(tested) - math.log(fit.curvature.value)).argmin())
        ends += [math.sqrt(tested[nearest] * tested[min(max(nearest + step, 0), len(tested) - 1)]) for step in (-1, 1)]
        ends += [fit.curvature.low, fit.curvature.high]
    return min(ends), max(ends)


@dataclass(frozen=True)
class Place:
    """The optimum of an order: the fitted place, the ends of its interval (see :func:`resolved`), and all in words.

    ``widened``: whether the interval reaches beyond that over seeds. ``identified``: in every fit, see
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
        curvatures = sorted(set(part["curvature"]))
        # with few curvatures some of these are the same curve
        numbers = dict.fromkeys(min(knots, len(curvatures)) for knots in (KNOTS, KNOTS - 1, KNOTS + 1))
        fits = [optimum(part, value, kind=kind, level=level, knots=knots) for knots in numbers]
        found, identified = fits[0], all(fit.identified for fit in fits)
        low, high = resolved(fits, curvatures)
        c = found.curvature
        few = c.n < BOOTSTRAP_SEEDS
        reach = f"range over resamples {c.low:.2g} to {c.high:.2g}" if few else f"{low:.3g} to {high:.3g}"
        means = part.groupby("curvature")[value].mean()
        tested = f"highest mean at {means.idxmax():g}" if kind == "max" else f"lowest mean at {means.idxmin():g}"
        plateau = "" if identified else ", a plateau or at the edge of the grid"
        words = f"order {beta}: {c.value:.2g} ({reach}, {tested}{plateau})"
        widened = (low, high) != (c.low, c.high)
        found_places.append(Place(beta, c.value, low, high, words, widened, identified))
    return found_places


def side(place: Place) -> str:
    """Where an interval lies against the band."""
    if place.high < BAND[0]:
        return "below"
    if place.low > BAND[1]:
        return "above"
    return "inside" if BAND[0] <= place.low and place.high <= BAND[1] else "across an edge of"


def against_band(found: Sequence[Place]) -> str:
    """Supported: all lie inside the band. Not supported: some lies wholly outside. Else undecided."""
    sides = {side(place) for place in found}
    return outcome_of(sides == {"inside"}, bool(sides & {"below", "above"}))


def in_band(claim: str, what: str, frame: pd.DataFrame, value: str, kind: Literal["max", "min"]) -> Verdict:
    """Is the optimum between 4 and 10, in each order that was run?

    Supported: every interval (see :func:`resolved`) lies inside the band. Not supported: some interval lies wholly
    outside. Else undecided. Not testable: fewer than ``BOOTSTRAP_SEEDS`` complete seeds.
    """
    claim, rows, stop = rows_to_judge(claim, frame, value, BOOTSTRAP_SEEDS, FIT_CURVATURES)
    if stop:
        return stop
    found, seeds = places(rows, value, kind), rows["seed"].nunique()
    words = [place.words for place in found]
    if seeds < BOOTSTRAP_SEEDS:
        return Verdict(claim, f"{what}: {'; '.join([*words, resampled(seeds)[1]])}.", "not testable")
    words.append(
        f"{seeds} seeds; the interval is that of the fitted place (95 % over seeds, over fits with {KNOTS - 1} to "
        f"{KNOTS + 1} knots, at least half-way to the tested neighbours)"
    )
    return Verdict(claim, f"{what}: {'; '.join(words)}.", against_band(found))


def trend_below(claim: str, frame: pd.DataFrame, value: str) -> Verdict:
    """Per seed, the slope over log curvature below 4, averaged over the orders (:func:`rctaf.statistics.trend`).

    Supported: its t-interval lies above 0; the mean of the orders at the largest curvature up to 4 is shown not to be
    more than ``MARGIN`` lower than at any smaller (every 95 % interval of the difference lies above -``MARGIN``); and
    nowhere up to 4 is it lower at a larger curvature than at a smaller (p < 0.05 after Holm, over all pairs). Not
    supported: the interval of the slope lies below 0, or there is such a fall (two-sided). Else undecided. A slope
    alone would not see a rise that turns into a fall; and without the second condition, which came last (``CHANGED``),
    few seeds, which show no fall, supported the claim sooner than many.
    """
    claim, rows, stop = rows_to_judge(claim, frame, value)
    if stop:
        return stop
    below = rows[rows["curvature"] < BAND[0]]
    if set(below["beta"]) != set(rows["beta"]) or below.groupby("beta")["curvature"].nunique().min() < 3:
        return Verdict(claim, "An order was run at fewer than three curvatures below 4.", "not testable")
    until = shared_rows(rows[rows["curvature"] <= BAND[0]])
    if until["curvature"].nunique() < 2:
        return Verdict(claim, "The orders were not run at two of the same curvatures up to 4.", "not testable")
    slope, pairs = trend(below, value), falls(until, value)
    means = until.groupby("curvature")[value].mean()
    words = ", ".join(f"{100 * mean:.2f} % at {c:g}" for c, mean in means.items())
    fall = pairs.iloc[0]
    p = float(fall["p_lower_holm"])
    at_end = pairs[pairs["larger"] == means.index[-1]]
    lowest = at_end.loc[at_end["low"].idxmin()]
    words = (
        f"Per doubling of max|σ″|, {below['curvature'].min():g} to {below['curvature'].max():g}: {points(slope)}. "
        f"Means: {words}; highest at {means.idxmax():g}. Clearest fall: from {fall['smaller']:g} to "
        f"{fall['larger']:g}, {points(Estimate.of(fall))}, {p_value(p)} after Holm. At {lowest['larger']:g} "
        f"minus at a smaller one, the interval reaches lowest against {lowest['smaller']:g}: "
        f"{points(Estimate.of(lowest))}; 95 % "
        f"intervals over {slope.n} seeds."
    )
    rises = slope.low > 0 and lowest["low"] > -MARGIN and p >= 0.05
    return Verdict(claim, words, outcome_of(rises, slope.high < 0 or p < 0.025))


def inside_best(
    claim: str, frame: pd.DataFrame, value: str, kind: Literal["max", "min"], lead: str, told: Callable[[Estimate], str]
) -> Verdict:
    """Are both ends of the tested grid worse than its inside, in each order that was run?

    Contrast: inside minus end (of a minimum: end minus inside), by seed, in each order and at each of its two ends
    (:func:`rctaf.statistics.inside_against_ends`, which also says how a curvature inside is chosen without favour).

    Supported: every interval lies above 0. Not supported: some end is better than every curvature inside (one-sided,
    p < 0.05 after Holm over all ends). Else undecided. Not testable with fewer than four seeds: the two
    differences that three leave may be equal by chance, and then have an interval of no width.

    Args:
        kind: whether the best is the largest or the least.
        lead: what the contrast is called, at the beginning of the estimates.
        told: a difference in words.
    """
    needed = MIN_SEEDS + 1  # the first seed only chooses
    claim, rows, stop = rows_to_judge(claim, frame, value, needed, curvatures=3)
    if stop:
        return stop
    if (seeds := rows["seed"].nunique()) < needed:
        return Verdict(claim, too_few_seeds(seeds, needed), "not testable")
    found = inside_against_ends(rows if kind == "max" else rows.assign(**{value: -rows[value]}), value)
    words = []
    for order, ends in found.groupby("order"):
        differences = [f"{told(Estimate.of(r))} at {r['end']:g}" for r in ends.to_dict("records")]
        chosen = [f"{c:g}" for c in sorted(set(ends["chosen"].iloc[0]))]
        words.append(f"order {order} {listed(differences)}, with the inside at {listed(chosen)}")
    outcome = outcome_of(bool((found["low"] > 0).all()), bool((found["p_end_above_holm"] < 0.05).any()))
    best, better = ("highest", "above") if kind == "max" else ("lowest", "below")
    why = (
        f"95 % intervals over {count(found['n'].iloc[0], 'seed')}; in each, the inside is the curvature with the "
        f"{best} mean over the seeds before it, so that the first seed only chooses"
    )
    if outcome != "supported":
        p = p_value(found["p_end_above_holm"].min())
        why += f"; {p} (after Holm) for the clearest end {better} all of its inside"
    return Verdict(claim, f"{lead}: {'; '.join(words)}; {why}.", outcome)


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """A measured column; NaN where no record has it."""
    return frame.get(name, pd.Series(np.nan, frame.index)).astype(float)


def relu_and_band(frame: pd.DataFrame, rows: pd.DataFrame, value: str) -> tuple[pd.Series, pd.Series]:
    """ReLU, and the mean of ``rows`` within the band, over the seeds that both have; the second may be empty."""
    relu = frame[(frame["activation"] == "relu") & frame[value].notna()].set_index("seed")[value]
    both = rows[rows["seed"].isin(relu.index)]
    band = both[both["curvature"].between(*BAND)].groupby("seed")[value].mean()
    return relu[relu.index.isin(both["seed"])].sort_index(), band


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
    return pd.DataFrame.from_dict(table, orient="index").fillna("")
