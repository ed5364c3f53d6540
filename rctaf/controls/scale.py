"""Controls that trade sharpness for other scales: (a) gains, (b) learned alpha, (c) weight decay on gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from rctaf.controls.common import by_seed, same, verdict_on
from rctaf.family import curvature
from rctaf.records import Record
from rctaf.statistics import Difference, holm, mean_interval, paired_difference
from rctaf.verdicts import BAND, Verdict, outcome_of
from rctaf.words import p_value, points

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
    rows = gain_arms(frame)
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
    """Three claims by :func:`same`: the same start, without and with the rescaled rate; the same max|sigma''|."""

    def against(arm: str, other: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        def judge(frame: pd.DataFrame) -> tuple[str, str]:
            rows = gain_arms(frame)
            one, plain = rows[rows["arm"] == arm], rows[rows["arm"] == PLAIN]
            label = {"start": "start", "curvature": "max|σ″|"}[other]
            pairs = {
                f"{label} {c:g}": (one[one[other] == c], plain[plain["curvature"] == c])
                for c in sorted(set(one[other]))
            }
            return same(pairs, value)

        return judge

    return [
        verdict_on(
            "The function at the start decides: written with a tenth of max|σ″| and gains of 10, it trains to the "
            "same robustness.",
            frame,
            against(GAIN, "start"),
        ),
        verdict_on(
            "The function at the start decides, once the classifier's learning rate is rescaled as well.",
            frame,
            against(GAIN_RATE, "start"),
        ),
        verdict_on(
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
        logs = mine.assign(log_final=np.log(mine["final"]))
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
        one, other = (dict(iter(f.groupby(f["curvature"]))) for f in (frame[learned], frame[~learned]))
        tests = {start: paired_difference(by_seed(one[start], value), by_seed(other[start], value)) for start in one}
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
        verdict_on("Learned by each layer, α arrives at one place from every start.", frame, one_place),
        verdict_on(
            "Learned by each layer, max|σ″| moves towards 4 to 10 from every start outside.", frame, towards_band
        ),
        verdict_on(
            "From at least one start, a network that learns its α is more robust than one whose α stays there.",
            frame,
            some_start,
            post_hoc=True,
        ),
        verdict_on(
            "From every start, a network that learns its α is more robust than one whose α stays there.",
            frame,
            every_start,
            post_hoc=True,
        ),
    ]


# --- (c) weight decay ------------------------------------------------------------------------------------------------


def weight_decay(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """One claim by :func:`same`: gains and biases decayed or not, at every curvature."""

    def judge(frame: pd.DataFrame) -> tuple[str, str]:
        decayed = frame["decay_gains"].astype(bool)
        with_decay, without = (dict(iter(f.groupby(f["curvature"]))) for f in (frame[decayed], frame[~decayed]))
        return same({f"max|σ″| {c:g}": (without[c], with_decay[c]) for c in sorted(without)}, value)

    claim = "Weight decay on gains and biases plays no part: without it, robustness is the same at every max|σ″|."
    return [verdict_on(claim, frame, judge)]
