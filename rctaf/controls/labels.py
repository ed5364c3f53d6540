"""Controls on the label of a curve: (d) orders and (g) other functions, at equal max|sigma''| or rms curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from rctaf.controls.common import common_seeds, higher, orders_alike, same, verdict_on
from rctaf.family import BASELINE_CURVATURES, baseline_rms_curvature, rms_curvature_at_start
from rctaf.names import ACTIVATIONS
from rctaf.records import Record
from rctaf.statistics import KNOTS, natural_splines
from rctaf.verdicts import Verdict, peak_in_band

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
    assert beta is not None  # of RCT-AF
    layers = record.metrics["effective_curvature"]
    return math.exp(float(np.mean([math.log(rms_curvature_at_start(layer["kappa"], beta)) for layer in layers])))


def with_rms_curvature(frame: pd.DataFrame, records: Sequence[Record]) -> pd.DataFrame:
    """RCT-AF rows with the columns ``rms_start`` and ``rms_measured``."""
    rows = frame[frame["activation"] == "rctaf"]
    rows = rows.assign(beta=rows["beta"].astype(int))  # astype({"beta": int}) would leave it in pieces
    by_id = {record.run_id: record for record in records}
    measured = [measured_rms_curvature(by_id[run_id]) for run_id in rows["id"]]
    return rows.assign(rms_start=_rms_at_start(rows), rms_measured=measured)


def _rms_at_start(frame: pd.DataFrame) -> list[float]:
    """The rms curvature at the start of each row of RCT-AF, ELU or GELU, rounded: the grids give it with few digits."""
    found = [
        rms_curvature_at_start(alpha, int(beta)) if name == "rctaf" else baseline_rms_curvature(sharpness, name)
        for name, alpha, beta, sharpness in frame[["activation", "alpha", "beta", "sharpness"]].to_numpy()
    ]
    return [float(f"{e:.6g}") for e in found]


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
    every = not_alone(frame, label).groupby(frame["curvature"]).all()
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
        knots = min(KNOTS, rows.groupby("beta").size().min())  # the same under every label
        x, y = np.log(rows[label].to_numpy(float)), rows[value].to_numpy(float)
        q, _ = np.linalg.qr(natural_splines(x, knots)(x))
        terms = (y - q @ (q.T @ y)) ** 2 / (1 - (q**2).sum(axis=1))
        scatter.append(math.sqrt(terms[scored[rows.index].to_numpy(bool)].mean()))
    return np.array(scatter)


def _closer(frame: pd.DataFrame, value: str, label: str, lines: str) -> tuple[str, str]:
    """Is the scatter about one curve (:func:`scatter_about_curve`) smaller along a label than along max|sigma''|?

    The curves go through the same runs (:func:`shared_curvatures`), and of these the same are scored, those that are
    not alone among them (:func:`not_alone`). Rule: :func:`higher`.

    The interval is over seeds, and what is left of each run counts as independent. Where neither label matters and the
    lines differ by constants, it is not, and the curve along the rms curvature seems closer: with constants of 2 points
    (standard deviation) and the noise of the records that was called supported in 12 to 25 % of simulated experiments,
    in place of 2.5 %.
    """
    shared = shared_curvatures(frame, label)
    if len(shared) < 3:
        return f"The {lines} share fewer than three curvatures along both labels.", "not testable"
    rows = frame[frame["curvature"].isin(shared)]
    scored = not_alone(rows, label)
    along, other = (scatter_about_curve(rows, value, name, scored) for name in ("curvature", label))
    words = (
        f"{scored.sum()} runs of max|σ″| {shared[0]:g} to {shared[-1]:g} about one curve through all {lines}: "
        f"{100 * along.mean():.2f} points (rms) along max|σ″|, {100 * other.mean():.2f} along rms curvature; "
        "difference"
    )
    return higher(words, along, other)


def orders(equal: pd.DataFrame, equal_rms: pd.DataFrame, value: str) -> list[Verdict]:
    """Do the orders coincide at equal max|sigma''|, or rather at equal rms curvature?

    1, 2. Every pair of orders at every curvature of the grid, by :func:`orders_alike`; before, the means over the
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
        return lambda frame: orders_alike(frame, value, label, name)

    def closer(label: str) -> Callable[[pd.DataFrame], tuple[str, str]]:
        return lambda frame: _closer(frame, value, label, "orders")

    return [
        verdict_on(
            "At equal max|σ″| the orders are equally robust.",
            equal,
            coincide("curvature", "max|σ″|"),
            post_hoc=True,
        ),
        verdict_on(
            "At equal rms curvature at the start the orders are equally robust.",
            equal_rms,
            coincide("rms_start", "rms curvature"),
            post_hoc=True,
        ),
        verdict_on(
            "Rms curvature at the start describes the orders better than max|σ″| does.",
            equal,
            closer("rms_start"),
            post_hoc=True,
        ),
        verdict_on(
            "Rms curvature, measured in the trained networks, describes the orders better than max|σ″| does.",
            equal,
            closer("rms_measured"),
            post_hoc=True,
        ),
    ]


