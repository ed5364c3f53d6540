"""Plotly figures of the book, drawn from records and from nothing else."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from IPython.display import HTML
from plotly.io._base_renderers import MimetypeRenderer
from plotly.io.json import to_json_plotly

from rctaf import paper
from rctaf._startup import import_nbformat
from rctaf.config import Grid, RunConfig
from rctaf.names import DATASETS, activation_name, method_name, network_name
from rctaf.records import ROOT, Record, find, table
from rctaf.statistics import cell_means, mean_interval
from rctaf.verdicts import BAND, Verdict

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
    mean, interval = _value(cell, percent)
    interval = f", 95 % interval {interval}" if interval else ""
    seeds = f"{cell['n']} seed{'s' if cell['n'] > 1 else ''}"
    return f"{name}<br>mean {mean}{' %' if percent else ''}{interval}<br>{seeds}<br>runs {_wrap(cell['runs'])}"


def _value(cell: pd.Series, percent: bool) -> tuple[str, str]:
    """Mean and interval of a cell in words; the interval is empty with one seed."""
    scale = 100 if percent else 1
    interval = f"{cell['low'] * scale:.4g} to {cell['high'] * scale:.4g}" if cell["n"] > 1 else ""
    return f"{cell['mean'] * scale:.4g}", interval


def _wrap(ids: str, per_line: int = 4) -> str:
    words = ids.split()
    return "<br>".join(" ".join(words[i : i + per_line]) for i in range(0, len(words), per_line))


RECORDS_PAGE = "records.html"  # notebooks/figures/records.ipynb, beside every other figure
RECORD_FILES = "../../records"  # where tools/build_book.py puts a copy of every record


def runs_table(*cells: pd.DataFrame, percent: bool = True) -> HTML:
    """The numbers under a figure with the records behind each, folded: for readers without a mouse, and for copying.

    Args:
        cells: what the figure was drawn from, from :func:`cells`; columns that are empty throughout are left out.
        percent: as in :func:`curves`.
    """
    rows = pd.concat([part.dropna(axis=1, how="all") for part in cells if len(part)], ignore_index=True)
    keys = [name for name in rows.columns if name not in {"mean", "low", "high", "n", "runs"}]
    rows = rows.reindex(columns=[*keys, "mean", "low", "high", "n", "runs"])
    if "activation" in keys:
        rows = rows.assign(activation=rows["activation"].map(activation_name, na_action="ignore"))
    lines = []
    for _, row in rows.iterrows():
        what = ["–" if pd.isna(v) else f"{v:.4g}" if isinstance(v, float) else escape(str(v)) for v in row[keys]]
        files = " ".join(f'<a href="{RECORD_FILES}/{run_id}.json">{run_id}</a>' for run_id in row["runs"].split())
        values = [*what, *_value(row, percent), runs_link(row["runs"], str(row["n"])), files]
        lines.append("<tr>" + "".join(f"<td>{value}</td>" for value in values) + "</tr>")
    names = {"curvature": "max|σ″|", "beta": "order β", "alpha": "sharpness α"}
    unit = " %" if percent else ""
    heads = [*(names.get(key, key) for key in keys), f"mean{unit}", "95 % interval", "seeds", "records"]
    return HTML(
        "<details><summary>The numbers of this figure, and the records behind each</summary>"
        f'<table class="table"><thead><tr>{"".join(f"<th>{name}</th>" for name in heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></details>"
    )


def runs_link(runs: str, text: str) -> str:
    """A link to the table of records, showing only these runs (ids with spaces between them)."""
    return f'<a href="{RECORDS_PAGE}#{",".join(runs.split())}">{text}</a>'


_COLUMNS = {  # of the table of records: a name and how to read it; accuracies are shares
    "data": "dataset",
    "network": "network",
    "method": "method",
    "max|σ″|": "curvature",
    "seed": "seed",
    "clean %": "clean_accuracy",
    "PGD-20 %": "pgd20_accuracy",
    "APGD-CE + APGD-T %": "screening_accuracy",
    "AutoAttack %": "robust_accuracy",
    "Hessian rms, adversarial": "hessian_adversarial.rms",
}


def records_table(records: Sequence[Record]) -> HTML:
    """Every record in one table, a row each with a link to its file; book/assets/records.js sorts and filters it."""
    frame = table(records).reindex(columns=["id", "kept", *_COLUMNS.values()])
    lines = []
    for record, (_, row) in zip(records, frame.iterrows(), strict=True):
        config, origin = record.config, record.provenance
        activation = config.activation + (f" α = {config.alpha:g}, β = {config.beta}" if config.alpha else "")
        values = [f'<a href="{RECORD_FILES}/{record.run_id}.json">{record.run_id}</a>', activation]
        for name, column in _COLUMNS.items():
            v = row[column]
            values.append("–" if pd.isna(v) else f"{100 * v:.2f}" if name.endswith("%") else escape(_short(v)))
        values += [
            escape(", ".join(f"{name} {value}" for name, value in _unusual(config).items())) or "–",
            str(origin.get("started", "–"))[:10],
            escape(str(origin["device"])),
            str(origin["threads"]),
            f"{origin['wall_s']:.0f}",
            f"{str(origin['git_commit'])[:10]}{'+' if origin.get('git_dirty') else ''}",
            "committed" if record.kept else "made here",
        ]
        cells = "".join(f"<td>{value}</td>" for value in values)
        lines.append(f'<tr id="{record.run_id}">{cells}</tr>')
    heads = [
        "record",
        "activation",
        *_COLUMNS,
        "other settings",
        "date",
        "device",
        "threads",
        "seconds",
        "commit",
        "kept",
    ]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return HTML(f'<table class="table records"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>')


def beyond_screening(records: Sequence[Record]) -> str:
    """What AutoAttack's last two attacks (FAB and Square) take after its first two, in words, over some records."""
    both = [r for r in records if {"screening_accuracy", "robust_accuracy"} <= r.metrics.keys()]
    if not both:
        return (
            "No record holds a result of the standard version of AutoAttack yet, so how far the {term}`screening` is "
            "from it has not been measured here."
        )
    taken = [100 * (r.metrics["screening_accuracy"] - r.metrics["robust_accuracy"]) for r in both]
    most = max(range(len(both)), key=taken.__getitem__)
    return (
        f"{len(both)} records hold a result of the standard version of AutoAttack. After the {{term}}`screening`, its "
        f"last two attacks took another {sum(taken) / len(taken):.2f} points of accuracy on average, and at most "
        f"{taken[most]:.2f} ({both[most].config.label})."
    )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _unusual(config: RunConfig) -> dict[str, object]:
    """The settings without a column of their own that are not the defaults."""
    own = {"dataset", "network", "method", "activation", "alpha", "beta", "seed"}
    settings = config.model_dump(mode="json")
    usual = RunConfig(**{name: settings[name] for name in own}).model_dump(mode="json")
    return {name: value for name, value in settings.items() if value != usual[name]}


