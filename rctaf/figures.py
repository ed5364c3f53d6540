"""Plotly figures of the book, drawn from records and from nothing else."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.io._base_renderers import MimetypeRenderer
from plotly.io.json import to_json_plotly
from plotly.subplots import make_subplots

from rctaf._startup import import_nbformat
from rctaf.evidence import ROBUSTNESS, STRENGTHS, cells, in_words
from rctaf.names import activation_name
from rctaf.verdicts import BAND
from rctaf.words import count, typeset

# By order, or by place: Okabe and Ito's as far as they stand out from white and from the dark page, 3 to 1; for their
# orange and sky blue, which do not, an ochre and a violet that no colour blindness takes for another of these.
COLOURS = {
    0: "#0072b2",
    1: "#d55e00",
    2: "#009e73",
    3: "#cc79a7",
    4: "#a5874b",
    5: "#8c46f0",
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
GRID_COLOUR = "rgba(128,128,128,0.25)"  # readable on white and on black


def series_style(place: int) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of a series, by order or place: who cannot tell one of them apart has the others."""
    place %= len(SYMBOLS)
    return {
        "line": {"color": COLOURS[place], "dash": DASHES[place]},
        "marker": {"symbol": SYMBOLS[place], "size": 8},
    }


class _BookRenderer(MimetypeRenderer):
    """A figure as data in plain HTML, which book/assets/plots.js draws: no address outside the book."""

    def to_mimebundle(self, fig_dict: dict) -> dict[str, str]:
        # Plotly's own tool bar has nine more, one of which would send the figure to its company
        config = {"displaylogo": False, "modeBarButtons": [["toImage", "zoom2d", "resetScale2d"]]}
        figure = fig_dict | {"config": config}
        data = to_json_plotly(figure).replace("</", "<\\/")  # nothing inside may end the script element
        height = fig_dict["layout"].get("height", 420)
        return {
            "text/html": f'<div class="plotly-graph-div" style="height: {height}px">'
            f'<script type="application/json">{data}</script></div>'
        }


def use_book_renderer() -> None:
    """Draw Plotly figures so that JupyterLab and the static book both show them; set the house style."""
    axis = {"gridcolor": GRID_COLOUR, "zerolinecolor": GRID_COLOUR, "linecolor": GRID_COLOUR, "automargin": True}
    # 0.0005, not 500μ; and on a logarithmic axis 0.2 and 20 as large as 1, not twice a small 2
    axis |= {"tickformat": "~g", "title": {"standoff": 8, "font": {"size": 13}}}
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
        text = [_hover(f"{name}, {_SHORT[x]}{row[x]:.4g}", row, percent) for _, row in group.iterrows()]
        _add_means(fig, group, x, percent, _aside(cells[x], place, len(groups)), name=name, text=text, **style)
    if x == "curvature":
        _add_band(fig)
    fig.update_xaxes(type="log", title={"curvature": "max|σ″|", "alpha": "sharpness α"}[x], **_ticks(cells[x]))
    fig.update_yaxes(title=_y_title(y_title, percent))
    _titled(fig, title)
    return fig


def by_order(frame: pd.DataFrame, value: str, series: str, title: str) -> Iterator[tuple[go.Figure, pd.DataFrame]]:
    """For each order of RCT-AF: :func:`curves` of the column ``value``, a line per ``series``, and what they show."""
    for order, rows in frame.groupby("beta"):
        points = cells(rows, value, by=[series, "curvature"])
        yield curves(points, ROBUSTNESS.get(value, value), f"order β = {order:g}: {title}", series=series), points


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
            start = f"{name}, {_SHORT['curvature']}"
            text = [_hover(f"{start}{cell['curvature']:.4g}", cell, True) for _, cell in line.iterrows()]
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


_SHORT = {"curvature": "max|σ″|\u00a0", "alpha": "α\u00a0"}  # names of an x axis in front of a value


