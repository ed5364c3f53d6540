r"""The activation family RCT-AF, the named baselines, and how to put them into a network.

With sharpness :math:`\alpha > 0` (``alpha``), order :math:`\beta` (``beta``) and the logistic function s
(Eq. 1-6 of arXiv 2603.23860):

.. math::
    \sigma_{\alpha,0}(x) = \frac{\ln(1 + e^{\alpha x})}{\alpha}, \qquad
    \sigma_{\alpha,1}(x) = x\, s(\alpha x), \qquad
    \sigma_{\alpha,\beta+1}(x) = x\, \sigma_{\alpha,\beta}'(x).

Its derivatives and its curvature :math:`\max_x |\sigma''(x)|` are in :mod:`rctaf.family`.
"""

from __future__ import annotations

import dis
import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from rctaf import _kernels
from rctaf._native import Summand, plain
from rctaf.family import checked_order, positive

# --- the function and its module -------------------------------------------------------------------------------------


class _Derivative(torch.autograd.Function):
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
            slope = _Derivative.apply(saved, ctx.alpha, ctx.beta, ctx.n + 1)
        return grad * slope, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * _Derivative.apply(x, ctx.alpha, ctx.beta, ctx.n + 1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, alpha: float, beta: int, n: int) -> Any:
        return _Derivative.apply(x, alpha, beta, n), in_dims[0]


