"""What the records say beside the claims of the paper: generated sentences, none of them a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from rctaf import paper
from rctaf.evidence import STRENGTHS
from rctaf.names import activation_name
from rctaf.records import Record, table
from rctaf.statistics import Estimate, cell_means, mean_interval
from rctaf.verdicts import (
    BAND,
    FIT_CURVATURES,
    LOSSES,
    MIN_SEEDS,
    by_order,
    column_of,
    places,
    rows_to_judge,
    too_few_seeds,
)
from rctaf.words import count, listed, numbered_orders, points, ratio, typeset


def by_strength(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`rctaf.records.table` with ``apgd_ce_accuracy``: what AutoAttack's first attack leaves by itself."""
    first = [waterfall[0]["robust"] / r.metrics["n_eval"] if (waterfall := _waterfall(r)) else None for r in records]
    return table(records).assign(apgd_ce_accuracy=pd.Series(first, dtype=float))


def _waterfall(record: Record) -> list[dict]:
    return record.metrics.get("autoattack", {}).get("waterfall", [])


def _by_curvature(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """``value`` of one order: a row per curvature, a column per seed."""
    return rows.pivot_table(values=value, index="curvature", columns="seed").sort_index()


def _best(values: pd.DataFrame) -> float:
    """The curvature with the highest mean; ``values`` from :func:`_by_curvature`."""
    return float(values.index[int(values.mean(axis=1).argmax())])


def strength(frame: pd.DataFrame, strong: str) -> str:
    """How much more accuracy PGD-20 leaves than a stronger attack, along the curvature, as Markdown.

    All differences are paired by seed; the most robust curvature is the one with the highest mean under the stronger
    attack.

    Args:
        frame: from :func:`by_strength`.
        strong: the column of the stronger attack.
    """
    if strong not in list(STRENGTHS)[1:] or not {strong, "pgd20_accuracy"} <= set(frame):
        return ""
    _, rows, stop = rows_to_judge("", frame[frame["pgd20_accuracy"].notna()], strong)
    if stop:
        return stop.measured
    seeds = rows["seed"].nunique()
    name = STRENGTHS[strong]
    lines, grows, unseen, own = [], [], [], []
    for beta, part in by_order(rows).items():
        weak, hard = _by_curvature(part, "pgd20_accuracy"), _by_curvature(part, strong)
        gap, best, highest = weak - hard, _best(hard), float(hard.index[-1])
        told = _along(gap, best)
        if best != highest:
            changes = [_change(t, best, highest) for t in (weak, hard)]
            told += (
                f". From {best:g} to {highest:g} accuracy changes by {points(changes[0])} under PGD-20 and by "
                f"{points(changes[1])} under {name}"
            )
            if _change(gap, best, highest).low > 0:
                grows.append(str(beta))
                unseen += [str(beta)] * bool(changes[1].high < 0)
        lines.append(f"- order {beta:g}: {told}.")
        first = weak - _by_curvature(part, "apgd_ce_accuracy") if part["apgd_ce_accuracy"].notna().all() else None
        if first is not None:
            own.append(first.loc[[first.index[0], best, highest]].to_numpy(float))
    fall = f": a part of the fall in {numbered_orders(unseen)} shows only under {name}" if unseen else ""
    text = [
        f"From the most robust curvature to the highest, the difference between PGD-20 and {name} "
        f"{_growth(grows)}{fall}. Accuracy under the first minus accuracy under the second, {seeds} seeds:",
        "\n".join(lines),
    ]
    if len(own) == rows["beta"].nunique():
        e = [mean_interval(values) for values in np.asarray(own, float).mean(axis=0)]
        text.append(
            f"APGD-CE alone, which climbs the same loss as PGD-20, accounts for {points(e[0])} of it at the lowest "
            f"curvature, {points(e[1])} at the most robust and {points(e[2])} at the highest (mean of the orders)."
        )
    return typeset("\n\n".join(text))


def _change(values: pd.DataFrame, before: float, after: float) -> Estimate:
    """By how much a quantity differs between two curvatures, paired by seed; ``values`` as in :func:`_along`."""
    return mean_interval(values.loc[[before, after]].diff().iloc[-1].to_numpy(float))


def _growth(orders: Sequence[str]) -> str:
    """In which orders a difference grows from the most robust curvature.

    That one is chosen from the same runs. In simulated experiments where nothing depends on curvature, with the noise
    and the seeds of the records, an interval lay above 0 in 6 to 9 % of orders in place of 2.5 %.
    """
    return (
        f"grows in {numbered_orders(orders)} (95 % interval above 0; since the most robust curvature is chosen from "
        "the same runs, 6 to 9 % of orders where nothing grows would have one too)"
        if orders
        else "grows in no order (no 95 % interval above 0)"
    )


def _along(values: pd.DataFrame, best: float) -> str:
    """A share at the lowest, the most robust and the highest curvature, and where its mean is largest.

    Args:
        values: a row per curvature, a column per seed.
        best: the most robust curvature.
    """
    names: dict[float, list[str]] = {}
    low, high = float(values.index[0]), float(values.index[-1])
    chosen = {"lowest": low, "most robust": best, "highest": high, "largest difference": _best(values)}
    for name, at in chosen.items():
        names.setdefault(at, []).append(name)
    return ", ".join(
        f"{points(mean_interval(values.loc[at].to_numpy(float)))} at {at:g} ({' and '.join(names[at])})"
        for at in sorted(names)
    )


def last_attacks(records: Sequence[Record]) -> str:
    """What FAB and Square each take after the screening in the runs of RCT-AF; Square also at each max|sigma''| where
    these are few, else up to the paper's range and beyond it."""
    rows = [
        (r.config.curvature, *(100 * (a["robust"] - b["robust"]) / r.metrics["n_eval"] for a, b in pairwise(after)))
        for r in records
        if len(after := _waterfall(r)[1:]) == 3 and r.config.curvature
    ]
    if not rows:
        return "No record holds a result of the standard version of AutoAttack yet."
    curvature, fab, square = np.array(rows, float).T
    groups = {f"at {at:g}": curvature == at for at in np.unique(curvature)}
    if len(groups) > 3:
        beyond = curvature > BAND[1]
        groups = {f"up to {BAND[1]:g}": ~beyond, f"beyond {BAND[1]:g}": beyond}
    parts = [f"{square[which].mean():.2f} {where}" for where, which in groups.items() if which.any()]
    return typeset(
        f"In {count(len(rows), 'run')} of RCT-AF under the standard version, FAB lowers accuracy by a further "
        f"{fab.mean():.2f} points on average (at most {fab.max():.2f}), and Square, which uses no gradients, by "
        f"{square.mean():.2f} more (at most {square.max():.2f}; on average {listed(parts)})."
    )


def larger_budget(frame: pd.DataFrame) -> str:
    """Where accuracy under PGD-20 is highest at the evaluation's budget, and where at the larger one."""
    columns = ["pgd20_accuracy", "pgd20_larger_accuracy"]
    if not set(columns) <= set(frame):
        return ""
    _, rows, stop = rows_to_judge("", frame[frame[columns[0]].notna()], columns[1], curvatures=FIT_CURVATURES)
    if stop:
        return stop.measured
    seeds = rows["seed"].nunique()
    budgets = [rows[name].iloc[0] for name in ("epsilon_eval", "epsilon_larger")]
    budgets[0] = budgets[0] or rows["epsilon"].iloc[0]
    found = [places(rows, column, "max") for column in columns]
    lines = [
        f"- ε = {budget}: {'; '.join(place.words for place in of_budget)}."
        for budget, of_budget in zip(budgets, found, strict=True)
    ]
    means = [rows.pivot_table(values=column, index="curvature", columns="beta").idxmax() for column in columns]
    moved = [str(order) for order in means[0].index if means[0][order] != means[1][order]]
    same = (
        f"differs between the two budgets in {numbered_orders(moved)}"
        if moved
        else "is the same at both budgets in every order"
    )
    return typeset(
        f"The tested curvature with the highest mean under PGD-20 {same}. Place of the peak, {seeds} seeds:\n\n"
        + "\n".join(lines)
    )


def tuned_by_earlier_seeds(frame: pd.DataFrame, value: str) -> str:
    """RCT-AF tuned here against the common activations of Table 1, in each order and paired by seed, as Markdown.

    The curvature of a seed is chosen by the seeds before it: the one with the highest mean over these. So no run is
    compared where its own noise is high, as the best of a sweep is; the first seed only chooses.
    """
    _, rows, stop = rows_to_judge("", frame, value)
    if stop:
        return stop.measured
    needed = MIN_SEEDS + 1  # the first seed only chooses
    if (seeds := rows["seed"].nunique()) < needed:
        return too_few_seeds(seeds, needed)
    common = frame[frame["activation"].isin(paper.TABLE_1)].pivot_table(
        values=value, index="seed", columns="activation"
    )
    common = common.reindex(sorted(set(rows["seed"]))).dropna(axis=1)
    if common.empty:
        return "No common activation of the table was run with these seeds."
    names = common.mean().sort_values(ascending=False).index
    lines = []
    for beta, part in by_order(rows).items():
        runs = _by_curvature(part, value)
        later = runs.columns[1:]
        chosen = [_best(runs.iloc[:, :earlier]) for earlier in range(1, len(later) + 1)]
        tuned = pd.Series([runs[seed].loc[c] for c, seed in zip(chosen, later, strict=True)], index=later)
        told = []
        for name in names:
            difference = mean_interval((tuned - common.loc[later, name]).to_numpy(float))
            told.append(f"{points(difference)} against {activation_name(name)}")
        at = listed([f"{c:g}" for c in sorted(set(chosen))])
        lines.append(f"- order {beta:g}, at {at}: {listed(told)}.")
    head = f"95 % intervals over {count(seeds - 1, 'seed')}:"
    return typeset(head + "\n\n" + "\n".join(lines))


def training_and_test(records: Sequence[Record], tested: str = "pgd20_accuracy") -> pd.DataFrame:
    """:func:`rctaf.records.table` with ``robust_gap``: accuracy under the training attack minus the column ``tested``.

    The first is that of the last epoch, in training mode, while the weights still change; NaN where nothing was
    attacked in training.
    """
    frame = table(records)
    last = [r.history.get("train_robust_accuracy", [math.nan])[-1] for r in records]
    return frame.assign(robust_gap=np.array(last, float) - frame.get(tested, math.nan))


def gap(frame: pd.DataFrame, value: str) -> str:
    """How training and test accuracy differ along the curvature, from :func:`training_and_test`, as Markdown."""
    _, rows, stop = rows_to_judge("", frame[frame["robust_gap"].notna()], value)
    if stop:
        return stop.measured
    seeds = rows["seed"].nunique()
    lines, grows = [], []
    for beta, part in by_order(rows).items():
        gaps, best = _by_curvature(part, "robust_gap"), _best(_by_curvature(part, value))
        told, highest = _along(gaps, best), float(gaps.index[-1])
        if best != highest:
            change = _change(gaps, best, highest)
            told += f"; from {best:g} to {highest:g} it changes by {points(change)}"
            grows += [str(beta)] * bool(change.low > 0)
        lines.append(f"- order {beta:g}: {told}.")
    head = (
        "From the most robust curvature to the highest, accuracy in training minus accuracy on test images "
        f"{_growth(grows)}; {seeds} seeds:\n\n"
    )
    return typeset(head + "\n".join(lines))


def with_sigma_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """The records with ``hessian_clean.sigma_share`` and ``hessian_adversarial.sigma_share``: ‖d - g‖ / ‖g‖.

    d is the Hessian's diagonal and g that of its Gauss-Newton part, so d - g is the part linear in σ″. NaN where the
    unbiased estimate of its square is negative or was not measured.
    """
    for loss in LOSSES:
        square = {part: column_of(frame, f"hessian_{loss}.{part}_square") for part in ("remainder", "gauss_newton")}
        share = np.sqrt(square["remainder"].where(square["remainder"] > 0) / square["gauss_newton"])
        frame = frame.assign(**{f"hessian_{loss}.sigma_share": share})
    return frame


def sigma_share(frame: pd.DataFrame, loss: str) -> str:
    """How large the part of σ″ is beside the Gauss-Newton part, over the grid, and what is measured for ReLU."""
    column = f"hessian_{loss}.sigma_share"
    logs = frame.assign(log=np.log(frame[column]))
    _, rows, stop = rows_to_judge("", logs, "log")
    if stop:
        return stop.measured
    seeds = rows["seed"].nunique()
    means = cell_means(rows, "log").sort_values("value")
    ends = [means.iloc[end] for end in (0, -1)]
    low, high = (
        f"{ratio(Estimate(e['value'], e['low'], e['high'], e['n']))} in order {e['beta']:g} at {e['curvature']:g}"
        for e in ends
    )
    above, below = (means["low"] > 0).sum(), (means["high"] < 0).sum()
    regions = {
        f"below {BAND[0]:g}": rows["curvature"] < BAND[0],
        f"from {BAND[0]:g} to {BAND[1]:g}": rows["curvature"].between(*BAND),
        f"beyond {BAND[1]:g}": rows["curvature"] > BAND[1],
    }
    averages = [
        f"{ratio(mean_interval(rows[which].groupby('seed')['log'].mean().to_numpy(float)))} {where}"
        for where, which in regions.items()
        if which.any()
    ]
    told = (
        f"{LOSSES[loss].capitalize()}: the part with σ″ is on average {listed(averages)} times as large as the "
        f"Gauss-Newton part; the least is {low}, the most {high} (geometric means; in brackets 95 % intervals over "
        f"{seeds} seeds). By these intervals it is the larger of the two in {above} of {count(len(means), 'cell')} and "
        f"the smaller in {below}."
    )
    relu = frame[(frame["activation"] == "relu") & frame["seed"].isin(rows["seed"])]
    squares = relu[f"hessian_{loss}.remainder_square"] / relu[f"hessian_{loss}.gauss_newton_square"]
    if squares.notna().sum() > 1:
        e = mean_interval(squares.dropna().to_numpy(float))
        told += (
            f" For ReLU, which has none, the estimated square of that part is {e.value:.4f} ({e.low:.4f} "
            f"to {e.high:.4f}) times that of the other."
        )
    return typeset(told)