def _y_title(words: str, percent: bool) -> str:
    """A title of a y axis with its unit, in lines that Plotly need not cut off."""
    return "<br>".join(textwrap.wrap(words + (", %" if percent else ""), 40))


def _aside(values: pd.Series, place: int, count: int) -> float:
    """By what to multiply the x of one of ``count`` series, so that its intervals stand beside those of the others."""
    return (values.max() / values.min()) ** (APART * (place - (count - 1) / 2))


def _ticks(values: pd.Series) -> dict[str, list[float]]:
    """The ticks of a logarithmic axis: where something was tested; if that is much, the ends and 1, 2, 5, 10, ..."""
    tested = sorted({float(f"{value:.3g}") for value in values.dropna()})
    if len(tested) > 12:
        decades = range(math.floor(math.log10(tested[0])), math.ceil(math.log10(tested[-1])) + 1)
        steps = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        first, last = tested[0], tested[-1]
        tested = [first, *(step for step in steps if 1.5 * first < step < last / 1.5), last]
    return {"tickvals": tested}


def _log_ticks(fig: go.Figure) -> dict[str, Any]:
    """The ticks of a logarithmic y axis: 1, 2, 5, 10, ..., or more where those would be fewer than three."""
    bars = [(trace.y, trace.error_y.arrayminus, trace.error_y.array) for trace in fig.data]
    low = min(np.min(np.subtract(y, 0 if below is None else below)) for y, below, _ in bars)
    high = max(np.max(np.add(y, 0 if above is None else above)) for y, _, above in bars)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        if sum(low <= tick <= high for tick in ticks) >= 3:
            return {"tickvals": ticks}
    return {"dtick": None}  # less than a factor of two: Plotly's own ticks are evenly spaced


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

    The type of the y axis must be set before; a logarithmic one gets its ticks here, when all that it must show is
    known. A figure without points, as early in a sweep, has no place for lines.
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
    if fig.layout.yaxis.type == "log":
        fig.update_yaxes(_log_ticks(fig))
    return fig


def _hover(name: str, cell: pd.Series, percent: bool) -> str:
    """What a point says, in lines that a phone is wide enough for; its runs are a click away."""
    mean, interval = in_words(cell, percent)
    lines = [*textwrap.wrap(name, 40), f"mean {mean}{' %' if percent else ''}"]
    lines += [f"95 % interval {interval}"] if interval else []
    return typeset("<br>".join([*lines, count(cell["n"], "seed")]))


def arms(
    frame: pd.DataFrame,
    value: str,
    title: str,
    *,
    x: str,
    x_title: str,
    y_title: str,
    percent: bool = True,
) -> go.Figure:
    """One line per arm of a control: means over seeds with 95 % intervals, and every single run as a dot.

    Args:
        frame: a row per run with ``id``, ``seed``, ``arm`` (which tells the lines apart) and the columns named here.
        value: the column to draw.
        x: the column along the logarithmic axis.
        percent: multiply the values by 100.
    """
    scale = 100 if percent else 1
    fig = go.Figure()
    means = cells(frame, value, by=("arm", x))
    groups = list(means.groupby("arm", sort=False))
    for place, (name, line) in enumerate(groups):
        style, aside = series_style(place), _aside(means[x], place, len(groups))
        runs = frame[(frame["arm"] == name) & frame[value].notna()]
        fig.add_scatter(
            x=runs[x] * aside,
            y=runs[value] * scale,
            name=f"{name}, single runs",
            mode="markers",
            marker={"color": style["line"]["color"], "symbol": style["marker"]["symbol"], "size": 5, "opacity": 0.35},
            legendgroup=str(name),
            showlegend=False,
            text=[f"{name}, at {at:.4g}<br>seed {seed}" for at, seed in zip(runs[x], runs["seed"], strict=True)],
            hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
            customdata=runs["id"],
        )
        text = [_hover(f"{name}, at\u00a0{row[x]:.4g}", row, percent) for _, row in line.iterrows()]
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
