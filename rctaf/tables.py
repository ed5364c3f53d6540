"""The tables of the book and the boxes of its verdicts, as HTML, drawn from records and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd
from IPython.display import HTML

from rctaf import paper
from rctaf.config import RunConfig
from rctaf.evidence import ROBUSTNESS, in_words
from rctaf.names import DATASETS, activation_name, method_name, network_name
from rctaf.records import Record, table
from rctaf.statistics import mean_interval
from rctaf.verdicts import TUNED, Verdict
from rctaf.words import count, typeset

RECORDS_PAGE = "records.html"  # notebooks/figures/records.ipynb, beside every other figure
RECORD_FILES = "../../records"  # where tools/build_book.py puts a copy of every record


def runs_table(*cells: pd.DataFrame, percent: bool = True, links: bool = True) -> HTML:
    """The numbers under a figure with the records behind each, folded: for readers without a mouse, and for copying.

    Args:
        cells: what the figure was drawn from, from :func:`rctaf.evidence.cells`; columns empty throughout are left out,
            and so is the table where there is nothing in it.
        percent: as in :func:`rctaf.figures.curves`.
        links: to the records; a figure that is drawn from the records of another can do without.
    """
    parts = [part.dropna(axis=1, how="all") for part in cells if len(part)]
    if not parts:
        return HTML("")
    rows = pd.concat(parts, ignore_index=True)
    keys = [name for name in rows.columns if name not in {"mean", "low", "high", "n", "runs"}]
    rows = rows.reindex(columns=[*keys, "mean", "low", "high", "n", "runs"])
    if "activation" in keys:
        rows = rows.assign(activation=rows["activation"].map(activation_name, na_action="ignore"))
    lines = []
    for _, row in rows.iterrows():
        what = ["–" if pd.isna(v) else typeset(escape(_short(v))) for v in row[keys]]
        files = " ".join(f'<a href="{RECORD_FILES}/{run_id}.json">{run_id}</a>' for run_id in row["runs"].split())
        seeds = [runs_link(row["runs"], str(row["n"])), files] if links else [str(row["n"])]
        values = [*what, *in_words(row, percent), *seeds]
        lines.append("<tr>" + "".join(f"<td>{value}</td>" for value in values) + "</tr>")
    names = {"curvature": "max|σ″|", "beta": "order β", "alpha": "sharpness α"}
    unit = " %" if percent else ""
    ends = ["seeds", "records"] if links else ["seeds"]
    heads = [*(names.get(key, key) for key in keys), f"mean{unit}", typeset("95 % interval"), *ends]
    table = html_table("table runs", f"<tr>{''.join(f'<th>{name}</th>' for name in heads)}</tr>", lines)
    return folded(f"The numbers of this figure{', and the records behind each' * links}", table)


def runs_link(runs: str, text: str) -> str:
    """A link to the table of records, showing only these runs (ids with spaces between them)."""
    return f'<a href="{RECORDS_PAGE}#{",".join(runs.split())}">{text}</a>'


_COLUMNS = {  # of the table of records: a name and where it is read; accuracies are shares
    "order β": "beta",
    "max|σ″|": "curvature",
    "clean %": "clean_accuracy",
    "APGD-CE + APGD-T %": "screening_accuracy",
    "AutoAttack %": "robust_accuracy",
    "PGD-20 %": "pgd20_accuracy",
    "seed": "seed",
    "Hessian rms, adversarial": "hessian_adversarial.rms",
    "α": "alpha",
}


def records_table(records: Sequence[Record]) -> HTML:
    """Every record in one table, a row each with a link to its file; book/assets/records.js sorts and filters it.

    What is the same in all of them is said above it and has no column.
    """
    frame = table(records).reindex(columns=["id", *_COLUMNS.values()])
    rows = [_record_cells(record, row) for record, (_, row) in zip(records, frame.iterrows(), strict=True)]
    heads = list(rows[0]) if rows else ["record"]
    same = {name: rows[0][name] for name in heads if len(rows) > 1 and len({row[name] for row in rows}) == 1}
    heads = [name for name in heads if name not in same]
    head = "".join(f'<th scope="col" data-name="{_COLUMNS.get(name, name)}">{name}</th>' for name in heads)
    lines = [
        f'<tr id="{record.run_id}">{"".join(f"<td>{row[name]}</td>" for name in heads)}</tr>'
        for record, row in zip(records, rows, strict=True)
    ]
    told = "; ".join(f"{name}: {value}" for name, value in same.items())
    above = f"<p>The same in all records: {told}.</p>" if same else ""
    return HTML(above + html_table("table records", f"<tr>{head}</tr>", lines).data)


def _record_cells(record: Record, row: pd.Series) -> dict[str, str]:
    """The cells of one record by the name of their column, as HTML; ``row`` holds the values of ``_COLUMNS``."""
    config, origin = record.config, record.provenance
    values = {  # few before the results, which must be in view before anyone scrolls sideways
        "record": f'<a href="{RECORD_FILES}/{record.run_id}.json">{record.run_id}</a>',
        "data": DATASETS[config.dataset],
        "activation": activation_name(config.activation),
    }
    for name, column in _COLUMNS.items():
        v = row[column]
        values[name] = "–" if pd.isna(v) else f"{100 * v:.2f}" if name.endswith("%") else typeset(_short(v))
    if config.alpha is None:
        values["max|σ″|"] = _true_curvature(config.activation, config.sharpness or 1.0)
    values |= {
        "network": network_name(config.network, config.width),
        "method": method_name(config.method, config.auto_views).partition(" (")[0],
        "other settings": typeset(", ".join(f"{name} {_short(value)}" for name, value in _unusual(config).items()))
        or "–",
        "date": str(origin.get("started", "–"))[:10],
        "device": str(origin["device"]),
        "threads": str(origin["threads"]),
        "seconds": f"{origin['wall_s']:.0f}",
        "commit": f"{(origin['git_commit'] or '–')[:10]}{'+' if origin.get('git_dirty') else ''}",
        "kept": "committed" if record.kept else "made here",
    }
    return {name: value if name == "record" else escape(value) for name, value in values.items()}


def _true_curvature(baseline: str, sharpness: float = 1.0) -> str:
    """max|σ″| of a baseline in words, as proved for sharpness 1."""
    from rctaf.symbolic import prove_baseline  # SymPy, which no other table needs

    proof = prove_baseline(baseline)
    return "none (kink)" if proof.regularity == "kink" else f"{sharpness * proof.maximum:.3f}"


def beyond_screening(records: Sequence[Record]) -> str:
    """What AutoAttack's last two attacks (FAB and Square) take after its first two, in words, over some records."""
    both = [r for r in records if {"screening_accuracy", "robust_accuracy"} <= r.metrics.keys()]
    if not both:
        return (
            "No record holds a result of the standard version of AutoAttack yet, so how far the {term}`screening` is "
            "from it has not been measured here."
        )
    taken = [100 * (r.metrics["screening_accuracy"] - r.metrics["robust_accuracy"]) for r in both]
    most = f"{max(taken):.2f}"
    times = sum(f"{points:.2f}" == most for points in taken)
    return (
        f"{len(both)} records hold a result of the standard version of AutoAttack. After the {{term}}`screening`, its "
        f"last two attacks took another {sum(taken) / len(taken):.2f} points of accuracy on average, and at most "
        f"{most} points (in {count(times, 'run')})."
    )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _unusual(config: RunConfig) -> dict[str, object]:
    """The settings without a column of their own that are not the defaults, but for those that do not apply."""
    own = {"dataset", "network", "width", "method", "activation", "alpha", "beta", "seed"}
    settings = config.model_dump(mode="json")
    usual = RunConfig(**{name: settings[name] for name in own}).model_dump(mode="json")
    return {name: value for name, value in settings.items() if value is not None and value != usual[name]}


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


