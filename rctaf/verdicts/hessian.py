"""The rules on Figure 7: the Hessian diagonal norm along the curvature, and the clean accuracy of standard training."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from rctaf.statistics import paired_difference, spearman, trend
from rctaf.verdicts.common import (
    ADDED_LAST,
    ADDED_MARK,
    BAND,
    BOOTSTRAP_SEEDS,
    CEILING,
    CHANGED,
    MIN_SEEDS,
    Verdict,
    column_of,
    complete_seeds,
    in_band,
    inside_best,
    outcome_of,
    relu_and_band,
    resampled,
    rows_to_judge,
    sign,
    trend_below,
)
from rctaf.words import listed, ratio

#: which norm, and its name in a claim
NORMS = {"rms": "Hessian diagonal norm", "scale_free": "scale-free Hessian diagonal norm"}
#: which measure of curvature in the inputs, and its name in a claim
INPUTS = {
    "spectral_norm": "spectral norm of the loss's Hessian in the inputs",
    "normalised": "spectral norm of the loss's Hessian in the inputs over the norm of the gradient",
    "linearity_error": "local linearity error of the loss in the inputs",
}
#: which loss, and its name in a claim
LOSSES = {"clean": "clean loss", "adversarial": "loss on attacked images"}


def with_scale_free_norms(frame: pd.DataFrame) -> pd.DataFrame:
    """The records with columns ``hessian_clean.scale_free`` and ``hessian_adversarial.scale_free``: ‖d ⊙ w²‖ / √P.

    d is the Hessian's diagonal, w the weights. Two networks of one function whose weights differ by factors that
    cancel (Theorem "Absorption" of the book) have different ‖d‖ and the same ‖d ⊙ w²‖. NaN where the unbiased estimate
    of its square is negative or was not measured.
    """
    for loss in LOSSES:
        square = column_of(frame, f"hessian_{loss}.scale_free_square")
        parameters = column_of(frame, f"hessian_{loss}.parameters")
        frame = frame.assign(**{f"hessian_{loss}.scale_free": np.sqrt(square.where(square > 0) / parameters)})
    return frame


def hessian_least_in_band(frame: pd.DataFrame, loss: str, norm: str = "rms") -> Verdict:
    """Fig. 7 left: the normalised Hessian diagonal norm is least for max|sigma''| between 4 and 10.

    Args:
        loss: one of :data:`LOSSES`. The curve is fitted to the logarithm of the norm. Rule: see :func:`in_band`.
        norm: one of :data:`NORMS`.
    """
    claim = f"The {NORMS[norm]} of the {LOSSES[loss]} is least for max|σ″| between 4 and 10, in {{orders}}."
    frame = frame.assign(log_rms=np.log(column_of(frame, f"hessian_{loss}.{norm}")))
    return in_band(claim, "Place of the minimum", frame, "log_rms", "min")


def hessian_is_a_valley(frame: pd.DataFrame, loss: str, norm: str = "rms") -> Verdict:
    """Fig. 7 left: the norm is U-shaped, that is both ends of the tested grid are above its inside.

    Contrast: the logarithm of the norm at an end over that inside; told as their ratio. Rule: see :func:`inside_best`.
    Where the bottom lies is another claim, :func:`hessian_least_in_band`.

    Args:
        loss: one of :data:`LOSSES`.
        norm: one of :data:`NORMS`.
    """
    claim = (
        f"The {NORMS[norm]} of the {LOSSES[loss]} first falls and then rises along max|σ″|: both ends of the tested "
        "grid are above its inside, in {orders}."
    )
    frame = frame.assign(log_norm=np.log(column_of(frame, f"hessian_{loss}.{norm}")))
    found = inside_best(claim, frame, "log_norm", "min", "Norm at an end over norm inside", ratio)
    return replace(found, measured=f"{found.measured} {ADDED_LAST}")


def hessian_goes_with_robustness(frame: pd.DataFrame, value: str, loss: str, norm: str = "rms") -> Verdict:
    """Fig. 7, the mechanism: a smaller Hessian diagonal goes with more robustness (Spearman within orders).

    Judged by the mean of the orders' correlations, each of which is given too.

    Supported: the interval lies below 0. Not supported: above 0. Else undecided. Not testable: fewer than
    ``BOOTSTRAP_SEEDS`` complete seeds. A correlation over one family of activations cannot show a cause either way.
    """
    what = f"{NORMS[norm]} of the {LOSSES[loss]}"
    return _goes_with_robustness(what, frame, value, f"hessian_{loss}.{norm}")


def inputs_go_with_robustness(frame: pd.DataFrame, value: str, measure: str) -> Verdict:
    """Not the paper's: a loss that bends less in the inputs goes with more robustness (Spearman within orders).

    Rule: that of :func:`hessian_goes_with_robustness`, with a measure of :mod:`rctaf.evaluation.input_curvature` in
    place of the norm. It was made before the runs.

    Args:
        measure: one of :data:`INPUTS`.
    """
    return _goes_with_robustness(INPUTS[measure], frame, value, f"input_curvature.{measure}")


def inputs_bend_more(frame: pd.DataFrame) -> Verdict:
    """Not the paper's: the larger max|sigma''|, the larger the spectral norm of the loss's Hessian in the inputs.

    Per seed, the slope of its logarithm over log2 max|sigma''|, averaged over the orders
    (:func:`rctaf.statistics.trend`). Rule: see :func:`sign`. It was made when the runs of digits had been seen.
    """
    frame = frame.assign(log=np.log(column_of(frame, "input_curvature.spectral_norm")))
    claim = f"The {INPUTS['spectral_norm']} grows with max|σ″| (trend, mean of the orders)."
    claim, rows, stop = rows_to_judge(claim, frame, "log", curvatures=3)
    if stop:
        return stop
    slope = trend(rows, "log")
    words = f"Factor per doubling of max|σ″|: {ratio(slope)}, 95 % interval over {slope.n} seeds."
    return Verdict(claim, f"{words} Post hoc: this rule was made on 2026-12-01, when runs had been seen.", sign(slope))


def _goes_with_robustness(what: str, frame: pd.DataFrame, value: str, column: str) -> Verdict:
    """The rule of :func:`hessian_goes_with_robustness` on any measured column."""
    claim = f"A smaller {what} goes with higher robustness, by the mean of the correlations within {{orders}}."
    measured = frame.assign(**{value: frame[value].where(column_of(frame, column).notna())})
    claim, rows, stop = rows_to_judge(claim, measured, value, BOOTSTRAP_SEEDS, curvatures=3)
    if stop:
        return stop
    result = {row["order"]: row for row in spearman(rows, column, value).to_dict("records")}
    within = result["within"]
    interval, seeds = resampled(within["n"])
    orders = [order for order in result if order.isdigit()]
    each = listed([f"{result[order]['correlation']:+.2f}" for order in orders])
    mean = f", the mean of {each} in orders {listed(orders)}" if len(orders) > 1 else ""
    words = "; ".join(
        f"{label} {row['correlation']:+.2f} ({interval} {row['low']:+.2f} to {row['high']:+.2f}){more}"
        for label, row, more in (("within orders", within, mean), ("all cells together", result["across"], ""))
    )
    if pulled_to_0(within):
        seeds += "; resampled means are noisier, which pulls a correlation and so its interval towards 0"
    judged = outcome_of(within["high"] < 0, within["low"] > 0)
    outcome = judged if within["n"] >= BOOTSTRAP_SEEDS else "not testable"
    return Verdict(claim, f"Spearman's correlation over the grid: {words}; {seeds}.", outcome)


def pulled_to_0(row: dict) -> bool:
    """Whether a correlation lies in the quarter of its interval that is the farthest from 0."""
    far = row["low"] if row["correlation"] < 0 else row["high"]
    return bool(abs(row["correlation"] - far) < (row["high"] - row["low"]) / 4)


def relu_is_sharper(frame: pd.DataFrame, loss: str) -> Verdict:
    """Sect. 4.4: ReLU's effectively infinite curvature makes a sharp loss. Contrast: log of the norm, ReLU minus the
    mean over the band of all orders, by seed; expected above 0. Rule: see :func:`sign`."""
    claim = (
        f"ReLU, with effectively infinite curvature at its kink, has a larger {NORMS['rms']} of the {LOSSES[loss]} "
        "than RCT-AF within 4 to 10."
    )
    kink = "Automatic differentiation does not see the kink itself."
    return _larger_for_relu(claim, frame, f"hessian_{loss}.rms", "Norm", kink)


def relu_is_less_linear(frame: pd.DataFrame) -> Verdict:
    """Sect. 4.4 put to the inputs, not the paper's: ReLU's kinks make the loss less linear over an attack's steps.

    Rule: that of :func:`relu_is_sharper`, with the local linearity error. It was made before the runs.
    """
    claim = f"ReLU, with a kink, has a larger {INPUTS['linearity_error']} than RCT-AF within 4 to 10."
    kink = "Steps as long as an attack's cross the kinks."
    return _larger_for_relu(claim, frame, "input_curvature.linearity_error", "Error", kink)


def _larger_for_relu(claim: str, frame: pd.DataFrame, column: str, what: str, kink: str) -> Verdict:
    """The rule of :func:`relu_is_sharper` on any positive measured column."""
    frame = frame.assign(log=np.log(column_of(frame, column)))
    claim, rows, stop = rows_to_judge(claim, frame, "log")
    if stop:
        return stop
    relu, band = relu_and_band(frame, rows, "log")
    if len(relu) < MIN_SEEDS:
        return Verdict(claim, f"ReLU has {len(relu)} of these seeds; {MIN_SEEDS} are needed.", "not testable")
    if band.empty:
        return Verdict(claim, "No order was run between 4 and 10.", "not testable")
    d = paired_difference(relu.to_numpy(float), band.to_numpy(float)).difference
    words = (
        f"{what} of ReLU over {what.lower()} in the band: {math.exp(d.value):.2g} "
        f"(95 % interval {math.exp(d.low):.2g} to {math.exp(d.high):.2g}, {d.n} seeds). {kink}"
    )
    return Verdict(claim, words, sign(d))


def clean_accuracy_falls_below(frame: pd.DataFrame) -> Verdict:
    """Fig. 7 right: standard training loses clean accuracy below 4. Rule: see :func:`trend_below`."""
    claim = "In standard training, clean accuracy falls as max|σ″| decreases below 4 (trend, mean of the orders)."
    found = trend_below(claim, frame, "clean_accuracy")
    found = replace(found, topic=f"Fig. 7: clean accuracy falls below 4 {ADDED_MARK}")
    if found.outcome == "not testable":
        return replace(found, measured=f"{found.measured} {CHANGED}")
    rows = complete_seeds(frame, "clean_accuracy")
    means = rows.groupby(["beta", "curvature"])["clean_accuracy"].mean()
    high = trend(rows[rows["curvature"] < BAND[0]], "clean_accuracy").high
    most = f"a fall of more than {100 * high:.2f} points" if high > 0 else "any fall"
    words = (
        f"The interval rules out {most} per halving of max|σ″|. Over all orders and curvatures the means lie between "
        f"{100 * means.min():.2f} % and {100 * means.max():.2f} %"
    )
    if means.min() > CEILING:
        words += "; this close to 100 %, the task can hardly show a loss of expressivity"
    return replace(found, measured=f"{found.measured} {words}. {CHANGED}")


def figure_7(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """The claims of Fig. 7 left and of the mechanism behind it, for each of the two losses."""
    return [
        replace(verdict, topic=f"Fig. 7, {name}: {topic}")
        for loss, name in LOSSES.items()
        for topic, verdict in {
            f"a U (both ends higher) {ADDED_MARK}": hessian_is_a_valley(frame, loss),
            "Hessian least between 4 and 10": hessian_least_in_band(frame, loss),
            "smaller Hessian, more robust": hessian_goes_with_robustness(frame, value, loss),
            "larger Hessian for ReLU": relu_is_sharper(frame, loss),
        }.items()
    ]


def figure_7_scale_free(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """The same for a norm that no rescaling of weights changes (:func:`with_scale_free_norms`); not the paper's."""
    frame = with_scale_free_norms(frame)
    return [
        verdict
        for loss in LOSSES
        for verdict in (
            hessian_is_a_valley(frame, loss, "scale_free"),
            hessian_least_in_band(frame, loss, "scale_free"),
            hessian_goes_with_robustness(frame, value, loss, "scale_free"),
        )
    ]


def figure_7_inputs(frame: pd.DataFrame, value: str) -> list[Verdict]:
    """Curvature in the inputs in place of the weights; not the paper's."""
    goes = [inputs_go_with_robustness(frame, value, measure) for measure in INPUTS]
    return [*goes, relu_is_less_linear(frame), inputs_bend_more(frame)]
