"""The activation family and the baselines in SymPy: derivatives, certified proofs of max|σ″|, and JavaScript."""

from rctaf.symbolic.baselines import BASELINES, BaselineCurvature, baseline, prove_baseline
from rctaf.symbolic.certified import CurvatureProof, Enclosure, Extremum, prove_curvature
from rctaf.symbolic.family import (
    MEANING,
    alpha,
    c,
    closed_form,
    derivative,
    ell,
    explicit,
    q,
    s,
    sigma,
    u,
    vanishes,
    verify,
    x,
)
from rctaf.symbolic.javascript import javascript

__all__ = [
    "BASELINES",
    "MEANING",
    "BaselineCurvature",
    "CurvatureProof",
    "Enclosure",
    "Extremum",
    "alpha",
    "baseline",
    "c",
    "closed_form",
    "derivative",
    "ell",
    "explicit",
    "javascript",
    "prove_baseline",
    "prove_curvature",
    "q",
    "s",
    "sigma",
    "u",
    "vanishes",
    "verify",
    "x",
]
