"""Random augmentation of image batches, on the device, one independent draw per image."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4  # of the random crop, as in every recipe here


def augment(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Augment a batch; returns one of the same shape and dtype.

    Args:
        x: images [N, C, H, W], any dtype.
        kind: ``none`` (the batch itself), ``crop`` (zero-padded by 4, cropped back at random) or ``crop_flip``
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


# The CIFAR-10 policy of AutoAugment (Cubuk et al. 2019, appendix): each of the 25 sub-policies is two operations,
# each with its probability and its strength on a scale of ten (0..9).
POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)


def auto_augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """AutoAugment with the CIFAR-10 policy, one sub-policy per image; returns uint8.

    Every operation is the one of the Python Imaging Library that the original calls (grey 128 outside the image;
    shears, unlike rotations, have a random sign), here on all images of the batch that drew it.

    Args:
        x: images [N, C, H, W], uint8 or float in [0, 1], C = 1 or 3.
        generator: on the CPU: which images meet which operation is decided there, so a GPU is not waited for.
    """
    if x.dtype != torch.uint8:
        x = (x * 255).round().to(torch.uint8)
    chosen = torch.randint(len(POLICY), (len(x),), generator=generator).tolist()
    luck = torch.rand(2, len(x), generator=generator).tolist()
    signs = torch.randint(2, (2, len(x)), generator=generator).mul_(2).sub_(1).tolist()
    for place in (0, 1):
        drawn: dict[str, tuple[list[int], list[float]]] = {}
        for image, policy in enumerate(chosen):
            operation, probability, level = POLICY[policy][place]
            if luck[place][image] < probability:
                images, strengths = drawn.setdefault(operation, ([], []))
                images.append(image)
                strengths.append(strength(operation, level, signs[place][image]))
        x = x.clone()
        for operation, (images, strengths) in drawn.items():
            index = torch.tensor(images).to(x.device, non_blocking=True)
            amount = torch.tensor(strengths, dtype=torch.float64).to(x.device, non_blocking=True)
            x[index] = OPERATIONS[operation](x[index], amount[:, None, None, None])
    return x


def strength(operation: str, level: int, sign: int) -> float:
    """What a level of 0..9 means for an operation: degrees, fraction of the image, threshold, bits, or factor."""
    part = level / 9
    match operation:
        case "rotate":
            return 30 * part
        case "shear_y":
            return sign * 0.3 * part
        case "translate_x" | "translate_y":
            return sign * 150 / 331 * part
        case "solarize":
            return 256 * (1 - part)
        case "posterize":
            return round(8 - 4 * part)
        case "brightness" | "color" | "contrast" | "sharpness":
            return 1 + sign * 0.9 * part
    return 0.0


def _blend(base: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """base + factor (x - base) in single precision, cut to 0..255 and towards zero."""
    base, x = base.float(), x.float()
    return (base + factor.float() * (x - base)).clamp_(0, 255).to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    """Luminance [N, 1, H, W], int64, rounded as ITU-R 601 in 16-bit integers."""
    x = x.long()
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, 1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = (_grey(x).double().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean, x, factor)


def _sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed copy: weights 1 around 5, over 13; the border stays as it is."""
    n, channels, height, width = x.shape
    kernel = torch.ones(1, 1, 3, 3, device=x.device)
    kernel[..., 1, 1] = 5
    sums = F.conv2d(x.float().reshape(n * channels, 1, height, width), kernel)  # whole numbers, so exact
    smooth = x.float()
    smooth[..., 1:-1, 1:-1] = (sums / 13 + 0.5).floor().reshape(n, channels, height - 2, width - 2)
    return _blend(smooth, x, factor)


def _posterize(x: Tensor, bits: Tensor) -> Tensor:
    return (x.long() & ~((1 << (8 - bits.long())) - 1)).to(torch.uint8)