def verdict_boxes(verdicts: Sequence[Verdict]) -> list[HTML]:
    """A box for each verdict; where none can be tested, as with a single seed, one folded table of them."""
    if any(verdict.outcome != "not testable" for verdict in verdicts):
        return [verdict_box(verdict) for verdict in verdicts]
    return [folded(f"{count(len(verdicts), 'claim')}, none of them testable on these runs", verdict_table(verdicts))]


def verdict_table(verdicts: Sequence[Verdict], what: str = "claim of the paper") -> HTML:
    """Several verdicts as one table: ``what`` is judged, what was measured, outcome."""
    lines = (
        f"<tr><td>{escape(v.claim)}</td><td>{escape(v.measured)}</td>"
        f'<td><span aria-hidden="true" style="color: {_OUTCOME_COLOURS[v.outcome]}">●</span> {v.outcome}</td></tr>'
        for v in verdicts
    )
    return html_table("table verdicts", f"<tr><th>{what}</th><th>measured here</th><th>verdict</th></tr>", lines)


def html_table(classes: str, head: str, lines: Iterable[str]) -> HTML:
    """A table that book/assets/book.css knows by its classes; ``head`` and ``lines`` are rows of HTML."""
    return HTML(f'<table class="{classes}"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>')


def folded(summary: str, table: HTML) -> HTML:
    """A table below a line that opens it."""
    return HTML(f"<details><summary>{escape(summary)}</summary>{table.data}</details>")