# --- (g) functions outside the family --------------------------------------------------------------------------------


def with_rms_at_start(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of RCT-AF, ELU and GELU with the column ``rms_start``."""
    return frame.assign(rms_start=_rms_at_start(frame))


def _at_each(
    rows: pd.DataFrame, family: pd.DataFrame, label: str, name: str
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """The runs of both at every place of a label, in words ``name``, that the first has."""
    return {f"{name} {c:g}": (rows[rows[label] == c], family[family[label] == c]) for c in sorted(set(rows[label]))}


def _as_robust(
    claim: str, others: pd.DataFrame, family: pd.DataFrame, value: str, label: str, name: str
) -> list[Verdict]:
    """For ELU and for GELU, the claim about it: its robustness minus the mean of the orders, by :func:`same`."""
    others, family = common_seeds(others, family)
    return [
        verdict_on(
            claim.format(name=ACTIVATIONS[function]),
            others[others["activation"] == function],
            lambda rows: same(_at_each(rows, family, label, name), value),
        )
        for function in BASELINE_CURVATURES
    ]


def other_functions(others: pd.DataFrame, family: pd.DataFrame, value: str) -> list[Verdict]:
    """Does what is said of max|sigma''| hold outside the family too? For each other function, by complete seeds:

    1. Its robustness minus the mean of the orders of RCT-AF, at every max|sigma''| that was run, by :func:`same`.
    2. The place of its peak: the rule of :func:`rctaf.verdicts.peak_in_band`.

    And for ELU, GELU and the orders together:

    3. The scatter about one curve along max|sigma''| against that along the rms curvature at the start, by
       :func:`_closer`.

    The rules were fixed on 2026-11-30, 1 and 2 before the runs of ELU and GELU at these curvatures were made, 3 before
    any was looked at; those of RCT-AF, which are shared with Fig. 3, and those of both functions at sharpness 1, had
    been seen.

    Args:
        others: rows from :func:`with_rms_at_start`.
        family: likewise, of RCT-AF at the same curvatures; seeds without them are left out.
    """
    others, family = common_seeds(others, family)

    def peak(frame: pd.DataFrame) -> tuple[str, str]:
        found = peak_in_band(frame.assign(activation="rctaf", beta=0), value)  # the rule reads these two alone
        return found.measured.replace("order 0: ", ""), found.outcome

    def closer(frame: pd.DataFrame) -> tuple[str, str]:
        number = {name: 3 + i for i, name in enumerate(BASELINE_CURVATURES)}  # after the orders
        lines = [family, frame.assign(beta=frame["activation"].map(number))]
        return _closer(pd.concat(lines, ignore_index=True), value, "rms_start", "functions")

    alike = _as_robust("{name} is as robust as RCT-AF at equal max|σ″|.", others, family, value, "curvature", "max|σ″|")
    peaks = [
        verdict_on(
            f"{ACTIVATIONS[name]} is most robust at a max|σ″| between 4 and 10.",
            others[others["activation"] == name],
            peak,
        )
        for name in BASELINE_CURVATURES
    ]
    together = "Rms curvature at the start describes RCT-AF, ELU and GELU together better than max|σ″| does."
    return [*alike, *peaks, verdict_on(together, others, closer)]


def other_functions_after_longer(others: pd.DataFrame, family: pd.DataFrame, value: str) -> list[Verdict]:
    """Trained four times as long, are ELU and GELU as robust as RCT-AF at equal max|sigma''|?

    For each, its robustness minus the mean of the orders of RCT-AF, at every max|sigma''| that was run, by
    :func:`same`. The rule was fixed on 2026-12-01, before these runs of ELU and GELU were made. Those of RCT-AF, which
    are shared with control (f), had been seen, and so had all shorter runs.

    Args:
        others: rows of ELU and GELU, complete seeds.
        family: likewise, of RCT-AF at the same curvatures, trained as long; seeds without them are left out.
    """
    claim = "Trained four times as long, {name} is as robust as RCT-AF at equal max|σ″|."
    return _as_robust(claim, others, family, value, "curvature", "max|σ″|")


def other_functions_at_equal_rms(others: pd.DataFrame, family: pd.DataFrame, value: str) -> list[Verdict]:
    """Are ELU and GELU as robust as RCT-AF at equal rms curvature at the start?

    For each, its robustness minus the mean of the orders of RCT-AF, at every rms curvature that was run, by
    :func:`same`. The rule was fixed on 2026-11-30, before these runs of ELU and GELU were made. Those of RCT-AF, which
    are shared with control (d), had been seen, and so had the runs of ELU and GELU at equal max|sigma''|.

    Args:
        others: rows from :func:`with_rms_at_start`.
        family: likewise, of RCT-AF at the same rms curvatures; seeds without them are left out.
    """
    claim = "{name} is as robust as RCT-AF at equal rms curvature at the start."
    return _as_robust(claim, others, family, value, "rms_start", "rms curvature")
