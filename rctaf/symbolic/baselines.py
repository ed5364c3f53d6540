"""The baselines in SymPy, and the proofs of their max|σ″|."""

from dataclasses import dataclass
from functools import cache

import sympy as sp
from mpmath import iv  # type: ignore[import-untyped]

from rctaf.symbolic.certified import (
    EXPONENTIAL,
    Enclosure,
    Extremum,
    enclosure,
    exactly,
    highest,
    precision,
    prove_curvature,
    t,
)
from rctaf.symbolic.family import alpha, sigma, u, vanishes, x

# Constants of SELU (Klambauer et al. 2017, appendix A), as PyTorch has them.
_SELU_SCALE = sp.Rational("1.0507009873554804934193349852946")
_SELU_ALPHA = sp.Rational("1.6732632423543772848170429916717")

# name -> (σ for x < 0, σ for x >= 0)
_BASELINES: dict[str, tuple[sp.Expr, sp.Expr]] = {
    "relu": (sp.Integer(0), x),
    "leaky_relu": (x / 100, x),
    "elu": (sp.exp(x) - 1, x),
    "selu": (_SELU_SCALE * _SELU_ALPHA * (sp.exp(x) - 1), _SELU_SCALE * x),
    "gelu": (x / 2 * (1 + sp.erf(x / sp.sqrt(2))),) * 2,
    "swish": (x / (1 + sp.exp(-x)),) * 2,
    "mish": (x * sp.tanh(sp.log(1 + sp.exp(x))),) * 2,
    "softplus": (sp.log(1 + sp.exp(x)),) * 2,
}
BASELINES = tuple(_BASELINES)


def baseline(name: str) -> sp.Expr:
    """σ(x) of a named baseline, piecewise where it is defined so.

    Raises:
        ValueError: if the name is not in `BASELINES`.

    >>> baseline("elu")
    Piecewise((exp(x) - 1, x < 0), (x, True))
    """
    left, right = _halves(name)
    return left if left == right else sp.Piecewise((left, x < 0), (right, True))


def _halves(name: str) -> tuple[sp.Expr, sp.Expr]:
    if name not in _BASELINES:
        raise ValueError(f"unknown baseline {name!r}; known are {', '.join(BASELINES)}")
    return _BASELINES[name]


@dataclass(frozen=True)
class BaselineCurvature:
    """The curvature of a baseline.

    Attributes:
        name: as in `BASELINES`.
        regularity: "kink" (σ′ jumps at 0, no finite curvature), "jump" (σ″ jumps at 0) or "smooth".
        supremum: the largest |σ″| at x != 0 or approached there; for a kink this leaves out the kink itself.
        at: where it is attained, or 0 where it is only approached.
        exact: the supremum in closed form, where there is one.
    """

    name: str
    regularity: str
    supremum: Enclosure
    at: Enclosure
    exact: sp.Expr | None

    @property
    def maximum(self) -> float:
        """max|σ″| as a float; infinite at a kink."""
        return float("inf") if self.regularity == "kink" else float(self.supremum)


