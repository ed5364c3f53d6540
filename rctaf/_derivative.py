"""RCT-AF and all its derivatives as one function of autograd."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rctaf import _kernels


class Derivative(torch.autograd.Function):
    """The n-th derivative of sigma. Its own derivative is the (n+1)-th, so autograd may go on for ever.

    Saves one tensor: x, or for sigma itself at order 0 only the output, which the next layer keeps anyway.
    """

    @staticmethod
    def forward(x: Tensor, alpha: float, beta: int, n: int) -> Tensor:
        return _kernels.derivative(x, alpha, beta, n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int, int], output: Tensor) -> None:
        x, ctx.alpha, ctx.beta, ctx.n = inputs
        ctx.from_output = ctx.beta == 0 and ctx.n == 0
        ctx.save_for_backward(output if ctx.from_output else x)
        ctx.save_for_forward(x)  # held during this call only

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors
        fused = _kernels.backward(saved, ctx.alpha, ctx.beta, ctx.n, ctx.from_output, grad)
        if fused is not None:
            return fused, None, None, None
        if ctx.from_output:  # s(alpha x) = 1 - exp(-alpha y); autograd takes further derivatives through y
            slope = -torch.expm1(-ctx.alpha * _kernels.widen(saved)).to(saved.dtype)
        else:
            slope = Derivative.apply(saved, ctx.alpha, ctx.beta, ctx.n + 1)
        return grad * slope, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        # PyTorch switches forward mode off here, for all levels: an outer jvp around this one would silently give zero.
        x = forward_ad.unpack_dual(x).primal
        with forward_ad._set_fwd_grad_enabled(True):
            return tangent * Derivative.apply(x, ctx.alpha, ctx.beta, ctx.n + 1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, alpha: float, beta: int, n: int) -> Any:
        return Derivative.apply(x, alpha, beta, n), in_dims[0]


Derivative.forward.__signature__ = inspect.signature(Derivative.forward)  # type: ignore[attr-defined]
"""Which ``apply`` asks for at every call: found beforehand, that takes a third of the time on a small tensor."""