def _autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to 0..255."""
    low, high = x.double().amin((2, 3), keepdim=True), x.double().amax((2, 3), keepdim=True)
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)  # 255 / tensor would take a rounded reciprocal
    # a flat channel stays as it is
    return torch.where(high > low, (x * scale - low * scale).clamp(0, 255).to(torch.uint8), x)


def _equalize(x: Tensor, _: Tensor) -> Tensor:
    """Make each channel's histogram flat."""
    n, channels, height, width = x.shape
    flat = x.reshape(n * channels, -1).long()
    histogram = torch.zeros(n * channels, 256, dtype=torch.long, device=x.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    brightest = histogram.gather(1, flat.amax(1, keepdim=True))
    step = (height * width - brightest) // 255
    below = histogram.cumsum(1) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    # nothing to spread: one level only, or too few pixels
    return torch.where(step > 0, table.gather(1, flat), flat).to(torch.uint8).reshape(x.shape)


def _affine(x: Tensor, matrix: tuple[Tensor | float, ...], cubic: bool) -> Tensor:
    """out(column, row) = x(a col + b row + c, d col + e row + f) at pixel centres; 128 where that is outside.

    Nearest pixel, or cubic convolution (a = -1) with the edge repeated.
    """
    n, channels, height, width = x.shape
    a, b, c, d, e, f = matrix
    row = (torch.arange(height, device=x.device, dtype=torch.float64) + 0.5)[None, None, :, None]
    column = (torch.arange(width, device=x.device, dtype=torch.float64) + 0.5)[None, None, None, :]
    u = (a * column + b * row + c).expand(n, 1, height, width)
    v = (d * column + e * row + f).expand(n, 1, height, width)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    flat = x.reshape(n, channels, -1)

    def pixel(i: Tensor, j: Tensor) -> Tensor:
        index = (i.clamp(0, height - 1) * width + j.clamp(0, width - 1)).long()
        return flat.gather(2, index.reshape(n, 1, -1).expand(-1, channels, -1)).reshape(x.shape)

    if cubic:
        i, j = (v - 0.5).floor(), (u - 0.5).floor()
        rows = [_cubic([pixel(i + k, j + m) for m in range(-1, 3)], u - 0.5 - j) for k in range(-1, 3)]
        out = _cubic(rows, v - 0.5 - i).clamp(0, 255).to(torch.uint8)
    else:
        out = pixel(v.floor(), u.floor())
    return torch.where(inside, out, torch.full_like(out, 128))


def _cubic(values: list[Tensor], t: Tensor) -> Tensor:
    """Cubic convolution between the values at -1, 0, 1, 2, for a point at t in [0, 1)."""
    p, q, r, s = (value.double() for value in values)
    return q + t * (r - p + t * (2 * (p - q) + r - s + t * (q - p - r + s)))


def _rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Counter-clockwise about the centre."""
    angle = -degrees * math.pi / 180
    cos, sin = angle.cos(), angle.sin()
    x0, y0 = x.shape[3] / 2, x.shape[2] / 2
    return _affine(x, (cos, sin, x0 - cos * x0 - sin * y0, -sin, cos, y0 + sin * x0 - cos * y0), cubic=False)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rotate": _rotate,
    "shear_y": lambda x, m: _affine(x, (1.0, 0.0, 0.0, m, 1.0, 0.0), cubic=True),
    "translate_x": lambda x, m: _affine(x, (1.0, 0.0, m * x.shape[3], 0.0, 1.0, 0.0), cubic=False),
    "translate_y": lambda x, m: _affine(x, (1.0, 0.0, 0.0, 0.0, 1.0, m * x.shape[2]), cubic=False),
    "invert": lambda x, _: 255 - x,
    "solarize": lambda x, threshold: torch.where(x < threshold, x, 255 - x),
    "posterize": _posterize,
    "brightness": lambda x, factor: _blend(torch.zeros_like(x), x, factor),
    "color": lambda x, factor: _blend(_grey(x), x, factor),
    "contrast": _contrast,
    "sharpness": _sharpness,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
