r"""The activation family in SymPy: its derivatives, certified proofs about its curvature, and its JavaScript.

The family (Eq. 1-6 of arXiv 2603.23860) starts at the softplus of sharpness α and applies the Euler operator θ = x d/dx
once per order:

    σ_{α,0}(x) = ln(1 + e^{αx}) / α,        σ_{α,β+1}(x) = x σ′_{α,β}(x),        so  σ_{α,β} = θ^β σ_{α,0}.

With u = αx, s the logistic function of u, q = s(1 - s) and c = 1 - 2s (an odd function of u with c² = 1 - 4q):

    σ_{α,β}''(x) = α q P_β(u, c),     P_0 = 1,     P_{β+1} = (2 + u c) P_β + u dP_β/du,

where dP/du is the total derivative (dc/du = -2q). Everything below follows from this one recursion.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import mpmath  # type: ignore[import-untyped]
import sympy as sp
from mpmath import iv
from sympy.codegen.cfunctions import log1p
from sympy.functions.combinatorial.numbers import stirling

from rctaf.family import checked_order

x = sp.Symbol("x", real=True)
alpha = sp.Symbol("alpha", positive=True)
u = sp.Symbol("u", real=True)  # u = αx
s, q, c, ell = sp.symbols("s q c ell", real=True)  # logistic(u), s(1 - s), 1 - 2s, softplus(u)

# What the short symbols stand for, as functions of u.
MEANING = {
    ell: sp.log(1 + sp.exp(u)),
    q: sp.exp(u) / (1 + sp.exp(u)) ** 2,
    c: (1 - sp.exp(u)) / (1 + sp.exp(u)),
    s: sp.exp(u) / (1 + sp.exp(u)),
}


# --------------------------------------------------------------------------------------------------------------------
# The family


def sigma(beta: int) -> sp.Expr:
    """σ_{α,β}(x) by the paper's recursion and nothing else (Eq. 1, 3, 5): the definition all other forms must meet.

    >>> sigma(0)
    log(exp(alpha*x) + 1)/alpha
    """
    beta = checked_order(beta)
    value = sp.log(1 + sp.exp(alpha * x)) / alpha
    for _ in range(beta):
        value = x * sp.diff(value, x)
    return value


@cache
def _curvature_polynomial(beta: int) -> sp.Expr:
    """P_β(u, c), collected in powers of u: σ″ = α q P_β."""
    if beta == 0:
        return sp.Integer(1)
    previous = _curvature_polynomial(beta - 1)
    return sp.collect(sp.expand((2 + u * c) * previous + u * _total_derivative(previous)), u, sp.factor)


def _total_derivative(expr: sp.Expr) -> sp.Expr:
    """d/du of a polynomial in u and c, where c is a function of u with dc/du = -2q = -(1 - c²)/2."""
    return sp.diff(expr, u) - (1 - c**2) / 2 * sp.diff(expr, c)


def derivative(beta: int, n: int) -> sp.Expr:
    """The n-th derivative of σ_{α,β} with respect to x, in the short symbols u, s, q, c and ell (see `MEANING`).

    The form is stable: no term overflows, and nothing cancels for large |u|, when q, s and c come from e^{-|u|}.

    >>> derivative(1, 2)
    alpha*q*(c*u + 2)
    >>> derivative(2, 1)
    q*u*(c*u + 3) + s
    """
    beta = checked_order(beta)
    n = checked_order(n, "n (derivative)")
    if n == 0:
        return ell / alpha if beta == 0 else u / alpha * derivative(beta - 1, 1)
    if n == 1:  # σ_{β+1}' = σ_β' + u q P_β, from differentiating σ_{β+1} = x σ_β'
        slope = sum((_curvature_polynomial(j) for j in range(beta)), sp.Integer(0))
        return s + q * u * sp.collect(sp.expand(slope), u, sp.factor)
    polynomial = _curvature_polynomial(beta)
    for _ in range(n - 2):  # (q P)' = q (c P + P')
        polynomial = sp.collect(sp.expand(c * polynomial + _total_derivative(polynomial)), u, sp.factor)
    return alpha ** (n - 1) * q * polynomial


def closed_form(beta: int) -> sp.Expr:
    """σ_{α,β}(x) = (1/α) Σ_k S(β,k) u^k softplus^{(k)}(u), with S the Stirling numbers of the second kind, in x.

    θ^β = Σ_k S(β,k) x^k (d/dx)^k holds for every function; softplus^{(k)} is a polynomial in the logistic function.
    """
    beta = checked_order(beta)
    terms = [stirling(beta, k) * u**k * sp.diff(MEANING[ell], u, k) for k in range(beta + 1)]
    return (sum(terms, sp.Integer(0)) / alpha).subs(u, alpha * x)


def explicit(expr: sp.Expr) -> sp.Expr:
    """`expr` with the short symbols replaced by what they mean, as a function of x and α."""
    return expr.subs(MEANING).subs(u, alpha * x)


def vanishes(expr: sp.Expr) -> bool:
    """Whether an expression in x, α, e^{αx} and ln(1 + e^{αx}) is identically 0: decided by exact algebra.

    x, e^{αx} and the logarithm are algebraically independent, so after renaming them the question is one about rational
    functions, which `cancel` decides.
    """
    power, logarithm = sp.symbols("power logarithm", positive=True)
    powers = {term: power ** (term.args[0] / (alpha * x)) for term in expr.atoms(sp.exp)}
    renamed = expr.subs(sp.log(1 + sp.exp(alpha * x)), logarithm).subs(powers)
    return bool(sp.cancel(sp.together(renamed)) == 0)


@cache
def verify(beta: int) -> None:
    """Prove, as exact identities, that the recursion, the closed form and the short forms of σ … σ‴ agree, and that
    σ_{α,β}(x) = σ_{1,β}(αx)/α. By induction: the short form of order β is x d/dx of the short form of order β - 1.

    Raises:
        ArithmeticError: if any identity fails.
    """
    beta = checked_order(beta)
    if beta == 0:
        recursion = sigma(0)
    else:
        verify(beta - 1)
        recursion = x * sp.diff(explicit(derivative(beta - 1, 0)), x)
    short = [explicit(derivative(beta, n)) for n in range(4)]
    claims = {
        "recursion": short[0] - recursion,
        "closed form": short[0] - closed_form(beta),
        "homogeneity": short[0].subs(alpha, 1).subs(x, alpha * x) / alpha - short[0],
    }
    claims |= {f"derivative {n}": short[n] - sp.diff(short[n - 1], x) for n in (1, 2, 3)}
    failed = [name for name, difference in claims.items() if not vanishes(difference)]
    if failed:
        raise ArithmeticError(f"order {beta}: not an identity: {', '.join(failed)}")


# --------------------------------------------------------------------------------------------------------------------
# Certified zeros
#
# On the half line u >= 0 every function we need is a positive factor times a polynomial in u and one bounded, monotone
# companion: c(u) = -tanh(u/2) for the family, t(u) = e^{-u} for Mish. Its zeros are enclosed in three steps, in
# interval arithmetic with outward rounding (mpmath.iv), so that the list is a theorem: (1) a tail [U, inf) without
# zeros; (2) bisection of [0, U] until each piece is free of zeros or strictly monotone; (3) on a monotone piece, the
# signs at the ends say whether it holds one zero or none.

_BITS = 120  # leaves more than 25 certified digits after all cancellation for the orders used here
_SMALLEST = 1e-9  # a piece narrower than this that still cannot be decided means a multiple zero: give up

Interval = Any  # mpmath's interval type is made at run time and cannot be named in an annotation


@contextmanager
def _precision() -> Iterator[None]:
    """Set mpmath's two global precisions: intervals at _BITS, and numbers wide enough to hold their ends exactly."""
    before, iv.prec = iv.prec, _BITS
    try:
        with mpmath.workprec(2 * _BITS):
            yield
    finally:
        iv.prec = before


