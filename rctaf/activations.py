r"""The activation family RCT-AF, and the named baselines. :mod:`rctaf.replacement` puts them into a network.

With sharpness :math:`\alpha > 0` (``alpha``), order :math:`\beta` (``beta``) and the logistic function s
(Eq. 1-6 of arXiv 2603.23860):

.. math::
    \sigma_{\alpha,0}(x) = \frac{\ln(1 + e^{\alpha x})}{\alpha}, \qquad
    \sigma_{\alpha,1}(x) = x\, s(\alpha x), \qquad
    \sigma_{\alpha,\beta+1}(x) = x\, \sigma_{\alpha,\beta}'(x).

Its derivatives and its curvature :math:`\max_x |\sigma''(x)|` are in :mod:`rctaf.family`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from rctaf import _after_norm, _kernels
from rctaf._derivative import Derivative
from rctaf._native import plain
from rctaf.family import BASELINE_CURVATURES, LAST_ORDER, checked_order, positive

# --- the function and its module -------------------------------------------------------------------------------------

_ALPHAS = 1e-9, 1e9  # in between, up to the fourth derivative of order 5, nothing overflows in single precision


def _sharpness(alpha: float) -> float:
    if isinstance(alpha, Tensor):
        raise ValueError(
            f"alpha (sharpness) must be a number, got a {type(alpha).__name__}; "
            "LearnedRCTAF(alpha, beta) takes a number and trains it"
        )
    alpha = positive(alpha, "alpha (sharpness)")
    if not _ALPHAS[0] <= alpha <= _ALPHAS[1]:
        raise ValueError(
            f"alpha (sharpness) must be from 1e-9 to 1e9 for tensors (nn.ReLU() is the limit), got {alpha!r}"
        )
    return alpha


def _order(beta: int) -> int:
    beta = checked_order(beta)
    if beta > LAST_ORDER:
        raise ValueError(
            f"beta (order) must be at most {LAST_ORDER} for tensors (single precision ends there), got {beta!r}"
        )
    return beta


def _check_tensor(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"x must be a floating-point tensor, got {got}")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"x must have 16, 32 or 64 bits, got {x.dtype}; convert it with x.to(torch.bfloat16)")
    if x.is_nested and x.layout is torch.strided:  # PyTorch has hardly any operation for it
        raise ValueError("x must be dense or jagged, got a strided nested tensor; make it with layout=torch.jagged")
    if x.layout not in (torch.strided, torch.jagged):
        raise ValueError(f"x must be dense or jagged, got the layout {x.layout}; convert it with x.to_dense()")


def rctaf(x: Tensor, alpha: float, beta: int) -> Tensor:
    r"""RCT-AF of sharpness ``alpha`` and order ``beta``, elementwise (Eq. 1-6; higher orders by the recursion).

    Orders 0 and 1 are softplus and Swish of sharpness ``alpha``. In every order
    :math:`\sigma_{\alpha,\beta}(x) = \sigma_{1,\beta}(\alpha x)/\alpha`, and for :math:`\alpha \to \infty`
    the function tends to ReLU.

    Differentiable any number of times, backward and forward (``torch.func`` included). One tensor is saved for
    backward; at order 0 it is the output itself, and directly after a batch norm in training mode it is the input of
    that norm, which the norm saves anyway. Its output is computed again from the norm's bias as it is at backward, so
    that must not be changed in place in between, nor may its weight.

    Half precision is computed in single precision and rounded once. Each order costs digits: in single precision the
    slope and the second derivative are right to 2e-6 of their largest value up to order 4, 2e-5 up to order 7, 1e-3
    up to order 12.

    Args:
        x: dense tensor of 16, 32 or 64 bit floats, of any shape; a nested one in the layout ``torch.jagged``.
        alpha: sharpness, a number from 1e-9 to 1e9 (beyond, single precision overflows on the way; ``nn.ReLU`` is the
            limit of large ``alpha``).
        beta: order, an integer from 0 to 12.

    Returns:
        Tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: ``alpha``, ``beta``, or the dtype or layout of ``x`` is not as above.

    >>> rctaf(torch.tensor([-1.0, 0.0, 1.0]), alpha=14.0, beta=1)
    tensor([-8.3153e-07,  0.0000e+00,  1.0000e+00])
    """
    alpha, beta = _sharpness(alpha), _order(beta)
    if isinstance(x, torch.fx.Proxy):  # one node in a symbolic trace: a Proxy cannot enter an autograd.Function
        return x.tracer.create_proxy("call_function", rctaf, (x, alpha, beta), {})
    _check_tensor(x)
    # The compiler differentiates and fuses the plain formula with its neighbours; TorchScript can save nothing else.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return _kernels.derivative(x, alpha, beta, 0)
    if not (x.requires_grad and torch.is_grad_enabled()):
        if plain(x) and not _kernels.has_tangent(x):  # nobody differentiates
            return _kernels.derivative(x, alpha, beta, 0)
    elif beta > 0 and _after_norm.saves_plainly(x):
        return _after_norm.activate(alpha, beta, x)
    return Derivative.apply(x, alpha, beta, 0)


class RCTAF(nn.Module):
    """:func:`rctaf` as a module. It has no parameters and no state: ``alpha`` is a float, ``beta`` an int.

    Shapes: any to the same.

    Raises:
        ValueError: ``alpha`` is not a number from 1e-9 to 1e9, or ``beta`` not an integer from 0 to 12.

    >>> RCTAF(alpha=14, beta=1)
    RCTAF(alpha=14, beta=1)
    """

    def __init__(self, alpha: float, beta: int) -> None:
        super().__init__()
        self.alpha = _sharpness(alpha)
        self.beta = _order(beta)

    def forward(self, input: Tensor) -> Tensor:  # named as by PyTorch's activations, which this may replace
        return rctaf(input, self.alpha, self.beta)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:.12g}, beta={self.beta}"


def activate_sum(activation: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``activation(x + y)`` for two tensors of one shape, as at the end of a residual block.

    RCT-AF saves what its summands are made of in place of their sum: of a batch norm's output nothing, of another
    tensor the tensor itself, which a residual network keeps as the input of its next convolution.
    """
    if (
        type(activation) is RCTAF
        and activation.beta > 0  # order 0 saves its output alone
        and isinstance(x, Tensor)
        and isinstance(y, Tensor)  # and not the Proxy of a trace
        and x.shape == y.shape
        and x.dtype == y.dtype
        and x.is_floating_point()
        and _after_norm.saves_plainly(x, y)
        and not _after_norm.hooked(activation)
    ):
        return _after_norm.activate(activation.alpha, activation.beta, x, y)
    return activation(x + y)


