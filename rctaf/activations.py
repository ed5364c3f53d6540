"""The activation family RCT-AF, its curvature, the named baselines, and how to put them into a network."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from rctaf import _kernels


def _check_alpha(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha (sharpness) must be a finite number above 0, got {alpha!r}")
    return float(alpha)


def _check_beta(beta: int) -> int:
    if isinstance(beta, bool) or not isinstance(beta, numbers.Integral) or beta < 0:
        raise ValueError(f"beta (order) must be an integer 0, 1, 2, ..., got {beta!r}")
    return int(beta)


class _Derivative(torch.autograd.Function):
    """The n-th derivative of sigma, whose own derivative is the (n+1)-th. Saves one tensor."""

    @staticmethod
    def forward(x: Tensor, alpha: float, beta: int, n: int) -> Tensor:
        return _kernels.derivative(x, alpha, beta, n)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int, int], output: Tensor) -> None:
        x, ctx.alpha, ctx.beta, ctx.n = inputs
        # Order 0 needs nothing but its output, which the next layer keeps anyway.
        ctx.from_output = ctx.beta == 0 and ctx.n == 0
        ctx.save_for_backward(output if ctx.from_output else x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors
        if ctx.from_output:  # s(alpha x) = 1 - exp(-alpha y); autograd takes the further derivatives through y
            y = saved.float() if saved.dtype in (torch.float16, torch.bfloat16) else saved
            slope = -torch.expm1(-ctx.alpha * y).to(saved.dtype)
        else:
            slope = _Derivative.apply(saved, ctx.alpha, ctx.beta, ctx.n + 1)
        return grad * slope, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * _Derivative.apply(x, ctx.alpha, ctx.beta, ctx.n + 1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, alpha: float, beta: int, n: int) -> Any:
        return _Derivative.apply(x, alpha, beta, n), in_dims[0]


def rctaf(x: Tensor, alpha: float, beta: int) -> Tensor:
    """RCT-AF of sharpness ``alpha`` and order ``beta``."""
    alpha, beta = _check_alpha(alpha), _check_beta(beta)
    if torch.compiler.is_compiling():
        return _kernels.derivative(x, alpha, beta, 0)
    return _Derivative.apply(x, alpha, beta, 0)


class RCTAF(nn.Module):
    """:func:`rctaf` as a module without parameters."""

    def __init__(self, alpha: float, beta: int) -> None:
        super().__init__()
        self.alpha = _check_alpha(alpha)
        self.beta = _check_beta(beta)

    def forward(self, x: Tensor) -> Tensor:
        return rctaf(x, self.alpha, self.beta)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, beta={self.beta}"


@cache
def _unit_curvature(beta: int) -> float:
    u = torch.linspace(0, 60 + 4 * beta, 200_001, dtype=torch.float64)
    return float(_kernels.derivative(u, 1.0, beta, 2).abs().max())


def curvature(alpha: float, beta: int) -> float:
    """max over x of abs(sigma''(x))."""
    return _check_alpha(alpha) * _unit_curvature(_check_beta(beta))


def alpha_for_curvature(c: float, beta: int) -> float:
    """The alpha with ``curvature(alpha, beta) == c``."""
    if isinstance(c, bool) or not isinstance(c, numbers.Real) or not 0 < c < math.inf:
        raise ValueError(f"curvature must be a finite number above 0, got {c!r}")
    return float(c) / _unit_curvature(_check_beta(beta))


_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "rctaf": RCTAF,
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.01),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
}
ACTIVATIONS: tuple[str, ...] = tuple(_FACTORIES)


def make_activation(name: str, **kw: Any) -> nn.Module:
    """A new activation module by name."""
    if name not in _FACTORIES:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    expected = {"alpha", "beta"} if name == "rctaf" else set()
    if set(kw) != expected:
        wants = "alpha and beta" if expected else "no settings"
        raise ValueError(f"activation {name!r} takes {wants}, got {kw!r}")
    return _FACTORIES[name](**kw)


_RECTIFIERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Softplus, nn.Hardswish, nn.Threshold, RCTAF,
)  # fmt: skip


def replace_activations(model: nn.Module, factory: Callable[[], nn.Module]) -> int:
    """Replace every activation module of ``model`` in place; returns how many."""
    fresh: dict[int, nn.Module] = {}
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _RECTIFIERS):
                if id(child) not in fresh:
                    fresh[id(child)] = factory()
                parent._modules[name] = fresh[id(child)]
                count += 1
    return count
