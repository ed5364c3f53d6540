"""RCT-AF directly after a batch norm in training mode, or of a sum: nothing is saved that the network does not hold.

What a norm keeps for its own backward pass is enough to compute its output again. To find that, and to put a stand-in
for the output into the graph, this module reads private attributes of PyTorch:

- of the backward node of a batch norm: ``_saved_training``, ``_saved_input``, ``_saved_weight``, ``_saved_result1``
  and ``_saved_result2`` (mean and inverse standard deviation of the batch), and its name;
- of the backward node of the activation: ``_raw_saved_tensors``;
- ``torch._C._autograd._top_saved_tensors_default_hooks``: whether hooks handle what is saved;
- of the activation module: ``_forward_hooks``, ``_forward_pre_hooks``, ``_backward_hooks``, ``_backward_pre_hooks``,
  and ``torch.nn.modules.module._has_any_global_hook``: whether hooks hang on its call.

In a version of PyTorch that lacks one of them the argument itself is saved, as by any other activation: the results are
the same and only memory is lost.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from rctaf import _kernels
from rctaf._derivative import Derivative
from rctaf._native import Summand, plain

_STAND_INS = hasattr(torch._C._FunctionBase, "_raw_saved_tensors")


def _norm_behind(y: Tensor) -> Summand | None:
    """The batch norm in training mode whose output ``y`` is, if it still keeps what it was computed from; else None.

    The norm keeps everything but its bias, which is taken to be what it was when the norm was called.
    """
    node: Any = y.grad_fn
    if type(node).__name__ not in ("NativeBatchNormBackward0", "CudnnBatchNormBackward0"):
        return None
    try:
        if not node._saved_training or y.output_nr or y._version:
            return None
        x, weight, mean, inverse_std = node._saved_input, node._saved_weight, node._saved_result1, node._saved_result2
    except (AttributeError, RuntimeError):  # the latter: a backward pass has freed them, or they were changed in place
        return None
    bias = getattr(node.next_functions[2][0], "variable", None)
    if weight is None or bias is None:
        return None
    with torch.no_grad():  # in single precision at least, which the kernels ask for
        scale = _kernels.widen(inverse_std) * weight
        shift = torch.addcmul(_kernels.widen(bias), _kernels.widen(mean), scale, value=-1)
    return Summand(x, scale, shift)


class _OfSum(torch.autograd.Function):
    """sigma of one value or of the sum of two, through :func:`activate`, which puts stand-ins for what a norm made.

    A stand-in has the place of the norm's output in the graph, not its memory; the values are computed again.
    """

    @staticmethod
    def forward(ctx: Any, alpha: float, beta: int, norms: tuple[Summand | None, ...], *values: Tensor) -> Tensor:
        ctx.alpha, ctx.beta, ctx.from_norm = alpha, beta, [norm is not None for norm in norms]
        ctx.save_for_backward(*values, *(t for norm in norms if norm is not None for t in norm))
        return _kernels.derivative_of_sum(tuple(map(Summand, values)), alpha, beta, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        values = list(islice(saved, len(ctx.from_norm)))
        terms = [Summand(*islice(saved, 3)) if norm else None for norm in ctx.from_norm]
        if torch.is_grad_enabled() or _kernels.has_tangent(grad):  # somebody differentiates once more
            # of a norm's output the value is computed; the stand-in, which is zero, adds its place in the graph
            known = (None if term is None else _kernels.value(term).detach() for term in terms)
            x = sum(y if output is None else y + output for y, output in zip(values, known, strict=True))
            result = grad * Derivative.apply(x, ctx.alpha, ctx.beta, 1)
        else:
            summands = tuple(Summand(y) if term is None else term for y, term in zip(values, terms, strict=True))
            result = _kernels.derivative_of_sum(summands, ctx.alpha, ctx.beta, 1, grad)
        return None, None, None, *[result] * len(values)


def _stand_in(y: Tensor) -> Tensor:
    """Zeros in the shape of ``y`` that take the memory of one number."""
    return y.new_zeros(()).expand_as(y)


def activate(alpha: float, beta: int, *values: Tensor) -> Tensor:
    """sigma of one value or of the sum of two. Of a batch norm's output nothing is saved: it is computed again.

    The norm keeps its input for its own backward pass; ReLU keeps its output, which the next layer keeps too. So a
    network with this activation holds what one with ReLU holds.
    """
    norms = tuple(map(_norm_behind, values))
    result: Tensor = _OfSum.apply(alpha, beta, norms, *values)
    for norm, saved in zip(norms, result.grad_fn._raw_saved_tensors, strict=False):  # type: ignore[union-attr]
        if norm is not None:
            saved.register_hooks(_stand_in, lambda y: y)
    return result


def saves_plainly(*values: Tensor) -> bool:
    """Whether backward autograd alone is at work on these values, and nothing handles what it saves."""
    return (
        not torch.compiler.is_compiling()
        and _STAND_INS
        and torch.is_grad_enabled()
        and all(plain(value) for value in values)
        and any(value.requires_grad for value in values)
        and not any(value.is_inference() for value in values)  # which cannot be saved; their sum can
        and not _kernels.has_tangent(*values)
        and _default_hooks() is None  # such as those of a checkpoint
    )


def _default_hooks() -> Any:
    """Those that handle what autograd saves, None if there are none; something else if PyTorch does not tell."""
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return ask(True) if ask else "unknown"


def hooked(module: nn.Module) -> bool:
    """Whether hooks hang on a call of the module, or may: whoever calls its function instead would pass them over."""
    try:
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        return any(hooks) or torch.nn.modules.module._has_any_global_hook()
    except AttributeError:
        return True