class LearnedRCTAF(RCTAF):
    r"""RCT-AF whose sharpness is trained: the one parameter is ``log_alpha``, so that alpha stays above 0.

    By homogeneity :math:`\sigma_{\alpha,\beta}(x) = \sigma_{1,\beta}(\alpha x)/\alpha`; with
    :math:`x\,\sigma_{\alpha,\beta}' = \sigma_{\alpha,\beta+1}` the derivative is

    .. math::
        \frac{\partial \sigma_{\alpha,\beta}}{\partial \ln\alpha}(x)
            = \sigma_{\alpha,\beta+1}(x) - \sigma_{\alpha,\beta}(x).

    What autograd sums over the elements is 0 away from the bend, as this difference is: no two large sums cancel.

    Shapes, precision and derivatives as :func:`rctaf`.

    Raises:
        ValueError: ``alpha`` (the start) is not a number from 1e-9 to 1e9, or ``beta`` not an integer from 0 to 12.

    >>> LearnedRCTAF(alpha=14, beta=1)
    LearnedRCTAF(alpha=14, beta=1)
    """

    def __init__(self, alpha: float, beta: int) -> None:
        nn.Module.__init__(self)
        self.beta = _order(beta)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(_sharpness(alpha))))

    @property
    def alpha(self) -> float:  # type: ignore[override]
        """The sharpness as it is now."""
        return math.exp(self.log_alpha.item())

    def forward(self, input: Tensor) -> Tensor:
        return _of_log_alpha(input, self.log_alpha, self.beta)

    def extra_repr(self) -> str:
        alpha = "?" if self.log_alpha.is_meta else f"{self.alpha:.6g}"  # as many digits as single precision has
        return f"alpha={alpha}, beta={self.beta}"


def _of_log_alpha(x: Tensor, log_alpha: Tensor, beta: int) -> Tensor:
    _check_tensor(x)
    alpha, wide = _kernels.widen(log_alpha).exp(), _kernels.widen(x)  # half precision ends at 65504
    # Written so that alpha has no part where sigma is x or 0. In rctaf(alpha x, 1, beta) / alpha it has two, each a sum
    # as large as that of all x, whose difference single precision does not hold.
    if beta > 0:  # x times the slope of the order below, which depends on alpha x alone
        u = wide * alpha
        eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        return (wide * (Derivative.apply if eager else _kernels.derivative)(u, 1.0, beta - 1, 1)).to(x.dtype)
    positive = (wide > 0).to(wide.dtype)
    return (wide * positive + rctaf(wide * (1 - 2 * positive) * alpha, 1.0, 0) / alpha).to(x.dtype)