@dataclass(frozen=True)
class Enclosure:
    """A real number known to lie in [lower, upper]."""

    lower: mpmath.mpf
    upper: mpmath.mpf

    def __float__(self) -> float:
        return float((self.lower + self.upper) / 2)

    def __abs__(self) -> "Enclosure":
        with _precision():
            low, high = sorted((abs(self.lower), abs(self.upper)))
            return Enclosure(low if self.lower * self.upper > 0 else mpmath.mpf(0), high)

    def digits(self, n: int = 12) -> str:
        """The number to `n` significant digits. Raises ArithmeticError if the two ends do not round to the same."""
        with _precision():
            low, high = (mpmath.nstr(end, n, strip_zeros=False) for end in (self.lower, self.upper))
        if low != high:
            raise ArithmeticError(f"[{self.lower}, {self.upper}] does not determine {n} digits")
        return low


def _exactly(number: sp.Rational) -> Interval:
    return iv.mpf(int(number.p)) / iv.mpf(int(number.q))  # 1/3 is no binary fraction


def _enclosure(interval: Interval) -> Enclosure:
    return Enclosure(mpmath.mpf(interval.a), mpmath.mpf(interval.b))


def _excludes_zero(interval: Interval) -> bool:
    return bool(interval.a > 0) or bool(interval.b < 0)


