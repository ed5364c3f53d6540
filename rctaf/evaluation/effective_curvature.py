"""How curved an activation is over the range that it really sees.

max|σ″| has the unit 1/(pre-activation). Since σ_{α,β}(z) = σ_{1,β}(αz)/α, the sharpness α can be traded
against the scale of what comes in: (α, z) → (α/k, kz) multiplies the output by k, which the next linear map
can undo. So the function of a network does not determine α. Two dimensionless numbers, per layer, are the same for
all ways of writing a function that this trade offers (Theorem "Invariance" of the book), with z the pre-activation:

    κ = α · std(z)                 how many bend-widths 1/α the pre-activations cover (RCT-AF only); the
                                   *effective curvature* of the book;
    max|σ″| · std(z)              the same in curvature: 2^(β-2) κ for RCT-AF up to order 4, and defined for
                                   every activation whose second derivative is bounded.

Within one order they differ by a constant; between orders only the second can be equal where max|σ″| and std(z) are.
The function alone does not determine them: a neuron added with outgoing weights 0 changes std(z), and no output.

Where a batch norm stands directly before the activation, α · |gain| is the part of κ of one channel. All three
are unchanged under (α, gain, bias) → (α/k, k·gain, k·bias).

Not to be confused with the *rms curvature*, the root mean square of σ″ over normal inputs, which the axis
``rms_curvature`` of a grid means (:func:`rctaf.family.rms_curvature_at_start`).
"""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rctaf.activations import ACTIVATION_MODULES, RCTAF, modules_of
from rctaf.arithmetic import repeatable
from rctaf.family import curvature
from rctaf.models.norm import eval_mode


@dataclass(frozen=True)
class LayerCurvature:
    """One activation layer.

    Attributes:
        name: of the module in the model; calls of one module in several places are pooled.
        std: standard deviation of the pre-activations over images, channels and positions.
        curvature: max|σ″| of the activation; None where σ′ jumps (ReLU, Leaky ReLU, SELU, ...).
        kappa: α · std; None for other activations than RCT-AF.
        curvature_std: curvature · std; None where there is no curvature.
        gain_kappa: α · abs(gain) of each channel of the batch norm directly before; None where there is none.
    """

    name: str
    std: float
    curvature: float | None
    kappa: float | None
    curvature_std: float | None
    gain_kappa: list[float] | None


@dataclass
class _Sums:
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    norm: nn.Module | None = None

    def std(self) -> float:
        mean = self.total / self.count
        return math.sqrt(max(0.0, self.squares / self.count - mean * mean))


@repeatable()
def effective_curvature(model: nn.Module, x: Tensor, batch_size: int = 500) -> list[LayerCurvature]:
    """Measure every activation module of a model on images, in eval mode, in the order in which they are used.

    What is called as a function is left out, such as the GELU of ``nn.TransformerEncoderLayer(activation="gelu")``.

    Args:
        model: holds its activations as modules (of the kinds of ``rctaf.activations.ACTIVATION_MODULES``).
        x: images [N, ...].
        batch_size: images per forward pass.

    Raises:
        ValueError: no images, no activation was met, or pre-activations are not finite.
    """
    if len(x) == 0:
        raise ValueError("no images given, expected at least one")
    names = modules_of(model)
    sums: dict[nn.Module, _Sums] = {}
    # a batch norm is "directly before" if its output is what comes in
    last_norm: tuple[Tensor, nn.Module] | None = None

    def after_norm(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal last_norm
        last_norm = (output, module)

    def before_activation(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        (z,) = (*inputs, *named.values())  # act(z), or act(input=z)
        entry = sums.setdefault(module, _Sums())
        wide = z.detach().double()
        entry.count += wide.numel()
        entry.total += wide.sum().item()
        entry.squares += wide.square().sum().item()
        entry.norm = last_norm[1] if last_norm is not None and last_norm[0] is z else None

    # compiled code may take no notice of hooks
    with ExitStack() as hooks, eval_mode(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for module in names:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                hooks.enter_context(module.register_forward_hook(after_norm))
            elif isinstance(module, ACTIVATION_MODULES):
                hooks.enter_context(module.register_forward_pre_hook(before_activation, with_kwargs=True))
        for part in x.split(batch_size):
            model(part)
    if not sums:
        raise ValueError("the model used no activation module (RCTAF, or one of PyTorch's)")
    return [_layer(names[module], module, entry) for module, entry in sums.items()]


def _layer(name: str, module: nn.Module, entry: _Sums) -> LayerCurvature:
    if not math.isfinite(entry.squares):  # the largest of nothing and NaN would be a deviation of 0
        raise ValueError(f"what comes into activation {name!r} is not finite: has the training diverged?")
    std = entry.std()
    alpha = module.alpha if isinstance(module, RCTAF) else None
    bound = curvature(module.alpha, module.beta) if isinstance(module, RCTAF) else _measured_curvature(module)
    gain = getattr(entry.norm, "weight", None)
    return LayerCurvature(
        name=name,
        std=std,
        curvature=bound,
        kappa=None if alpha is None else alpha * std,
        curvature_std=None if bound is None else bound * std,
        gain_kappa=None if alpha is None or gain is None else (alpha * gain.detach().double().abs()).tolist(),
    )


def _measured_curvature(module: nn.Module) -> float | None:
    """max|σ″| of an activation between -20 and 20, in float64; None where σ′ jumps."""
    activation = copy.deepcopy(module).cpu().double().eval()
    channels = getattr(module, "num_parameters", 1)  # PReLU may have a slope for each; all others treat them alike

    def derivatives(points: Tensor) -> tuple[Tensor, Tensor]:
        """σ′ and σ″ at the points, [points, channels]."""
        z = points[:, None].repeat(1, channels).requires_grad_()
        sigma = activation.forward(z.clone())  # past the caller's hooks, which the copy has too
        (first,) = torch.autograd.grad(sigma.sum(), z, create_graph=True)
        second = torch.autograd.grad(first.sum(), z)[0] if first.requires_grad else torch.zeros_like(z)
        return first.detach(), second

    options: Any = {"dtype": torch.float64, "device": "cpu"}
    sides = torch.tensor([-1e-12, 1e-12], **options)
    ends = derivatives(sides)[1]
    # coarse, then around the largest: an error of (1e-7)² times the fourth derivative
    points = torch.linspace(-20, 20, 40001, **options)
    slopes, bends = derivatives(points)
    # between two points σ′ changes by their distance times max|σ″|, and by more only where it jumps
    if slopes.diff(dim=0).abs().max() > 1.01 * 1e-3 * torch.maximum(bends.abs().max(), ends.abs().max()) + 1e-6:
        return None
    peak = points[bends.abs().amax(1).argmax()]
    fine = derivatives(peak + torch.linspace(-1e-3, 1e-3, 20001, **options))[1]
    return max(fine.abs().max().item(), ends.abs().max().item())