torch.fx.wrap("_of_log_alpha")  # one node in a symbolic trace: a Proxy does not tell its dtype


def fix_alphas(model: nn.Module) -> list[float]:
    """Make an :class:`RCTAF` of every :class:`LearnedRCTAF`, in place: from then on its alpha is a number.

    So whatever is measured afterwards (the Hessian above all) concerns the same parameters as in a network whose alpha
    was never trained.

    Returns:
        The alphas, in the order of ``model.modules()``.

    Raises:
        ValueError: an alpha is not a number from 1e-9 to 1e9, or a module of a subclass has a forward of its own, which
            would be lost. The model is then unchanged.
    """
    named = {name: module for name, module in model.named_modules() if isinstance(module, LearnedRCTAF)}
    for name, module in named.items():
        if type(module).forward is not LearnedRCTAF.forward or "forward" in vars(module):
            raise ValueError(
                f"{name or 'the model'} ({type(module).__name__}) has a forward of its own, which an RCTAF would not "
                "have; expected a plain LearnedRCTAF: replace it beforehand"
            )
    learned: list[Any] = list(named.values())
    alphas = [_sharpness(module.alpha) for module in learned]  # all are looked at before any is changed
    for module, alpha in zip(learned, alphas, strict=True):
        del module.log_alpha
        module.__class__ = RCTAF  # and not another module in its place: whatever holds it, or hooks on it, stays
        module.alpha = alpha
    return alphas


class Sharpened(nn.Module):
    """A named activation f at sharpness a: f(a x) / a, whose largest second derivative is a times that of f.

    Shapes: any to the same.

    Raises:
        ValueError: ``name`` is not one of ``elu``, ``gelu``, or ``sharpness`` not a finite number above 0.

    >>> Sharpened("gelu", 2.0)(torch.tensor(1.0)) == nn.GELU()(torch.tensor(2.0)) / 2
    tensor(True)
    """

    def __init__(self, name: str, sharpness: float) -> None:
        super().__init__()
        if name not in BASELINE_CURVATURES:
            raise ValueError(f"name must be one of {', '.join(BASELINE_CURVATURES)}, got {name!r}")
        self.name = name
        self.sharpness = positive(sharpness, "sharpness")

    def forward(self, input: Tensor) -> Tensor:
        activation: Callable[[Tensor], Tensor] = getattr(F, self.name)
        return activation(input * self.sharpness) / self.sharpness

    def extra_repr(self) -> str:
        return f"{self.name}, sharpness={self.sharpness:.12g}"


# --- activations by name ---------------------------------------------------------------------------------------------

_MAKERS: dict[str, Callable[..., nn.Module]] = {
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
ACTIVATIONS: tuple[str, ...] = tuple(_MAKERS)


def make_activation(name: str, **kw: Any) -> nn.Module:
    """A new activation module: ``rctaf`` (needs ``alpha`` and ``beta``) or a baseline of Table 1 or 2 by name.

    The baselines are PyTorch's with their defaults (Leaky ReLU: slope 0.01; GELU: exact), never in place, and take
    no settings. The names are in ``ACTIVATIONS``.

    Raises:
        ValueError: unknown name, or settings that the activation does not take or lacks.

    >>> make_activation("rctaf", alpha=14, beta=1), make_activation("swish")
    (RCTAF(alpha=14, beta=1), SiLU())
    """
    if name not in _MAKERS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    wanted = {"alpha", "beta"} if name == "rctaf" else set()
    if set(kw) != wanted:
        given = ", ".join(f"{key}={value!r}" for key, value in kw.items()) or "nothing"
        raise ValueError(f"activation {name!r} takes {' and '.join(sorted(wanted)) or 'no settings'}, got {given}")
    return _MAKERS[name](**kw)


ACTIVATION_MODULES = (
    RCTAF, Sharpened, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Softplus, nn.Hardswish, nn.Threshold,
)  # fmt: skip


def modules_of(network: nn.Module) -> dict[nn.Module, str]:
    """The modules of a network and their names, without those that compute a weight (``torch.nn.utils.parametrize``).

    >>> layer = nn.utils.parametrize.register_parametrization(nn.Linear(2, 2), "weight", nn.Softplus())
    >>> list(modules_of(nn.Sequential(layer, nn.ReLU())).values())
    ['', '0', '0.parametrizations', '1']
    """
    weights: set[nn.Module] = {module for module in network.modules() if isinstance(module, ParametrizationList)}
    return {module: name for name, module in network.named_modules(memo=weights)}
