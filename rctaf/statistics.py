"""The statistics behind the verdicts of this book.

The design is a grid of fixed curvatures and orders, repeated over seeds. Seeds are the replicates: the runs of
one seed share their initial weights and their order of images, so they are compared *within* a seed, and whole
seeds are resampled, never single runs. Intervals therefore speak about other seeds of the same experiment; they say
nothing about other data sets, networks or curvatures outside the grid.

Frames are tidy, one row per run, with the columns ``curvature``, ``seed``, ``beta`` (where orders are compared) and
the measured quantities, as :func:`rctaf.records.table` gives them. Every function refuses incomplete grids rather than
average over different seeds in different cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy  # its parts load when first used: half a second that a notebook drawing nothing need not spend

Array = npt.NDArray[np.float64]
_RESAMPLES = 4000
_KNOTS = 7  # of a curve through seed means; one per curvature where fewer were tested


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval from n replicates; the ends are NaN where n = 1 leaves them unknown."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, row: Mapping[Any, Any] | pd.Series, what: str = "difference") -> Estimate:
        """The estimate in a row of a table of this module: the ``difference``, or the ``largest`` of several."""
        low, high = ("low", "high") if what == "difference" else (f"{what}_low", f"{what}_high")
        return cls(float(row[what]), float(row[low]), float(row[high]), int(row["n"]))


def mean_interval(values: Sequence[float] | Array) -> Estimate:
    """Mean and 95 % interval over seeds, m ± t_{0.975, n-1} s / √n.

    Raises:
        ValueError: no values, or one that is not finite.

    >>> e = mean_interval([50.32, 50.56, 50.59])
    >>> f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}], n = {e.n}"
    '50.49 [50.12, 50.86], n = 3'
    """
    x = _finite(values)
    if len(x) == 1:
        return Estimate(float(x[0]), math.nan, math.nan, 1)
    reach = float(scipy.stats.t.ppf(0.975, len(x) - 1)) * x.std(ddof=1) / math.sqrt(len(x))
    return Estimate(float(x.mean()), float(x.mean() - reach), float(x.mean() + reach), len(x))


def cell_means(frame: pd.DataFrame, value: str, by: Sequence[str] = ("beta", "curvature")) -> pd.DataFrame:
    """:func:`mean_interval` of every cell: the columns of ``by``, then ``value``, ``low``, ``high``, ``n``."""
    rows = []
    for key, part in frame.groupby(list(by), sort=True, dropna=False):  # baselines have no order and no curvature
        rows.append(dict(zip(by, key, strict=True)) | vars(mean_interval(part[value].to_numpy(float))))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n"])  # columns also where nothing is there


# --- where is the best curvature? ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optimum:
    """Where a smooth curve through the seed means is largest (or smallest).

    Attributes:
        curvature: position of the optimum of the curve, with its 95 % interval; n is the number of seeds.
        edge: share of the resamples whose optimum is the smallest or the largest curvature of the grid.
        identified: False when more than 2.5 % of the resamples lie on an edge (the optimum may be outside the grid),
            or when the interval covers more than half of the grid on the log axis (a plateau).
    """

    curvature: Estimate
    edge: float
    identified: bool


def optimum(
    frame: pd.DataFrame,
    value: str,
    *,
    kind: Literal["max", "min"] = "max",
    level: float = 0.05,
) -> Optimum:
    """The curvature at which ``value`` is best, with a bootstrap interval over seeds.

    The curve is a natural cubic spline in log curvature, fitted by least squares to the seed means; its seven knots
    stand at evenly spaced quantiles of the curvatures tested. On skewed peaks over the 10 curvatures of this book's
    grids, 5 knots displace the optimum by up to 26 %, 7 by up to 6 %, and the intervals cover it in 87 % and 95 % of
    simulated experiments. It is a linear map of the means, so a resample of the
    seeds costs one matrix product. The interval holds the central positions of the resamples' optima, between
    the quantiles Φ(±t_{1-level/2, n-1} √(n / (n-1))): the percentile interval widened for few seeds (Hesterberg 2015,
    arXiv 1411.5279, "expanded percentile"). Three seeds have ten resamples, and the interval is their range: in
    simulated experiments it covers the optimum in 71-78 % of cases, with five or ten seeds in 90-95 %.

    Args:
        frame: one order (and one method, network, ...): a row per curvature and seed.
        value: the column to optimise.
        kind: ``max`` or ``min``.
        level: of the interval, which covers 1 - ``level``; lower it for one of several.

    Raises:
        ValueError: an incomplete grid, fewer than 3 seeds, or fewer than 4 curvatures.
    """
    table = _grid(frame, value, ["curvature"])
    log_c = np.log(table.index.to_numpy(float))
    if len(log_c) < 4 or table.shape[1] < 3:
        raise ValueError(f"{len(log_c)} curvatures and {table.shape[1]} seeds: expected at least 4 and 3")
    knots = min(_KNOTS, len(log_c))
    sign = 1.0 if kind == "max" else -1.0
    y = sign * table.to_numpy(float)  # [curvatures, seeds]
    at = np.quantile(log_c, np.linspace(0, 1, knots))
    basis = scipy.interpolate.CubicSpline(at, np.eye(knots), bc_type="natural")
    fine = np.linspace(log_c[0], log_c[-1], 1001)
    smoother = basis(fine) @ np.linalg.pinv(basis(log_c))  # means at the tested curvatures -> the curve

    means = y.mean(1)
    curve = smoother @ means
    draws = _resamples(y.shape[1])
    best = (smoother @ (y @ draws.T)).argmax(0)
    low, high = np.quantile(fine[best], _tails(y.shape[1], level))
    edge = float(np.mean((best == 0) | (best == len(fine) - 1)))
    return Optimum(
        curvature=Estimate(
            float(np.exp(fine[curve.argmax()])), float(np.exp(low)), float(np.exp(high)), table.shape[1]
        ),
        edge=edge,
        identified=bool(edge <= 0.025 and high - low <= (fine[-1] - fine[0]) / 2),
    )


# --- comparisons within seeds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A difference paired by seed.

    Attributes:
        difference: mean over seeds with its 95 % interval.
        p_different: two-sided p of the paired t test against 0.
        p_lower: one-sided p of the same test against "not below 0": small when the difference is negative.
        p_equivalent: p of two one-sided tests (TOST) against "at least the margin apart"; small when the difference
            is within ± margin. NaN without a margin. Below 0.05 exactly when the 90 % interval lies inside the margin.
    """

    difference: Estimate
    p_different: float
    p_lower: float
    p_equivalent: float


