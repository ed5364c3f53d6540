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
from rctaf.controls import AS_BEFORE, CHANGES, FALLEN, common_seeds, fallen, harm_arms
from rctaf.family import BASELINE_CURVATURES
from rctaf.names import ACTIVATIONS, DATASETS
from rctaf.records import Record
from rctaf.statistics import Estimate, lower_beyond, orders_coincide, paired_difference, spearman
from rctaf.verdicts import (
    BAND,
    BOOTSTRAP_SEEDS,
    FIT_CURVATURES,
    LOSSES,
    MARGIN,
    MIN_SEEDS,
    Place,
    Verdict,
    alike,
    by_order,
    complete_seeds,
    falls_beyond,
    hessian_goes_with_robustness,
    hessian_is_a_valley,
    hessian_least_in_band,
    hill,
    orders_closer_along_curvature,
    orders_of,
    peak_in_band,
    places,
    relu_and_band,
    shared_rows,
    side,
)
from rctaf.words import count, listed, numbered_orders, points, typeset

Answer = tuple[str, str]  # a question in two words, and the sentence that answers it


def answers(frame: pd.DataFrame, value: str) -> list[Answer]:
    """What the records of one grid say, as far as they say it; ``value`` is the column that measures robustness."""
    rows = complete_seeds(frame, value)
    seeds = rows["seed"].nunique()
    if seeds < MIN_SEEDS:
        return [("Too early", f"There {'is' if seeds == 1 else 'are'} {count(seeds, 'complete seed')} so far.")]
    sentences: dict[str, Callable[[], str]] = {
        "The hill": lambda: rise_and_fall(frame, rows, value),
        "The peak": lambda: peak(rows, value),
        "Orders at equal max|σ″|": lambda: orders(rows, value),
        "Beyond 10": lambda: beyond(frame, rows, value),
        "Against ReLU": lambda: against_relu(frame, rows, value),
        "Hessian diagonal": lambda: hessian(frame, value),
    }
    return [(head, typeset(sentence)) for head, write in sentences.items() if (sentence := write())]


def rise_and_fall(frame: pd.DataFrame, rows: pd.DataFrame, value: str) -> str:
    """Whether robustness is a hill along max|sigma''|, and whether its place is the paper's: the verdicts on both."""
    outcome, where = hill(frame, value).outcome, orders_of(rows)
    if outcome == "supported":
        place = ""
        if peak_in_band(frame, value).outcome == "not supported":
            all_outside = all(side(p) in ("below", "above") for p in places(rows, value, "max"))
            place = ", though elsewhere" if all_outside else ", though not in every order where it has the peak"
        return f"As in the paper{place}, robustness is a hill in {where}: it is lower at both ends than inside."
    return {
        "not supported": f"Robustness is not a hill in {where}: an end lies above the inside.",
        "undecided": f"That robustness is a hill in {where} is not shown.",
        "not testable": "",
    }[outcome]


def peak(rows: pd.DataFrame, value: str) -> str:
    """Where each order is most robust, and on which side of the band that is."""
    seeds = rows["seed"].nunique()
    if seeds < BOOTSTRAP_SEEDS or rows.groupby("beta")["curvature"].nunique().min() < FIT_CURVATURES:
        return f"Not testable: {BOOTSTRAP_SEEDS} seeds and {FIT_CURVATURES} curvatures of each order are needed."
    found = places(rows, value, "max")
    where = listed([f"{in_brackets(p)} in order {p.order}" for p in found])
    wider = [str(p.order) for p in found if p.widened]
    which = "" if len(wider) == len(found) else f" in {numbered_orders(wider)}"
    widened = f", widened{which} by other fits or to half-way to the tested neighbours" if wider else ""
    return (
        f"At max|σ″| = {where}; in brackets 95 % intervals over {seeds} seeds{widened}. The paper's range is "
        f"{BAND[0]:g} to {BAND[1]:g}: {sides(found)}."
    )


def in_brackets(place: Place) -> str:
    """A place with its interval, and whether it is one."""
    plateau = "" if place.identified else "; a plateau or at the edge of the grid"
    return f"{place.value:.2g} ({place.low:.2g} to {place.high:.2g}{plateau})"


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
    """Whether the orders coincide at equal curvature, whether they lie closer than at equal sharpness, and the largest
    difference between two."""
    shared = shared_rows(rows)
    if rows["beta"].nunique() < 2 or shared.empty:
        return ""
    pairs = orders_coincide(shared, value, below=math.inf, margin=MARGIN)
    largest = pairs.iloc[int(pairs["largest"].abs().argmax())]
    e = Estimate.of(largest, "largest")
    conclusion = {
        "supported": f"coincide within {100 * MARGIN:g} point",
        "not supported": "do not coincide",
        "undecided": f"may or may not coincide within {100 * MARGIN:g} point",
    }[alike(pairs)]
    closer = orders_closer_along_curvature(rows, value).outcome == "supported"
    than = f", {'and' if alike(pairs) == 'supported' else 'but'} lie closer than along α" if closer else ""
    return (
        f"They {conclusion}{than}. Largest mean difference: {points(e)}, order {largest['orders']} at max|σ″| = "
        f"{largest['at']:g}."
    )