class _Norm(NamedTuple):
    """What a batch norm in training mode keeps for its own backward pass, so that its output can be had again."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor  # weight and bias with the statistics of this batch, without their gradients
    shift: Tensor
    eps: float

    def output(self) -> Tensor:
        """The output, differentiable any number of times."""
        return F.batch_norm(self.x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def _norm_behind(y: Tensor) -> _Norm | None:
    """The batch norm in training mode whose output ``y`` is; None where y is something else or has been changed."""
    node: Any = y.grad_fn
    if type(node).__name__ not in ("NativeBatchNormBackward0", "CudnnBatchNormBackward0"):
        return None
    if not node._saved_training or y.output_nr or y._version:
        return None
    weight, bias = node._saved_weight, getattr(node.next_functions[2][0], "variable", None)
    if weight is None or bias is None:
        return None
    eps = node._saved_eps if hasattr(node, "_saved_eps") else node._saved_epsilon
    with torch.no_grad():  # in single precision at least, which the kernels ask for
        mean, inverse_std = _kernels.widen(node._saved_result1), _kernels.widen(node._saved_result2)
        scale = inverse_std * weight
        shift = torch.addcmul(_kernels.widen(bias), mean, scale, value=-1)
    return _Norm(node._saved_input, weight, bias, scale, shift, eps)


class _OfSum(torch.autograd.Function):
    """sigma of one value or of the sum of two. Of a batch norm's output nothing is saved: it is computed again.

    The norm keeps its input for its own backward pass; ReLU keeps its output, which the next layer keeps too. So a
    network with this activation holds what one with ReLU holds.
    """

    @staticmethod
    def forward(ctx: Any, alpha: float, beta: int, norms: tuple[_Norm | None, ...], *values: Tensor) -> Tensor:
        ctx.alpha, ctx.beta, ctx.eps = alpha, beta, [None if norm is None else norm.eps for norm in norms]
        ctx.save_for_backward(
            *(t for norm, y in zip(norms, values, strict=True) for t in ((y,) if norm is None else norm[:5]))
        )
        return _kernels.derivative_of_sum(tuple(map(Summand, values)), alpha, beta, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        parts = [next(saved) if eps is None else _Norm._make([*islice(saved, 5), eps]) for eps in ctx.eps]
        if torch.is_grad_enabled():  # somebody will differentiate once more
            x = sum(part.output() if isinstance(part, _Norm) else part for part in parts)
            result = grad * _Derivative.apply(x, ctx.alpha, ctx.beta, 1)
        else:
            terms = (Summand(p.x, p.scale, p.shift) if isinstance(p, _Norm) else Summand(p) for p in parts)
            result = _kernels.derivative_of_sum(tuple(terms), ctx.alpha, ctx.beta, 1, grad)
        return None, None, None, *[result] * len(parts)


def _saves(*values: Tensor) -> bool:
    """Whether backward autograd alone is at work on these values, and nothing handles what it saves."""
    return (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and all(plain(value) for value in values)
        and any(value.requires_grad for value in values)
        and all(unpack_dual(value).tangent is None for value in values)
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None  # such as those of a checkpoint
    )


def rctaf(x: Tensor, alpha: float, beta: int) -> Tensor:
    r"""RCT-AF of sharpness ``alpha`` and order ``beta``, elementwise (Eq. 1-6; higher orders by the recursion).

    Orders 0 and 1 are softplus and Swish of sharpness ``alpha``. In every order
    :math:`\sigma_{\alpha,\beta}(x) = \sigma_{1,\beta}(\alpha x)/\alpha`, and for :math:`\alpha \to \infty`
    the function tends to ReLU.

    Differentiable any number of times, backward and forward (``torch.func`` included). Half precision is
    computed in single precision and rounded once. One tensor is saved for backward; at order 0 it is the
    output itself, and directly after a batch norm in training mode it is the input of that norm, which the norm saves
    anyway.

    Args:
        x: floating-point tensor of any shape.
        alpha: sharpness, a finite number above 0.
        beta: order, an integer 0, 1, 2, ...

    Returns:
        Tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: ``alpha``, ``beta`` or the dtype of ``x`` is not as above.

    >>> rctaf(torch.tensor([-1.0, 0.0, 1.0]), alpha=14.0, beta=1)
    tensor([-8.3153e-07,  0.0000e+00,  1.0000e+00])
    """
    alpha, beta = positive(alpha, "alpha (sharpness)"), checked_order(beta)
    if not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, got {x.dtype}")
    if torch.compiler.is_compiling():  # the compiler differentiates and fuses the plain formula with its neighbours
        return _kernels.derivative(x, alpha, beta, 0)
    if beta > 0 and _saves(x) and (norm := _norm_behind(x)) is not None:
        return _OfSum.apply(alpha, beta, (norm,), x)
    return _Derivative.apply(x, alpha, beta, 0)


torch.fx.wrap("rctaf")  # one node in a symbolic trace: a Proxy cannot enter an autograd.Function


class RCTAF(nn.Module):
    """:func:`rctaf` as a module. It has no parameters and no state: ``alpha`` is a float, ``beta`` an int.

    Shapes: any to the same.

    Raises:
        ValueError: ``alpha`` is not a finite number above 0, or ``beta`` not an integer 0, 1, 2, ...

    >>> RCTAF(alpha=14, beta=1)
    RCTAF(alpha=14, beta=1)
    """

    def __init__(self, alpha: float, beta: int) -> None:
        super().__init__()
        self.alpha = positive(alpha, "alpha (sharpness)")
        self.beta = checked_order(beta)

    def forward(self, x: Tensor) -> Tensor:
        return rctaf(x, self.alpha, self.beta)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:.12g}, beta={self.beta}"


def activate_sum(activation: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``activation(x + y)`` for two tensors of one shape, as at the end of a residual block.

    RCT-AF saves what its summands are made of in place of their sum: of a batch norm's output nothing, of another
    tensor the tensor itself, which a residual network keeps as the input of its next convolution.
    """
    hooks = (
        activation._forward_hooks,
        activation._forward_pre_hooks,
        activation._backward_hooks,
        activation._backward_pre_hooks,
    )
    if (
        type(activation) is RCTAF
        and activation.beta > 0  # order 0 saves its output alone
        and isinstance(x, Tensor)
        and isinstance(y, Tensor)  # and not the Proxy of a trace
        and x.shape == y.shape
        and x.dtype == y.dtype
        and x.is_floating_point()
        and _saves(x, y)
        and not any(hooks)  # they would not be called
        and not torch.nn.modules.module._has_any_global_hook()
    ):
        norms = _norm_behind(x), _norm_behind(y)
        return _OfSum.apply(activation.alpha, activation.beta, norms, x, y)
    return activation(x + y)


