r"""The numbers of the family RCT-AF: the polynomials behind every derivative, and the curvature. No tensors here.

Write :math:`u = \alpha x` and :math:`L(u) = \ln(1 + e^u)`. The recursion of the family,
:math:`\sigma_{\beta+1} = x\,\sigma_\beta'`, applies the Euler operator
:math:`\theta = u\,\frac{d}{du}` once per order, and :math:`D^n\theta = (\theta + n)D^n`. Hence

.. math::
    \sigma_{\alpha,\beta}^{(n)}(x) = \alpha^{n-1} (\theta + n)^\beta L^{(n)}(u)
        = \alpha^{n-1} \sum_{k=0}^{\beta} c_k\, u^k L^{(n+k)}(u),

with whole numbers :math:`c_k \ge 0` (the n-Stirling numbers; ordinary Stirling numbers for n = 0).
The derivatives of L are polynomials in the logistic function. With :math:`s = L'`,
:math:`q = s(1 - s)` and :math:`c = 1 - 2s`, from :math:`q' = qc` and :math:`c' = -2q`:

.. math::
    L^{(m)} = q\,R_m(q) \text{ for even } m, \qquad L^{(m)} = q\,c\,R_m(q) \text{ for odd } m > 1.

Everything decays through the factor q, which is computed as s(u) s(-u) and so keeps its relative
precision in both tails; 1 - s would lose all of it beyond u = 17 in single precision.

The curvature of an activation is :math:`\max_x |\sigma''(x)|`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np


def positive(value: float, what: str) -> float:
    """The value as a float; ValueError unless it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"{what} must be a finite number above 0, got {value!r}")
    return float(value)


LAST_ORDER = 12
"""The highest order for tensors. A number such as the curvature, in as many digits as it takes, has no such limit."""


