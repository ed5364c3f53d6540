"""What is measured on a trained model: accuracies, AutoAttack, the Hessian's diagonal, effective curvature, and
curvature in the inputs."""

from rctaf.evaluation.accuracy import accuracy, mean_loss
from rctaf.evaluation.autoattack import autoattack, robustbench_entry, unpack_mask
from rctaf.evaluation.effective_curvature import LayerCurvature, effective_curvature
from rctaf.evaluation.hessian import HessianEstimate, hessian_diagonal_norm
from rctaf.evaluation.input_curvature import InputCurvature, input_curvature

__all__ = [
    "HessianEstimate",
    "InputCurvature",
    "LayerCurvature",
    "accuracy",
    "autoattack",
    "effective_curvature",
    "hessian_diagonal_norm",
    "input_curvature",
    "mean_loss",
    "robustbench_entry",
    "unpack_mask",
]
