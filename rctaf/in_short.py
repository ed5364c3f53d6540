"""The answers of the book in a few sentences, each written by the estimates it reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd
from IPython.display import HTML

from rctaf.config import Grid
from rctaf.names import DATASETS
from rctaf.records import Record
from rctaf.statistics import Estimate, lower_beyond, orders_coincide, paired_difference
from rctaf.statistics import rank_correlation as spearman
from rctaf.verdicts import (
    BAND,
    BOOTSTRAP_SEEDS,
    FIT_CURVATURES,
    LOSSES,
    MARGIN,
    MIN_SEEDS,
    Place,
    alike,
    complete_seeds,
    falls_beyond,
    hessian_goes_with_robustness,
    places,
    relu_and_band,
    shared_rows,
)
from rctaf.words import count, listed, points, typeset

Answer = tuple[str, str]  # a question in two words, and the sentence that answers it


def answers(frame: pd.DataFrame, value: str) -> list[Answer]:
    """What the records of one grid say, as far as they say it; ``value`` is the column that measures robustness."""
    rows = complete_seeds(frame, value)
    seeds = rows["seed"].nunique()
    if seeds < MIN_SEEDS:
        return [("Too early", f"There {'is' if seeds == 1 else 'are'} {count(seeds, 'complete seed')} so far.")]
    sentences: dict[str, Callable[[], str]] = {
        "Where robustness peaks": lambda: peak(rows, value),
        "Orders at equal max|σ″|": lambda: orders(rows, value),
        "Beyond 10": lambda: beyond(frame, rows, value),
        "Against ReLU": lambda: against_relu(frame, rows, value),
        "Hessian diagonal": lambda: hessian(frame, value),
    }
    return [(head, typeset(sentence)) for head, write in sentences.items() if (sentence := write())]


def peak(rows: pd.DataFrame, value: str) -> str:
    """Where each order is most robust, and on which side of the band that is."""
    seeds = rows["seed"].nunique()
    if seeds < BOOTSTRAP_SEEDS or rows.groupby("beta")["curvature"].nunique().min() < FIT_CURVATURES:
        return f"Not testable: {BOOTSTRAP_SEEDS} seeds and {FIT_CURVATURES} curvatures of each order are needed."
    found = places(rows, value, "max")
    where = listed([f"{p.value:.2g} ({p.low:.2g} to {p.high:.2g}) in order {p.order}" for p in found])
    return (
        f"Accuracy under attack is highest at max|σ″| = {where}; in brackets the 95 % intervals over {seeds} seeds. "
        f"The paper's range is {BAND[0]:g} to {BAND[1]:g}: {sides(found)}."
    )


def side(place: Place) -> str:
    """Where an interval lies against the band."""
    if place.high < BAND[0]:
        return "below"
    if place.low > BAND[1]:
        return "above"
    return "inside" if BAND[0] <= place.low and place.high <= BAND[1] else "across an edge of"


def sides(found: Sequence[Place]) -> str:
    """On which side of the band the intervals lie.

    >>> sides([Place(0, 1, 0.5, 2, ""), Place(1, 6, 5, 9, ""), Place(2, 1, 0.5, 3, "")])
    'the intervals of orders 0 and 2 lie below it, that of order 1 lies inside it'
    """
    groups = defaultdict(list)
    for place in found:
        groups[side(place)].append(str(place.order))
    if len(groups) == 1 and len(found) > 1:
        return f"all {len(found)} intervals lie {side(found[0])} it"
    words: list[str] = []
    for where, members in groups.items():
        many = len(members) > 1
        who = "the intervals of orders" if many else "that of order" if words else "the interval of order"
        words.append(f"{who} {listed(members)} {'lie' if many else 'lies'} {where} it")
    return ", ".join(words)


def orders(rows: pd.DataFrame, value: str) -> str:
    """The largest difference between two orders at equal curvature, and whether they coincide."""
    shared = shared_rows(rows)
    if rows["beta"].nunique() < 2 or shared.empty:
        return ""
    pairs = orders_coincide(shared, value, below=math.inf, margin=MARGIN)
    largest = pairs.iloc[int(pairs["largest"].abs().to_numpy(float).argmax())]
    low, high = float(largest["largest_low"]), float(largest["largest_high"])
    e = Estimate(float(largest["largest"]), low, high, int(largest["n"]))
    conclusion = {
        "supported": f"they coincide within {100 * MARGIN:g} point",
        "not supported": "they do not coincide",
        "undecided": f"whether they coincide within {100 * MARGIN:g} point is undecided",
    }[alike(pairs)]
    return (
        f"At {count(int(largest['curvatures']), 'curvature')}, {conclusion}. The largest difference of two means is "
        f"{points(e)}: order {largest['orders']} at max|σ″| = {largest['at']:g}, over {e.n} seeds."
    )


def beyond(frame: pd.DataFrame, rows: pd.DataFrame, value: str) -> str:
    """Whether robustness falls beyond the band: the verdict on it, and the change of each order."""
    outcome = falls_beyond(frame, value).outcome
    if outcome == "not testable":
        return ""
    change = lower_beyond(rows, value, band=BAND, beyond=BAND[1])
    estimates = listed(
        [
            f"{points(Estimate(r['difference'], r['low'], r['high'], r['n']))} in order {r['order']}"
            for r in change[change["order"] != "all"].to_dict("records")
        ]
    )
    conclusion = {
        "supported": "falls in every order that was run",
        "not supported": "does not fall in every order: a rise is shown",
        "undecided": "is not shown to fall in every order; a rise is not shown either, all orders being tested at once",
    }[outcome]
    return f"Robustness {conclusion}. Against 4 to 10 it changes by {estimates}."


def against_relu(frame: pd.DataFrame, rows: pd.DataFrame, value: str) -> str:
    """Each order within the band against ReLU, by seed."""
    words = []
    for beta, part in rows.groupby("beta"):
        relu, band = relu_and_band(frame, part, value)
        if len(relu) < MIN_SEEDS or band.empty:
            return ""
        d = paired_difference(band.to_numpy(float), relu.to_numpy(float)).difference
        judged = "more robust than" if d.low > 0 else "less robust than" if d.high < 0 else "not told apart from"
        words.append(f"order {beta} is {judged} ReLU, {points(d)}")
    return f"Within {BAND[0]:g} to {BAND[1]:g}, {'; '.join(words)}."


def hessian(frame: pd.DataFrame, value: str) -> str:
    """Whether a smaller norm goes with robustness, and where ReLU's stands, for each of the two losses."""
    goes, relus = [], []
    for loss, name in LOSSES.items():
        outcome = hessian_goes_with_robustness(frame, value, loss).outcome
        if outcome == "not testable":
            continue
        column = f"hessian_{loss}.rms"
        rows = complete_seeds(frame.assign(**{value: frame[value].where(frame[column].notna())}), value)
        within = spearman(rows, column, value).set_index("order").loc["within"]
        conclusion = {
            "supported": "with more robustness",
            "not supported": "with less robustness",
            "undecided": "with neither more nor less robustness, as far as can be told,",
        }[outcome]
        interval = f"{within['correlation']:.2f}, {within['low']:.2f} to {within['high']:.2f}"
        goes.append(f"{conclusion} for the {name} ({interval})")
        logs = frame.assign(log=np.log(frame[column].astype(float)))
        relu, band = relu_and_band(logs, complete_seeds(logs, "log"), "log")
        if len(relu) >= MIN_SEEDS and len(band):
            d = paired_difference(relu.to_numpy(float), band.to_numpy(float)).difference
            judged = "larger" if d.low > 0 else "smaller" if d.high < 0 else "not told apart"
            ratio = f"{math.exp(d.value):.2g} times, {math.exp(d.low):.2g} to {math.exp(d.high):.2g}"
            relus.append(f"{judged} for the {name} ({ratio})")
    if not goes:
        return ""
    words = f"A smaller norm goes {listed(goes)}; in brackets the rank correlation within orders."
    if relus:
        words += (
            f" Against RCT-AF within 4 to 10, ReLU's norm, which the paper expects to be larger, is {listed(relus)}."
        )
    return words


def at_paper_scale(grids: Iterable[tuple[Grid, Sequence[Record]]]) -> list[Answer]:
    """How much of the paper's own data has been run: all runs of these grids on CIFAR, if any, each counted once."""
    planned: set[str] = set()
    made: set[str] = set()
    data: dict[str, None] = {}
    for grid, records in grids:
        cells = {run_id: config for run_id, config in grid.cells().items() if config.dataset.startswith("cifar")}
        planned |= cells.keys()
        made |= {record.run_id for record in records} & cells.keys()
        data |= {DATASETS[config.dataset]: None for config in cells.values()}
    if not planned:
        return []
    done = f"{len(made) or 'None'} of the {len(planned)} planned runs on {listed(list(data))}"
    open_question = "" if made else "; what happens there is not decided here"
    return [("At the paper's scale", f"{done} {'are' if len(made) > 1 else 'is'} recorded{open_question}.")]


def as_list(about: str, found: Sequence[Answer]) -> HTML:
    """The answers as a list below a sentence about their source; HTML, which every page can show."""
    lines = "".join(f"<li><strong>{escape(head)}.</strong> {escape(words)}</li>" for head, words in found)
    return HTML(f'<p>{escape(about)}</p><ul class="in-short">{lines}</ul>')