def checked_order(value: int, what: str = "beta (order)") -> int:
    """The order as an int; ValueError unless it is 0, 1, 2, ..."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"{what} must be an integer 0, 1, 2, ..., got {value!r}")
    return int(value)


# --- the polynomials ---------------------------------------------------------------------------


def euler_coefficients(beta: int, n: int) -> tuple[int, ...]:
    """The c_k of ``(theta + n)**beta = sum_k c_k u**k D**k``, k = 0 ... beta.

    >>> euler_coefficients(2, 0), euler_coefficients(2, 1), euler_coefficients(2, 2)
    ((0, 1, 1), (1, 3, 1), (4, 5, 1))
    """
    row = [1]
    for _ in range(beta):
        row = [(k + n) * a + b for k, (a, b) in enumerate(zip([*row, 0], [0, *row], strict=True))]
    return tuple(row)


def logistic_polynomial(m: int) -> tuple[int, ...]:
    """Coefficients of R_m, lowest power of q first, for m >= 2.

    >>> [logistic_polynomial(m) for m in (2, 3, 4, 5, 6)]
    [(1,), (1,), (1, -6), (1, -12), (1, -30, 120)]
    """
    if m == 2:
        return (1,)
    r = logistic_polynomial(m - 1)
    raised = [(j + 1) * a for j, a in enumerate(r)]  # R + q R'
    if m % 2 == 0:  # (1 - 6q) R + (1 - 4q) q R', because c^2 = 1 - 4q
        raised.append(0)
        for j, a in enumerate(r):
            raised[j + 1] -= (6 + 4 * j) * a
    return tuple(raised)


@cache
def polynomials(beta: int, n: int) -> tuple[tuple[int, ...], ...]:
    """Row k holds the coefficients of c_k R_{n+k}: all that is particular to one derivative of one order."""
    weights = euler_coefficients(beta, n)
    return tuple(
        tuple(weights[k] * a for a in logistic_polynomial(n + k)) if n + k >= 2 else () for k in range(beta + 1)
    )


def _derivative(beta: int, n: int, u: Any, t: Any) -> Any:
    """sigma^(n)(u) at alpha = 1, n >= 2, for u >= 0 and t = exp(-u): numbers or arrays of any precision."""
    q, c = t / (1 + t) ** 2, (t - 1) / (t + 1)
    total = 0 * q
    for k, row in reversed(list(enumerate(polynomials(beta, n)))):
        term = 0 * q
        for a in reversed(row):
            term = term * q + a
        total = total * u + (term * c if (n + k) % 2 else term)
    return q * total


# --- the curvature -----------------------------------------------------------------------------


@cache
def _unit_curvature(beta: int) -> float:
    """max over u of abs(sigma''(u)) at alpha = 1, in decimal arithmetic and rounded once at the end."""

    def value(n: int, u: Decimal) -> Decimal:
        return _derivative(beta, n, u, (-u).exp())

    with localcontext() as context:
        context.prec = 40 + 2 * beta  # the polynomials in q cancel: less than two digits lost per order
        # sigma'' is even. L^(m) changes sign about every pi^2/m near 0, so the step meets each hump many times;
        # beyond 3 beta + 10 what is left is the decay of u^beta e^-u.
        step = 1 / Decimal(beta + 4)
        grid = [i * step for i in range((3 * beta + 10) * (beta + 4))]
        height = [abs(value(2, u)) for u in grid]
        peak = height[0]
        for i in range(1, len(grid) - 1):
            if not height[i - 1] <= height[i] >= height[i + 1]:
                continue
            low, high = grid[i - 1], grid[i + 1]
            for _ in range(40):  # the root of sigma''' to 1e-12; the error of the maximum is the square of that
                middle = (low + high) / 2
                if value(2, middle) * value(3, middle) > 0:
                    low = middle
                else:
                    high = middle
            peak = max(peak, abs(value(2, low)))
        return float(peak)


def curvature(alpha: float, beta: int) -> float:
    r"""The global maximum :math:`\max_x |\sigma_{\alpha,\beta}''(x)|`, in double precision, for every order.

    At 0 the second derivative is :math:`\sigma''(0) = \alpha\, 2^{\beta-2}`. Up to order 4 that is the maximum:
    :math:`\alpha/4`, :math:`\alpha/2`, :math:`\alpha`, ... From order 5 on :math:`|\sigma''|` is larger elsewhere
    (:mod:`rctaf.symbolic` proves orders 0 to 6; from one order to the next the maximum at least doubles). The maximum
    is the largest value at 0 and at the other roots of :math:`\sigma'''`, found in decimal arithmetic. By
    homogeneity it is proportional to ``alpha``.

    Raises:
        ValueError: ``alpha`` is not a finite number above 0, or ``beta`` not an integer 0, 1, 2, ...

    >>> [curvature(28, 0), curvature(14, 1), curvature(7, 2)]
    [7.0, 7.0, 7.0]
    >>> round(curvature(1, 5), 4)  # and 8 at x = 0
    10.3575
    """
    return positive(alpha, "alpha (sharpness)") * _unit_curvature(checked_order(beta))


def alpha_for_curvature(c: float, beta: int) -> float:
    """The sharpness at which order ``beta`` has curvature ``c``: the inverse of :func:`curvature`.

    Raises:
        ValueError: ``c`` is not a finite number above 0, or ``beta`` not an integer 0, 1, 2, ...

    >>> [alpha_for_curvature(7, beta) for beta in (0, 1, 2)]
    [28.0, 14.0, 7.0]
    """
    return positive(c, "c (curvature)") / _unit_curvature(checked_order(beta))


def rms_curvature_at_start(alpha: float, beta: int) -> float:
    r"""The rms curvature of standard normal inputs, :math:`\sqrt{E\,\sigma_{\alpha,\beta}''(Z)^2}` with Z ~ N(0, 1).

    Such are, roughly, the inputs of an activation that reads a batch norm directly, at the start of training;
    :math:`\max|\sigma''|` is what only inputs near 0 meet. By homogeneity, normal
    inputs z of mean 0 and any other standard deviation meet :math:`\operatorname{std}(z) \sqrt{E\,\sigma''(z)^2}` equal
    to this function at :math:`\kappa = \alpha \operatorname{std}(z)` (:mod:`rctaf.evaluation.effective_curvature`).

    With :math:`u = \alpha z` its square is :math:`\alpha \int \sigma_{1,\beta}''(u)^2 \varphi(u/\alpha)\, du` for the
    normal density :math:`\varphi`, a product of two functions that increase with :math:`\alpha`. So it increases from 0
    (as :math:`\alpha|\sigma_{1,\beta}''(0)|`) without bound (as :math:`\sqrt\alpha`).

    Raises:
        ValueError: ``alpha`` is not a finite number above 0, or ``beta`` not an integer 0, 1, 2, ...

    >>> [round(rms_curvature_at_start(a, beta), 3) for beta, a in enumerate((28, 14, 7))]  # all of curvature 7
    [1.364, 1.572, 1.905]
    """
    alpha, beta = positive(alpha, "alpha (sharpness)"), checked_order(beta)
    # The trapezoidal rule: the integrand is analytic up to |Im u| = pi (the poles of s), which makes the error of step
    # 1/4, in units of the narrower of the two factors, about exp(-2 pi * pi * 4). What is left out beyond 9.5 standard
    # deviations, or beyond where u^(2 beta) e^(-2u) has decayed, is below a unit in the last place.
    step = min(1.0, alpha) / 4
    reach = min(9.5 * alpha, 40.0 + 4 * beta)
    u = step * np.arange(math.ceil(reach / step) + 1)
    terms = _derivative(beta, 2, u, np.exp(-u)) ** 2 * np.exp(-((u / alpha) ** 2) / 2)
    integral = step * float(2 * terms.sum() - terms[0])  # even
    return math.sqrt(alpha * integral / math.sqrt(2 * math.pi))


@cache
def alpha_for_rms_curvature(c: float, beta: int) -> float:
    """The sharpness at which order ``beta`` starts with rms curvature ``c``: the inverse of
    :func:`rms_curvature_at_start`.

    Raises:
        ValueError: ``c`` is not a finite number above 0, or ``beta`` not an integer 0, 1, 2, ...

    >>> [round(alpha_for_rms_curvature(1, beta), 3) for beta in (0, 1, 2)]
    [15.082, 5.712, 2.053]
    """
    of_curvature = alpha_for_curvature(positive(c, "c (rms curvature)"), beta)
    return _inverse(lambda alpha: rms_curvature_at_start(alpha, beta), c, of_curvature)


def _inverse(rms_curvature: Callable[[float], float], c: float, of_curvature: float) -> float:
    """The sharpness at which an rms curvature that increases with it, from 0 without bound, is c.

    Bisection, between the sharpness of *curvature* c (the root mean square is no larger than the maximum) and the first
    double of it that is large enough.
    """
    low = high = of_curvature
    while rms_curvature(high) < c:
        high *= 2
    for _ in range(60):
        middle = math.sqrt(low * high)
        if rms_curvature(middle) < c:
            low = middle
        else:
            high = middle
    return high


# --- the same numbers of two functions outside the family --------------------------------------

#: max|f''| of the baselines that can be run at another sharpness: ELU as a supremum, which x < 0 come near, and GELU
#: at 0 (:func:`rctaf.symbolic.prove_baseline`)
BASELINE_CURVATURES = {"elu": 1.0, "gelu": math.sqrt(2 / math.pi)}


def sharpness_for_curvature(c: float, name: str) -> float:
    """The sharpness a at which f(a x) / a, for f = ELU or GELU, has curvature ``c``."""
    return positive(c, "c (curvature)") / BASELINE_CURVATURES[name]


def baseline_rms_curvature(sharpness: float, name: str) -> float:
    r"""As :func:`rms_curvature_at_start`, of ELU or GELU f at sharpness a, f(a x) / a.

    With Z standard normal, :math:`E\,\sigma''(Z)^2` is :math:`a^2 e^{2a^2} \Phi(-2a)` for ELU and, with
    :math:`v = 1 / (1 + 2 a^2)`, :math:`a^2 \sqrt v\, (4 - 4 a^2 v + 3 a^4 v^2) / (2\pi)` for GELU. Both increase with a
    from 0 without bound, for the reason given there.

    >>> [round(baseline_rms_curvature(7 / largest, name), 3) for name, largest in BASELINE_CURVATURES.items()]
    [1.179, 1.646]
    """
    a = positive(sharpness, "sharpness")
    if name == "elu":
        from scipy.special import erfcx  # here: the activations themselves need numpy and torch only

        return a * math.sqrt(erfcx(math.sqrt(2) * a) / 2)
    v = 1 / (1 + 2 * a**2)
    return a * math.sqrt(math.sqrt(v) * (4 - 4 * a**2 * v + 3 * (a**2 * v) ** 2) / (2 * math.pi))


@cache
def sharpness_for_rms_curvature(c: float, name: str) -> float:
    """The sharpness at which ELU or GELU starts with rms curvature ``c``: the inverse of
    :func:`baseline_rms_curvature`."""
    return _inverse(lambda a: baseline_rms_curvature(a, name), c, sharpness_for_curvature(c, name))