class LearnedRCTAF(RCTAF):
    r"""RCT-AF whose sharpness is trained: the one parameter is ``log_alpha``, so that alpha stays above 0.

    By homogeneity :math:`\sigma_{\alpha,\beta}(x) = \sigma_{1,\beta}(\alpha x)/\alpha`, and so it is computed; with
    :math:`x\,\sigma_{\alpha,\beta}' = \sigma_{\alpha,\beta+1}` the derivative that autograd finds is

    .. math::
        \frac{\partial \sigma_{\alpha,\beta}}{\partial \ln\alpha}(x)
            = \sigma_{\alpha,\beta+1}(x) - \sigma_{\alpha,\beta}(x).

    Shapes, precision and derivatives as :func:`rctaf`.

    Raises:
        ValueError: ``alpha`` (the start) is not a finite number above 0, or ``beta`` not an integer 0, 1, 2, ...

    >>> LearnedRCTAF(alpha=14, beta=1)
    LearnedRCTAF(alpha=14, beta=1)
    """

    def __init__(self, alpha: float, beta: int) -> None:
        nn.Module.__init__(self)
        self.beta = checked_order(beta)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(positive(alpha, "alpha (sharpness)"))))

    @property
    def alpha(self) -> float:  # type: ignore[override]
        """The sharpness as it is now."""
        return math.exp(self.log_alpha.item())

    def forward(self, x: Tensor) -> Tensor:
        alpha, wide = self.log_alpha.exp(), _kernels.widen(x)
        return (rctaf(wide * alpha, 1.0, self.beta) / alpha).to(x.dtype)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:.6g}, beta={self.beta}"  # as many digits as single precision has


def fix_alphas(model: nn.Module) -> list[float]:
    """Put an :class:`RCTAF` in place of every :class:`LearnedRCTAF`, in place: from then on its alpha is a number.

    So whatever is measured afterwards (the Hessian above all) concerns the same parameters as in a network whose alpha
    was never trained.

    Returns:
        The alphas, in the order of ``model.modules()``.
    """
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, LearnedRCTAF)
    ]
    fixed = {child: RCTAF(child.alpha, child.beta).train(child.training) for _, _, child in places}
    for parent, name, child in places:
        setattr(parent, name, fixed[child])
    return [module.alpha for module in fixed.values()]


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


# --- activations in a network ----------------------------------------------------------------------------------------

ACTIVATION_MODULES = (
    RCTAF, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Softplus, nn.Hardswish, nn.Threshold,
)  # fmt: skip
_FUNCTION_NAMES = (
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "elu", "elu_", "celu", "celu_",
    "selu", "selu_", "gelu", "silu", "mish", "softplus", "hardswish", "threshold", "threshold_",
)  # fmt: skip
_FUNCTIONS = frozenset(
    getattr(home, name) for home in (torch, F, Tensor) for name in _FUNCTION_NAMES if hasattr(home, name)
) | {rctaf}


