"""RCT-AF activations in PyTorch, and the experiments of the reproduction book built on them."""

from rctaf.activations import (
    ACTIVATIONS,
    RCTAF,
    alpha_for_curvature,
    curvature,
    make_activation,
    rctaf,
    replace_activations,
)

__version__ = "0.1.0"
__all__ = [
    "ACTIVATIONS",
    "RCTAF",
    "alpha_for_curvature",
    "curvature",
    "make_activation",
    "rctaf",
    "replace_activations",
]