def _sign(interval: Interval) -> int:
    if not _excludes_zero(interval):
        raise ArithmeticError(f"the sign of {interval} is not decided at {_BITS} bits")
    return 1 if interval.a > 0 else -1


@dataclass(frozen=True)
class _Companion:
    """A monotone y(u), u >= 0: its symbol, dy/du as a polynomial in y, y(0), and its range over an interval."""

    symbol: sp.Symbol
    rate: sp.Expr
    origin: int
    over: Callable[[Interval], Interval]

    def slope(self, expr: sp.Expr) -> sp.Expr:
        """The total derivative d/du of a polynomial in u and y."""
        return sp.diff(expr, u) + self.rate * sp.diff(expr, self.symbol)

    def evaluator(self, expr: sp.Expr) -> Callable[[Interval], Interval]:
        """Interval evaluation of a polynomial in u and y: Horner in u, whose coefficients are Horner in y."""
        rows = [[_exactly(a) for a in sp.Poly(row, self.symbol).all_coeffs()] for row in sp.Poly(expr, u).all_coeffs()]

        def horner(coefficients: list[Interval], point: Interval) -> Interval:
            total = coefficients[0]
            for coefficient in coefficients[1:]:
                total = total * point + coefficient
            return total

        def evaluate(point: Interval) -> Interval:
            y = self.over(point)
            return horner([horner(row, y) for row in rows], point)

        return evaluate

    def tail(self, expr: sp.Expr) -> int:
        """A U such that the polynomial has no zero for u >= U: divided by its highest power of u it is a polynomial in
        w = 1/u and y, enclosed over the whole tail w in [0, 1/U], y in y([U, inf)) at once."""
        poly = sp.Poly(expr, u, self.symbol)
        degree = poly.degree(u)
        for start in (2**k for k in range(2, 15)):
            w, y = iv.mpf([0, 1]) / start, self.over(iv.mpf([start, "inf"]))
            if _excludes_zero(sum((_exactly(a) * w ** (degree - i) * y**j for (i, j), a in poly.terms()), iv.mpf(0))):
                return start
        raise ArithmeticError("no tail without zeros was found")

    def zeros(self, expr: sp.Expr) -> list[Interval]:
        """Enclosures of *all* zeros u > 0 of a polynomial in u and y, each simple, in increasing order.

        Raises:
            ArithmeticError: if the proof does not go through (an undecided piece, a multiple zero).
        """
        f, slope = self.evaluator(expr), self.evaluator(self.slope(expr))
        zero_at_origin = expr.subs({u: 0, self.symbol: self.origin}) == 0
        found = []
        pieces = [(mpmath.mpf(0), mpmath.mpf(self.tail(expr)))]
        while pieces:
            low, high = pieces.pop()
            piece, middle = iv.mpf([low, high]), (low + high) / 2
            if _excludes_zero(f(piece)):
                continue
            steepness = slope(piece)
            if _excludes_zero(f(iv.mpf(middle)) + steepness * (piece - middle)):  # mean value theorem
                continue
            if _excludes_zero(steepness):  # strictly monotone: at most one zero
                if low == 0 and zero_at_origin:
                    continue  # and that one is u = 0 itself, which is not counted here
                if _sign(f(iv.mpf(low))) != _sign(f(iv.mpf(high))):
                    found.append(_newton(f, slope, piece))
                continue
            if high - low < _SMALLEST:
                raise ArithmeticError(f"cannot decide whether there is a zero in [{low}, {high}]")
            pieces += [(middle, high), (low, middle)]
        return found


