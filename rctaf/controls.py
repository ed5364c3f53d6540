"""Experiments that two explanations expect to end differently, and the rules that judge them.

Every control is judged on its complete seeds: those for which each of its runs has a record. All comparisons are paired
by seed. The rules were fixed before the runs were made; an outcome is one of :data:`rctaf.verdicts.OUTCOMES`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from rctaf.config import Grid, RunConfig
from rctaf.family import curvature, effective_curvature_at_start
from rctaf.records import Record, table
from rctaf.statistics import Difference, holm, mean_interval, orders_coincide, paired_difference
from rctaf.verdicts import BAND, MARGIN, MIN_SEEDS, Verdict

CHANCE = 0.2  # ten classes; a network below twice the 10 % of guessing has learned nothing worth comparing
_POINTS = 41  # where curves of different orders are compared


def complete(grid: Grid, records: Sequence[Record], chosen: Callable[[RunConfig], bool] = bool) -> pd.DataFrame:
    """The records (see :func:`rctaf.records.table`) of the seeds for which every chosen run of the grid has one."""
    wanted = {run_id: config for run_id, config in grid.cells().items() if chosen(config)}
    have = {record.run_id: record for record in records if record.run_id in wanted}
    missing = {config.seed for run_id, config in wanted.items() if run_id not in have}
    return table(record for record in have.values() if record.config.seed not in missing)


def _judged(claim: str, frame: pd.DataFrame, judge: Callable[[pd.DataFrame], tuple[str, str]]) -> Verdict:
    seeds = frame["seed"].nunique() if len(frame) else 0
    if seeds < MIN_SEEDS:
        return Verdict(claim, f"{seeds} complete seed(s); at least {MIN_SEEDS} are needed.", "not testable")
    return Verdict(claim, *judge(frame))


def _points(test: Difference) -> str:
    d = test.difference
    return f"{100 * d.value:+.2f} points ({100 * d.low:+.2f} to {100 * d.high:+.2f})"


def _by_seed(rows: pd.DataFrame, value: str) -> np.ndarray:
    """The mean of each seed, in the order of the seeds."""
    return rows.groupby("seed")[value].mean().to_numpy(float)


def _same(pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]], value: str) -> tuple[str, str]:
    """Do two kinds of run end alike, in every comparison?

    Supported: every mean difference is equivalent to 0 within ``MARGIN`` (two one-sided tests, p < 0.05). Not
    supported: some differs from 0 (p < 0.05 after Holm). Else undecided.
    """
    tests = {name: paired_difference(_by_seed(a, value), _by_seed(b, value), MARGIN) for name, (a, b) in pairs.items()}
    words = "; ".join(f"{name}: {_points(test)}" for name, test in tests.items())
    n = next(iter(tests.values())).difference.n
    equal = all(test.p_equivalent < 0.05 for test in tests.values())
    differ = min(holm([test.p_different for test in tests.values()])) < 0.05
    outcome = "supported" if equal else "not supported" if differ else "undecided"
    return f"{words}; 95 % intervals over {n} seeds, equal means within {100 * MARGIN:g} point.", outcome


def _higher(words: str, a: np.ndarray, b: np.ndarray) -> tuple[str, str]:
    """Supported: the interval of a - b lies above 0. Not supported: below 0. Else undecided."""
    test = paired_difference(a, b)
    d = test.difference
    outcome = "supported" if d.low > 0 else "not supported" if d.high < 0 else "undecided"
    return f"{words}: {_points(test)}, 95 % interval over {d.n} seeds.", outcome


# --- (a) gain --------------------------------------------------------------------------------------------------------

PLAIN, GAIN, GAIN_HEAD = "gain 1", "gain 10", "gain 10, head's steps as at gain 1"


def gain_arms(frame: pd.DataFrame) -> pd.DataFrame:
    """With the columns ``arm`` and ``start``: max|sigma''| of the network of gain 1 that starts as the same one."""
    arm = np.where(frame["gain"] == 1, PLAIN, np.where(frame["head_lr"] == 1, GAIN, GAIN_HEAD))
    start = (frame["curvature"] * frame["gain"]).round(9)  # 0.1 * 10 and the like
    return frame.assign(arm=arm, start=start)


def gain(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """Three claims, each by :func:`_same`: the same start, with and without the head's steps; the same max|sigma''|."""

    def against(arm: str, other: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        def judge(frame: pd.DataFrame) -> tuple[str, str]:
            rows = gain_arms(frame)
            one, plain = rows[rows["arm"] == arm], rows[rows["arm"] == PLAIN]
            label = {"start": "start", "curvature": "max|σ''|"}[other]
            pairs = {
                f"{label} {c:g}": (one[one[other] == c], plain[plain["curvature"] == c])
                for c in sorted(set(one[other]))
            }
            return _same(pairs, value)

        return judge

    return [
        _judged(
            "The function at the start decides: written with a tenth of max|σ''| and gains of 10, it trains to the "
            "same robustness.",
            frame,
            against(GAIN, "start"),
        ),
        _judged(
            "The function at the start decides, once the head's steps are those of gain 1 as well.",
            frame,
            against(GAIN_HEAD, "start"),
        ),
        _judged(
            "max|σ''| decides, whatever reaches it: with gains of 10 and the head's steps of gain 1, a network ends "
            "like one of the same max|σ''| with gains of 1.",
            frame,
            against(GAIN_HEAD, "curvature"),
        ),
    ]


# --- (b) learned alpha -----------------------------------------------------------------------------------------------


def learned_curvatures(records: Sequence[Record]) -> pd.DataFrame:
    """A row per learned layer: ``id``, ``seed``, ``start`` and ``final`` (max|sigma''|), ``ratio`` and ``layer``."""
    rows = [
        {
            "id": r.run_id,
            "seed": r.config.seed,
            "start": r.config.curvature,
            "layer": layer,
            "final": curvature(a, beta),
        }
        for r in records
        if r.config.alpha_learned and (beta := r.config.beta) is not None
        for layer, a in enumerate(r.metrics["alphas"], 1)
    ]
    made = pd.DataFrame(rows, columns=["id", "seed", "start", "layer", "final"])
    return made.assign(ratio=made["final"] / made["start"])


def learned_alpha(frame: pd.DataFrame, layers: pd.DataFrame, value: str) -> list[Verdict]:
    """Where alpha goes, and whether it helps.

    1. One place. Per seed, the slope of log final against log initial max|sigma''| (geometric mean over layers): 0 if
       all starts arrive at one place, 1 if each stays. Supported: the interval lies within ±0.1. Not supported: it
       lies beyond. Else undecided.
    2. Towards the band. Per start outside of 4-10, the move of log max|sigma''| in the direction of the band.
       Supported: every interval lies above 0. Not supported: some lies below. Else undecided.
    3. Helps: learned minus fixed, mean over the starts, by :func:`_higher`.

    Args:
        frame: complete seeds, fixed and learned.
        layers: from :func:`learned_curvatures`.
        value: the column that measures robustness.
    """

    def finals(frame: pd.DataFrame) -> pd.DataFrame:
        """log final max|sigma''|, a row per seed and a column per start."""
        mine = layers[layers["id"].isin(frame["id"])]
        logs = mine.assign(log_final=np.log(mine["final"]), start=mine["start"].round(9))
        return logs.pivot_table(values="log_final", index="seed", columns="start")

    def one_place(frame: pd.DataFrame) -> tuple[str, str]:
        logs = finals(frame)
        slopes = np.polyfit(np.log(logs.columns.to_numpy(float)), logs.to_numpy(float).T, 1)[0]
        e = mean_interval(slopes)
        near, far = max(abs(e.low), abs(e.high)) < 0.1, e.low > 0.1 or e.high < -0.1
        outcome = "supported" if near else "not supported" if far else "undecided"
        words = f"Slope of log final against log initial max|σ''|: {e.value:.3f} ({e.low:.3f} to {e.high:.3f})"
        return f"{words}, 95 % interval over {e.n} seeds; 0 if all arrive at one place, 1 if each stays.", outcome

    def towards_band(frame: pd.DataFrame) -> tuple[str, str]:
        words, lows, highs = [], [], []
        logs = finals(frame)
        for start in logs.columns.to_numpy(float):
            e = mean_interval(logs[start].to_numpy(float) - math.log(start))
            words.append(
                f"from {start:g} times {math.exp(e.value):.3g} ({math.exp(e.low):.3g} to {math.exp(e.high):.3g})"
            )
            if not BAND[0] <= start <= BAND[1]:
                low, high = (e.low, e.high) if start < BAND[0] else (-e.high, -e.low)
                lows.append(low)
                highs.append(high)
        if not lows:
            return "No start lies outside.", "not testable"
        outcome = "supported" if min(lows) > 0 else "not supported" if min(highs) < 0 else "undecided"
        return f"max|σ''|, geometric mean over layers: {'; '.join(words)}; 95 % intervals over seeds.", outcome

    def helps(frame: pd.DataFrame) -> tuple[str, str]:
        learned = frame["alpha_learned"].astype(bool)
        return _higher("Learned minus fixed", _by_seed(frame[learned], value), _by_seed(frame[~learned], value))

    return [
        _judged("Learned by each layer, α arrives at one place from every start.", frame, one_place),
        _judged("Learned by each layer, max|σ''| moves towards 4 to 10 from every start outside.", frame, towards_band),
        _judged("A network that learns its α is more robust than one whose α stays at the start.", frame, helps),
    ]


# --- (c) weight decay ------------------------------------------------------------------------------------------------


def weight_decay(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """One claim by :func:`_same`: gains and biases decayed or not, at every curvature."""

    def judge(frame: pd.DataFrame) -> tuple[str, str]:
        decayed = frame["decay_gains"].astype(bool)
        with_decay, without = (
            dict(iter(f.groupby(f["curvature"].round(9)))) for f in (frame[decayed], frame[~decayed])
        )
        return _same({f"max|σ''| {c:g}": (without[c], with_decay[c]) for c in sorted(without)}, value)

    claim = "Weight decay on gains and biases plays no part: without it, robustness is the same at every max|σ''|."
    return [_judged(claim, frame, judge)]


# --- (d) orders at equal curvature, and at equal effective curvature -------------------------------------------------


def measured_effective_curvature(record: Record) -> float:
    """Geometric mean over the layers of a trained network of the effective curvature of its kappa.

    Pre-activations are taken as normal with mean 0 and the measured standard deviation
    (:func:`rctaf.family.effective_curvature_at_start`).
    """
    beta = record.config.beta
    if beta is None:
        return math.nan
    layers = record.metrics["effective_curvature"]
    return math.exp(float(np.mean([math.log(effective_curvature_at_start(layer["kappa"], beta)) for layer in layers])))


def with_effective_curvature(frame: pd.DataFrame, records: Sequence[Record]) -> pd.DataFrame:
    """RCT-AF rows with the columns ``effective_start`` and ``effective_measured``."""
    if frame.empty:
        return frame
    rows = frame[frame["activation"] == "rctaf"]
    rows = rows.assign(beta=rows["beta"].astype(int))  # astype({"beta": int}) would leave it in pieces
    start = [effective_curvature_at_start(a, b) for a, b in zip(rows["alpha"], rows["beta"], strict=True)]
    measured = {record.run_id: measured_effective_curvature(record) for record in records}
    return rows.assign(
        effective_start=np.array([float(f"{e:.6g}") for e in start]),  # the grids give them with few digits
        effective_measured=rows["id"].map(measured),
    )


def spread_between_orders(frame: pd.DataFrame, value: str, label: str) -> np.ndarray:
    """How far the orders lie apart along a label, one number per seed.

    Each order's runs of a seed, joined by straight lines in the logarithm of the label; the standard deviation between
    the orders, averaged over the range that all of them cover.
    """
    spreads = []
    for _, one_seed in frame.groupby("seed"):
        lines = [part.sort_values(label) for _, part in one_seed.groupby("beta")]
        logs = [np.log(line[label].to_numpy(float)) for line in lines]
        at = np.linspace(max(x[0] for x in logs), min(x[-1] for x in logs), _POINTS)
        curves = [np.interp(at, x, line[value].to_numpy(float)) for x, line in zip(logs, lines, strict=True)]
        spreads.append(np.std(curves, axis=0).mean())
    return np.array(spreads)


def orders(equal: pd.DataFrame, equal_effective: pd.DataFrame, value: str) -> list[Verdict]:
    """Do the orders coincide at equal max|sigma''|, or rather at equal effective curvature?

    1, 2. Every pair of orders, averaged over the curvatures of the grid, equivalent within ``MARGIN`` (supported), some
    pair different (p < 0.05 after Holm: not supported), else undecided. 3, 4. The spread between orders along
    max|sigma''| minus that along the effective curvature, at the start and as measured, from the same runs, by
    :func:`_higher`.

    Args:
        equal: complete seeds of a grid of equal curvatures, from :func:`with_effective_curvature`.
        equal_effective: of a grid of equal effective curvatures, likewise.
        value: the column that measures robustness.
    """

    def coincide(label: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        def judge(frame: pd.DataFrame) -> tuple[str, str]:
            pairs = orders_coincide(frame.assign(curvature=frame[label].round(9)), value, below=math.inf, margin=MARGIN)
            words = "; ".join(
                f"orders {p['orders']}: {100 * p['difference']:+.2f} points "
                f"({100 * p['low']:+.2f} to {100 * p['high']:+.2f}; largest at one curvature {100 * p['largest']:+.2f})"
                for p in pairs.to_dict("records")
            )
            alike, differ = pairs["p_equivalent"].max() < 0.05, pairs["p_different_holm"].min() < 0.05
            outcome = "supported" if alike else "not supported" if differ else "undecided"
            return f"{words}; {pairs['n'].iloc[0]} seeds, equal means within {100 * MARGIN:g} point.", outcome

        return judge

    def closer(label: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        def judge(frame: pd.DataFrame) -> tuple[str, str]:
            along, other = (spread_between_orders(frame, value, name) for name in ("curvature", label))
            words = (
                f"Standard deviation between orders {100 * along.mean():.2f} points along max|σ''|, "
                f"{100 * other.mean():.2f} along effective curvature; difference"
            )
            return _higher(words, along, other)

        return judge

    return [
        _judged("At equal max|σ''| the orders are equally robust.", equal, coincide("curvature")),
        _judged(
            "At equal effective curvature at the start the orders are equally robust.",
            equal_effective,
            coincide("effective_start"),
        ),
        _judged(
            "Effective curvature at the start describes the orders better than max|σ''| does.",
            equal,
            closer("effective_start"),
        ),
        _judged(
            "Effective curvature, measured in the trained networks, describes the orders better than max|σ''| does.",
            equal,
            closer("effective_measured"),
        ),
    ]


# --- (e) no normalisation --------------------------------------------------------------------------------------------


def no_norm(without: pd.DataFrame, with_norm: pd.DataFrame, value: str) -> list[Verdict]:
    """Is curvature felt more where no gain can take it up?

    1. Per seed, the standard deviation over curvatures (orders averaged) without normalisation minus that with batch
       norm, over the curvatures and seeds that both have, by :func:`_higher`.
    2. The same over the curvatures at which every network without normalisation learned (``CHANCE``). This one was
       added when the runs had shown that some do not: a network near guessing is lost to training, not to attacks.
    3. Every pair of orders at equal max|sigma''|, by :func:`_same`.
    """

    def variation(rows: pd.DataFrame) -> np.ndarray:
        means = rows.assign(c=rows["curvature"].round(9)).pivot_table(values=value, index="seed", columns="c")
        return means.std(axis=1).to_numpy(float)

    def more(frame: pd.DataFrame) -> tuple[str, str]:
        seeds = set(frame["seed"])
        plain = with_norm[with_norm["seed"].isin(seeds)] if len(with_norm) else with_norm
        if len(plain) == 0 or plain["seed"].nunique() < MIN_SEEDS:
            return "The networks with batch norm lack these seeds.", "not testable"
        plain = plain[plain["curvature"].round(9).isin(frame["curvature"].round(9))]
        frame = frame[frame["seed"].isin(set(plain["seed"]))]
        a, b = variation(frame), variation(plain)
        words = f"Standard deviation over curvatures {100 * a.mean():.2f} points without, {100 * b.mean():.2f} with"
        return _higher(f"{words} batch norm; difference", a, b)

    def more_where_learned(frame: pd.DataFrame) -> tuple[str, str]:
        learned = frame.groupby(frame["curvature"].round(9))["clean_accuracy"].min() >= CHANCE
        places = list(learned[learned].index)
        if len(places) < 2:
            return "At fewer than two curvatures did every network learn.", "not testable"
        words, outcome = more(frame[frame["curvature"].round(9).isin(places)])
        return f"max|σ''| {', '.join(f'{c:g}' for c in places)}. {words}", outcome

    def alike(frame: pd.DataFrame) -> tuple[str, str]:
        names = sorted(set(frame["beta"].astype(int)))
        by_order = {beta: frame[frame["beta"] == beta] for beta in names}
        return _same(
            {f"orders {a} - {b}": (by_order[a], by_order[b]) for a, b in itertools.combinations(names, 2)}, value
        )

    return [
        _judged("Without normalisation curvature matters more than with it.", without, more),
        _judged(
            "Without normalisation curvature matters more than with it, among the curvatures at which every network "
            "learned.",
            without,
            more_where_learned,
        ),
        _judged("Without normalisation, the orders are equally robust at equal max|σ''|.", without, alike),
    ]
