"""Does one quantity go with another?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy

from rctaf.statistics.common import Array, grid, resamples, tails


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
    tables = [grid(frame, name, ["beta", "curvature"]) for name in (x, y)]
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
    spread = np.quantile(correlations(resamples(n)), tails(n), axis=1)
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