def paired_difference(
    a: Sequence[float] | Array, b: Sequence[float] | Array, margin: float | None = None
) -> Difference:
    """Compare a with b, seed by seed: d = a - b, t = (mean d - d₀) √n / s on n - 1 degrees of freedom.

    "Not significantly different" is not evidence of being equal; ``p_equivalent`` is the test for that, and needs a
    margin chosen before looking.

    Raises:
        ValueError: different lengths, fewer than two pairs, a margin that is not positive.

    >>> paired_difference([1.0, 2.0, 3.0], [1.1, 1.9, 3.0], margin=0.5).p_equivalent < 0.05
    True
    """
    x, y = _finite(a), _finite(b)
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"{len(x)} and {len(y)} values: expected as many of each, at least 2")
    if margin is not None and not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")
    d = x - y
    n, error = len(d), d.std(ddof=1) / math.sqrt(len(d))

    def upper(shift: float) -> float:
        """P(T >= t) for t = (mean d - shift) / error; also where all differences are equal."""
        gap = d.mean() - shift
        t = gap / error if error > 0 else math.copysign(math.inf, gap) if gap else 0.0
        return float(scipy.stats.t.sf(t, n - 1))

    above = upper(0.0)
    equivalent = math.nan if margin is None else max(upper(-margin), 1 - upper(margin))
    return Difference(mean_interval(d), 2 * min(above, 1 - above), 1 - above, equivalent)


