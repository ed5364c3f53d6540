r"""Every derivative of every order of RCT-AF on tensors, from the polynomials of :mod:`rctaf.family`. No autograd here.

The function itself is x times the slope of the order below. A one-pass kernel computes where there is one for the
device (:mod:`rctaf._native`, :mod:`rctaf._triton`), the formula in PyTorch operations elsewhere.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from functools import cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from rctaf import _native
from rctaf._native import Summand
from rctaf.family import polynomials

_EXACT_FROM = 40.0  # log1p(exp(-40)) is below half a unit in the last place of 40, in double precision too


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

        _triton.derivative((Summand(torch.zeros(1, device=device)),), 1.0, 0, 0)
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
    if kernel is not None and (fast := kernel.derivative((Summand(x),), alpha, beta, n)) is not None:
        return fast
    z = widen(x)
    if beta == 2 - n and n < 2 and _fast(z):
        return _times_swish_slope(z if n == 0 else torch.ones_like(z), z, alpha).to(x.dtype)
    if n == 0:
        if beta > 0:
            return (z * derivative(z, alpha, beta - 1, 1)).to(x.dtype)
        return F.softplus(z, beta=alpha, threshold=_EXACT_FROM).to(x.dtype)

    u = alpha * z
    first = 1 if n == 1 else 0  # the slope is s + u q (...)
    if beta > 0:  # u multiplies q, which is zero where u overflows
        u = u.clamp(-_limit(z), _limit(z))
    s = torch.sigmoid(u)
    if n == 1 and beta == 0:
        return s.to(x.dtype)

    opposite = torch.sigmoid(-u)
    q = s * opposite
    # The compiler follows plain functions only; it meets this one once, eager code at every call.
    rows = (polynomials.__wrapped__ if torch.compiler.is_compiling() else polynomials)(beta, n)
    scale = alpha ** (n - 1)
    powers = range(beta, first - 1, -1)
    c = opposite - s if any((n + k) % 2 for k in powers) else None
    total: Tensor | float = 0.0
    for k in powers:
        term = _horner(tuple(scale * a for a in rows[k]), q)
        total = (total * u if k < beta else 0.0) + (term if c is None or (n + k) % 2 == 0 else term * c)
    if n == 1:  # at order 1 the bracket is exactly 1
        q = q * total if beta > 1 else q
        return (s + u * q if z.is_nested else torch.addcmul(s, u, q)).to(x.dtype)  # the latter PyTorch lacks there
    return (q * total).to(x.dtype)


def _limit(z: Tensor) -> float:
    """Beyond it q is zero in this format; clipping u there keeps its powers finite, so that 0 stays 0."""
    info = torch.finfo(z.dtype)
    return 1 - math.log(info.smallest_normal) - math.log(info.eps)  # their product may be flushed to 0


def _fast(z: Tensor) -> bool:
    """Whether few operations count more than the last digits: not in double precision, and a compiler fuses them.

    PyTorch cannot differentiate its operation, as TorchScript would have it do.
    """
    return z.dtype == torch.float32 and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def _times_swish_slope(factor: Tensor, z: Tensor, alpha: float) -> Tensor:
    """``factor`` times the slope of order 1, for which PyTorch has one operation; with factor z that is order 2."""
    return torch.ops.aten.silu_backward(factor, (alpha * z).clamp_(-_limit(z), _limit(z)))


def has_tangent(*tensors: Tensor) -> bool:
    """Whether forward-mode differentiation goes through one of these; a kernel would lose its tangent."""
    return any(unpack_dual(t).tangent is not None for t in tensors)


def backward(saved: Tensor, alpha: float, beta: int, n: int, from_output: bool, grad: Tensor) -> Tensor | None:
    """``grad`` times the (n+1)-th derivative in few passes, where nobody will differentiate it again; else None."""
    if torch.is_grad_enabled() or has_tangent(saved, grad):
        return None
    if (kernel := _kernel_for(saved)) is not None:
        if from_output:
            fused = kernel.softplus_backward(saved, alpha, grad)
        else:
            fused = kernel.derivative((Summand(saved),), alpha, beta, n + 1, grad)
        if fused is not None:
            return fused
    if n > 0 or beta > 1 or not _fast(z := widen(saved)):
        return None
    if from_output:
        return ((z * -alpha).expm1_().neg_() * grad).to(grad.dtype)  # not in place: grad may be a batch of gradients
    return _times_swish_slope(widen(grad), z, alpha).to(grad.dtype)


def derivative_of_sum(
    terms: tuple[Summand, ...], alpha: float, beta: int, n: int, grad: Tensor | None = None
) -> Tensor:
    """:func:`derivative` at the sum of one or two summands, times ``grad`` where given; nothing tracks gradients."""
    with torch.no_grad():
        if (kernel := _kernel_for(terms[0].x)) is not None:
            fused = kernel.derivative(terms, alpha, beta, n, grad)
            if fused is not None:
                return fused
        x = reduce(torch.add, map(value, terms))
        if grad is None:
            return derivative(x, alpha, beta, n)
        fused = backward(x, alpha, beta, n - 1, False, grad)
        return grad * derivative(x, alpha, beta, n) if fused is None else fused


def value(term: Summand) -> Tensor:
    """The tensor that a summand stands for."""
    if term.scale is None or term.shift is None:
        return term.x
    scale, shift = (t.view(-1, *[1] * (term.x.ndim - 2)) for t in (term.scale, term.shift))
    return torch.addcmul(shift, widen(term.x), scale).to(term.x.dtype)
