"""What can one run per cell show?"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import scipy

from rctaf.statistics.paired import Estimate


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
