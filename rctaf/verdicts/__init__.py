"""The paper's claims about curvature, each put to the records of one scale.

A verdict is a rule applied to an estimate with its interval; the rules are in the docstrings. They were last changed on
``RULES_CHANGED``, after the runs of ``SEEN`` had been looked at: for these they are post hoc. Two of the rules in
:func:`figure_3` came later (``ADDED_WHEN``), :func:`hessian_is_a_valley` last of all (``ADDED_LAST``), and
:func:`trend_below` was made stricter (``CHANGED_WHEN``). A scale with fewer than ``MIN_SEEDS`` seeds is never judged,
as one run per cell cannot tell a difference from seed noise; a rule that resamples seeds needs ``BOOTSTRAP_SEEDS``.
"""

from rctaf.verdicts.common import (
    ADDED,
    ADDED_LAST,
    ADDED_MARK,
    ADDED_WHEN,
    BAND,
    BOOTSTRAP_SEEDS,
    CHANGED,
    CHANGED_WHEN,
    FIT_CURVATURES,
    MARGIN,
    MIN_SEEDS,
    NEW_SEED,
    OUTCOMES,
    RULES_CHANGED,
    SEEN,
    TUNED,
    Place,
    Verdict,
    alike,
    by_order,
    column_of,
    complete_seeds,
    in_band,
    inside_best,
    orders_of,
    outcome_of,
    overview,
    places,
    relu_and_band,
    resampled,
    resolved,
    rows_to_judge,
    shared_rows,
    side,
    sign,
    too_few_seeds,
    trend_below,
    why_alike,
    why_orders_alike,
)
from rctaf.verdicts.hessian import (
    INPUTS,
    LOSSES,
    NORMS,
    clean_accuracy_falls_below,
    figure_7,
    figure_7_inputs,
    figure_7_scale_free,
    hessian_goes_with_robustness,
    hessian_is_a_valley,
    hessian_least_in_band,
    inputs_go_with_robustness,
    pulled_to_0,
    relu_is_less_linear,
    relu_is_sharper,
    with_scale_free_norms,
)
from rctaf.verdicts.ranking import PRINTED_IMAGES, single_runs_differ, table_1, table_1_as_printed, tuned_beat_common
from rctaf.verdicts.robustness import (
    falls_beyond,
    figure_3,
    hill,
    order_2_falls_fastest,
    orders_agree_below,
    orders_closer_along_curvature,
    peak_in_band,
    rises_below,
    same_peak,
)