def orders_coincide(frame: pd.DataFrame, value: str, *, below: float, margin: float) -> pd.DataFrame:
    """Do the orders give the same ``value`` at equal curvature, at every curvature up to ``below``?

    For every pair of orders and every curvature <= ``below``: :func:`paired_difference` over seeds. A mean over
    curvatures would not do: curves that cross differ everywhere and have a mean difference of zero.

    Multiplicity: "all orders coincide" claims every pair and curvature at once, so its p-value is the *largest*
    ``p_equivalent`` (intersection-union: no correction needed). "Some orders differ" is met by any of them, so
    ``p_different`` is corrected by Holm's method over all pairs and curvatures.

    Returns:
        A row per pair: ``orders``; ``difference``, ``low``, ``high`` (the mean over the curvatures, to look at);
        ``n`` (seeds); ``p_equivalent`` (the largest over the curvatures); ``p_different_holm`` (the smallest);
        ``largest`` (the mean difference that is farthest from 0), ``largest_low``, ``largest_high`` and ``at``
        (its curvature); ``clearest`` (the mean difference of the smallest p) and ``clearest_at``; ``curvatures``
        (how many).

    Raises:
        ValueError: an incomplete grid, fewer than two orders or seeds, or no curvature <= ``below``.
    """
    table = _grid(frame[frame["curvature"] <= below], value, ["beta", "curvature"])
    orders = sorted({key[0] for key in table.index})
    if len(orders) < 2:
        raise ValueError(f"orders at curvature <= {below:g}: {orders}, expected at least two")
    rows, p_different = [], []
    for a, b in itertools.combinations(orders, 2):
        one, other = table.loc[a], table.loc[b]
        if list(one.index) != list(other.index):
            raise ValueError(
                f"orders {a} and {b} were run at different curvatures: {[*one.index]} and {[*other.index]}"
            )
        tests = {c: paired_difference(one.loc[c].tolist(), other.loc[c].tolist(), margin) for c in one.index}
        overall = mean_interval((one - other).mean().to_numpy(float))
        at = max(tests, key=lambda c: abs(tests[c].difference.value))
        clearest = min(tests, key=lambda c: tests[c].p_different)
        p_different.append([test.p_different for test in tests.values()])
        rows.append(
            {
                "orders": f"{a} vs {b}",
                "difference": overall.value,
                "low": overall.low,
                "high": overall.high,
                "n": overall.n,
                "p_equivalent": max(test.p_equivalent for test in tests.values()),
                "largest": tests[at].difference.value,
                "largest_low": tests[at].difference.low,
                "largest_high": tests[at].difference.high,
                "at": float(at),
                "clearest": tests[clearest].difference.value,
                "clearest_at": float(clearest),
                "curvatures": len(tests),
            }
        )
    corrected = holm(np.ravel(p_different)).reshape(len(rows), -1)
    return pd.DataFrame(rows).assign(p_different_holm=corrected.min(axis=1))


def trend(frame: pd.DataFrame, value: str) -> Estimate:
    """By how much ``value`` rises per doubling of the curvature: a t-interval over seeds.

    Per seed: the slope of a least-squares line in log2 curvature of each order, averaged over the orders. A slope says
    nothing about the shape: a curve that rises steeply and then falls a little has a positive one.

    Raises:
        ValueError: an incomplete grid, or an order with fewer than 3 curvatures.
    """
    table = _grid(frame, value, ["beta", "curvature"])
    slopes = []
    for order, part in _by_order(table):
        if len(part) < 3:
            raise ValueError(f"order {order}: curvatures {[*part.index]}, expected at least 3")
        slopes.append(np.polyfit(np.log2(part.index.to_numpy(float)), part.to_numpy(float), 1)[0])
    return mean_interval(np.mean(slopes, axis=0))


