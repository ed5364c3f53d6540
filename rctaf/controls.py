"""Experiments that two explanations expect to end differently, and the rules that judge them.

Every control is judged on its complete seeds: those for which each of its runs has a record. All comparisons are paired
by seed. An outcome is one of :data:`rctaf.verdicts.OUTCOMES`. The rules were fixed before the runs were made (the last
of :func:`other_functions` before they were looked at), except those whose verdicts say :data:`POST_HOC`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import scipy  # its parts load when first used

from rctaf.config import Grid, RunConfig
from rctaf.family import BASELINE_CURVATURES, baseline_rms_curvature, curvature, rms_curvature_at_start
from rctaf.names import ACTIVATIONS
from rctaf.records import Record, table
from rctaf.statistics import (
    Difference,
    Estimate,
    holm,
    mean_interval,
    orders_coincide,
    paired_difference,
    variance_over_cells,
)
from rctaf.verdicts import (
    BAND,
    MARGIN,
    MIN_SEEDS,
    Verdict,
    alike,
    by_order,
    outcome_of,
    peak_in_band,
    sign,
    too_few_seeds,
    why_alike,
    why_orders_alike,
)
from rctaf.words import listed, p_value, points

CHANCE = 0.2  # ten classes; a network below twice the 10 % of guessing has learned nothing worth comparing
POST_HOC = "Post hoc: this rule was made or changed after runs had been seen."
ORDERS = (0, 1, 2)  # of the paper's figures
_KNOTS = 7  # of a smooth curve, as in rctaf.statistics.optimum


def complete(grid: Grid, records: Sequence[Record], chosen: Callable[[RunConfig], bool] = bool) -> pd.DataFrame:
    """The records (see :func:`rctaf.records.table`) of the seeds for which every chosen run of the grid has one."""
    wanted = {run_id: config for run_id, config in grid.cells().items() if chosen(config)}
    have = {record.run_id: record for record in records if record.run_id in wanted}
    missing = {config.seed for run_id, config in wanted.items() if run_id not in have}
    return table(record for record in have.values() if record.config.seed not in missing)


def of_family(config: RunConfig) -> bool:
    """Whether the activation is RCT-AF."""
    return config.activation == "rctaf"


def twins(grid: Grid) -> Callable[[RunConfig], bool]:
    """Chooses the RCT-AF runs of another grid that have a curvature and seed of this one."""
    places = {(equal_curvature(config), config.seed) for config in grid.cells().values()}
    return lambda config: config.curvature is not None and (equal_curvature(config), config.seed) in places


def equal_curvature(config: RunConfig) -> float | None:
    """max|sigma''|, rounded so that equal ones compare equal, of RCT-AF and of ELU and GELU; None for others."""
    found = config.curvature
    if config.sharpness is not None:
        found = config.sharpness * BASELINE_CURVATURES[config.activation]
    return None if found is None else round(found, 9)


def _judged(
    claim: str, frame: pd.DataFrame, judge: Callable[[pd.DataFrame], tuple[str, str]], *, post_hoc: bool = False
) -> Verdict:
    seeds = frame["seed"].nunique() if len(frame) else 0
    if seeds < MIN_SEEDS:
        words, outcome = too_few_seeds(seeds, MIN_SEEDS), "not testable"
    else:
        words, outcome = judge(frame)
    return Verdict(claim, f"{words} {POST_HOC}" if post_hoc else words, outcome)


def _by_seed(rows: pd.DataFrame, value: str) -> np.ndarray:
    """The mean of each seed, in the order of the seeds."""
    return rows.groupby("seed")[value].mean().to_numpy(float)


def _same(pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]], value: str) -> tuple[str, str]:
    """Do two kinds of run end alike, in every comparison?

    Supported: every mean difference is equivalent to 0 within ``MARGIN`` (two one-sided tests, p < 0.05). Not
    supported: some differs from 0 (p < 0.05 after Holm). Else undecided.
    """
    tests = {name: paired_difference(_by_seed(a, value), _by_seed(b, value), MARGIN) for name, (a, b) in pairs.items()}
    words = "; ".join(f"{name}: {points(test.difference)}" for name, test in tests.items())
    n = next(iter(tests.values())).difference.n
    equal = all(test.p_equivalent < 0.05 for test in tests.values())
    p = min(holm([test.p_different for test in tests.values()]))
    outcome = outcome_of(equal, p < 0.05)
    clearest = min(tests, key=lambda name: tests[name].p_different)
    why = why_alike(outcome, clearest, tests[clearest].difference.value, float(p))
    return f"{words}; 95 % intervals over {n} seeds. In all, {why}.", outcome


def _orders_alike(rows: pd.DataFrame, value: str, label: str, name: str) -> tuple[str, str]:
    """Do the orders end alike at every place of a label, in words ``name``?

    Supported: every pair is equivalent within ``MARGIN`` at every place (two one-sided tests, p < 0.05 each). Not
    supported: some pair differs at some place (p < 0.05 after Holm). Else undecided.
    """
    pairs = orders_coincide(rows.assign(curvature=rows[label].round(9)), value, below=math.inf, margin=MARGIN)
    words = "; ".join(
        f"order {p['orders']}: {100 * p['difference']:+.2f} on average, largest "
        f"{points(Estimate(p['largest'], p['largest_low'], p['largest_high'], p['n']))} at {name} {p['at']:.3g}"
        for p in pairs.to_dict("records")
    )
    n, places = pairs["n"].iloc[0], pairs["curvatures"].iloc[0]
    why = why_orders_alike(pairs, name)
    return f"Differences, first minus second: {words}; {n} seeds, {places} places. In all, {why}.", alike(pairs)


def _higher(words: str, a: np.ndarray, b: np.ndarray) -> tuple[str, str]:
    """Is a above b? Rule: see :func:`rctaf.verdicts.sign`.

    *Barely* is said where the end of the interval that decides is closer to 0 than a tenth of the estimate.
    """
    d = paired_difference(a, b).difference
    outcome = sign(d)
    end = d.low if outcome == "supported" else d.high
    side = "above" if outcome == "supported" else "below"
    barely = f", barely {side} 0" if outcome != "undecided" and abs(end) < abs(d.value) / 10 else ""
    return f"{words}: {points(d)}, 95 % interval over {d.n} seeds{barely}.", outcome


# --- (a) gain --------------------------------------------------------------------------------------------------------

PLAIN, GAIN, GAIN_RATE = "gain 1", "gain 10", "gain 10, classifier's learning rate rescaled"


def gain_arms(frame: pd.DataFrame) -> pd.DataFrame:
    """With the columns ``arm`` and ``start``: max|sigma''| of the network of gain 1 that starts as the same one."""
    arm = np.where(frame["gain"] == 1, PLAIN, np.where(frame["head_lr"] == 1, GAIN, GAIN_RATE))
    start = (frame["curvature"] * frame["gain"]).round(9)  # 0.1 * 10 and the like
    return frame.assign(arm=arm, start=start)


def gain_differences(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Each run of gain 10 with the rescaled learning rate minus its partners of gain 1 and the same seed.

    A row per pair: ``arm`` (which partner), ``seed``, ``curvature`` of the run of gain 10, ``difference`` and ``id``
    (of both runs).
    """
    rows = gain_arms(frame).round({"curvature": 9})
    plain = rows[rows["arm"] == PLAIN].set_index(["seed", "curvature"])
    pairs = [
        {
            "arm": f"minus gain 1 {name}",
            "seed": run["seed"],
            "curvature": run["curvature"],
            "difference": run[value] - plain.loc[partner, value],
            "id": f"{run['id']} {plain.loc[partner, 'id']}",
        }
        for name, by in (("from the same start", "start"), ("at the same max|σ″|", "curvature"))
        for run in rows[rows["arm"] == GAIN_RATE].to_dict("records")
        if (partner := (run["seed"], run[by])) in plain.index
    ]
    return pd.DataFrame(pairs, columns=["arm", "seed", "curvature", "difference", "id"])