def replace_activations(model: nn.Module, factory: Callable[[], nn.Module]) -> int:
    """Put a new activation in every place of ``model`` that holds one; change the model in place.

    An activation here is an elementwise rectifier: :class:`RCTAF`, ReLU, ReLU6, LeakyReLU, PReLU, RReLU, ELU, CELU,
    SELU, GELU, SiLU, Mish, Softplus, Hardswish, Threshold. Gates and normalisers (sigmoid, tanh, softmax, GLU) stay.
    A place is an attribute of a module, however deep, that holds an activation module or a function such as
    ``F.relu`` (as in ``nn.TransformerEncoderLayer``). A module that stands in several places stays shared.

    An activation *called* as a function in the code of a forward method cannot be replaced from outside. It is never
    passed over in silence: the forward of every module is traced symbolically (read, where it cannot be traced).

    Args:
        model: any module but an activation itself.
        factory: makes one activation, e.g. ``lambda: RCTAF(alpha=14, beta=1)``.

    Returns:
        The number of places.

    Raises:
        ValueError: an activation is called as a function (the message says which, and in which module), is compiled
            into a module (``nn.RNN`` with ReLU, TorchScript), or ``model`` or ``factory`` is not as above. The model
            is then unchanged.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.GELU()), nn.Softmax(-1))
    >>> replace_activations(net, lambda: RCTAF(alpha=14, beta=1))
    2
    >>> net[1], net[2][1]
    (RCTAF(alpha=14, beta=1), RCTAF(alpha=14, beta=1))
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ValueError(f"factory must be a function that makes an activation (lambda: ReLU()), got {factory!r}")
    if isinstance(model, ACTIVATION_MODULES):
        raise ValueError(f"the model is itself an activation, with nothing around it to change: {model!r}")
    problems = [
        f"{path or 'the model'} ({type(module).__name__}) calls {name}"
        for path, module in model.named_modules()
        for name in sorted(_called_inside(module))
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"activations called inside code cannot be replaced: {', '.join(problems[:3])}{more}; "
            "hold each as a module (self.act = nn.ReLU()) and call that"
        )

    places: list[tuple[nn.Module, str, Any]] = []
    for parent in model.modules():
        held = [(name, child) for name, child in parent._modules.items() if isinstance(child, ACTIVATION_MODULES)]
        places += [(parent, name, child) for name, child in held]
        places += [(parent, name, (parent, name)) for name in _function_attributes(parent)]
    new = {
        old: factory() for old in dict.fromkeys(old for _, _, old in places)
    }  # one for each, however often it stands
    for made in new.values():
        if not isinstance(made, nn.Module):
            raise ValueError(f"factory must return a module, got {made!r}")
    for parent, name, old in places:
        setattr(parent, name, new[old].train(parent.training))
    for module in model.modules():
        # The fast path of nn.TransformerEncoderLayer computes ReLU or GELU itself, whatever the layer holds, unless:
        if "activation_relu_or_gelu" in vars(module):
            vars(module)["activation_relu_or_gelu"] = 0
    return len(places)


def _is_activation_function(thing: Any) -> bool:
    while isinstance(thing, partial):
        thing = thing.func
    try:
        return thing in _FUNCTIONS
    except TypeError:  # unhashable
        return False


def _function_attributes(module: nn.Module) -> list[str]:
    """Attributes of this module that hold an activation function, such as ``self.act = F.relu``."""
    return [name for name, value in vars(module).items() if _is_activation_function(value)]


class _OwnCode(torch.fx.Tracer):
    """Traces what one module's forward does itself; its submodules stay closed."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _called_inside(module: nn.Module) -> set[str]:
    """Names of the activations that the module's own code calls as functions."""
    if isinstance(module, torch.jit.ScriptModule):
        return {"compiled TorchScript"}
    if isinstance(module, nn.RNN | nn.RNNCell) and module.nonlinearity == "relu":
        return {"relu"}
    if type(module).__module__.startswith("torch.") and not isinstance(module, torch.fx.GraphModule):
        return set()  # PyTorch's other modules call only what they hold as attributes
    if isinstance(module, RCTAF) or type(module).forward is nn.Module.forward:
        return set()
    before = dict(vars(module))
    try:
        for name in _function_attributes(module):  # these will be replaced
            vars(module)[name] = lambda x, *_, **__: x
        nodes = list(_OwnCode().trace(module).nodes)
    except Exception:  # whatever a forward may raise when it meets a Proxy: read its code instead
        forward = type(module).forward
        return _mentioned(forward.__code__, forward.__globals__, module, set())
    finally:
        vars(module).clear()
        vars(module).update(before)
    return {
        name
        for node in nodes
        for name in [node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")]
        if (node.op == "call_function" and _is_activation_function(node.target))
        or (node.op == "call_method" and name in _FUNCTION_NAMES)
    }


def _mentioned(code: CodeType, names: dict[str, Any], owner: nn.Module, seen: set[CodeType]) -> set[str]:
    """Names of the activation functions looked up by a method of ``owner``, or by any Python function it looks up."""
    if code in seen:
        return set()
    seen.add(code)
    found: set[str] = set()

    def follow(function: Any, bound: Any) -> None:
        if isinstance(function, FunctionType) and not (function.__module__ or "").startswith("torch."):
            found.update(_mentioned(function.__code__, function.__globals__, bound, seen))

    unknown = object()
    thing: Any = unknown  # what the expression read so far, such as self.block.act, stands for
    for step in dis.get_instructions(code):
        name = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
        if "LOAD_FAST" in step.opname or step.opname == "LOAD_DEREF":
            thing = owner if name == "self" else unknown
        elif step.opname == "LOAD_GLOBAL":
            thing = names.get(name, unknown)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and thing is not unknown:
            # an activation function held as an attribute will be replaced
            held = isinstance(thing, nn.Module) and name in _function_attributes(thing)
            thing = unknown if held else getattr(thing, name, unknown)
        else:
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and name in _FUNCTION_NAMES:
                found.add(name)  # a method of something computed: x.relu()
            thing = unknown
        if _is_activation_function(thing):
            found.add(name)
        follow(getattr(thing, "__func__", thing), getattr(thing, "__self__", owner))
        if isinstance(step.argval, CodeType):  # a function or comprehension inside this one
            found |= _mentioned(step.argval, names, owner, seen)
    if "super" in code.co_names:
        for base in type(owner).__mro__:
            follow(vars(base).get(code.co_name), owner)
    return found
