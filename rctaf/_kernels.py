r"""Every derivative of every order of RCT-AF, from one identity. No autograd here.

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
precision in both tails; 1 - s would lose all of it beyond u = 17 in single precision. The function
itself is x times the slope of the order below.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rctaf import _native

_EXACT_FROM = 40.0  # log1p(exp(-40)) is below half a unit in the last place of 40, in double precision too


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


def polynomials(beta: int, n: int) -> tuple[tuple[int, ...], ...]:
    """Row k holds the coefficients of c_k R_{n+k}: all that is particular to one derivative of one order."""
    weights = euler_coefficients(beta, n)
    return tuple(
        tuple(weights[k] * a for a in logistic_polynomial(n + k)) if n + k >= 2 else () for k in range(beta + 1)
    )


_remembered = cache(polynomials)


def _horner(coefficients: tuple[float, ...], q: Tensor) -> Tensor | float:
    value: Tensor | float = coefficients[-1]
    for a in reversed(coefficients[:-1]):
        value = value * q + a
    return value


def widen(x: Tensor) -> Tensor:
    """Half precision to single; anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@cache
def _triton_on(device: torch.device) -> Any:
    """The Triton kernels if they run on this GPU; else None, and why, once."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from rctaf import _triton

        _triton.derivative(torch.zeros(1, device=device), 1.0, 0, 0, polynomials)
    except Exception as error:  # whatever it is (an old GPU, no C compiler), the plain formula computes the same
        warnings.warn(f"RCT-AF runs as several operations on {device}, its Triton kernel failed: {error}", stacklevel=2)
        return None
    return _triton


def _kernel_for(x: Tensor) -> Any:
    """The module whose one-pass kernels serve this tensor's device, if any does: _native or _triton."""
    if torch.compiler.is_compiling():
        return None
    if x.device.type == "cuda" and _native.plain(x):
        return _triton_on(x.device)
    return _native if x.device.type == "cpu" else None


def fused_by(device_type: str) -> str:
    """What computes float32 RCT-AF eagerly on ``cpu`` or ``cuda`` here: ``C``, ``Triton``, or ``PyTorch`` operations.

    They round differently.
    """
    if device_type == "cuda":
        return "Triton" if _triton_on(torch.device("cuda", torch.cuda.current_device())) else "PyTorch"
    return "C" if _native.available() else "PyTorch"


def derivative(x: Tensor, alpha: float, beta: int, n: int) -> Tensor:
    """The n-th derivative of sigma at every element of ``x``, in the dtype of ``x``.

    Half precision is computed in single precision and rounded once.
    """
    kernel = _kernel_for(x)
    if kernel is not None and (fast := kernel.derivative(x, alpha, beta, n, _remembered)) is not None:
        return fast
    z = widen(x)
    if n == 0:
        if beta > 0:
            return (z * derivative(z, alpha, beta - 1, 1)).to(x.dtype)
        return F.softplus(z, beta=alpha, threshold=_EXACT_FROM).to(x.dtype)

    u = alpha * z
    first = 1 if n == 1 else 0  # the slope is s + u q (...)
    if beta - first > 1:
        # Beyond the limit q is zero in this format; clipping there keeps powers of u finite, so that 0 stays 0.
        info = torch.finfo(z.dtype)
        limit = 1 - math.log(info.smallest_normal) - math.log(info.eps)  # their product may be flushed to 0
        u = u.clamp(-limit, limit)
    s = torch.sigmoid(u)
    if n == 1 and beta == 0:
        return s.to(x.dtype)

    opposite = torch.sigmoid(-u)
    q = s * opposite
    # The compiler follows plain functions only; it meets this one once, eager code at every call.
    rows = (polynomials if torch.compiler.is_compiling() else _remembered)(beta, n)
    scale = alpha ** (n - 1)
    powers = range(beta, first - 1, -1)
    c = opposite - s if any((n + k) % 2 for k in powers) else None
    total: Tensor | float = 0.0
    for k in powers:
        term = _horner(tuple(scale * a for a in rows[k]), q)
        total = (total * u if k < beta else 0.0) + (term if c is None or (n + k) % 2 == 0 else term * c)
    if n == 1:  # at order 1 the bracket is exactly 1
        return torch.addcmul(s, u, q * total if beta > 1 else q).to(x.dtype)
    return (q * total).to(x.dtype)


def backward(saved: Tensor, alpha: float, beta: int, n: int, from_output: bool, grad: Tensor) -> Tensor | None:
    """``grad`` times the (n+1)-th derivative in one pass, where nobody will differentiate it again; else None."""
    if torch.is_grad_enabled() or (kernel := _kernel_for(saved)) is None:
        return None
    if from_output:
        return kernel.softplus_backward(saved, alpha, grad)
    return kernel.derivative(saved, alpha, beta, n + 1, _remembered, grad)