def beyond(frame: pd.DataFrame, rows: pd.DataFrame, value: str) -> str:
    """Whether robustness falls beyond the band: the verdict on it, and the change of each order."""
    outcome = falls_beyond(frame, value).outcome
    if outcome == "not testable":
        return ""
    change = lower_beyond(rows, value, band=BAND, beyond=BAND[1])
    estimates = listed(
        [f"{points(Estimate.of(r))} in order {r['order']}" for r in change[change["order"] != "all"].to_dict("records")]
    )
    conclusion = {
        "supported": "is lower in every order that was run",
        "not supported": "is not lower in every order: a rise is shown",
        "undecided": "is not shown to be lower in every order; nor higher, all orders being tested at once",
    }[outcome]
    return f"Against 4 to 10, robustness {conclusion}. It changes by {estimates}."


def against_relu(frame: pd.DataFrame, rows: pd.DataFrame, value: str) -> str:
    """Each order within the band against ReLU, by seed."""
    words = []
    for beta, part in rows.groupby("beta"):
        relu, band = relu_and_band(frame, part, value)
        if len(relu) < MIN_SEEDS or band.empty:
            return ""
        d = paired_difference(band.to_numpy(float), relu.to_numpy(float)).difference
        judged = "more robust" if d.low > 0 else "less robust" if d.high < 0 else "not told apart"
        words.append(f"order {beta} is {judged}, {points(d)}")
    return f"Within {BAND[0]:g} to {BAND[1]:g}, {'; '.join(words)}."


def hessian(frame: pd.DataFrame, value: str) -> str:
    """The U of the norm and its bottom, whether a smaller one goes with robustness, and ReLU's, for each loss."""
    shapes: defaultdict[str, list[str]] = defaultdict(list)
    bottoms: defaultdict[str, list[str]] = defaultdict(list)
    goes: defaultdict[str, list[str]] = defaultdict(list)
    relus: defaultdict[str, list[str]] = defaultdict(list)
    for loss, name in LOSSES.items():
        outcome = hessian_goes_with_robustness(frame, value, loss).outcome
        if outcome == "not testable":
            continue
        shape = {
            "supported": "U-shaped",
            "not supported": "not U-shaped",
            "undecided": "not shown to be U-shaped",
        }[hessian_is_a_valley(frame, loss).outcome]
        shapes[shape].append(name)
        bottoms[hessian_least_in_band(frame, loss).outcome].append(name)
        column = f"hessian_{loss}.rms"
        rows = complete_seeds(frame.assign(**{value: frame[value].where(frame[column].notna())}), value)
        result = {row["order"]: row for row in spearman(rows, column, value).to_dict("records")}
        conclusion = {
            "supported": "more robustness",
            "not supported": "less robustness",
            "undecided": "neither more nor less robustness, as far as can be told,",
        }[outcome]
        each = ", ".join(f"{row['correlation']:.2f}" for order, row in result.items() if order.isdigit())
        what = "" if goes else "rank correlations by order "
        goes[conclusion].append(f"for the {name} ({what}{each})")
        logs = frame.assign(log=np.log(frame[column].astype(float)))
        relu, band = relu_and_band(logs, complete_seeds(logs, "log"), "log")
        if len(relu) >= MIN_SEEDS and len(band):
            d = paired_difference(relu.to_numpy(float), band.to_numpy(float)).difference
            judged = "larger" if d.low > 0 else "smaller" if d.high < 0 else "not told apart"
            ratio = f"{math.exp(d.value):.2g} times, {math.exp(d.low):.2g} to {math.exp(d.high):.2g}"
            relus[judged].append(f"for the {name} ({ratio})")
    if not goes:
        return ""
    words = (
        f"The norm is {listed([f'{shape} {_for(losses)}' for shape, losses in shapes.items()])}. That it is least "
        f"between {BAND[0]:g} and {BAND[1]:g} is "
        f"{listed([f'{outcome} {_for(losses)}' for outcome, losses in bottoms.items()])}. A smaller norm goes "
        f"{listed([f'with {said} {listed(found)}' for said, found in goes.items()])}."
    )
    if relus:
        found = listed([f"{judged} {listed(losses)}" for judged, losses in relus.items()])
        words += f" ReLU's norm, expected to be larger than RCT-AF's within 4 to 10, is {found}."
    return words