def _newton(f: Callable[[Interval], Interval], slope: Callable[[Interval], Interval], piece: Interval) -> Interval:
    """Interval Newton: the zero stays inside m - f(m)/f'(piece), which shrinks quadratically."""
    for _ in range(60):
        middle = iv.mpf(mpmath.mpf(piece.mid))
        image = middle - f(middle) / slope(piece)
        narrower = iv.mpf([max(piece.a, image.a), min(piece.b, image.b)])
        if narrower.delta > piece.delta * 0.9:
            return piece
        piece = narrower
    raise ArithmeticError("interval Newton did not settle")


_t = sp.Symbol("t", positive=True)
_LOGISTIC = _Companion(c, -(1 - c**2) / 2, 0, lambda v: 2 / (1 + iv.exp(v)) - 1)
_EXPONENTIAL = _Companion(_t, -_t, 1, lambda v: iv.exp(-v))


# --------------------------------------------------------------------------------------------------------------------
# The maximum of |σ″| of the family


@dataclass(frozen=True)
class Extremum:
    """A critical point of σ″ at `at`, with the value of σ″ there: for the family both as u = αx and σ″/α."""

    at: Enclosure
    value: Enclosure


@dataclass(frozen=True)
class CurvatureProof:
    """Everything about σ″_{α,β}/α as a function of u = αx; it is even, so only u >= 0 is listed.

    Attributes:
        beta: the order.
        extrema: all critical points with u >= 0, increasing; the first is u = 0.
        inflections: all zeros with u > 0, increasing; σ″ changes sign at each, and at its mirror image.
        peak: the extremum with the largest |σ″|.
        at_zero: σ″(0)/α, exactly.
    """

    beta: int
    extrema: tuple[Extremum, ...]
    inflections: tuple[Enclosure, ...]
    peak: Extremum
    at_zero: sp.Rational

    @property
    def maximum(self) -> Enclosure:
        """max over x of |σ″|, divided by α."""
        return abs(self.peak.value)

    @property
    def sign_changes(self) -> int:
        """How often σ″ changes sign on the whole line."""
        return 2 * len(self.inflections)

    @property
    def peak_at_zero(self) -> bool:
        """Whether |σ″| is largest at x = 0."""
        return self.peak is self.extrema[0]


@cache
def prove_curvature(beta: int) -> CurvatureProof:
    """Find, with proof, every extremum and sign change of σ″_{α,β} and the global maximum of |σ″|.

    σ″ is even and tends to 0 at infinity, so |σ″| has a maximum and it lies at a critical point: at 0 or at one of
    the zeros of σ‴ = α² q R(u, c) with u > 0, all of which are enclosed.

    Raises:
        ValueError: if beta is not an integer >= 0.
        ArithmeticError: if any step of the proof does not go through.

    >>> proof = prove_curvature(2)
    >>> proof.at_zero, proof.peak_at_zero, proof.sign_changes
    (1, True, 4)
    >>> proof.extrema[1].at.digits(6), proof.extrema[1].value.digits(6)
    ('2.16244', '-0.231421')
    """
    beta = checked_order(beta)
    polynomial = _curvature_polynomial(beta)
    mirrored = polynomial.subs({u: -u, c: -c}, simultaneous=True)
    if sp.expand(mirrored - polynomial) != 0:
        raise ArithmeticError(f"order {beta}: σ″ is not even")
    at_zero = sp.Rational(polynomial.subs({u: 0, c: 0})) / 4  # q(0) = 1/4
    with _precision():
        second = _LOGISTIC.evaluator(sp.expand((1 - c**2) / 4 * polynomial))
        critical = _LOGISTIC.zeros(sp.expand(c * polynomial + _total_derivative(polynomial)))
        extrema = [Extremum(_enclosure(iv.mpf(0)), _enclosure(_exactly(at_zero)))]
        extrema += [Extremum(_enclosure(point), _enclosure(second(point))) for point in critical]
        inflections = [_enclosure(point) for point in _LOGISTIC.zeros(sp.expand(polynomial))]
    return CurvatureProof(beta, tuple(extrema), tuple(inflections), _highest(extrema), at_zero)


