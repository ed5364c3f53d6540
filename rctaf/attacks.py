"""Projected gradient ascent in an l-infinity ball: what adversarial training maximises, and PGD-20."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rctaf.arithmetic import repeatable
from rctaf.models.norm import eval_mode

Objective = Callable[[Tensor], Tensor]  # logits [N, K] -> the scalar to maximise, a sum over the batch
Start = Literal["uniform", "gaussian"]


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits [N, K] in single precision at least.

    Autocast on a CPU (not on a GPU) leaves softmax and logarithm in bfloat16, whose three digits lose a small KL.
    """
    logits: Tensor = model(x)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def natural_logits(model: nn.Module, x: Tensor) -> Tensor:
    """The logits that an attack moves away from, held fixed; computed once, for they are the same at every step.

    In single precision even where autocast is on: see :func:`pgd`.
    """
    with eval_mode(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return logits_of(model, x)


def cross_entropy(y: Tensor) -> Objective:
    """CE of the logits and labels ``y`` [N], as Madry et al. (2018) and MART attack."""
    return lambda logits: F.cross_entropy(logits, y, reduction="sum")


def divergence_from(natural_logits: Tensor) -> Objective:
    """Soft cross-entropy from softmax(natural_logits), held fixed: the attack of TRADES, DAJAT and DKL.

    TRADES and DAJAT state it as KL(natural || attacked). The entropy of the fixed distribution is all that
    KL has beyond the soft cross-entropy, so both have the same gradient.
    """
    target = natural_logits.detach().softmax(1)
    return lambda logits: F.cross_entropy(logits, target, reduction="sum")


def pgd(
    model: nn.Module,
    x: Tensor,
    objective: Objective,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    start: Start,
    generator: torch.Generator,
) -> Tensor:
    """Ascend ``objective(model(x'))`` over x' in [0, 1] with max|x' - x| <= epsilon, in evaluation mode.

    Only the gradient with respect to x' is computed; the parameters' gradients are not touched. Under autocast the
    first step is in single precision nevertheless: bfloat16 cannot tell a start 0.001 away from x itself, and the
    signs of the first gradient would be half noise. So attacks under bf16 are as strong as others.

    Args:
        model: maps images to logits [N, K].
        x: images [N, C, H, W] in [0, 1].
        objective: what is maximised, of the logits; :func:`cross_entropy` or :func:`divergence_from`.
        steps: gradient steps; with 0 the start is returned.
        epsilon, step_size: in units of the pixel range; each step moves every pixel by ``step_size`` along the
            sign of its gradient, then projects.
        start: ``uniform`` in the ball (Madry et al.) or ``gaussian``, x + 0.001 N(0, 1) (TRADES and its heirs).
        generator: source of the start, on the device of ``x``.

    Returns:
        x', detached, shape of ``x``.

    Raises:
        ValueError: an unknown start.
    """
    low, high = (x - epsilon).clamp_(0, 1), (x + epsilon).clamp_(0, 1)
    if start == "uniform":
        noise = torch.empty_like(x).uniform_(-epsilon, epsilon, generator=generator)
        attacked = (x + noise).clamp_(0, 1)
    elif start == "gaussian":
        # not clamped, as in the original; the first step's projection does it
        attacked = x + torch.empty_like(x).normal_(0, 0.001, generator=generator)
    else:
        raise ValueError(f"start must be uniform or gaussian, got {start!r}")
    with eval_mode(model), torch.enable_grad():
        for step in range(steps):
            attacked.requires_grad_()
            with torch.autocast(x.device.type, enabled=False) if step == 0 else nullcontext():
                (gradient,) = torch.autograd.grad(objective(logits_of(model, attacked)), attacked)
            attacked = torch.add(attacked.detach(), gradient.sign_(), alpha=step_size)
            attacked = torch.clamp(attacked, low, high)
    return attacked.detach()


def check_labels(y: Tensor) -> None:
    """Refuse labels that are no vector: [N, 1] would be compared with the predictions of all images.

    Raises:
        ValueError: they have another shape than [N].
    """
    if y.ndim != 1:
        raise ValueError(f"labels must be a vector [{len(y)}] of class numbers, got {list(y.shape)}")


def check_classes(y: Tensor, classes: int) -> None:
    """Refuse labels that no logit belongs to: no prediction would ever be one of them.

    Raises:
        ValueError: a label is below 0, or not below the number of classes.
    """
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be class numbers from 0 to {classes - 1}, these lie in [{low}, {high}]")


def check_finite(finite: Tensor) -> None:
    """Refuse a model whose logits are NaN, of which the first counts as the largest, or infinite.

    Raises:
        ValueError: ``finite``, whether all of them are finite, is false.
    """
    if not bool(finite):
        raise ValueError("the model's logits are not finite: has the training diverged?")


def check_range(x: Tensor, epsilon: float) -> None:
    """Refuse images, of which there is at least one, that an attack would clamp to [0, 1], and a radius in other units.

    Raises:
        ValueError: images or epsilon lie outside [0, 1].
    """
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must lie in [0, 1], these lie in [{low:g}, {high:g}]; let the model itself scale them"
        )
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], in the units of the images (8 / 255, not 8), got {epsilon}")


@repeatable()
def pgd20(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, seed: int = 0, batch_size: int = 500) -> Tensor:
    """Images after PGD-20: 20 steps of epsilon / 4 up the cross-entropy, from one uniform start in the ball.

    A quick attack: a model can pass it and still fall to AutoAttack, so accuracy under it is never called robust.

    Args:
        model: maps images [N, C, H, W] in [0, 1] to logits [N, K].
        x: images; y: labels [N].
        epsilon: radius in the units of ``x``.
        seed: of the starts.
        batch_size: images attacked at once.

    Returns:
        The attacked images, shape of ``x``.

    Raises:
        ValueError: images and labels differ in number, images or epsilon lie outside [0, 1], or logits are not finite.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} images and {len(y)} labels: expected as many of each")
    if len(x):
        check_range(x, epsilon)
    generator = torch.Generator(x.device).manual_seed(seed)
    attacked = torch.empty_like(x)
    finite: list[Tensor] = []  # of each step, on the device until the end

    def watched(objective: Objective) -> Objective:
        def watching(logits: Tensor) -> Tensor:
            finite.append(logits.detach().isfinite().all())
            return objective(logits)

        return watching

    for a, b, out in zip(x.split(batch_size), y.split(batch_size), attacked.split(batch_size), strict=True):
        out.copy_(
            pgd(
                model, a, watched(cross_entropy(b)), epsilon=epsilon, steps=20, step_size=epsilon / 4, start="uniform",
                generator=generator,
            )
        )  # fmt: skip
    if finite:
        check_finite(torch.stack(finite).all())
    return attacked
