"""Plotly figures of the book, drawn from records and from nothing else."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.io._base_renderers import MimetypeRenderer
from plotly.io.json import to_json_plotly
from plotly.subplots import make_subplots

from rctaf._startup import import_nbformat
from rctaf.config import Grid, RunConfig
from rctaf.names import DATASETS, activation_name, method_name, network_name
from rctaf.records import ROOT, Record, find, table
from rctaf.statistics import cell_means
from rctaf.verdicts import BAND
from rctaf.words import count, typeset

COLOURS = {  # by order, or by place; Okabe and Ito's as far as they can be seen on white and on black, and a brown
    0: "#0072b2",
    1: "#d55e00",
    2: "#009e73",
    3: "#cc79a7",
    4: "#e69f00",
    5: "#56b4e9",
    6: "#8c564b",
    None: "#8c564b",  # a baseline: never beside an order 6, nor of the grey of the paper's range
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star")  # as many as colours
DASHES = (  # in pixels: Plotly's own are longer than a legend shows
    "solid",
    "7px,4px",
    "8px,3px,2px,3px",
    "16px,4px",
    "16px,3px,2px,3px",
    "3px,2px",
    "8px,2px,2px,2px,2px,2px",
)
APART = 0.007  # how far the intervals of two neighbouring series stand apart, as a share of the logarithmic axis
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
GRID_COLOUR = "rgba(128,128,128,0.25)"  # readable on white and on black


def series_style(place: int) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of a series, by order or place: who cannot tell one of them apart has the others."""
    place %= len(SYMBOLS)
    return {
        "line": {"color": COLOURS[place], "dash": DASHES[place]},
        "marker": {"symbol": SYMBOLS[place], "size": 8},
    }


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
    axis |= {"minorloglabels": "complete", "exponentformat": "none", "title": {"standoff": 8, "font": {"size": 13}}}
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
            "title": {"font": {"size": 14}, "x": 0, "xref": "paper"},
            "hoverlabel": {"align": "left"},
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "itemwidth": 40},
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
        seeds = _span([made[point] for point in planned])
        if runs < self.total:
            seeds = f"{seeds} of {_span(list(planned.values()))} planned"
        kept = sum(record.kept for record in self.records)
        whose = {runs: "all committed evidence", 0: "all made on this machine"}.get(
            kept, f"{kept} committed, {runs - kept} made on this machine"
        )
        return (
            f"**{self.grid.name}**: {self.grid.scale}. {_settings(cells.values())}. "
            f"{'So far ' if runs < self.total else ''}{runs} of {self.total} runs, {count(seeds, 'seed')} per point, "
            f"{whose}."
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


def curves(
    cells: pd.DataFrame, y_title: str, title: str, *, x: str = "curvature", series: str = "beta", percent: bool = True
) -> go.Figure:
    """One line per order (or network, or method) over ``curvature`` or ``alpha``, with 95 % intervals over seeds.

    Args:
        cells: from :func:`cells` with ``by=(series, x)`` among its keys, RCT-AF rows only.
        series: the column that tells the lines apart.
        percent: multiply the values by 100.
    """
    fig = go.Figure()
    groups = list(cells.sort_values(x).groupby(series, sort=True))
    for place, (_, group) in enumerate(groups):
        which = group[series].iloc[0]
        name = f"order β = {int(which)}" if series == "beta" else str(which)
        style = series_style(int(which) if series == "beta" else place)
        text = [_hover(f"{name}, {_SHORT[x]} {row[x]:.4g}", row, percent) for _, row in group.iterrows()]
        _add_means(fig, group, x, percent, _aside(cells[x], place, len(groups)), name=name, text=text, **style)
    if x == "curvature":
        _add_band(fig)
    fig.update_xaxes(type="log", title={"curvature": "max|σ″|", "alpha": "sharpness α"}[x], **_ticks(cells[x]))
    fig.update_yaxes(title=_y_title(y_title, percent))
    _titled(fig, title)
    return fig


def attack_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """:func:`cells` of RCT-AF under each attack that was run, the weakest first, with a column ``attack``.

    Args:
        frame: from :func:`rctaf.remarks.by_strength`.
    """
    rows = frame[frame["activation"] == "rctaf"]
    parts = [
        cells(rows, column, by=["beta", "curvature"]).assign(attack=name)
        for column, name in STRENGTHS.items()
        if column in rows and rows[column].notna().any()
    ]
    return pd.concat(parts, ignore_index=True)


def attack_panels(cells: pd.DataFrame, title: str) -> go.Figure:
    """A panel per order, one below the other: a line per attack over the curvature, with 95 % intervals over seeds.

    Args:
        cells: from :func:`attack_cells`.
    """
    orders = sorted(set(cells["beta"]))
    fig = make_subplots(len(orders), 1, shared_xaxes=True, vertical_spacing=0.03)
    names = list(STRENGTHS.values())
    for row, order in enumerate(orders, start=1):
        for name, line in cells[cells["beta"] == order].groupby("attack", sort=False):
            place = names.index(str(name))
            start = f"{name}, {_SHORT['curvature']} "
            text = [_hover(f"{start}{cell['curvature']:.4g}", cell, True, ids=False) for _, cell in line.iterrows()]
            shown = {"name": name, "legendgroup": name, "showlegend": row == 1, "row": row, "col": 1, "text": text}
            aside = _aside(cells["curvature"], place, len(names))
            _add_means(fig, line, "curvature", True, aside, **shown, **series_style(3 + place))  # no order's colour
    _add_band(fig, row="all", col=1)
    fig.update_xaxes(type="log", **_ticks(cells["curvature"]))
    fig.update_xaxes(title="max|σ″|", row=len(orders))
    for row, order in enumerate(orders, start=1):
        fig.update_yaxes(title=f"order β = {order:g}, %", matches="y", row=row)
    _titled(fig, title)
    fig.update_layout(height=180 + 180 * len(orders))
    return fig


def _add_band(fig: go.Figure, **panels: object) -> None:
    """The paper's range of max|σ″| as a grey strip, with its name above the figure."""
    fig.add_vrect(*BAND, fillcolor="rgba(128,128,128,0.18)", line_width=0, **panels)
    # on a logarithmic axis Plotly places shapes by value and annotations by exponent
    middle = float(np.log10(BAND).mean())
    fig.add_annotation(x=middle, y=1, yref="paper", yanchor="bottom", text="paper: 4 to 10", showarrow=False)


_SHORT = {"curvature": "max|σ″|", "alpha": "α"}  # names of an x axis in front of a value


def _y_title(words: str, percent: bool) -> str:
    """A title of a y axis with its unit, in lines that Plotly need not cut off."""
    return "<br>".join(textwrap.wrap(words + (", %" if percent else ""), 40))


def _aside(values: pd.Series, place: int, count: int) -> float:
    """By what to multiply the x of one of ``count`` series, so that its intervals stand beside those of the others."""
    return (values.max() / values.min()) ** (APART * (place - (count - 1) / 2))


def _ticks(values: pd.Series, most: int = 12) -> dict[str, list[float]]:
    """The ticks of a logarithmic axis: where something was tested; if that is much, the ends and 1, 2, 5, 10, ..."""
    tested = sorted({float(f"{value:.3g}") for value in values.dropna()})
    if len(tested) > most:
        decades = range(math.floor(math.log10(tested[0])), math.ceil(math.log10(tested[-1])) + 1)
        steps = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        first, last = tested[0], tested[-1]
        tested = [first, *(step for step in steps if 1.5 * first < step < last / 1.5), last]
    return {"tickvals": tested}


def _add_means(fig: go.Figure, cells: pd.DataFrame, x: str, percent: bool, aside: float, **style: object) -> None:
    """A line through the means of :func:`cells`, with their intervals where any has more than one seed; see _aside."""
    scale = 100 if percent else 1
    above, below = ((cells[end] - cells["mean"]).abs().fillna(0) * scale for end in ("high", "low"))
    bars = {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1}
    fig.add_scatter(
        x=cells[x] * aside,
        y=cells["mean"] * scale,
        error_y=bars if (cells["n"] > 1).any() else None,
        mode="lines+markers",
        hovertemplate="%{text}<extra></extra>",
        customdata=cells["runs"],  # a click opens these records: book/assets/plots.js
        **style,
    )


def add_reference_lines(fig: go.Figure, cells: pd.DataFrame, *, percent: bool = True) -> go.Figure:
    """A dotted line for each named baseline, at its mean over seeds, in a faint band of its colour, its interval.

    The type of the y axis must be set before. A figure without points, as early in a sweep, has no place for lines.
    """
    places = sorted({x for trace in fig.data for x in trace.x})
    if not places:
        return fig
    ends = [places[0], places[-1]]
    for _, row in cells.sort_values("mean").iterrows():
        low, y, high = (row[name] * (100 if percent else 1) for name in ("low", "mean", "high"))
        name = activation_name(row["activation"])
        if row["n"] > 1:
            fig.add_scatter(
                x=[*ends, *ends[::-1]],
                y=[low, low, high, high],
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor="rgba(140,86,75,0.22)",
                name=typeset(f"{name}, 95 % interval"),
                hoverinfo="skip",
            )
        fig.add_scatter(  # a trace: a shape could not name its runs
            x=places,
            y=[y] * len(places),
            mode="lines",
            line={"dash": "dot", "width": 1.5, "color": COLOURS[None]},
            name=name,
            showlegend=False,
            hovertext=_hover(name, row, percent),
            hovertemplate="%{hovertext}<extra></extra>",
            customdata=[row["runs"]] * len(places),
        )
        at = np.log10(y) if fig.layout.yaxis.type == "log" else y
        fig.add_annotation(x=0, xref="paper", xanchor="left", y=at, yanchor="bottom", text=name, showarrow=False)
    return fig


def _hover(name: str, cell: pd.Series, percent: bool, ids: bool = True) -> str:
    """What a point says: its mean, its interval and the ids of its runs."""
    mean, interval = in_words(cell, percent)
    interval = f", 95 % interval {interval}" if interval else ""
    seeds = count(cell["n"], "seed")
    runs = f"<br>runs {_wrap(cell['runs'])}" if ids else ""
    return typeset(f"{name}<br>mean {mean}{' %' if percent else ''}{interval}<br>{seeds}{runs}")


def in_words(cell: pd.Series, percent: bool) -> tuple[str, str]:
    """Mean and interval of a cell in words; the interval is empty with one seed."""
    scale = 100 if percent else 1
    interval = f"{cell['low'] * scale:.4g}\u00a0to\u00a0{cell['high'] * scale:.4g}" if cell["n"] > 1 else ""
    return typeset(f"{cell['mean'] * scale:.4g}"), typeset(interval)


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
    scale = 100 if percent else 1
    fig = go.Figure()
    means = cells(frame, value, by=(arm, x))
    groups = list(means.groupby(arm, sort=False))
    for place, (name, line) in enumerate(groups):
        style, aside = series_style(place), _aside(means[x], place, len(groups))
        runs = frame[(frame[arm] == name) & frame[value].notna()]
        fig.add_scatter(
            x=runs[x] * aside,
            y=runs[value] * scale,
            name=f"{name}, single runs",
            mode="markers",
            marker={"color": style["line"]["color"], "symbol": style["marker"]["symbol"], "size": 5, "opacity": 0.35},
            legendgroup=str(name),
            showlegend=False,
            text=[f"{name}, at {at:.4g}<br>seed {s}, run {run}" for at, s, run in runs[[x, "seed", "id"]].to_numpy()],
            hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
            customdata=runs["id"],
        )
        text = [_hover(f"{name}, at {row[x]:.4g}", row, percent) for _, row in line.iterrows()]
        _add_means(fig, line, x, percent, aside, name=str(name), text=text, legendgroup=str(name), **style)
    fig.update_xaxes(type="log", title=x_title, **_ticks(means[x]))
    fig.update_yaxes(title=_y_title(y_title, percent))
    _titled(fig, title)
    return fig


def _titled(fig: go.Figure, title: str) -> None:
    """Title in as many lines as it needs, legend below."""
    lines = textwrap.wrap(title, 72)
    fig.update_layout(
        title={
            "text": "<br>".join(lines),
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 35 if len(lines) == 1 else 45},  # below the tool bar; Plotly sets several lines higher
        },
        margin={"t": 57 + 18 * len(lines), "b": 90},
        legend={"yref": "container", "y": 0, "yanchor": "bottom"},  # book/assets/plots.js makes room for it
        height=420,
    )
