"""Normalisation as a choice of the network: batch norm with one or several sets of statistics, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SplitBatchNorm2d(nn.Module):
    """Batch norm with ``sets`` independent sets of statistics, gains and biases, one of them in use.

    DAJAT (Addepalli et al., 2022) keeps one set for lightly augmented images and one for AutoAugmented ones,
    with everything else in the network shared. :func:`select_norm` chooses the set; set 0 is used for evaluation.
    """

    def __init__(self, channels: int, sets: int) -> None:
        super().__init__()
        self.sets = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(sets))
        self.active = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.sets[self.active](x)


def select_norm(model: nn.Module, index: int) -> None:
    """Let every split batch norm of a model use set ``index``; plain batch norms are left as they are.

    Raises:
        ValueError: the model has split batch norms, but not that many sets.
    """
    for module in model.modules():
        if isinstance(module, SplitBatchNorm2d):
            if not 0 <= index < len(module.sets):
                raise ValueError(f"norm set must be between 0 and {len(module.sets) - 1}, got {index}")
            module.active = index


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluate with running batch-norm statistics; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def make_norm(kind: str, channels: int, sets: int) -> nn.Module:
    """A norm for ``channels`` feature maps: ``batch`` (split where ``sets`` > 1) or ``none`` (the identity).

    Raises:
        ValueError: an unknown kind, or fewer than one set.
    """
    if sets < 1:
        raise ValueError(f"norm_sets must be at least 1, got {sets}")
    if kind == "batch":
        return nn.BatchNorm2d(channels) if sets == 1 else SplitBatchNorm2d(channels, sets)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm must be batch or none, got {kind!r}")


def start_at_gain(model: nn.Module, gain: float) -> None:
    r"""Let every batch-norm gain of a residual network start at ``gain``, and its classifier ``gain`` times smaller.

    With activations of sharpness :math:`\alpha/g` in place of :math:`\alpha` this writes the same function in another
    way: :math:`\sigma_{\alpha/g}(g z) = g\, \sigma_\alpha(z)`. Every value between a norm and the next convolution is
    g times larger; the norm after that convolution divides by the standard deviation and so takes the g out again (up
    to its eps, 1e-5 beside the variance); a shortcut carries it to a sum whose other part has it too; and the
    classifier undoes it at the end. The convolutions stay as they are. The running variances, which attacks in
    evaluation mode use from the first step on, start :math:`g^2` times larger. All this needs a norm after every
    convolution: ``resnet_small`` and ``resnet18``, whose blocks end in an activation.

    **Which steps then differ.** Weight decay shrinks every parameter by the same fraction per step, whatever its scale.
    A gradient does not: of a parameter written k times larger it is k times smaller, so that steps of the same meaning
    need the learning rate :math:`k^2 \eta`.

    - The classifier's weights, k = 1/g: at the common rate their steps are :math:`g^2` times too long; the same
      trajectory needs :math:`\eta/g^2`, which ``RunConfig.head_lr`` = :math:`1/g^2` gives.
    - Gains and shifts, k = g: their steps are :math:`g^2` times too short; no setting changes that.
    - Convolutions and the classifier's bias, k = 1: nothing differs.
    """
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(gain)
                # the stem alone reads no activations; a norm without running statistics has none to scale
                if module.running_var is not None and not name.startswith("stem."):
                    module.running_var *= gain**2
            elif isinstance(module, nn.Linear):
                module.weight /= gain
