"""RCT-AF activations in PyTorch, and the experiments of the reproduction book built on them."""

from typing import TYPE_CHECKING, Any

from rctaf.family import alpha_for_curvature, curvature

if TYPE_CHECKING:
    from rctaf.activations import (
        ACTIVATIONS,
        RCTAF,
        LearnedRCTAF,
        activate_sum,
        fix_alphas,
        make_activation,
        rctaf,
    )
    from rctaf.replacement import replace_activations

__version__ = "0.1.0"
__all__ = [
    "ACTIVATIONS",
    "RCTAF",
    "LearnedRCTAF",
    "activate_sum",
    "alpha_for_curvature",
    "curvature",
    "fix_alphas",
    "make_activation",
    "rctaf",
    "replace_activations",
]


def __getattr__(name: str) -> Any:
    """What needs PyTorch is imported when first asked for: the command line, which does not, starts in no time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rctaf import activations, replacement

    return getattr(replacement if name == "replace_activations" else activations, name)


def __dir__() -> list[str]:
    """With the names that are not imported yet, so that they can be completed."""
    return sorted({*globals(), *__all__})