def _highest(extrema: list[Extremum]) -> Extremum:
    """The extremum of largest |value|, provably: its enclosure lies above all the others."""
    best = max(extrema, key=lambda e: abs(e.value).lower)
    if any(abs(e.value).upper >= abs(best.value).lower for e in extrema if e is not best):
        raise ArithmeticError("two extrema of |σ″| cannot be told apart")
    return best


# --------------------------------------------------------------------------------------------------------------------
# The baselines

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
    with _precision():
        zero = _enclosure(iv.mpf(0))
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
            return BaselineCurvature(name, "smooth", abs(_highest(extrema).value), _highest(extrema).at, None)
        # pieces a e^x + b and a x + b: |σ″| is 0 or increases up to x = 0
        jumps = [sp.diff(right - left, x, n).subs(x, 0) for n in (0, 1, 2)]
        if jumps[0] != 0 or sp.diff(right, x, 2) != 0 or sp.simplify(sp.diff(left, x, 3) - sp.diff(left, x, 2)) != 0:
            raise ArithmeticError(f"{name} is not of the form this argument covers")
        supremum = sp.Abs(sp.diff(left, x, 2).subs(x, 0))
        regularity = "kink" if jumps[1] != 0 else "jump" if jumps[2] != 0 else "smooth"
        return BaselineCurvature(name, regularity, _enclosure(_exactly(supremum)), zero, supremum)


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
        spread = iv.exp(-_exactly(point**2) / 2) / iv.sqrt(2 * iv.pi)
        extrema.append(Extremum(_enclosure(_exactly(point)), _enclosure(_exactly(second.subs(x, point)) * spread)))
    peak = _highest(extrema)
    exact = sp.Abs((second * density).subs(x, int(peak.at.lower)))
    return BaselineCurvature("gelu", "smooth", abs(peak.value), peak.at, exact)


def _mish_extrema() -> list[Extremum]:
    """All critical points of Mish's σ″, on x < 0 (with x = -u, e^x = t) and on x > 0 (with x = u, e^x = 1/t)."""
    extrema = []
    for sign, half in zip((-1, 1), _halves_in_t("mish", 3), strict=True):
        second, third = (sp.fraction(sp.cancel(half[n].subs(x, sign * u))) for n in (2, 3))
        if sp.Poly(second[1] * third[1], _t).count_roots(0, 1) or third[0].subs({u: 0, _t: 1}) == 0:
            raise ArithmeticError("Mish: a denominator vanishes or x = 0 is a critical point")
        value, scale = _EXPONENTIAL.evaluator(second[0]), _EXPONENTIAL.evaluator(second[1])
        numerator = sp.Poly(third[0], _t)
        lowest = min(j for (j,) in numerator.monoms())  # t > 0: dividing by its power loses no zero
        for point in _EXPONENTIAL.zeros(sp.expand(third[0] / _t**lowest)):
            extrema.append(Extremum(_enclosure(sign * point), _enclosure(value(point) / scale(point))))
    return sorted(extrema, key=lambda e: e.at.lower)


# --------------------------------------------------------------------------------------------------------------------
# JavaScript

# The short symbols from t = e^{-|u|}, which is never above 1: nothing overflows, and q, s keep their relative accuracy
# where s is near 1 (s(1 - s) would not).
_r = sp.Symbol("r", positive=True)  # 1/(1 + t)
STABLE = {
    _t: sp.exp(-sp.Abs(u)),
    _r: 1 / (1 + _t),
    s: sp.Piecewise((_t * _r, u < 0), (_r, True)),
    q: _t * _r**2,
    c: sp.Piecewise(((1 - _t) * _r, u < 0), ((_t - 1) * _r, True)),
    ell: sp.Max(u, 0) + log1p(_t),
}

