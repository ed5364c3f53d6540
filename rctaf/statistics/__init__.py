"""The statistics behind the verdicts of this book.

The design is a grid of fixed curvatures and orders, repeated over seeds. Seeds are the replicates: the runs of
one seed share their initial weights and their order of images, so they are compared *within* a seed, and whole
seeds are resampled, never single runs. Intervals therefore speak about other seeds of the same experiment; they say
nothing about other data sets, networks or curvatures outside the grid.

Frames are tidy, one row per run, with the columns ``curvature``, ``seed``, ``beta`` (where orders are compared) and
the measured quantities, as :func:`rctaf.records.table` gives them. Every function refuses incomplete grids rather than
average over different seeds in different cells.
"""

from rctaf.statistics.common import KNOTS, Array, natural_splines
from rctaf.statistics.curves import (
    changes_beyond,
    falls,
    inside_against_ends,
    lower_beyond,
    orders_coincide,
    trend,
    variance_between_orders,
    variance_over_cells,
)
from rctaf.statistics.paired import Difference, Estimate, cell_means, holm, mean_interval, paired_difference
from rctaf.statistics.peaks import Optimum, optimum
from rctaf.statistics.ranks import spearman
from rctaf.statistics.single_runs import critical_difference, minimum_detectable_difference, noise_parts, seed_deviation