def outcome_table(outcomes: pd.DataFrame) -> HTML:
    """A row per claim, a column per scale, the outcomes as :func:`rctaf.verdicts.overview` gives them."""

    def cell(outcome: str) -> str:
        # 33: a fifth opaque
        tint = f"background: {_OUTCOME_COLOURS[outcome]}33; white-space: nowrap" if outcome else ""
        return f'<td style="{tint}">{outcome or "–"}</td>'

    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("claim", *outcomes.columns))
    lines = (
        f'<tr><th scope="row" style="font-weight: normal">{escape(str(claim))}</th>{"".join(map(cell, row))}</tr>'
        for claim, row in outcomes.iterrows()
    )
    return html_table("table overview", f"<tr>{heads}</tr>", lines)


def outcomes_so_far(judged: Iterable[tuple[str, Verdict]], topics: Sequence[str]) -> HTML:
    """A line per topic: on which data it has which outcome. ``judged``: a column of the overview and a verdict."""
    found: dict[str, list[str]] = {topic: [] for topic in topics}
    for column, verdict in judged:
        if verdict.topic in found:
            found[verdict.topic].append(f"{verdict.outcome} on {column}")
    lines = "".join(
        f"<li>{escape(topic.removesuffix('.'))}: {escape(', '.join(outcomes) or 'no run yet')}.</li>"
        for topic, outcomes in found.items()
    )
    return HTML(f"<p><strong>Outcomes so far.</strong></p><ul>{lines}</ul>")


def table_1(frame: pd.DataFrame, value: str) -> HTML:
    """Table 1 with the paper's printed numbers beside the records of one scale.

    Args:
        frame: of one grid, from :func:`rctaf.records.table`.
        value: the column that measures robustness.
    """

    def measured(values: pd.Series) -> str:
        e = mean_interval(100 * values.to_numpy(float))
        return f"{e.value:.2f}" + (f" ({e.low:.2f}\u00a0to\u00a0{e.high:.2f})" if e.n > 1 else "")

    lines = []
    for name, (clean, robust, curvature) in paper.TABLE_1.items():
        kind, _, order = name.partition(" β=")
        if order:
            near = np.isclose(frame["curvature"].astype(float), TUNED)
            rows, true = frame[(frame["activation"] == kind) & (frame["beta"] == int(order)) & near], f"{TUNED:g}"
        else:
            rows, true = frame[frame["activation"] == kind], _true_curvature(kind)
        runs = rows[rows[value].notna()] if value in rows else rows.iloc[:0]
        printed = [f"{clean:.2f}", f"{robust:.2f}", curvature or "–"]
        here = ["no record"] * 2 + ["–"]
        if len(runs):
            means = [measured(runs[column]) for column in ("clean_accuracy", value)]
            here = [*means, runs_link(" ".join(runs["id"]), str(len(runs)))]
        cells = [activation_name(name), *printed, true, *here]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    curvature = '<th style="white-space: nowrap">max|σ″|</th>'
    head = (
        "<tr><th rowspan='2'>activation</th><th colspan='3'>as printed</th><th colspan='4'>here</th></tr>"
        f"<tr><th>clean %</th><th>AutoAttack %</th>{curvature}"
        f"{curvature}<th>clean %</th><th>{ROBUSTNESS[value]} %</th><th>seeds</th></tr>"
    )
    return html_table("table measured", head, lines)
