"""Zeros and maxima that are theorems: enclosed in interval arithmetic; and with them the proofs of max|σ″|.

On the half line u >= 0 every function we need is a positive factor times a polynomial in u and one bounded, monotone
companion: c(u) = -tanh(u/2) for the family, t(u) = e^{-u} for Mish. Its zeros are enclosed in three steps, in
interval arithmetic with outward rounding (mpmath.iv), so that the list is a theorem: (1) a tail [U, inf) without
zeros; (2) bisection of [0, U] until each piece is free of zeros or strictly monotone; (3) on a monotone piece, the
signs at the ends say whether it holds one zero or none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import mpmath  # type: ignore[import-untyped]
import sympy as sp
from mpmath import iv

from rctaf.family import checked_order
from rctaf.symbolic.family import c, curvature_polynomial, total_derivative, u

_BITS = 120  # leaves more than 25 certified digits after all cancellation for the orders used here
_SMALLEST = 1e-9  # a piece narrower than this that still cannot be decided means a multiple zero: give up

Interval = Any  # mpmath's interval type is made at run time and cannot be named in an annotation


@contextmanager
def precision() -> Iterator[None]:
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
        with precision():
            low, high = sorted((abs(self.lower), abs(self.upper)))
            return Enclosure(low if self.lower * self.upper > 0 else mpmath.mpf(0), high)

    def digits(self, n: int = 12) -> str:
        """The number to `n` significant digits. Raises ArithmeticError if the two ends do not round to the same."""
        with precision():
            low, high = (mpmath.nstr(end, n, strip_zeros=False) for end in (self.lower, self.upper))
        if low != high:
            raise ArithmeticError(f"[{self.lower}, {self.upper}] does not determine {n} digits")
        return low


def exactly(number: sp.Rational) -> Interval:
    return iv.mpf(int(number.p)) / iv.mpf(int(number.q))  # 1/3 is no binary fraction


def enclosure(interval: Interval) -> Enclosure:
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
        rows = [[exactly(a) for a in sp.Poly(row, self.symbol).all_coeffs()] for row in sp.Poly(expr, u).all_coeffs()]

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
            if _excludes_zero(sum((exactly(a) * w ** (degree - i) * y**j for (i, j), a in poly.terms()), iv.mpf(0))):
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


t = sp.Symbol("t", positive=True)
LOGISTIC = _Companion(c, -(1 - c**2) / 2, 0, lambda v: 2 / (1 + iv.exp(v)) - 1)
EXPONENTIAL = _Companion(t, -t, 1, lambda v: iv.exp(-v))


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
    polynomial = curvature_polynomial(beta)
    mirrored = polynomial.subs({u: -u, c: -c}, simultaneous=True)
    if sp.expand(mirrored - polynomial) != 0:
        raise ArithmeticError(f"order {beta}: σ″ is not even")
    at_zero = sp.Rational(polynomial.subs({u: 0, c: 0})) / 4  # q(0) = 1/4
    with precision():
        second = LOGISTIC.evaluator(sp.expand((1 - c**2) / 4 * polynomial))
        critical = LOGISTIC.zeros(sp.expand(c * polynomial + total_derivative(polynomial)))
        extrema = [Extremum(enclosure(iv.mpf(0)), enclosure(exactly(at_zero)))]
        extrema += [Extremum(enclosure(point), enclosure(second(point))) for point in critical]
        inflections = [enclosure(point) for point in LOGISTIC.zeros(sp.expand(polynomial))]
    return CurvatureProof(beta, tuple(extrema), tuple(inflections), highest(extrema), at_zero)


def highest(extrema: list[Extremum]) -> Extremum:
    """The extremum of largest |value|, provably: its enclosure lies above all the others."""
    best = max(extrema, key=lambda e: abs(e.value).lower)
    if any(abs(e.value).upper >= abs(best.value).lower for e in extrema if e is not best):
        raise ArithmeticError("two extrema of |σ″| cannot be told apart")
    return best