def _for(losses: Sequence[str]) -> str:
    """Names of losses in a sentence.

    >>> _for(["clean loss"]), _for(list(LOSSES.values()))
    ('for the clean loss', 'for both losses')
    """
    return "for both losses" if len(losses) == len(LOSSES) else f"for the {listed(losses)}"


_AFTER_LONG_TRAINING = (  # in words: the verdicts on a hill, on the rise below 4 and on the fall beyond 10
    {"supported": "a hill", "undecided": "not shown to be a hill", "not supported": "not a hill"},
    {
        "supported": "higher at 4 than below",
        "undecided": "not shown to rise up to 4",
        "not supported": "not rising up to 4",
    },
    {
        "supported": "lower beyond 10 in every order",
        "undecided": "lower beyond 10 in {lower}",
        "not supported": "not lower beyond 10 in every order",
    },
)


def _lower_in(rows: pd.DataFrame, value: str) -> str:
    """The orders in which robustness is shown to be lower beyond the band than within it."""
    change = lower_beyond(rows, value, band=BAND, beyond=BAND[1])
    change = change[change["order"] != "all"]
    shown = change["p_lower_holm"] < 0.05
    lower, others = (numbered_orders(list(change["order"][which])) for which in (shown, ~shown))
    return f"{lower} (not shown in {others})" if shown.any() else "no order, as far as is shown"


def longer(judged: pd.DataFrame, value: str, verdicts: Sequence[Verdict]) -> list[Answer]:
    """What longer training changes: the complete seeds of control (f), and what :func:`rctaf.controls.longer` says."""
    if judged["seed"].nunique() < MIN_SEEDS:
        return []
    lengths, smallest = judged["epochs"], judged["curvature"].min()
    least, most = lengths.min(), lengths.max()
    found = by_order(judged)
    data = DATASETS[judged["dataset"].iloc[0]]
    # the peak in each order, the two ranges against 1 likewise, and three on all orders
    favours_small, favours_band, together = (
        verdicts[len(found) : 2 * len(found)],
        verdicts[2 * len(found) : 3 * len(found)],
        verdicts[3 * len(found) : 3 * len(found) + 3],
    )
    seeds = judged["seed"].nunique()

    def moved(favours: Sequence[Verdict], low: float, high: float) -> str:
        """How networks within a range of max|sigma''| move against those at 1, and in which orders."""
        said = {
            "supported": "gain on those at 1 in",
            "undecided": "are not shown to gain on those at 1, nor to lose, in",
            "not supported": "lose against those at 1 in",
        }
        gains = defaultdict(list)
        for (order, rows), verdict in zip(found.items(), favours, strict=True):
            within = rows[rows["curvature"].between(low, high)].groupby("epochs")[value].mean()
            gap = 100 * (within - rows[rows["curvature"] == 1].groupby("epochs")[value].mean())
            gains[verdict.outcome].append((str(order), f"{gap[least]:+.1f}", f"{gap[most]:+.1f}"))
        words = []
        for outcome, meaning in said.items():
            if gains[outcome]:
                orders, before, after = zip(*gains[outcome], strict=True)
                words.append(f"{meaning} {numbered_orders(orders)} (from {listed(before)} to {listed(after)} points)")
        return listed(words)

    words = (
        f"Trained for {most} epochs in place of {least} ({seeds} seeds), networks at max|σ″| = {smallest:g} "
        f"{moved(favours_small, smallest, smallest)}. Networks from {BAND[0]:g} to {BAND[1]:g} "
        f"{moved(favours_band, *BAND)}."
    )
    if seeds >= BOOTSTRAP_SEEDS:
        brief, long = (
            [places(rows[rows["epochs"] == n], value, "max")[0] for rows in found.values()] for n in (least, most)
        )
        vague = [str(place.order) for place in long if not place.identified]
        words += (
            f" The fitted best max|σ″| is then {listed([f'{place.value:.2g}' for place in long])} in "
            f"{numbered_orders([str(order) for order in found])}, in place of "
            f"{listed([f'{place.value:.2g}' for place in brief])}"
        )
        words += f"; in {numbered_orders(vague)} this is a plateau or the edge of the grid." if vague else "."
    longest = judged[judged["epochs"] == most]
    lower = _lower_in(longest, value) if together[2].outcome == "undecided" else ""
    said = [
        outcomes[verdict.outcome].format(lower=lower)
        for outcomes, verdict in zip(_AFTER_LONG_TRAINING, together, strict=True)
        if verdict.outcome in outcomes
    ]
    if said:
        words += f" Robustness is then {listed(said)}."
    return [(f"Longer training, {data}", typeset(words))]


