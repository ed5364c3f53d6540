"""What the estimates share: tables of complete seeds, and resamples of seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy  # its parts load when first used: half a second that a notebook drawing nothing need not spend

Array = npt.NDArray[np.float64]
_RESAMPLES = 4000
KNOTS = 7  # of a smooth curve; fewer where an order was run at fewer curvatures


def grid(frame: pd.DataFrame, value: str, cells: list[str]) -> pd.DataFrame:
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


def by_order(table: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    """Each order with its part of a table from :func:`grid`."""
    for order in sorted(set(table.index.get_level_values("beta"))):
        yield order, table.loc[order]


def natural_splines(x: Array, knots: int) -> scipy.interpolate.CubicSpline:
    """A basis of the natural cubic splines with knots at evenly spaced quantiles of x: x -> [..., knots]."""
    return scipy.interpolate.CubicSpline(np.quantile(x, np.linspace(0, 1, knots)), np.eye(knots), bc_type="natural")


def resamples(n: int) -> Array:
    """Weights of n seeds in bootstrap resamples, [resamples, n], each row summing to 1; always the same."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n


def tails(n: int, level: float = 0.05) -> tuple[float, float]:
    """The quantiles of the widened percentile interval for n replicates."""
    tail = float(scipy.stats.norm.sf(scipy.stats.t.ppf(1 - level / 2, n - 1) * math.sqrt(n / (n - 1))))
    return tail, 1 - tail
