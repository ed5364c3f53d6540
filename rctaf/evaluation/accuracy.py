"""Counts of correct predictions and the mean loss, of clean or attacked images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rctaf.arithmetic import repeatable
from rctaf.attacks import check_classes, check_finite, check_labels
from rctaf.models.norm import eval_mode


@repeatable()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 500) -> tuple[int, int]:
    """How many images are classified correctly, and how many there are; in eval mode.

    Args:
        model: maps images [N, ...] in [0, 1] to logits [N, C].
        x: images [N, ...]; y: labels [N].
        batch_size: images per forward pass.

    Raises:
        ValueError: images and labels differ in number, the labels are no vector or no numbers of the C classes, or
            logits are not finite.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} images and {len(y)} labels: expected as many of each")
    check_labels(y)
    with eval_mode(model), torch.no_grad():
        found, finite, classes = [], [], 0  # on the device until the end
        for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True):
            logits = model(a)
            found.append((logits.argmax(1) == b).sum())
            finite.append(logits.isfinite().all())
            classes = logits.shape[1]
    if len(x):
        check_finite(torch.stack(finite).all())
        check_classes(y, classes)
    return sum(torch.stack(found).tolist()) if found else 0, len(x)


@repeatable()
def mean_loss(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 500) -> float:
    """Mean cross-entropy over the images, in eval mode. Shapes as in :func:`accuracy`.

    Raises:
        ValueError: images and labels differ in number, or there are none.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"{len(x)} images and {len(y)} labels: expected as many of each, at least one")
    with eval_mode(model), torch.no_grad():
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        total = sum(F.cross_entropy(model(a), b, reduction="sum").double() for a, b in parts)
    return float(total) / len(x)