def harm(judged: pd.DataFrame, value: str, verdicts: Sequence[Verdict]) -> list[Answer]:
    """What mends the harm of longer training: complete seeds of (h), and what :func:`rctaf.controls.harm` says."""
    if any(verdict.outcome == "not testable" for verdict in verdicts):
        return []
    means = harm_arms(judged).pivot_table(values=value, index="arm", columns="curvature")
    gap = 100 * (means[7.0] - means[1.0])
    said = {
        "supported": "less harm",
        "undecided": "neither less harm nor more is shown",
        "not supported": "more harm",
    }
    changes = [
        f"with {arm} {gap[arm]:+.1f} ({said[verdict.outcome]})"
        for arm, verdict in zip(CHANGES, verdicts[::2], strict=True)
    ]
    data, below = DATASETS[judged["dataset"].iloc[0]], fallen(judged, value)
    single = [f"{below[arm][7.0]} with {arm}" for arm in CHANGES]
    words = (
        f"After {judged['epochs'].iloc[0]:g} epochs networks of max|σ″| = 7 differ from those of 1 by "
        f"{gap[AS_BEFORE]:+.1f} points (order 1, {AS_BEFORE}); {listed(changes)}. Of the networks of 7, "
        f"{below[AS_BEFORE][7.0]} have a robustness below {100 * FALLEN:g} %, and {listed(single)}."
    )
    return [(f"Harm of longer training, {data}", typeset(words))]


def other_functions(others: pd.DataFrame, family: pd.DataFrame, value: str, judged: Sequence[Verdict]) -> list[Answer]:
    """What functions outside the family do: control (g), judged by :func:`rctaf.controls.other_functions`."""
    others, family = common_seeds(others, family)
    if any(verdict.outcome == "not testable" for verdict in judged):
        return []
    tops = []
    for name in BASELINE_CURVATURES:
        (top,) = places(others[others["activation"] == name].assign(beta=0), value, "max")
        tops.append(f"{ACTIVATIONS[name]} at {in_brackets(top)}")
    one_curve = {
        "supported": "closer to one curve along the rms curvature (of normal inputs) than along max|σ″|",
        "undecided": "about as close to one curve along the rms curvature (of normal inputs) as along max|σ″|",
        "not supported": "closer to one curve along max|σ″| than along the rms curvature (of normal inputs)",
    }
    words = (
        f"At equal max|σ″|, {against_family(others, family, judged, 'curvature', value)}. Most robust are "
        f"{listed(tops)}. With the orders of RCT-AF they lie {one_curve[judged[-1].outcome]}."
    )
    return [("Outside the family", typeset(words))]


def other_functions_at_equal_rms(
    others: pd.DataFrame, family: pd.DataFrame, value: str, judged: Sequence[Verdict]
) -> list[Answer]:
    """The same at equal rms curvature, judged by :func:`rctaf.controls.other_functions_at_equal_rms`."""
    others, family = common_seeds(others, family)
    if any(verdict.outcome == "not testable" for verdict in judged):
        return []
    words = f"{against_family(others, family, judged, 'rms_start', value)}."
    return [("Outside the family, at equal rms curvature", typeset(words))]


def against_family(
    others: pd.DataFrame, family: pd.DataFrame, judged: Sequence[Verdict], label: str, value: str
) -> str:
    """Whether each other function is as robust as the mean of the orders, by the first verdicts, and where it is least
    so."""
    said = {
        "supported": "equally robust",
        "undecided": "neither told apart nor shown to be equally robust",
        "not supported": "not equally robust",
    }
    equal = []
    of_family = family.groupby(label)[value].mean()
    for name, verdict in zip(BASELINE_CURVATURES, judged, strict=False):
        away = 100 * (others[others["activation"] == name].groupby(label)[value].mean() - of_family)
        at = float(away.index[int(away.abs().argmax())])
        equal.append(
            f"{ACTIVATIONS[name]} and RCT-AF are {said[verdict.outcome]} (largest mean difference, "
            f"{ACTIVATIONS[name]} minus RCT-AF, {away[at]:+z.1f} points, at {at:g})"
        )
    return listed(equal)


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
