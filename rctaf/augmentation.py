"""Random augmentation of image batches, on the device, one independent draw per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4  # of the random crop, as in every recipe here


def augment(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Augment a batch; returns a new batch of the same shape and dtype.

    Args:
        x: images [N, C, H, W], any dtype.
        kind: ``none``, ``crop`` (zero-padded by 4, cropped back at random) or ``crop_flip``
            (then mirrored left-right with probability 1/2).
        generator: source of randomness, on the device of ``x``.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "none":
        return x
    if kind == "crop":
        return _crop(x, generator)
    if kind == "crop_flip":
        return _flip(_crop(x, generator), generator)
    raise ValueError(f"augment must be none, crop or crop_flip, got {kind!r}")


def _crop(x: Tensor, generator: torch.Generator) -> Tensor:
    n, _, height, width = x.shape
    padded = F.pad(x, (PADDING,) * 4)
    shift = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=generator, device=x.device)
    rows = shift[0] + torch.arange(height, device=x.device)
    columns = shift[1] + torch.arange(width, device=x.device)
    image = torch.arange(n, device=x.device)
    # indexing with [N, H, W] index tensors moves the channels last
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _flip(x: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    return torch.where(mirrored, x.flip(3), x)