_OUTCOME_COLOURS = {
    "supported": "#2e7d32",
    "not supported": "#c62828",
    "undecided": "#b26a00",
    "not testable": "#6b6b6b",
}


def verdict_box(verdict: Verdict) -> HTML:
    """The box under a figure: what the paper claims, what these records say, and the outcome."""
    colour = _OUTCOME_COLOURS[verdict.outcome]
    return HTML(
        f'<div class="verdict" style="border-left: 0.4em solid {colour}; padding: 0.2em 1em; margin: 1em 0">'
        f"<p><strong>Claim.</strong> {escape(verdict.claim)}</p>"
        f"<p><strong>Measured here.</strong> {escape(verdict.measured)}</p>"
        f"<p><strong>Verdict: {verdict.outcome}.</strong></p></div>"
    )


def verdict_table(verdicts: Sequence[Verdict], what: str = "claim of the paper") -> HTML:
    """Several verdicts as one table: ``what`` is judged, what was measured, outcome."""
    rows = "".join(
        f"<tr><td>{escape(v.claim)}</td><td>{escape(v.measured)}</td>"
        f'<td><span aria-hidden="true" style="color: {_OUTCOME_COLOURS[v.outcome]}">●</span> {v.outcome}</td></tr>'
        for v in verdicts
    )
    head = f"<tr><th>{what}</th><th>measured here</th><th>verdict</th></tr>"
    return HTML(f'<table class="table verdicts"><thead>{head}</thead><tbody>{rows}</tbody></table>')


def outcome_table(outcomes: pd.DataFrame) -> HTML:
    """A row per claim, a column per scale, the outcomes as :func:`rctaf.verdicts.overview` gives them."""

    def cell(outcome: str) -> str:
        tint = (
            f"background: {_OUTCOME_COLOURS[outcome]}33; white-space: nowrap" if outcome else ""
        )  # 33: a fifth opaque
        return f'<td style="{tint}">{outcome or "–"}</td>'

    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("claim", *outcomes.columns))
    rows = "".join(
        f'<tr><th scope="row" style="font-weight: normal">{escape(str(claim))}</th>{"".join(map(cell, row))}</tr>'
        for claim, row in outcomes.iterrows()
    )
    return HTML(f'<table class="table overview"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>')


def table_1(frame: pd.DataFrame, value: str, tuned: float) -> HTML:
    """Table 1 with the paper's printed numbers beside the records of one scale.

    Args:
        frame: of one grid, from :func:`rctaf.records.table`.
        value: the column that measures robustness.
        tuned: max|σ″| of the RCT-AF rows.
    """
    from rctaf.symbolic import prove_baseline  # SymPy, which no other figure needs

    def measured(rows: pd.DataFrame, column: str) -> str:
        values = rows[column].dropna().to_numpy(float) if column in rows else np.empty(0)
        if len(values) == 0:
            return "no record"
        e = mean_interval(100 * values)
        runs = runs_link(" ".join(rows.loc[rows[column].notna(), "id"]), f"{e.n} seed{'s' if e.n > 1 else ''}")
        return f"{e.value:.2f}" + (f" ({e.low:.2f} to {e.high:.2f})" if e.n > 1 else "") + f", {runs}"

    lines = []
    for name, (clean, robust, curvature) in paper.TABLE_1.items():
        kind, _, order = name.partition(" β=")
        if order:
            near = frame["curvature"].sub(tuned).abs() < 1e-9 * tuned
            rows, true = frame[(frame["activation"] == kind) & (frame["beta"] == int(order)) & near], f"{tuned:g}"
        else:
            rows, proof = frame[frame["activation"] == kind], prove_baseline(kind)
            true = "none (kink)" if proof.regularity == "kink" else f"{proof.maximum:.3f}"
        cells = (
            activation_name(name),
            f"{clean:.2f}",
            f"{robust:.2f}",
            curvature or "–",
            true,
            measured(rows, "clean_accuracy"),
        )
        lines.append("".join(f"<td>{cell}</td>" for cell in (*cells, measured(rows, value))))
    head = (
        "<tr><th rowspan='2'>activation</th><th colspan='3'>as printed</th><th colspan='3'>here</th></tr>"
        "<tr><th>clean %</th><th>AutoAttack %</th><th>max|σ″|</th>"
        f"<th>max|σ″|</th><th>clean %</th><th>{ROBUSTNESS[value]} %</th></tr>"
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return HTML(f'<table class="table"><thead>{head}</thead><tbody>{body}</tbody></table>')


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
