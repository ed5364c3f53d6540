"""Experiments that two explanations expect to end differently, and the rules that judge them.

Every control is judged on its complete seeds: those for which each of its runs has a record. All comparisons are paired
by seed. An outcome is one of :data:`rctaf.verdicts.OUTCOMES`. The rules were fixed before the runs were made (the last
of :func:`other_functions` before they were looked at), except those whose verdicts say :data:`POST_HOC`.
"""

from rctaf.controls.common import (
    ORDERS,
    POST_HOC,
    common_seeds,
    complete,
    higher,
    of_family,
    orders_alike,
    same,
    twins,
)
from rctaf.controls.conditions import (
    AS_BEFORE,
    CHANCE,
    CHANGES,
    FALLEN,
    LATER,
    fallen,
    harm,
    harm_arms,
    learned_where,
    longer,
    no_norm,
)
from rctaf.controls.labels import (
    not_alone,
    orders,
    other_functions,
    other_functions_after_longer,
    other_functions_at_equal_rms,
    scatter_about_curve,
    shared_curvatures,
    with_rms_at_start,
    with_rms_curvature,
)
from rctaf.controls.scale import (
    GAIN,
    GAIN_RATE,
    PLAIN,
    gain,
    gain_arms,
    gain_differences,
    learned_alpha,
    learned_curvatures,
    weight_decay,
)
