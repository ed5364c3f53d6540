"""What a figure or a verdict of the book rests on: the records of a grid, and their means over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rctaf.config import Grid, RunConfig
from rctaf.names import DATASETS, method_name, network_name
from rctaf.records import ROOT, Record, find, table
from rctaf.statistics import cell_means
from rctaf.words import count, typeset

ROBUSTNESS = {  # columns of the records, in the words of an axis title
    "screening_accuracy": "accuracy under APGD-CE + APGD-T",
    "robust_accuracy": "robust accuracy (AutoAttack)",
    "pgd20_accuracy": "accuracy under PGD-20",
    "pgd20_larger_accuracy": "accuracy under PGD-20, larger ε",
}
STRENGTHS = {  # the same from the weakest attack to the strongest, as a legend names them
    "pgd20_accuracy": "PGD-20",
    "apgd_ce_accuracy": "APGD-CE",
    "screening_accuracy": "APGD-CE + APGD-T",
    "robust_accuracy": "AutoAttack",
}
ATTACKS = {  # RunConfig.autoattack in words
    "none": "not attacked",
    "screening": "APGD-CE + APGD-T (screening)",
    "standard": "AutoAttack (standard version)",
}


@dataclass(frozen=True)
class Evidence:
    """The records a grid has so far."""

    grid: Grid
    total: int
    records: list[Record]

    @classmethod
    def of(cls, path: str | Path) -> Evidence:
        """Read a grid and whatever records of it exist; a relative path counts from the project's root."""
        grid = Grid.load(ROOT / path)
        cells = grid.cells()
        return cls(grid, len(cells), find(cells))

    @property
    def frame(self) -> pd.DataFrame:
        """One row per record (see :func:`rctaf.records.table`)."""
        return table(self.records)

    @property
    def robustness(self) -> str:
        """The column of robust accuracy: AutoAttack's if all runs of the grid ask for that, else the screening's."""
        whole = all(config.autoattack == "standard" for config in self.grid.cells().values())
        return "robust_accuracy" if whole else "screening_accuracy"

    @property
    def data(self) -> str:
        """The data set of the grid, or several, in words."""
        return ", ".join(dict.fromkeys(DATASETS[config.dataset] for config in self.grid.cells().values()))

    @property
    def in_short(self) -> str:
        """Data and scale in a few words, for titles; :meth:`describe` says the rest above the figure."""
        return f"{self.data}, {self.grid.scale.partition(':')[0]}"

    def describe(self) -> str:
        """What stands behind a figure, in words: data, networks, methods, attack, runs, seeds, whose records."""
        if not self.records:
            return f"**{self.grid.name}**: none of its {self.total} runs has a record yet."
        cells = self.grid.cells()
        planned = Counter(config.model_dump_json(exclude={"seed"}) for config in cells.values())
        made = Counter(record.config.model_dump_json(exclude={"seed"}) for record in self.records)
        runs = len(self.records)
        seeds = span([made[point] for point in planned])
        if runs < self.total:
            seeds = f"{seeds} of {span(list(planned.values()))} planned"
        kept = sum(record.kept for record in self.records)
        whose = {runs: "all committed evidence", 0: "all made on this machine"}.get(
            kept, f"{kept} committed, {runs - kept} made on this machine"
        )
        return (
            f"**{self.grid.name}**: {self.grid.scale}. {_settings(cells.values())}. "
            f"{'So far ' if runs < self.total else ''}{runs} of {self.total} runs, {count(seeds, 'seed')} per point, "
            f"{whose}."
        )


def span(numbers: Sequence[float]) -> str:
    """The least and the largest of several counts, or the one that all are, in words."""
    low, high = min(numbers), max(numbers)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def _settings(configs: Iterable[RunConfig]) -> str:
    """Networks, methods and attacks of some runs, each once, in the order of the grid."""
    told = [
        (
            network_name(config.network, config.width),
            method_name(config.method, config.auto_views),
            (f"ℓ∞, ε = {config.evaluation_epsilon}, " if config.autoattack != "none" else "")
            + ATTACKS[config.autoattack],
        )
        for config in configs
    ]
    return "; ".join(", ".join(dict.fromkeys(words)) for words in zip(*told, strict=True))


def across_data_sets(scales: Sequence[Evidence]) -> pd.DataFrame:
    """RCT-AF in grids that have records of it as one frame, at the orders they share, with a column ``data set``."""
    frames = []
    for scale in scales:
        rows = scale.frame[scale.frame["activation"] == "rctaf"]
        frames.append(rows.assign(**{"data set": f"{DATASETS[rows['dataset'].iloc[0]]} ({scale.grid.name})"}))
    orders = set.intersection(*(set(rows["beta"]) for rows in frames))
    return pd.concat([rows[rows["beta"].isin(orders)] for rows in frames], ignore_index=True)


def cells(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str] = ("activation", "beta", "curvature"),
    *,
    log: bool = False,
) -> pd.DataFrame:
    """Mean and 95 % t-interval over seeds of one column, per cell; networks and methods are :func:`named`.

    Args:
        log: of the logarithm, and back: the geometric mean, for norms, which are compared as ratios.

    Returns:
        one row per cell: ``by``, ``mean``, ``low``, ``high`` (NaN with one seed), ``n``, ``runs`` (the ids).

    Raises:
        ValueError: no record has that column, or runs of one cell and seed differ in something else.
    """
    if value not in frame:
        known = ", ".join(name for name in map(str, frame) if name.endswith("_accuracy"))
        raise ValueError(f"no record here has {value!r}; there are {known}. Give another value, or measure that one")
    rows = frame.dropna(subset=[value])
    if rows.duplicated([*by, "seed"]).any():
        settings = [name for name in RunConfig.model_fields if name in rows and name not in (*by, "seed")]
        keys = [rows[name] for name in (*by, "seed")]
        written = rows[settings].astype(str)  # a setting may be a list, which cannot be counted
        differ = written.groupby(keys, dropna=False).nunique(dropna=False).gt(1).any()
        varied = ", ".join(differ.index[differ])
        raise ValueError(f"a mean over seeds would mix different runs, by {varied}: draw a grid for each")
    rows = named(rows)
    if log:
        rows = rows.assign(**{value: np.log(rows[value].astype(float))})
    means = cell_means(rows, value, by).rename(columns={"value": "mean"})
    if log:
        means[["mean", "low", "high"]] = np.exp(means[["mean", "low", "high"]])
    if value.endswith("_accuracy"):  # with few seeds a t-interval may reach where no accuracy can be
        means[["low", "high"]] = means[["low", "high"]].clip(0, 1)
    runs = rows.groupby(list(by), dropna=False)["id"].agg(" ".join)  # the cells in the same order
    return means.assign(runs=runs.to_numpy())


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """Records (see :func:`rctaf.records.table`) with networks and methods in words, as legends show them."""
    for column, detail, name in (("network", "width", network_name), ("method", "auto_views", method_name)):
        if column in frame:
            details = frame.get(detail, pd.Series(np.nan, frame.index))
            frame = frame.assign(**{column: [name(*pair) for pair in zip(frame[column], details, strict=True)]})
    return frame


def in_words(cell: pd.Series, percent: bool) -> tuple[str, str]:
    """Mean and interval of a cell in words; the interval is empty with one seed."""
    scale = 100 if percent else 1
    interval = f"{cell['low'] * scale:.4g}\u00a0to\u00a0{cell['high'] * scale:.4g}" if cell["n"] > 1 else ""
    return typeset(f"{cell['mean'] * scale:.4g}"), typeset(interval)