# JavaScript has no erf. For |z| < 2 the series erf z = 2/sqrt(pi) e^{-z²} sum 2^n z^{2n+1}/(2n+1)!!, whose terms are
# all of one sign; beyond, the continued fraction of 1 - erf from its 60th level (DLMF 7.6.2 and 7.9.1).
_ERF = """
function erf(z) {
  const y = Math.abs(z), scale = Math.exp(-y * y) / Math.sqrt(Math.PI);
  let value;
  if (y < 2) {
    let term = 2 * y;
    value = term;
    for (let n = 1; term > 1e-17 * value; n++) { term *= 2 * y * y / (2 * n + 1); value += term; }
    value *= scale;
  } else {
    let fraction = y;
    for (let n = 60; n > 0; n--) fraction = y + n / 2 / fraction;
    value = 1 - scale / fraction;
  }
  return z < 0 ? -value : value;
}
"""


def _halves_in_t(name: str, highest: int) -> list[list[sp.Expr]]:
    """[σ, σ′, …, σ^(highest)] of a baseline for x < 0 and for x >= 0, with e^x written as t and 1/t, t = e^{-|x|}."""
    halves = []
    for half, power, rate in zip(_halves(name), (_t, 1 / _t), (_t, -_t), strict=True):
        row = [half.rewrite(sp.exp).subs(sp.exp(x), power).subs(sp.exp(-x), 1 / power)]
        for _ in range(highest):  # the total derivative, with dt/dx = rate
            row.append(sp.diff(row[-1], x) + rate * sp.diff(row[-1], _t))
            if not half.has(sp.erf):
                row[-2:] = map(sp.factor, row[-2:])
        halves.append(row)
    return halves


def _print(expr: sp.Expr) -> str:
    decimals = {number: sp.Float(number, 17) for number in expr.atoms(sp.Rational) if number.q > 1000}
    return " ".join(sp.jscode(expr.xreplace(decimals), user_functions={"erf": "erf", "log1p": "Math.log1p"}).split())


def javascript(orders: tuple[int, ...] = (0, 1, 2, 3, 4)) -> str:
    """JavaScript source, printed from the expressions above in their stable form. It defines

    - FAMILY[beta](x, alpha) -> [σ, σ′, σ″] for each of `orders`,
    - BASELINE[name](x) -> [σ, σ′, σ″] for each of `BASELINES`,
    - CURVATURE.family[beta], the certified max|σ″|/α, and CURVATURE.baseline[name], the certified max|σ″|.

    Raises:
        ValueError: if an order is not an integer >= 0.
    """
    common = "".join(f"const {symbol} = {_print(value)}; " for symbol, value in STABLE.items())
    family = [
        f"  {beta}: (x, alpha) => {{ const u = alpha*x; {common}\n"
        f"    return [{', '.join(_print(derivative(beta, n)) for n in range(3))}]; }},"
        for beta in orders
    ]
    baselines = []
    for name in BASELINES:
        if name in ("swish", "softplus"):
            baselines.append(f"  {name}: (x) => FAMILY[{1 if name == 'swish' else 0}](x, 1),")
            continue
        left, right = (", ".join(map(_print, half)) for half in _halves_in_t(name, 2))
        baselines.append(
            f"  {name}: (x) => {{ const t = Math.exp(-Math.abs(x));\n    return x < 0 ? [{left}] : [{right}]; }},"
        )
    values = {beta: float(prove_curvature(beta).maximum) for beta in orders}
    others = {name: prove_baseline(name).maximum for name in BASELINES}
    return "\n".join(
        [
            "// Printed by rctaf.symbolic.javascript from SymPy.",
            _ERF.strip(),
            "const FAMILY = {",
            *family,
            "};",
            "const BASELINE = {",
            *baselines,
            "};",
            "const CURVATURE = {",
            "  family: {" + ", ".join(f"{beta}: {value!r}" for beta, value in values.items()) + "},",
            "  baseline: {" + ", ".join(f"{n}: {v!r}".replace("inf", "Infinity") for n, v in others.items()) + "},",
            "};",
            "",
        ]
    )
