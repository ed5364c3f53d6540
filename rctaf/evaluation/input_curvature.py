r"""How strongly the loss bends in the *inputs*, which an attack moves; Eq. 8 of the paper differentiates by weights.

For one image x with label y let ℓ be the cross-entropy, g = ∇_x ℓ and H = ∇²_x ℓ (pixels in [0, 1]). To second order

    ℓ(x + δ) - ℓ(x) = gᵀδ + ½ δᵀHδ,

so a change δ of norm ‖δ‖∞ ≤ ε raises the loss by at most ε‖g‖₁ through its slope, and by at most ½ ‖H‖₂ ‖δ‖₂² through
its curvature. Moosavi-Dezfooli et al. (2019) find that adversarial training makes the eigenvalues of H small. σ″ enters
H by the formula of Eq. 7, with the neurons' sensitivity to pixels in place of that to weights. Three measures, each a
mean over images:

- ‖H‖₂, the largest absolute eigenvalue, by the power method: ‖Hv‖ of a unit vector v, growing towards it from below.
- Its ratio to ‖g‖₂, which the scale of the loss cancels in, and with it the confidence of the network
  (Srinivas et al. 2022; here the ratio of the two means, for on a fitted image both may be 0).
- The local linearity error max |ℓ(x + δ) - ℓ(x) - gᵀδ| over ‖δ‖∞ ≤ ε (Qin et al. 2019), by gradient ascent from
  several starts, so again from below. Unlike H it looks at steps as long as an attack's, and so sees the kinks of ReLU.

All three depend on the function alone, not on how its weights are written (Theorem "Absorption" of the book).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rctaf.arithmetic import repeatable
from rctaf.attacks import check_labels, check_range, logits_of
from rctaf.evaluation.hessian import check_number, layer_values, twice_differentiable

_PRODUCTS = 30  # of the power method; on digits the mean is then within a thousandth of the exact one
_STEPS = 20  # of the ascent, each a quarter of epsilon, as in PGD-20; 40 find 1 % more
# Of the ascent. Along and against the direction in which the loss bends there are two hills, and one start finds the
# wrong one for many images: on digits 1, 5 and 10 starts find 75, 95 and 98 % of what 40 find.
_STARTS = 10
_IMAGES = 128  # differentiated at once
_LAYER_ELEMENTS = (
    2**28
)  # values of all layers for these images: some 4 GiB in float32 with what a second derivative needs
_TINY = 1e-30  # in place of a norm of 0


@dataclass(frozen=True)
class InputCurvature:
    """Means over images.

    Attributes:
        images: how many.
        epsilon: the ℓ∞ radius of ``linearity_error``, in the units of the pixels.
        gradient_l1: ‖∇_x ℓ‖₁; epsilon times it is how far the slope alone can raise the loss.
        gradient_l2: ‖∇_x ℓ‖₂.
        spectral_norm: ‖∇²_x ℓ‖₂, per squared pixel range.
        normalised: ``spectral_norm`` over ``gradient_l2``; None where that is 0.
        linearity_error: the largest ``|ℓ(x + δ) - ℓ(x) - ∇ℓᵀδ|`` that was found within epsilon and [0, 1].
    """

    images: int
    epsilon: float
    gradient_l1: float
    gradient_l2: float
    spectral_norm: float
    normalised: float | None
    linearity_error: float


@repeatable()
def input_curvature(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, seed: int = 0) -> InputCurvature:
    """Measure slope and curvature of the cross-entropy in the pixels, in eval mode.

    Args:
        model: maps images [N, ...] in [0, 1] to logits [N, K].
        x: images; y: labels [N].
        epsilon: ℓ∞ radius in the units of ``x``.
        seed: of the start of the power method and of the ascent.

    Raises:
        ValueError: no images, another number of labels, images or epsilon outside [0, 1], or a loss or derivative that
            is not finite.
    """
    check_number(x, y)
    check_labels(y)
    check_range(x, epsilon)
    generator = torch.Generator(x.device).manual_seed(seed)
    rows = []
    with twice_differentiable(model, x.device):
        number = max(1, min(_IMAGES, _LAYER_ELEMENTS // max(1, layer_values(model, lambda: model(x[:1])))))
        for images, labels in zip(x.split(number), y.split(number), strict=True):
            loss, gradient, spectral = _derivatives(model, images, labels, generator)
            error = _linearity_error(model, images, labels, epsilon, loss, gradient, generator)
            flat = gradient.flatten(1)
            rows.append(torch.stack([flat.norm(p=1, dim=1), flat.norm(dim=1), spectral, error], 1))
    l1, l2, spectral_norm, linearity_error = torch.cat(rows).double().mean(0).tolist()
    if not math.isfinite(l1 + spectral_norm + linearity_error):
        raise ValueError("the loss or its derivatives in the images are not finite: has the training diverged?")
    normalised = spectral_norm / l2 if l2 > 0 else None
    return InputCurvature(len(x), epsilon, l1, l2, spectral_norm, normalised, linearity_error)


def _derivatives(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """For each image: the loss [N], its gradient [N, ...] and the largest absolute eigenvalue of its Hessian [N]."""
    x = x.detach().clone().requires_grad_()
    losses = F.cross_entropy(logits_of(model, x), y, reduction="none")
    # in eval mode no image depends on another: one product with the Hessian of the sum is one for each image
    (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    v = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    for _ in range(_PRODUCTS):
        norm = v.flatten(1).norm(dim=1).clamp_min(_TINY).view(-1, *[1] * (x.ndim - 1))
        (v,) = torch.autograd.grad(gradient, x, v / norm, retain_graph=True)
    return losses.detach(), gradient.detach(), v.flatten(1).norm(dim=1)


def _linearity_error(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, loss: Tensor, gradient: Tensor, generator: torch.Generator
) -> Tensor:
    """max |ℓ(x + δ) - ℓ(x) - gᵀδ| of each image [N]: the best point on the ways of signed gradient ascents."""
    low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    largest = torch.zeros_like(loss)
    for _ in range(_STARTS):
        moved = low + (high - low) * torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        for step in range(_STEPS + 1):
            moved.requires_grad_()
            losses = F.cross_entropy(logits_of(model, moved), y, reduction="none")
            (slope,) = torch.autograd.grad(losses.sum(), moved)
            moved = moved.detach()
            error = losses.detach() - loss - (gradient * (moved - x)).flatten(1).sum(1)
            largest = torch.maximum(largest, error.abs())
            if step < _STEPS:
                uphill = error.sign().view(-1, *[1] * (x.ndim - 1)) * (slope - gradient)
                moved = torch.clamp(moved + epsilon / 4 * uphill.sign(), low, high)
    return largest
