"""Normalisation as a choice of the network: batch norm with one or several sets of statistics, or none."""

from __future__ import annotations

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


def make_norm(kind: str, channels: int, sets: int = 1) -> nn.Module:
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


def start_as_shortcut(last: nn.Conv2d) -> None:
    """Zero the last convolution of a residual branch, so that the block begins as its shortcut.

    Without batch norm the variance of a residual sum would double at every block; beginning with empty
    branches (as in Fixup and SkipInit) keeps any depth trainable at the usual learning rates.
    """
    with torch.no_grad():
        last.weight.zero_()
        if last.bias is not None:
            last.bias.zero_()
