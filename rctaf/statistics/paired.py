"""Means with intervals over seeds, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy

from rctaf.statistics.common import Array


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


def _finite(values: Sequence[float] | Array) -> Array:
    x = np.asarray(values, float)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected a list of finite numbers, at least one; got {x.tolist()}")
    return x
