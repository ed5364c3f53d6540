"""Plotly figures of the book, drawn from records and from nothing else."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.io._base_renderers import MimetypeRenderer
from plotly.io.json import to_json_plotly

from rctaf._startup import import_nbformat
from rctaf.config import Grid, RunConfig
from rctaf.names import DATASETS, activation_name, method_name, network_name
from rctaf.records import ROOT, Record, find, table
from rctaf.statistics import cell_means
from rctaf.verdicts import BAND

COLOURS = {  # by order, or by place; Okabe and Ito's as far as they can be seen on white and on black, and a brown
    0: "#0072b2",
    1: "#d55e00",
    2: "#009e73",
    3: "#cc79a7",
    4: "#e69f00",
    5: "#56b4e9",
    6: "#8c564b",
    None: "#888888",
}
ROBUSTNESS = {  # columns of the records, in the words of an axis title
    "screening_accuracy": "accuracy under APGD-CE + APGD-T",
    "robust_accuracy": "robust accuracy (AutoAttack)",
    "pgd20_accuracy": "accuracy under PGD-20",
    "pgd20_larger_accuracy": "accuracy under PGD-20, larger ε",
}
ATTACKS = {  # RunConfig.autoattack in words
    "none": "not attacked",
    "screening": "APGD-CE + APGD-T (screening)",
    "standard": "AutoAttack (standard version)",
}
GRID_COLOUR = "rgba(128,128,128,0.25)"  # readable on white and on black


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """Records (see :func:`rctaf.records.table`) with networks and methods in words, as legends show them."""
    for column, detail, name in (("network", "width", network_name), ("method", "auto_views", method_name)):
        if column in frame:
            details = frame.get(detail, pd.Series(np.nan, frame.index))
            frame = frame.assign(**{column: [name(*pair) for pair in zip(frame[column], details, strict=True)]})
    return frame


class _BookRenderer(MimetypeRenderer):
    """A figure as data in plain HTML, which book/assets/plots.js draws: no address outside the book."""

    def to_mimebundle(self, fig_dict: dict) -> dict[str, str]:
        figure = fig_dict | {"config": {"displaylogo": False}}
        data = to_json_plotly(figure).replace("</", "<\\/")  # nothing inside may end the script element
        height = fig_dict["layout"].get("height", 420)
        return {
            "text/html": f'<div class="plotly-graph-div" style="height: {height}px">'
            f'<script type="application/json">{data}</script></div>'
        }


def use_book_renderer() -> None:
    """Draw Plotly figures so that JupyterLab and the static book both show them; set the house style."""
    axis = {"gridcolor": GRID_COLOUR, "zerolinecolor": GRID_COLOUR, "linecolor": GRID_COLOUR, "automargin": True}
    # 0.2 and 20, not twice a bare 2; 0.0005, not 500μ
    axis |= {"minorloglabels": "complete", "exponentformat": "none", "title": {"standoff": 8}}
    import_nbformat()  # before Plotly does
    pio.templates["rctaf"] = go.layout.Template(
        layout={
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 14, "color": "#777777"},
            "colorway": [COLOURS[beta] for beta in range(7)],
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
            "hoverlabel": {"align": "left"},
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        }
    )
    pio.templates.default = "rctaf"
    pio.renderers["book"] = _BookRenderer()
    pio.renderers.default = "plotly_mimetype+book"  # JupyterLab shows the first, the built book the second


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

    def describe(self) -> str:
        """What stands behind a figure, in words: data, networks, methods, attack, runs, seeds, whose records."""
        if not self.records:
            return f"**{self.grid.name}**: none of its {self.total} runs has a record yet."
        cells = self.grid.cells()
        planned = Counter(config.model_dump_json(exclude={"seed"}) for config in cells.values())
        made = Counter(record.config.model_dump_json(exclude={"seed"}) for record in self.records)
        runs = len(self.records)
        seeds = _span([made[point] for point in planned])
        if runs < self.total:
            seeds = f"{seeds} of {_span(list(planned.values()))} planned"
        seeds += " seed" if seeds == "1" else " seeds"
        kept = sum(record.kept for record in self.records)
        whose = {runs: "all committed evidence", 0: "all made on this machine"}.get(
            kept, f"{kept} committed, {runs - kept} made on this machine"
        )
        return (
            f"**{self.grid.name}**: {self.grid.scale}. {_settings(cells.values())}. "
            f"{'So far ' if runs < self.total else ''}{runs} of {self.total} runs, {seeds} per point, {whose}."
        )


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _settings(configs: Iterable[RunConfig]) -> str:
    """Networks, methods and attacks of some runs, each once, in the order of the grid."""
    told: list[dict[str, None]] = [{}, {}, {}]
    for config in configs:
        attacked = config.autoattack != "none"
        words = (
            network_name(config.network, config.width),
            method_name(config.method, config.auto_views),
            (f"ℓ∞, ε = {config.evaluation_epsilon}, " if attacked else "") + ATTACKS[config.autoattack],
        )
        for seen, word in zip(told, words, strict=True):
            seen[word] = None
    return "; ".join(", ".join(seen) for seen in told)


def across_data_sets(scales: Sequence[Evidence]) -> pd.DataFrame:
    """RCT-AF in grids that have records as one frame, at the orders they share, with a column ``data set``."""
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


def curves(
    cells: pd.DataFrame, y_title: str, title: str, *, x: str = "curvature", series: str = "beta", percent: bool = True
) -> go.Figure:
    """One line per order (or network, or method) over ``curvature`` or ``alpha``, with 95 % intervals over seeds.

    Args:
        cells: from :func:`cells` with ``by=(series, x)`` among its keys, RCT-AF rows only.
        series: the column that tells the lines apart.
        percent: multiply the values by 100.
    """
    unit = " %" if percent else ""
    fig = go.Figure()
    for place, (_, group) in enumerate(cells.sort_values(x).groupby(series, sort=True)):
        which = group[series].iloc[0]
        name = f"order β = {int(which)}" if series == "beta" else str(which)
        colour = COLOURS[int(which) if series == "beta" else place]
        text = [_hover(f"{name}, {x} {row[x]:.4g}", row, percent) for _, row in group.iterrows()]
        _add_means(fig, group, x, percent, name=name, line={"color": colour}, text=text)
    if x == "curvature":
        fig.add_vrect(*BAND, fillcolor="rgba(128,128,128,0.18)", line_width=0)
        # on a logarithmic axis Plotly places shapes by value and annotations by exponent
        middle = float(np.log10(BAND).mean())
        fig.add_annotation(x=middle, y=1, yref="paper", yanchor="bottom", text="paper: 4 to 10", showarrow=False)
    fig.update_xaxes(type="log", title={"curvature": "max|σ″|", "alpha": "sharpness α"}[x], **_ticks(cells[x]))
    fig.update_yaxes(title="<br>".join(textwrap.wrap(y_title + unit, 36)))  # Plotly cuts a long title off
    _titled(fig, title)
    return fig


def _ticks(values: pd.Series, most: int = 12) -> dict[str, list[float]]:
    """The ticks of a logarithmic axis: where something was tested, or 1, 2, 5, 10, ... if those are too many."""
    tested = sorted({float(f"{value:.3g}") for value in values.dropna()})
    if len(tested) > most:
        decades = range(math.floor(math.log10(tested[0])), math.ceil(math.log10(tested[-1])) + 1)
        steps = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        tested = [step for step in steps if tested[0] <= step <= tested[-1]]
    return {"tickvals": tested}


def _add_means(fig: go.Figure, cells: pd.DataFrame, x: str, percent: bool, **style: object) -> None:
    """A line through the means of :func:`cells`, with their intervals where any has more than one seed."""
    scale = 100 if percent else 1
    above, below = ((cells[end] - cells["mean"]).abs().fillna(0) * scale for end in ("high", "low"))
    bars = {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1}
    fig.add_scatter(
        x=cells[x],
        y=cells["mean"] * scale,
        error_y=bars if (cells["n"] > 1).any() else None,
        mode="lines+markers",
        hovertemplate="%{text}<extra></extra>",
        customdata=cells["runs"],  # a click opens these records: book/assets/plots.js
        **style,
    )


def add_reference_lines(fig: go.Figure, cells: pd.DataFrame, *, percent: bool = True) -> go.Figure:
    """A dotted line for each named baseline, at its mean over seeds; the type of the y axis must be set before."""
    places = sorted({x for trace in fig.data for x in trace.x})
    for _, row in cells.sort_values("mean").iterrows():
        y = row["mean"] * (100 if percent else 1)
        fig.add_scatter(  # a trace: a shape could not name its runs
            x=places,
            y=[y] * len(places),
            mode="lines",
            line={"dash": "dot", "width": 1, "color": COLOURS[None]},
            name=row["activation"],
            showlegend=False,
            hovertext=_hover(activation_name(row["activation"]), row, percent),
            hovertemplate="%{hovertext}<extra></extra>",
            customdata=[row["runs"]] * len(places),
        )
        at = np.log10(y) if fig.layout.yaxis.type == "log" else y
        text = activation_name(row["activation"])
        fig.add_annotation(x=1, xref="paper", xanchor="left", y=at, yanchor="middle", text=text, showarrow=False)
    if len(cells):  # the names stand in the margin, where no curve can run through them
        fig.update_layout(margin={"r": 12 + 8 * max(map(len, map(activation_name, cells["activation"])))})
    return fig


def _hover(name: str, cell: pd.Series, percent: bool) -> str:
    """What a point says: its mean, its interval and the ids of its runs."""
    mean, interval = in_words(cell, percent)
    interval = f", 95 % interval {interval}" if interval else ""
    seeds = f"{cell['n']} seed{'s' if cell['n'] > 1 else ''}"
    return f"{name}<br>mean {mean}{' %' if percent else ''}{interval}<br>{seeds}<br>runs {_wrap(cell['runs'])}"


def in_words(cell: pd.Series, percent: bool) -> tuple[str, str]:
    """Mean and interval of a cell in words; the interval is empty with one seed."""
    scale = 100 if percent else 1
    interval = f"{cell['low'] * scale:.4g} to {cell['high'] * scale:.4g}" if cell["n"] > 1 else ""
    return f"{cell['mean'] * scale:.4g}", interval


def _wrap(ids: str, per_line: int = 4) -> str:
    words = ids.split()
    return "<br>".join(" ".join(words[i : i + per_line]) for i in range(0, len(words), per_line))


def arms(
    frame: pd.DataFrame,
    value: str,
    title: str,
    *,
    x: str,
    x_title: str,
    y_title: str,
    arm: str = "arm",
    percent: bool = True,
) -> go.Figure:
    """One line per arm of a control: means over seeds with 95 % intervals, and every single run as a dot.

    Args:
        frame: a row per run with ``id``, ``seed`` and the columns named here.
        value: the column to draw.
        x: the column along the logarithmic axis.
        arm: the column that tells the lines apart.
        percent: multiply the values by 100.
    """
    scale, unit = (100, " %") if percent else (1, "")
    fig = go.Figure()
    means = cells(frame, value, by=(arm, x))
    for place, (name, line) in enumerate(means.groupby(arm, sort=False)):
        colour = COLOURS[place % 5]
        runs = frame[(frame[arm] == name) & frame[value].notna()]
        fig.add_scatter(
            x=runs[x],
            y=runs[value] * scale,
            name=f"{name}, single runs",
            mode="markers",
            marker={"color": colour, "size": 5, "opacity": 0.35},
            legendgroup=str(name),
            showlegend=False,
            text=[f"{name}<br>seed {seed}, run {run}" for seed, run in zip(runs["seed"], runs["id"], strict=True)],
            hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
            customdata=runs["id"],
        )
        dash = "solid" if place < 5 else "dot"  # five colours
        text = [_hover(str(name), row, percent) for _, row in line.iterrows()]
        style = {"line": {"color": colour, "dash": dash}, "legendgroup": str(name)}
        _add_means(fig, line, x, percent, name=str(name), text=text, **style)
    fig.update_xaxes(type="log", title=x_title, **_ticks(means[x]))
    fig.update_yaxes(title="<br>".join(textwrap.wrap(y_title + unit, 36)))  # Plotly cuts a long title off
    _titled(fig, title)
    return fig


def _titled(fig: go.Figure, title: str) -> None:
    """Title in as many lines as it needs, legend below."""
    lines = textwrap.wrap(title, 72)
    fig.update_layout(
        title={
            "text": "<br>".join(lines),
            "font": {"size": 14},
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 12},
        },
        margin={"t": 46 + 18 * len(lines), "b": 90},
        legend={"yref": "container", "y": 0, "yanchor": "bottom"},  # book/assets/plots.js makes room for it
        height=420,
    )
