"""What is measured on a trained model: accuracies, AutoAttack, the Hessian's diagonal, effective curvature."""

from rctaf.evaluation.accuracy import accuracy, pgd_accuracy
from rctaf.evaluation.autoattack import autoattack, robustbench_entry, unpack_mask
from rctaf.evaluation.hessian import HessianEstimate, hessian_diagonal_norm

__all__ = [
    "HessianEstimate",
    "accuracy",
    "autoattack",
    "hessian_diagonal_norm",
    "pgd_accuracy",
    "robustbench_entry",
    "unpack_mask",
]