def falls(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Where ``value``, averaged over the orders within each seed, is lower at a larger curvature than at a smaller.

    Returns:
        A row per pair of curvatures, the most significant fall first: ``smaller``, ``larger``, ``difference`` (at the
        larger minus at the smaller), ``low``, ``high``, ``n``, ``p_lower_holm``, corrected over all pairs.

    Raises:
        ValueError: an incomplete grid, or orders that were run at different curvatures.
    """
    table = _grid(frame, value, ["beta", "curvature"])
    if (table.groupby("curvature").size() != table.index.get_level_values("beta").nunique()).any():
        raise ValueError("the orders were run at different curvatures: expected the same")
    means = table.groupby("curvature").mean()
    pairs = list(itertools.combinations(means.index, 2))
    tests = [paired_difference(means.loc[b].tolist(), means.loc[a].tolist()) for a, b in pairs]
    result = pd.DataFrame(pairs, columns=["smaller", "larger"]).assign(**_differences(tests))
    result["p_lower_holm"] = holm([test.p_lower for test in tests])
    return result.sort_values(["p_lower_holm", "difference"], ignore_index=True)


def lower_beyond(frame: pd.DataFrame, value: str, *, band: tuple[float, float], beyond: float) -> pd.DataFrame:
    """Is ``value`` lower beyond a curvature than inside a band that was named beforehand?

    Per seed and order: mean over the curvatures > ``beyond`` minus mean over ``band[0]`` <= curvature <= ``band[1]``;
    then :func:`paired_difference` over seeds. The band must not be chosen by looking for the best curvature in
    the same data: the best of several noisy means is too high, and everything else then looks lower.

    Returns:
        A row per order and one for ``all`` (orders averaged within each seed, so that a seed still counts once):
        ``order``, ``difference``, ``low``, ``high``, ``n``, ``p_lower`` and ``p_lower_holm``, corrected over
        the orders; ``all`` is one test and not corrected.

    Raises:
        ValueError: an incomplete grid, or no curvature in the band or beyond it.
    """
    changes = changes_beyond(frame, value, band=band, beyond=beyond)
    single = list(changes.values())
    tests = [paired_difference(d, np.zeros(len(d))) for d in [*single, np.mean(single, axis=0)]]
    result = pd.DataFrame({"order": [*map(str, changes), "all"]}).assign(**_differences(tests))
    result["p_lower"] = [t.p_lower for t in tests]
    result["p_lower_holm"] = [*holm([t.p_lower for t in tests[:-1]]), tests[-1].p_lower]
    return result


def changes_beyond(frame: pd.DataFrame, value: str, *, band: tuple[float, float], beyond: float) -> dict[int, Array]:
    """By order, the change of :func:`lower_beyond` in every seed, in the order of the seeds."""
    table = _grid(frame, value, ["beta", "curvature"])
    changes = {}
    for order, part in _by_order(table):
        c = part.index.to_numpy(float)
        inside, outside = (c >= band[0]) & (c <= band[1]), c > beyond
        if not inside.any() or not outside.any():
            raise ValueError(f"order {order}: curvatures {c.tolist()} hold none in {band} or none beyond {beyond:g}")
        changes[order] = part[outside].mean().to_numpy(float) - part[inside].mean().to_numpy(float)
    return changes


def inside_against_ends(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Is ``value`` higher somewhere inside the tested curvatures than at the smallest, and than at the largest of them?

    The difference of a seed is that between one curvature inside and the end. Which one, the seeds *before* it choose,
    in the order of their numbers: that with the highest mean over these; the first seed only chooses. So no run is
    compared where its own noise is high, and where the curvatures inside do not differ, the differences of two seeds
    are independent. Were every seed to follow all the others, two seeds would follow each other: where nothing differs,
    the interval then lies above 0 in 4 % (three seeds), 5 % (five) and 6 % (ten) of simulated experiments. Here it does
    in 2.5 %, as it should, with any of these numbers of seeds.

    Returns:
        A row per order and end: ``order``; ``end`` (its curvature); ``difference`` (inside minus end), ``low``,
        ``high``, ``n`` (differences, one less than seeds); ``chosen`` (the curvatures inside, in the order of the
        seeds); ``p_end_above`` (that the end is above *every* curvature inside: the largest p of the one-sided
        paired t tests, over all seeds) and ``p_end_above_holm``, corrected over the rows.

    Raises:
        ValueError: an incomplete grid, fewer than three seeds, or an order with fewer than three curvatures.
    """
    table = _grid(frame, value, ["beta", "curvature"])
    rows = []
    for order, part in _by_order(table):
        places, runs = part.index.to_numpy(float), part.to_numpy(float)
        if len(places) < 3 or runs.shape[1] < 3:
            raise ValueError(f"order {order}: {len(places)} curvatures, {runs.shape[1]} seeds; expected 3 of each")
        inside = runs[1:-1]
        best = np.cumsum(inside, axis=1)[:, :-1].argmax(0)
        later = np.arange(1, runs.shape[1])
        for end in (0, -1):
            e = mean_interval(inside[best, later] - runs[end, later])
            above = max(paired_difference(row, runs[end]).p_lower for row in inside)
            rows.append(
                {
                    "order": order,
                    "end": places[end],
                    "difference": e.value,
                    "low": e.low,
                    "high": e.high,
                    "n": e.n,
                    "chosen": places[1:-1][best].tolist(),
                    "p_end_above": above,
                }
            )
    return pd.DataFrame(rows).assign(p_end_above_holm=holm([row["p_end_above"] for row in rows]))


def holm(p: Sequence[float] | Array) -> Array:
    """Holm's step-down correction: the k-th smallest of m p-values times m - k + 1, made increasing, at most 1.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, float)
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1, steps)
    return corrected


def variance_over_cells(table: Array) -> Array:
    """How much cells truly differ: one number per seed, whose mean is the variance over cells without seed noise.

    The variance of one seed's values over cells holds the noise of its runs. The product of two seeds' deviations from
    their own means does not: its mean over pairs of seeds is unbiased for the variance of the true means. The numbers
    are the jackknife's pseudo-values n U - (n - 1) U without the seed, so that a t-interval of them is one of U. In
    simulated experiments (3 to 10 seeds, 3 or 5 cells) it covers the truth in 93-99 % of cases.

    Args:
        table: [seeds, cells], at least 3 x 2, without gaps; or [places, seeds, cells], for the mean over places.

    Raises:
        ValueError: it is smaller, or not finite.
    """
    x = np.asarray(table, float)
    if x.ndim not in (2, 3) or x.shape[-2] < 3 or x.shape[-1] < 2 or not np.isfinite(x).all():
        raise ValueError(f"expected finite numbers, at least 3 seeds x 2 cells; got the shape {x.shape}")
    deviations = x - x.mean(-1, keepdims=True)
    products = deviations @ np.swapaxes(deviations, -1, -2) / (x.shape[-1] - 1)
    if x.ndim == 3:
        products = products.mean(0)
    np.fill_diagonal(products, 0)
    n, total, own = len(products), products.sum(), products.sum(1)
    return total / (n - 1) - (total - 2 * own) / (n - 2)


def variance_between_orders(frame: pd.DataFrame, value: str, label: str, low: float, high: float) -> Array:
    """How far the curves of the orders lie apart at equal ``label``: their variance without seed noise, one number per
    seed (:func:`variance_over_cells`), the mean over ``low`` to ``high`` in the logarithm of the label.

    Between the runs of an order lies a straight line in the logarithm. Where the runs of the orders have different
    labels, curves with the bends of this book's that coincide at equal label seem less than 0.1 points apart for that.

    Args:
        label: a column that is one number in each order and curvature, and rises with the curvature.
        low, high: within what every order has runs at.

    Raises:
        ValueError: an incomplete grid, fewer than two orders or three seeds, or a range that an order does not cover.
    """
    table = _grid(frame, value, ["beta", label])
    at = np.linspace(math.log(low), math.log(high), 201)
    curves = []
    for order, part in _by_order(table):
        x = np.log(part.index.to_numpy(float))
        if not x[0] <= at[0] + 1e-9 < at[-1] <= x[-1] + 2e-9:
            raise ValueError(f"order {order} has runs at {label} {[*part.index]}, which do not cover {low} to {high}")
        curves.append([np.interp(at, x, run) for run in part.to_numpy(float).T])  # [seeds, places]
    return variance_over_cells(np.transpose(curves, (2, 1, 0)))


# --- does one quantity go with another? ------------------------------------------------------------------------------


def spearman(frame: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Spearman's correlation of two measured quantities over the cells of the grid, within orders and across.

    The ranks are those of the cells' seed means; the interval resamples seeds (one resample for both quantities and all
    cells) with the widened percentiles of :func:`optimum`. So it answers: what would the correlation over *these*
    curvatures be with other seeds? Seed noise pulls a correlation near ±1 towards 0.

    Where one quantity does not depend on curvature at all, the interval of simulated experiments leaves 0 out in
    15-25 % of cases with three seeds, and in about 5 % or less with five or ten.

    Returns:
        A row per order, one for ``across`` (all cells of all orders ranked together) and one for ``within`` (the
        orders' correlations averaged, which no difference between the orders' levels can produce): ``order``,
        ``correlation``, ``low``, ``high``, ``n`` (seeds), ``cells``.

    Raises:
        ValueError: an incomplete grid, fewer than 3 seeds, or fewer than 3 curvatures of an order.
    """
    tables = [_grid(frame, name, ["beta", "curvature"]) for name in (x, y)]
    values = [table.to_numpy(float) for table in tables]
    orders = np.array([key[0] for key in tables[0].index])
    names = sorted(set(orders.tolist()))
    n = values[0].shape[1]
    if n < 3 or min((orders == name).sum() for name in names) < 3:
        raise ValueError(f"{n} seeds, {len(orders)} cells: expected at least 3 seeds and 3 curvatures of each order")

    def correlations(weights: Array) -> Array:
        """[orders + across + within, resamples]"""
        a, b = (v @ weights.T for v in values)
        rows = [_spearman(a[orders == name], b[orders == name]) for name in names]
        return np.stack([*rows, _spearman(a, b), np.mean(rows, axis=0)])

    point = correlations(np.full((1, n), 1 / n))[:, 0]
    spread = np.quantile(correlations(_resamples(n)), _tails(n), axis=1)
    cells = [*((orders == name).sum() for name in names), len(orders), len(orders)]
    return pd.DataFrame(
        {
            "order": [*map(str, names), "across", "within"],
            "correlation": point,
            "low": spread[0],
            "high": spread[1],
            "n": n,
            "cells": cells,
        }
    )


def _spearman(a: Array, b: Array) -> Array:
    """Spearman's correlation of each column of a [cells, resamples] with that of b; 0 where one of them is constant."""
    ranks = [scipy.stats.rankdata(v, axis=0) for v in (a, b)]
    u, v = (r - r.mean(0) for r in ranks)
    scale = np.sqrt((u * u).sum(0) * (v * v).sum(0))
    return np.where(scale > 0, (u * v).sum(0) / np.where(scale > 0, scale, 1), 0.0)


# --- what can one run per cell show? ---------------------------------------------------------------------------------


def seed_deviation(frame: pd.DataFrame, value: str) -> tuple[Estimate, float]:
    """The standard deviation between seeds of a cell, pooled over cells, with its 95 % interval; and its df.

    The runs of one seed share their initial weights, so the cells of a seed go up and down together and count for less
    than as many independent ones. With C cells and S seeds, each cell with every seed, the mean squares M of the seeds
    and E of what cells and seeds leave (two-way analysis of variance) give s² = (M + (C - 1) E) / C, which is the mean
    variance within a cell. Its degrees of freedom are Satterthwaite's, (S - 1) C² s⁴ / (M² + (C - 1) E²), between
    S - 1 and C (S - 1); df s² / σ² is taken as χ² distributed, and every cell to scatter alike.

    Used are the cells with the most seeds, and of these seeds those that all of them have. ``n`` is the number of runs.
    Where no cell differs between seeds, the deviation is 0, and its interval and df are NaN.

    Raises:
        ValueError: no two seeds are left.
    """
    c, s, m, e = _mean_squares(frame, value)
    square = (m + (c - 1) * e) / c
    if square == 0:
        return Estimate(0.0, math.nan, math.nan, c * s), math.nan
    df = square**2 * c**2 * (s - 1) / (m**2 + (c - 1) * e**2)
    low, high = (math.sqrt(df * square / float(scipy.stats.chi2.ppf(q, df))) for q in (0.975, 0.025))
    return Estimate(math.sqrt(square), low, high, c * s), df


def noise_parts(frame: pd.DataFrame, value: str) -> tuple[float, float]:
    """The two parts of :func:`seed_deviation`: what the cells of a seed share, √((M - E) / C) or 0 where M is below E,
    and what is a run's own, √E."""
    c, _, m, e = _mean_squares(frame, value)
    return math.sqrt(max(0.0, (m - e) / c)), math.sqrt(e)


def _mean_squares(frame: pd.DataFrame, value: str) -> tuple[int, int, float, float]:
    """C, S, M and E of :func:`seed_deviation`; E is 0 with one cell."""
    rows = frame.dropna(subset=[value])
    cells = rows.groupby(["activation", "beta", "curvature"], dropna=False)
    rows = rows.assign(cell=cells.ngroup(), seeds=cells["seed"].transform("nunique"))
    table = rows[rows["seeds"] == rows["seeds"].max()].pivot_table(values=value, index="cell", columns="seed")
    x = table.dropna(axis=1).to_numpy(float)
    c, s = x.shape
    if s < 2:
        raise ValueError(f"{len(frame)} runs have {s} seed(s) in common: expected at least two")
    if not np.ptp(x, axis=1).any():  # the sums below would leave some 1e-32
        return c, s, 0.0, 0.0
    means = x.mean(0)
    m = float(c * means.var(ddof=1))
    rest = float(((x - x.mean(1, keepdims=True) - means + x.mean()) ** 2).sum())
    return c, s, m, rest / ((c - 1) * (s - 1)) if c > 1 else 0.0


def critical_difference(sd: float, *, df: float = math.inf) -> float:
    """What two single runs must differ by to be told apart at the 5 % level, two-sided: t_{0.975} sd √2.

    Args:
        sd: the standard deviation over seeds, on ``df`` degrees of freedom (infinite: known).

    Raises:
        ValueError: as :func:`minimum_detectable_difference`.

    >>> round(critical_difference(1.0), 2)   # 1.96 √2 standard deviations
    2.77
    """
    return minimum_detectable_difference(sd, df=df, power=0.5)


def minimum_detectable_difference(sd: float, *, df: float = math.inf, power: float = 0.8) -> float:
    """The smallest true difference between two cells that a comparison of single runs would mostly find.

    (t_{0.975} + t_{power}) sd √2, with t on the ``df`` degrees of freedom of ``sd``, the standard deviation over
    seeds, which must come from elsewhere as there is one run per cell (infinite: sd is known).

    Raises:
        ValueError: sd or df not positive, power outside (0, 1).

    >>> round(minimum_detectable_difference(1.0), 2)   # 2.80 √2 standard deviations
    3.96
    """
    if not (sd > 0 and df > 0 and 0 < power < 1):
        raise ValueError(f"expected sd > 0, df > 0, 0 < power < 1; got sd={sd}, df={df}, power={power}")
    return float(scipy.stats.t.ppf(0.975, df) + scipy.stats.t.ppf(power, df)) * sd * math.sqrt(2)


# --- common ----------------------------------------------------------------------------------------------------------


def _finite(values: Sequence[float] | Array) -> Array:
    x = np.asarray(values, float)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected a list of finite numbers, at least one; got {x.tolist()}")
    return x


def _differences(tests: Sequence[Difference]) -> dict[str, list[float]]:
    """Columns that :meth:`Estimate.of` reads."""
    found = [test.difference for test in tests]
    return {
        "difference": [e.value for e in found],
        "low": [e.low for e in found],
        "high": [e.high for e in found],
        "n": [e.n for e in found],
    }


def _by_order(table: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    """Each order with its part of a table from :func:`_grid`."""
    for order in sorted(set(table.index.get_level_values("beta"))):
        yield order, table.loc[order]


def _grid(frame: pd.DataFrame, value: str, cells: list[str]) -> pd.DataFrame:
    """``value`` with a row per cell, sorted, and a column per seed; every cell must have every seed once."""
    needed = [*cells, "seed", value]
    if missing := [name for name in needed if name not in frame]:
        raise ValueError(f"columns {missing} are missing; the frame has {list(frame.columns)}")
    if frame.empty or frame[needed].isna().to_numpy().any():
        raise ValueError(
            f"{len(frame)} rows, {int(frame[needed].isna().to_numpy().sum())} gaps in {needed}: expected none"
        )
    if frame.duplicated([*cells, "seed"]).any():
        twice = frame.loc[frame.duplicated([*cells, "seed"]), [*cells, "seed"]].iloc[0].to_dict()
        raise ValueError(f"more than one run for {twice}: select one order, method and network first")
    table = frame.pivot_table(values=value, index=cells, columns="seed").sort_index()
    if table.isna().to_numpy().any():
        cell, seed = next((i, s) for i in table.index for s in table.columns if pd.isna(table.loc[i, s]))
        raise ValueError(f"the grid is incomplete: no run for {cells}={cell}, seed {seed}")
    return table


def _resamples(n: int) -> Array:
    """Weights of n seeds in bootstrap resamples, [resamples, n], each row summing to 1; always the same."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n


def _tails(n: int, level: float = 0.05) -> tuple[float, float]:
    """The quantiles of the widened percentile interval for n replicates."""
    tail = float(scipy.stats.norm.sf(scipy.stats.t.ppf(1 - level / 2, n - 1) * math.sqrt(n / (n - 1))))
    return tail, 1 - tail