@cache
def prove_baseline(name: str) -> BaselineCurvature:
    """The certified max|σ″| of a baseline.

    Raises:
        ValueError: if the name is unknown.
        ArithmeticError: if the proof does not go through.

    >>> prove_baseline("mish").supremum.digits(6), prove_baseline("mish").at.digits(6)
    ('0.644205', '-0.0879344')
    >>> prove_baseline("gelu").exact
    sqrt(2)/sqrt(pi)
    """
    left, right = _halves(name)
    with precision():
        zero = enclosure(iv.mpf(0))
        if name in ("swish", "softplus"):  # members of the family, at α = 1
            beta = 1 if name == "swish" else 0
            if not vanishes((left - sigma(beta)).subs(alpha, 1).rewrite(sp.exp)):
                raise ArithmeticError(f"{name} is not order {beta} of the family")
            proof = prove_curvature(beta)
            return BaselineCurvature(name, "smooth", proof.maximum, proof.peak.at, sp.Abs(proof.at_zero))
        if name == "gelu":
            return _prove_gelu(left)
        if name == "mish":
            extrema = _mish_extrema()
            return BaselineCurvature(name, "smooth", abs(highest(extrema).value), highest(extrema).at, None)
        # pieces a e^x + b and a x + b: |σ″| is 0 or increases up to x = 0
        jumps = [sp.diff(right - left, x, n).subs(x, 0) for n in (0, 1, 2)]
        if jumps[0] != 0 or sp.diff(right, x, 2) != 0 or sp.simplify(sp.diff(left, x, 3) - sp.diff(left, x, 2)) != 0:
            raise ArithmeticError(f"{name} is not of the form this argument covers")
        supremum = sp.Abs(sp.diff(left, x, 2).subs(x, 0))
        regularity = "kink" if jumps[1] != 0 else "jump" if jumps[2] != 0 else "smooth"
        return BaselineCurvature(name, regularity, enclosure(exactly(supremum)), zero, supremum)


def _prove_gelu(gelu: sp.Expr) -> BaselineCurvature:
    """σ‴ is the normal density times a polynomial, whose roots SymPy gives exactly."""
    density = sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi)
    second = sp.simplify(sp.diff(gelu, x, 2) / density)
    third = sp.simplify(sp.diff(gelu, x, 3) / density)
    points = sp.roots(third, x)
    if sum(points.values()) != sp.degree(third, x) or sp.expand(second) != 2 - x**2:
        raise ArithmeticError("GELU: σ″ or its critical points are not what the argument needs")
    extrema = []
    for point in sorted(points):
        spread = iv.exp(-exactly(point**2) / 2) / iv.sqrt(2 * iv.pi)
        extrema.append(Extremum(enclosure(exactly(point)), enclosure(exactly(second.subs(x, point)) * spread)))
    peak = highest(extrema)
    exact = sp.Abs((second * density).subs(x, int(peak.at.lower)))
    return BaselineCurvature("gelu", "smooth", abs(peak.value), peak.at, exact)


def _mish_extrema() -> list[Extremum]:
    """All critical points of Mish's σ″, on x < 0 (with x = -u, e^x = t) and on x > 0 (with x = u, e^x = 1/t)."""
    extrema = []
    for sign, half in zip((-1, 1), halves_in_t("mish", 3), strict=True):
        second, third = (sp.fraction(sp.cancel(half[n].subs(x, sign * u))) for n in (2, 3))
        if sp.Poly(second[1] * third[1], t).count_roots(0, 1) or third[0].subs({u: 0, t: 1}) == 0:
            raise ArithmeticError("Mish: a denominator vanishes or x = 0 is a critical point")
        value, scale = EXPONENTIAL.evaluator(second[0]), EXPONENTIAL.evaluator(second[1])
        numerator = sp.Poly(third[0], t)
        lowest = min(j for (j,) in numerator.monoms())  # t > 0: dividing by its power loses no zero
        for point in EXPONENTIAL.zeros(sp.expand(third[0] / t**lowest)):
            extrema.append(Extremum(enclosure(sign * point), enclosure(value(point) / scale(point))))
    return sorted(extrema, key=lambda e: e.at.lower)


def halves_in_t(name: str, last: int) -> list[list[sp.Expr]]:
    """[σ, σ′, …, σ^(last)] of a baseline for x < 0 and for x >= 0, with e^x written as t and 1/t, t = e^{-|x|}."""
    halves = []
    for half, power, rate in zip(_halves(name), (t, 1 / t), (t, -t), strict=True):
        row = [half.rewrite(sp.exp).subs(sp.exp(x), power).subs(sp.exp(-x), 1 / power)]
        for _ in range(last):  # the total derivative, with dt/dx = rate
            row.append(sp.diff(row[-1], x) + rate * sp.diff(row[-1], t))
            if not half.has(sp.erf):
                row[-2:] = map(sp.factor, row[-2:])
        halves.append(row)
    return halves