def gain(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """Three claims by :func:`_same`: the same start, without and with the rescaled rate; the same max|sigma''|."""

    def against(arm: str, other: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        def judge(frame: pd.DataFrame) -> tuple[str, str]:
            rows = gain_arms(frame)
            one, plain = rows[rows["arm"] == arm], rows[rows["arm"] == PLAIN]
            label = {"start": "start", "curvature": "max|σ″|"}[other]
            pairs = {
                f"{label} {c:g}": (one[one[other] == c], plain[plain["curvature"] == c])
                for c in sorted(set(one[other]))
            }
            return _same(pairs, value)

        return judge

    return [
        _judged(
            "The function at the start decides: written with a tenth of max|σ″| and gains of 10, it trains to the "
            "same robustness.",
            frame,
            against(GAIN, "start"),
        ),
        _judged(
            "The function at the start decides, once the classifier's learning rate is rescaled as well.",
            frame,
            against(GAIN_RATE, "start"),
        ),
        _judged(
            "max|σ″| decides, whatever reaches it: with gains of 10 and the classifier's learning rate rescaled, a "
            "network ends like one of the same max|σ″| with gains of 1.",
            frame,
            against(GAIN_RATE, "curvature"),
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
    3. Helps from some start: learned minus fixed, per start. Supported: higher at some start (p < 0.05 after Holm over
       the starts). Not supported: lower at some start and higher at none. Else undecided.
    4. Helps from every start. Supported: every interval lies above 0. Not supported: lower at some start (p < 0.05
       after Holm). Else undecided.

    3 and 4 took the place of one test of the mean over the starts, which one start alone had carried.

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
        outcome = outcome_of(near, far)
        words = f"Slope of log final against log initial max|σ″|: {e.value:.3f} ({e.low:.3f} to {e.high:.3f})"
        return f"{words}, 95 % interval over {e.n} seeds; 0 if all arrive at one place, 1 if each stays.", outcome

    def towards_band(frame: pd.DataFrame) -> tuple[str, str]:
        words, lows, highs = [], [], []
        logs = finals(frame)
        for start in logs.columns.to_numpy(float):
            e = mean_interval(logs[start].to_numpy(float) - math.log(start))
            words.append(
                f"starting at {start:g}: multiplied by {math.exp(e.value):.3f} "
                f"({math.exp(e.low):.3f} to {math.exp(e.high):.3f})"
            )
            if not BAND[0] <= start <= BAND[1]:
                low, high = (e.low, e.high) if start < BAND[0] else (-e.high, -e.low)
                lows.append(low)
                highs.append(high)
        if not lows:
            return "No start lies outside.", "not testable"
        outcome = outcome_of(min(lows) > 0, min(highs) < 0)
        return f"max|σ″|, geometric mean over layers: {'; '.join(words)}; 95 % intervals over seeds.", outcome

    def helps(frame: pd.DataFrame) -> dict[float, tuple[Difference, float]]:
        """By start: learned minus fixed, and its p-value after Holm."""
        learned = frame["alpha_learned"].astype(bool)
        one, other = (dict(iter(f.groupby(f["curvature"].round(9)))) for f in (frame[learned], frame[~learned]))
        tests = {start: paired_difference(_by_seed(one[start], value), _by_seed(other[start], value)) for start in one}
        p = holm([test.p_different for test in tests.values()])
        return dict(zip(tests, zip(tests.values(), p.tolist(), strict=True), strict=True))

    def some_start(frame: pd.DataFrame) -> tuple[str, str]:
        found = helps(frame)
        words = "; ".join(
            f"starting at {start:g}: {points(test.difference)}, {p_value(p)}" for start, (test, p) in found.items()
        )
        signs = {math.copysign(1, test.difference.value) for test, p in found.values() if p < 0.05}
        outcome = outcome_of(1 in signs, -1 in signs)
        n = next(iter(found.values()))[0].difference.n
        return f"Learned minus fixed, {words}; 95 % intervals over {n} seeds, p after Holm.", outcome

    def every_start(frame: pd.DataFrame) -> tuple[str, str]:
        found = helps(frame)
        start = min(found, key=lambda start: found[start][0].difference.low)
        above = all(test.difference.low > 0 for test, _ in found.values())
        lower = any(p < 0.05 and test.difference.value < 0 for test, p in found.values())
        outcome = outcome_of(above, lower)
        lowest = points(found[start][0].difference)
        return f"The interval that reaches lowest is that of the runs starting at {start:g}: {lowest}.", outcome

    return [
        _judged("Learned by each layer, α arrives at one place from every start.", frame, one_place),
        _judged("Learned by each layer, max|σ″| moves towards 4 to 10 from every start outside.", frame, towards_band),
        _judged(
            "From at least one start, a network that learns its α is more robust than one whose α stays there.",
            frame,
            some_start,
            post_hoc=True,
        ),
        _judged(
            "From every start, a network that learns its α is more robust than one whose α stays there.",
            frame,
            every_start,
            post_hoc=True,
        ),
    ]


# --- (c) weight decay ------------------------------------------------------------------------------------------------


def weight_decay(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """One claim by :func:`_same`: gains and biases decayed or not, at every curvature."""

    def judge(frame: pd.DataFrame) -> tuple[str, str]:
        decayed = frame["decay_gains"].astype(bool)
        with_decay, without = (
            dict(iter(f.groupby(f["curvature"].round(9)))) for f in (frame[decayed], frame[~decayed])
        )
        return _same({f"max|σ″| {c:g}": (without[c], with_decay[c]) for c in sorted(without)}, value)

    claim = "Weight decay on gains and biases plays no part: without it, robustness is the same at every max|σ″|."
    return [_judged(claim, frame, judge)]


# --- (d) orders at equal curvature, and at equal rms curvature -------------------------------------------------------
#
# The rms curvature is the root mean square of sigma'' over normal inputs. The *effective curvature* of the book, and
# of the field of that name in a record, is another: kappa = alpha std(z).


def measured_rms_curvature(record: Record) -> float:
    """Geometric mean over the layers of a trained network of std(z) times the rms curvature.

    Pre-activations z are taken as normal with mean 0 and the measured standard deviation, so that this is
    :func:`rctaf.family.rms_curvature_at_start` at kappa.
    """
    beta = record.config.beta
    if beta is None:
        return math.nan
    layers = record.metrics["effective_curvature"]
    return math.exp(float(np.mean([math.log(rms_curvature_at_start(layer["kappa"], beta)) for layer in layers])))


def with_rms_curvature(frame: pd.DataFrame, records: Sequence[Record]) -> pd.DataFrame:
    """RCT-AF rows with the columns ``rms_start`` and ``rms_measured``."""
    if frame.empty:
        return frame
    rows = frame[frame["activation"] == "rctaf"]
    rows = rows.assign(beta=rows["beta"].astype(int))  # astype({"beta": int}) would leave it in pieces
    start = [rms_curvature_at_start(a, b) for a, b in zip(rows["alpha"], rows["beta"], strict=True)]
    measured = {record.run_id: measured_rms_curvature(record) for record in records}
    return rows.assign(
        rms_start=np.array([float(f"{e:.6g}") for e in start]),  # the grids give them with few digits
        rms_measured=rows["id"].map(measured),
    )


def not_alone(frame: pd.DataFrame, label: str) -> pd.Series:
    """Whether each run lies, along the label, where all orders have runs of its seed.

    Beyond, one order is alone: along the label no other contradicts it, while along max|sigma''| the others do. A
    comparison of how the runs there lie about a curve would be won by the label along which the orders reach less far
    together.
    """
    ends = frame.groupby(["seed", "beta"])[label].agg(["min", "max"]).groupby("seed").agg({"min": "max", "max": "min"})
    return frame[label].between(frame["seed"].map(ends["min"]), frame["seed"].map(ends["max"]))


def shared_curvatures(frame: pd.DataFrame, label: str) -> list[float]:
    """The curvatures at which every run is :func:`not_alone`."""
    every = not_alone(frame, label).groupby(frame["curvature"].round(9)).all()
    return [float(c) for c in every.index[every]]


def scatter_about_curve(frame: pd.DataFrame, value: str, label: str, scored: pd.Series) -> np.ndarray:
    """How far single runs lie from one smooth curve along a label through the runs of all orders; one number per seed.

    The curve is a natural cubic spline in the logarithm of the label, fitted by least squares. With h_i the diagonal of
    the projection y -> fitted y, the number is the root mean square of (y_i - fitted y_i) / sqrt(1 - h_i): if the curve
    is the truth and every run adds independent noise of variance s², each term has mean square s², wherever the run
    lies. So every run counts alike, under any label. The mean is over the runs that are ``scored``.
    """
    scatter = []
    for _, rows in frame.groupby("seed"):
        knots = min(_KNOTS, rows.groupby("beta").size().min())  # the same under every label
        x, y = np.log(rows[label].to_numpy(float)), rows[value].to_numpy(float)
        at = np.quantile(x, np.linspace(0, 1, knots))
        q, _ = np.linalg.qr(scipy.interpolate.CubicSpline(at, np.eye(knots), bc_type="natural")(x))
        terms = (y - q @ (q.T @ y)) ** 2 / (1 - (q**2).sum(axis=1))
        scatter.append(math.sqrt(terms[scored[rows.index].to_numpy(bool)].mean()))
    return np.array(scatter)


def _closer(frame: pd.DataFrame, value: str, label: str, lines: str) -> tuple[str, str]:
    """Is the scatter about one curve (:func:`scatter_about_curve`) smaller along a label than along max|sigma''|?

    The curves go through the same runs (:func:`shared_curvatures`), and of these the same are scored, those that are
    not alone among them (:func:`not_alone`). Rule: :func:`_higher`.

    The interval is over seeds, and what is left of each run counts as independent. Where neither label matters and the
    lines differ by constants, it is not, and the curve along the rms curvature seems closer: with constants of 2 points
    (standard deviation) and the noise of the records that was called supported in 12 to 25 % of simulated experiments,
    in place of 2.5 %.
    """
    shared = shared_curvatures(frame, label)
    if len(shared) < 3:
        return f"The {lines} share fewer than three curvatures along both labels.", "not testable"
    rows = frame[frame["curvature"].round(9).isin(shared)]
    scored = not_alone(rows, label)
    along, other = (scatter_about_curve(rows, value, name, scored) for name in ("curvature", label))
    words = (
        f"{scored.sum()} runs of max|σ″| {shared[0]:g} to {shared[-1]:g} about one curve through all {lines}: "
        f"{100 * along.mean():.2f} points (rms) along max|σ″|, {100 * other.mean():.2f} along rms curvature; "
        "difference"
    )
    return _higher(words, along, other)


def orders(equal: pd.DataFrame, equal_rms: pd.DataFrame, value: str) -> list[Verdict]:
    """Do the orders coincide at equal max|sigma''|, or rather at equal rms curvature?

    1, 2. Every pair of orders at every curvature of the grid, by :func:`_orders_alike`; before, the means over the
    curvatures were compared, which curves that cross can share. 3, 4. The scatter about one curve along
    max|sigma''| against that along the rms curvature, at the start and as measured, by :func:`_closer`. This took the
    place of the spread between lines through the runs of each order, which used runs of large max|sigma''| along one
    label only.

    Args:
        equal: complete seeds of a grid of equal curvatures, from :func:`with_rms_curvature`.
        equal_rms: of a grid of equal rms curvatures, likewise.
        value: the column that measures robustness.
    """

    def coincide(label: str, name: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        return lambda frame: _orders_alike(frame, value, label, name)

    def closer(label: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        return lambda frame: _closer(frame, value, label, "orders")

    return [
        _judged(
            "At equal max|σ″| the orders are equally robust.",
            equal,
            coincide("curvature", "max|σ″|"),
            post_hoc=True,
        ),
        _judged(
            "At equal rms curvature at the start the orders are equally robust.",
            equal_rms,
            coincide("rms_start", "rms curvature"),
            post_hoc=True,
        ),
        _judged(
            "Rms curvature at the start describes the orders better than max|σ″| does.",
            equal,
            closer("rms_start"),
            post_hoc=True,
        ),
        _judged(
            "Rms curvature, measured in the trained networks, describes the orders better than max|σ″| does.",
            equal,
            closer("rms_measured"),
            post_hoc=True,
        ),
    ]


# --- (e) no normalisation --------------------------------------------------------------------------------------------


def learned_where(frame: pd.DataFrame) -> pd.DataFrame:
    """By curvature (the index): how many ``runs`` there are, and how many ``learned`` (``CHANCE``)."""
    learned = frame["clean_accuracy"].groupby(frame["curvature"].round(9))
    return pd.DataFrame({"runs": learned.size(), "learned": learned.agg(lambda v: int((v >= CHANCE).sum()))})


def no_norm(without: pd.DataFrame, with_norm: pd.DataFrame, value: str) -> list[Verdict]:
    """Is curvature felt more where no gain can take it up?

    1. Does every network learn (``CHANCE``)? Supported: all do. Not supported: at some curvature none does. Else
       undecided.
    2. The variance over curvatures (orders averaged) without normalisation minus that with batch norm, each without
       what seed noise adds to it (:func:`rctaf.statistics.variance_over_cells`), by the jackknife over seeds and
       :func:`rctaf.verdicts.sign`, over the orders, curvatures and seeds that both have. Before, the standard
       deviations of single seeds, which noise alone makes larger without normalisation.
    3. Every pair of orders at every curvature, by :func:`_orders_alike`; before, means over the curvatures.

    1, and that 2 and 3 leave out the curvatures at which not every network without normalisation learned, were added
    when the runs had shown that some do not: a network near guessing is lost to training, not to attacks.
    """

    def where_all_learned(frame: pd.DataFrame) -> pd.DataFrame:
        counts = learned_where(frame)
        return frame[frame["curvature"].round(9).isin(counts.index[counts["learned"] == counts["runs"]])]

    def places(frame: pd.DataFrame) -> list[float]:
        return sorted(set(frame["curvature"].round(9)))

    def all_learn(frame: pd.DataFrame) -> tuple[str, str]:
        counts = learned_where(frame)
        failed = [f"{runs - n} of {runs} failed at max|σ″| {c:g}" for c, runs, n in counts.itertuples() if n < runs]
        learned = [f"{c:g}" for c, runs, n in counts.itertuples() if n == runs]
        words = "; ".join([*failed, *([f"none failed at {listed(learned)}"] if learned else [])])
        none, every = (counts["learned"] == 0).any(), (counts["learned"] == counts["runs"]).all()
        outcome = outcome_of(bool(every), bool(none))
        why = "; the rule says not supported only where a curvature has no network that learned"
        return (
            f"To fail is to classify less than {100 * CHANCE:g} % of clean images: {words}"
            f"{why if outcome == 'undecided' else ''}.",
            outcome,
        )

    def variance(rows: pd.DataFrame) -> np.ndarray:
        means = rows.assign(c=rows["curvature"].round(9)).pivot_table(values=value, index="seed", columns="c")
        return variance_over_cells(100 * means.to_numpy(float))

    def more(frame: pd.DataFrame) -> tuple[str, str]:
        frame = where_all_learned(frame)
        plain = with_norm.reindex(columns=frame.columns)  # an empty frame has no columns
        cells, other = (
            pd.MultiIndex.from_arrays([f["seed"], f["beta"].astype(float), f["curvature"].astype(float).round(9)])
            for f in (frame, plain)
        )
        frame, plain = frame[cells.isin(other)], plain[other.isin(cells)]
        if frame["seed"].nunique() < MIN_SEEDS or len(places(frame)) < 2:
            return (
                f"Fewer than {MIN_SEEDS} seeds, or than two curvatures at which every network learned, are complete "
                "with and without batch norm.",
                "not testable",
            )
        a, b = variance(frame), variance(plain)
        d = paired_difference(a, b).difference
        words = (
            f"max|σ″| {', '.join(f'{c:g}' for c in places(frame))}. Variance over curvatures, without seed noise: "
            f"{a.mean():.2f} squared points without, {b.mean():.2f} with batch norm; difference {d.value:+.2f} "
            f"({d.low:+.2f} to {d.high:+.2f}), 95 % interval over {d.n} seeds."
        )
        if min(a.mean(), b.mean()) < 0:
            words += " A negative estimate means that the curvatures differ less than seed noise alone would make them."
        return words, sign(d)

    def alike(frame: pd.DataFrame) -> tuple[str, str]:
        frame = where_all_learned(frame)
        if frame.empty:
            return "At no curvature did every network learn.", "not testable"
        return _orders_alike(frame, value, "curvature", "max|σ″|")

    return [
        _judged("Without normalisation, networks learn at every max|σ″|.", without, all_learn, post_hoc=True),
        _judged(
            "Without normalisation curvature matters more than with it, where every network learned.",
            without,
            more,
            post_hoc=True,
        ),
        _judged(
            "Without normalisation, the orders are equally robust at equal max|σ″|, where every network learned.",
            without,
            alike,
            post_hoc=True,
        ),
    ]


# --- (f) longer training ---------------------------------------------------------------------------------------------


def longer(frame: pd.DataFrame, value: str, data: str) -> list[Verdict]:
    """Do the place of the peak and the loss at small curvature hang on training briefly? For each order that was run:

    1. The peak of the runs that were trained longest, by :func:`rctaf.verdicts.peak_in_band`.
    2. The smallest max|sigma''| minus 1, trained longest minus shortest, by :func:`_higher`.
    3. The mean over 4 to 10 minus 1, likewise.

    The rules were fixed on 2026-11-30, before the long runs were made: first for order 1 on digits; then, when its runs
    had been seen, the same rules for orders 0 and 2 and for Fashion-MNIST. The short runs, which are shared with
    Fig. 3, had been seen.

    Args:
        frame: complete seeds, each with runs of two lengths.
        value: the column that measures robustness.
        data: the data set, for the claim.
    """

    def arms(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        epochs = frame["epochs"]
        return frame[epochs == epochs.min()], frame[epochs == epochs.max()]

    def peak(frame: pd.DataFrame) -> tuple[str, str]:
        found = peak_in_band(arms(frame)[1], value)
        return found.measured, found.outcome

    def gains(frame: pd.DataFrame, what: str, low: float, high: float) -> tuple[str, str]:
        """Does the mean over a range of max|sigma''|, minus that at 1, grow when training is longer?"""
        short, long = (
            _by_seed(rows[rows["curvature"].between(low, high)], value) - _by_seed(rows[rows["curvature"] == 1], value)
            for rows in arms(frame)
        )
        words = f"{what} minus 1: {100 * short.mean():+.2f} points, trained longer {100 * long.mean():+.2f}"
        return _higher(f"{words}; the second minus the first", long, short)

    def favours_small(frame: pd.DataFrame) -> tuple[str, str]:
        smallest = float(frame["curvature"].min())
        return gains(frame, f"{smallest:g}", smallest, smallest)

    def favours_band(frame: pd.DataFrame) -> tuple[str, str]:
        return gains(frame, f"Mean over {BAND[0]:g} to {BAND[1]:g}", *BAND)

    return [
        _judged(f"{claim.format(data=data, order=order)}.", rows, judge)
        for claim, judge in (
            ("Trained four times as long on {data}, order {order} is most robust at a max|σ″| between 4 and 10", peak),
            ("Longer training on {data} favours a small max|σ″| over 1, in order {order}", favours_small),
            ("Longer training on {data} favours the paper's range, 4 to 10, over 1, in order {order}", favours_band),
        )
        for order, rows in (by_order(frame) if len(frame) else dict.fromkeys(ORDERS, frame)).items()
    ]


# --- (g) functions outside the family --------------------------------------------------------------------------------


def with_equal_curvature(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of RCT-AF, ELU and GELU with ``curvature``, as :func:`equal_curvature`, and ``rms_start``."""
    if frame.empty:
        return frame
    of_others = frame["sharpness"].astype(float) * frame["activation"].map(BASELINE_CURVATURES)
    rms = [
        rms_curvature_at_start(alpha, int(beta)) if name == "rctaf" else baseline_rms_curvature(sharpness, name)
        for name, alpha, beta, sharpness in frame[["activation", "alpha", "beta", "sharpness"]].to_numpy()
    ]
    return frame.assign(
        curvature=frame["curvature"].astype(float).fillna(of_others).round(9),
        rms_start=[float(f"{e:.6g}") for e in rms],  # the grids give them with few digits
    )


def common_seeds(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the seeds that both frames have; one without rows leaves none of the other."""
    if a.empty or b.empty:
        return a.iloc[:0], b.iloc[:0]
    seeds = set(a["seed"]) & set(b["seed"])
    return a[a["seed"].isin(seeds)], b[b["seed"].isin(seeds)]


def _at_each(
    rows: pd.DataFrame, family: pd.DataFrame, label: str, name: str
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """The runs of both at every place of a label, in words ``name``, that the first has."""
    return {f"{name} {c:g}": (rows[rows[label] == c], family[family[label] == c]) for c in sorted(set(rows[label]))}


def other_functions(others: pd.DataFrame, family: pd.DataFrame, value: str) -> list[Verdict]:
    """Does what is said of max|sigma''| hold outside the family too? For each other function, by complete seeds:

    1. Its robustness minus the mean of the orders of RCT-AF, at every max|sigma''| that was run, by :func:`_same`.
    2. The place of its peak: the rule of :func:`rctaf.verdicts.peak_in_band`.

    And for ELU, GELU and the orders together:

    3. The scatter about one curve along max|sigma''| against that along the rms curvature at the start, by
       :func:`_closer`.

    The rules were fixed on 2026-11-30, 1 and 2 before the runs of ELU and GELU at these curvatures were made, 3 before
    any was looked at; those of RCT-AF, which are shared with Fig. 3, and those of both functions at sharpness 1, had
    been seen.

    Args:
        others: rows from :func:`with_equal_curvature`.
        family: likewise, of RCT-AF at the same curvatures; seeds without them are left out.
    """
    others, family = common_seeds(others, family)

    def alike(frame: pd.DataFrame) -> tuple[str, str]:
        return _same(_at_each(frame, family, "curvature", "max|σ″|"), value)

    def peak(frame: pd.DataFrame) -> tuple[str, str]:
        found = peak_in_band(frame.assign(activation="rctaf", beta=0), value)  # the rule reads these two alone
        return found.measured.replace("order 0: ", ""), found.outcome

    def closer(frame: pd.DataFrame) -> tuple[str, str]:
        number = {name: 3 + i for i, name in enumerate(BASELINE_CURVATURES)}  # after the orders
        lines = [family, frame.assign(beta=frame["activation"].map(number))]
        return _closer(pd.concat(lines, ignore_index=True), value, "rms_start", "functions")

    verdicts = [
        _judged(claim.format(name=ACTIVATIONS[name]), rows, judge)
        for claim, judge in (
            ("{name} is as robust as RCT-AF at equal max|σ″|.", alike),
            ("{name} is most robust at a max|σ″| between 4 and 10.", peak),
        )
        for name in BASELINE_CURVATURES
        for rows in [others[others["activation"] == name] if len(others) else others]
    ]
    together = "Rms curvature at the start describes RCT-AF, ELU and GELU together better than max|σ″| does."
    return [*verdicts, _judged(together, others, closer)]


def other_functions_at_equal_rms(others: pd.DataFrame, family: pd.DataFrame, value: str) -> list[Verdict]:
    """Are ELU and GELU as robust as RCT-AF at equal rms curvature at the start?

    For each, its robustness minus the mean of the orders of RCT-AF, at every rms curvature that was run, by
    :func:`_same`. The rule was fixed on 2026-11-30, before these runs of ELU and GELU were made. Those of RCT-AF, which
    are shared with control (d), had been seen, and so had the runs of ELU and GELU at equal max|sigma''|.

    Args:
        others: rows from :func:`with_equal_curvature`.
        family: likewise, of RCT-AF at the same rms curvatures; seeds without them are left out.
    """
    others, family = common_seeds(others, family)
    return [
        _judged(
            f"{ACTIVATIONS[name]} is as robust as RCT-AF at equal rms curvature at the start.",
            others[others["activation"] == name] if len(others) else others,
            lambda rows: _same(_at_each(rows, family, "rms_start", "rms curvature"), value),
        )
        for name in BASELINE_CURVATURES
    ]


# --- (h) what longer training does to sharp networks -----------------------------------------------------------------

AS_BEFORE, SINGLE, STRONGER = "bf16, 5 steps", "single precision", "10 attack steps"


def harm_arms(frame: pd.DataFrame) -> pd.DataFrame:
    """With the column ``arm``: which of the two settings differs from those of control (f)."""
    arm = np.where(frame["precision"] == "fp32", SINGLE, np.where(frame["attack_steps"] == 10, STRONGER, AS_BEFORE))
    return frame.assign(arm=arm)


def harm(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """Is what long training does to sharp networks on Fashion-MNIST due to bf16, or to the weak training attack?

    Control (f) found networks of max|sigma''| = 7 far less robust than networks of 1 after 40 epochs, in bf16 and
    against a training attack of 5 steps. With one of the two changed, single precision or 10 steps:

    1. 7 minus 1 with the change, minus 7 minus 1 without it, by :func:`_higher`. If the change mends all, this is the
       whole harm.
    2. 1 minus 7 with the change, by :func:`_higher`: is there harm still?

    The rules were fixed on 2026-11-30, before the runs with a change were made. Those without, which are shared with
    control (f), had been seen.
    """
    sharp, smooth = 7.0, 1.0

    def lost(frame: pd.DataFrame, arm: str) -> np.ndarray:
        rows = frame[frame["arm"] == arm]
        at = rows["curvature"].round(9)
        return _by_seed(rows[at == smooth], value) - _by_seed(rows[at == sharp], value)

    def less(arm: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        def judge(frame: pd.DataFrame) -> tuple[str, str]:
            before, after = (-lost(harm_arms(frame), name) for name in (AS_BEFORE, arm))
            words = f"7 minus 1: {100 * before.mean():+.2f} points ({AS_BEFORE}), {100 * after.mean():+.2f} ({arm})"
            return _higher(f"{words}; the second minus the first", after, before)

        return judge

    def still(arm: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        def judge(frame: pd.DataFrame) -> tuple[str, str]:
            found = lost(harm_arms(frame), arm)
            return _higher("1 minus 7", found, np.zeros_like(found))

        return judge

    return [
        _judged(f"{claim.format(with_=with_)}.", frame, judge(arm))
        for arm, with_ in ((SINGLE, "In single precision"), (STRONGER, "With 10 attack steps in place of 5"))
        for claim, judge in (
            ("{with_}, long training harms networks of max|σ″| = 7 less, against networks of 1", less),
            ("{with_}, networks of max|σ″| = 7 still end less robust than networks of 1", still),
        )
    ]
