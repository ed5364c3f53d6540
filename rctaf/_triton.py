"""The Triton kernels behind RCT-AF on a GPU: one pass over memory forward, one backward, any order, any derivative.

The formula is that of :mod:`rctaf.family`. Its polynomials are whole numbers fixed at compilation, one kernel per
order and derivative; ``alpha`` is an argument at run time, so that a sweep over it compiles nothing. Half precision is
computed in single precision and rounded once.

Importing this module needs triton, which comes with PyTorch for CUDA.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rctaf import _native
from rctaf._native import Summand
from rctaf.family import polynomials

_BLOCK = 1024


@triton.jit
def _one_minus_exp(a):
    """1 - exp(-a) for a >= 0, without the cancellation of the difference at small a."""
    small = a * (1 - a * (1 / 2 - a * (1 / 6 - a * (1 / 24 - a * (1 / 120 - a * (1 / 720 - a / 5040))))))
    return tl.where(a > 0.5, 1 - tl.exp(-a), small)


@triton.jit
def _horner(ROWS: tl.constexpr, K: tl.constexpr, q):
    """The polynomial with the coefficients ROWS[K], lowest power first, at q."""
    value = tl.zeros_like(q) + ROWS[K][len(ROWS[K]) - 1]
    for j in tl.static_range(1, len(ROWS[K])):
        value = value * q + ROWS[K][len(ROWS[K]) - 1 - j]
    return value


@triton.jit
def _value(x_at, scale_at, shift_at, channels, inner, i, inside):
    """Elements i of x or, unless they are None, of scale x + shift, rounded to the format of x, which a norm gives."""
    x = tl.load(x_at + i, mask=inside).to(tl.float32)
    if scale_at is not None:
        c = i // inner % channels
        x = tl.fma(x, tl.load(scale_at + c, mask=inside), tl.load(shift_at + c, mask=inside))
        x = x.to(x_at.dtype.element_ty).to(tl.float32)
    return x


@triton.jit
def _derivative(
    x_at, scale_at, shift_at, other_at, other_scale_at, other_shift_at, channels, inner, grad_at, out_at, size, alpha,
    scale, ROWS: tl.constexpr, BETA: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = sigma^(N)(x), times grad unless that is None; scale = alpha^(N-1); ROWS as from family.polynomials.

    x may be a sum, and each summand the output of a batch norm computed again from its input, see _native.Summand.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    x = _value(x_at, scale_at, shift_at, channels, inner, i, inside)
    if other_at is not None:
        x += _value(other_at, other_scale_at, other_shift_at, channels, inner, i, inside)
        x = x.to(x_at.dtype.element_ty).to(tl.float32)
    v = alpha * x
    a = tl.abs(v)
    t = tl.where(a > 87.0, 0.0, tl.exp(-a))  # NaN takes neither branch and stays NaN
    u = tl.where(v < -87.0, -87.0, tl.where(v > 87.0, 87.0, v))  # q is 0 there; keeps 0 * u^k at 0
    r = 1 / (1 + t)
    q = t * r * r
    c = tl.where(v >= 0, -1.0, 1.0) * _one_minus_exp(a) * r
    s = tl.where(v >= 0, r, t * r)

    FIRST: tl.constexpr = 2 - N if N < 2 else 0
    total = tl.zeros_like(x)
    for back in tl.static_range(BETA + 1 - FIRST):  # k = BETA ... FIRST: Horner in u, each coefficient Horner in q
        term = _horner(ROWS, BETA - back, q)
        if (N + BETA - back) % 2 == 1:
            term = term * c
        total = total * u + term
    for _ in tl.static_range(FIRST):
        total = total * u
    result = scale * (q * total)

    if N == 1:
        result += s
    elif N == 0 and BETA > 0:
        result += x * s
    elif N == 0:  # softplus: log1p(t) = 2 atanh(t / (2 + t)), whose argument is at most 1/3
        z = t / (2 + t)
        w = z * z
        p = 1 + w * (1 / 3 + w * (1 / 5 + w * (1 / 7 + w * (1 / 9 + w * (1 / 11 + w * (1 / 13 + w / 15))))))
        result = tl.where(v > 0, x, 0.0) + 2 * z * p * scale
    if grad_at is not None:
        result *= tl.load(grad_at + i, mask=inside).to(tl.float32)
    tl.store(out_at + i, result.to(out_at.dtype.element_ty), mask=inside)


@triton.jit
def _softplus_backward(y_at, grad_at, out_at, size, alpha, BLOCK: tl.constexpr):
    """out = grad (1 - exp(-alpha y)): the backward pass of order 0 from its output y >= 0."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    y = tl.load(y_at + i, mask=inside).to(tl.float32)
    grad = tl.load(grad_at + i, mask=inside).to(tl.float32)
    tl.store(out_at + i, (grad * _one_minus_exp(alpha * y)).to(out_at.dtype.element_ty), mask=inside)


def _takes(*tensors: Tensor) -> bool:
    # double precision is for checks: the plain formula serves
    return all(_native.plain(t) and t.dtype in (torch.float32, torch.float16, torch.bfloat16) for t in tensors)


@cache
def _fits(beta: int, n: int) -> bool:
    """Whether the coefficients fit into 64 bits; for order 12 the last derivative is the 7th, for order 2 the 19th."""
    return all(abs(a) < 2**63 for row in polynomials(beta, n) for a in row)


def derivative(
    terms: tuple[Summand, ...], alpha: float, beta: int, n: int, grad: Tensor | None = None
) -> Tensor | None:
    """sigma^(n) at the sum of one or two summands of one shape, times ``grad``, in their dtype and memory format; None
    for double precision and where the kernel cannot be compiled: for high derivatives of high orders."""
    tensors = [term.x for term in terms] + ([] if grad is None else [grad])
    if not _takes(*tensors) or not _fits(beta, n):
        return None
    out, *tensors = _native.aligned(*tensors)
    if out.numel():  # an empty grid cannot be launched
        x, scale, shift, *other = [
            part for term, t in zip(terms, tensors, strict=False) for part in (t, term.scale, term.shift)
        ]
        # numbers of other kinds would compile the kernel again
        channels = _native.channels(out) if any(term.scale is not None for term in terms) else (1, 1)
        with torch.cuda.device_of(x):
            _derivative[(triton.cdiv(out.numel(), _BLOCK),)](
                x, scale, shift, *(other or (None, None, None)), *channels,
                None if grad is None else tensors[-1], out, out.numel(), alpha, alpha ** (n - 1), polynomials(beta, n),
                beta, n, _BLOCK,
            )  # fmt: skip
    return out


def softplus_backward(output: Tensor, alpha: float, grad: Tensor) -> Tensor | None:
    """grad (1 - exp(-alpha y)), y the output of order 0; None for double precision."""
    if not _takes(output, grad):
        return None
    out, output, grad = _native.aligned(output, grad)
    if out.numel():
        with torch.cuda.device_of(output):
            _softplus_backward[(triton.cdiv(out.numel(), _BLOCK),)](output, grad, out, out.numel(), alpha, _BLOCK)
    return out
