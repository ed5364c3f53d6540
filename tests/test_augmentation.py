"""AutoAugment's operations against the Python Imaging Library, the policy against torchvision's table."""

import collections

import numpy as np
import pytest
import torch

from rctaf import data
from rctaf.augmentation import OPERATIONS, POLICY, auto_augment, strength

Image = pytest.importorskip("PIL.Image")
ImageEnhance = pytest.importorskip("PIL.ImageEnhance")
ImageOps = pytest.importorskip("PIL.ImageOps")

GREY = 128


def by_pillow(operation, image, m):
    """The original's call for one image; ``m`` as :func:`strength` gives it."""
    colour = (GREY,) * 3 if image.mode == "RGB" else GREY
    width, height = image.size
    if operation == "rotate":
        turned = image.convert("RGBA").rotate(m)
        return Image.composite(turned, Image.new("RGBA", turned.size, (GREY,) * 4), turned).convert(image.mode)
    matrices = {
        "shear_y": ((1, 0, 0, m, 1, 0), Image.Resampling.BICUBIC),
        "translate_x": ((1, 0, m * width, 0, 1, 0), Image.Resampling.NEAREST),
        "translate_y": ((1, 0, 0, 0, 1, m * height), Image.Resampling.NEAREST),
    }
    if operation in matrices:
        matrix, resample = matrices[operation]
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=colour)
    enhancers = {name.lower(): getattr(ImageEnhance, name) for name in ("Brightness", "Color", "Contrast", "Sharpness")}
    if operation in enhancers:
        return enhancers[operation](image).enhance(m)
    if operation == "solarize":
        return ImageOps.solarize(image, m)
    if operation == "posterize":
        return ImageOps.posterize(image, int(m))
    return getattr(ImageOps, operation)(image)


@pytest.fixture(scope="module")
def images():
    """Noise, smooth ramps, few levels, one level: [N, 3, 32, 32]."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(32), np.arange(32))[None] * np.array([1, 2, 4])[:, None, None]
    stack = [
        rng.integers(0, 256, (3, 32, 32)),
        ramp,
        rng.integers(60, 64, (3, 32, 32)),
        np.full((3, 32, 32), 77),
        rng.integers(0, 256, (3, 32, 32)) // 64 * 80,
    ]
    return torch.tensor(np.stack(stack).clip(0, 255), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_operations_are_pillows(operation, channels, images):
    x = images[:, :channels]
    for level in range(10):
        for sign in (-1, 1):
            m = strength(operation, level, sign)
            ours = OPERATIONS[operation](x, torch.full((len(x), 1, 1, 1), m, dtype=torch.float64))
            for image, out in zip(x, ours, strict=True):
                array = image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy()
                theirs = np.asarray(by_pillow(operation, Image.fromarray(array), m))
                theirs = theirs[None] if channels == 1 else theirs.transpose(2, 0, 1)
                difference = np.abs(out.numpy().astype(int) - theirs)
                # Pillow rotates in fixed point: a pixel in a thousand whose source lies on an edge may differ
                allowed = 0.002 if operation == "rotate" else 0
                assert (difference > 0).mean() <= allowed, (operation, level, sign, difference.max())


def test_the_policy_is_the_published_one():
    transforms = data.import_torchvision("transforms")
    published = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10).policies

    def plain(sub):
        return [(name.lower().replace("_", ""), probability, level) for name, probability, level in sub]

    def used(name):  # torchvision gives no level where none is used
        return name not in ("autocontrast", "equalize", "invert")

    assert {name for sub in POLICY for name, _, _ in sub} == set(OPERATIONS)
    for ours, theirs in zip(POLICY, published, strict=True):
        for (name, p, level), (name2, p2, level2) in zip(plain(ours), plain(theirs), strict=True):
            assert (name, p) == (name2, p2)
            assert level == level2 or not used(name)


LEVELS = {  # as the implementation that DAJAT takes up lists them; where a sign is drawn, to be multiplied by it
    "rotate": np.linspace(0, 30, 10),
    "solarize": np.linspace(256, 0, 10),
    "posterize": np.round(np.linspace(8, 4, 10)),
    **dict.fromkeys(("autocontrast", "equalize", "invert"), np.zeros(10)),
}
SIGNED = {
    "shear_y": np.linspace(0, 0.3, 10),
    **dict.fromkeys(("translate_x", "translate_y"), np.linspace(0, 150 / 331, 10)),
}
FACTORS = dict.fromkeys(("brightness", "color", "contrast", "sharpness"), np.linspace(0, 0.9, 10))


@pytest.mark.parametrize("sign", [-1, 1])
def test_levels_are_the_originals(sign):
    assert {*LEVELS, *SIGNED, *FACTORS} == set(OPERATIONS)
    for level in range(10):
        wanted = {name: values[level] for name, values in LEVELS.items()}
        wanted |= {name: sign * values[level] for name, values in SIGNED.items()}
        wanted |= {name: 1 + sign * values[level] for name, values in FACTORS.items()}
        assert {name: strength(name, level, sign) for name in wanted} == pytest.approx(wanted, rel=1e-12)


def test_every_image_goes_through_the_operations_it_drew(images):
    """One image after another, in Pillow: which sub-policy, whether each of its two operations fires, and its sign."""
    x = images.repeat(60, 1, 1, 1)
    out = auto_augment(x, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randint(25, (len(x),), generator=generator)
    luck = torch.rand(2, len(x), generator=generator)
    signs = 2 * torch.randint(2, (2, len(x)), generator=generator) - 1
    for i, (before, after) in enumerate(zip(x, out, strict=True)):
        image, fired = Image.fromarray(before.permute(1, 2, 0).numpy()), []
        for place, (name, probability, level) in enumerate(POLICY[chosen[i]]):
            if luck[place, i] < probability:
                image = by_pillow(name, image, strength(name, level, int(signs[place, i])))
                fired.append(name)
        if "rotate" not in fired:  # in fixed point, see above
            assert np.array_equal(after.permute(1, 2, 0).numpy(), np.asarray(image)), fired


def test_every_image_draws_its_own_subpolicy(images):
    x = images[:1].expand(4000, -1, -1, -1)
    out = auto_augment(x, torch.Generator().manual_seed(0))
    assert out.dtype == torch.uint8
    assert out.shape == x.shape
    assert torch.equal(out, auto_augment(x, torch.Generator().manual_seed(0)))
    # The share of images that stay as they are: no operation of their sub-policy fires. Operations that
    # cannot change this noise image (level 0, identities) are found by trying them.
    still = 0.0
    for sub in POLICY:
        stays = 1.0
        for name, probability, level in sub:
            same = torch.equal(
                OPERATIONS[name](x[:1], torch.full((1, 1, 1, 1), strength(name, level, 1), dtype=torch.float64)), x[:1]
            )
            stays *= 1.0 if same else 1 - probability
        still += stays / len(POLICY)
    observed = (out == x).flatten(1).all(1).double().mean().item()
    # 4,000 draws: five standard errors, plus images that two operations bring back
    assert observed == pytest.approx(still, abs=5 * (still * (1 - still) / 4000) ** 0.5 + 0.01)
    kinds = collections.Counter(map(bytes, out.numpy()))
    assert len(kinds) > 60  # signs and combinations


def test_floats_become_bytes():
    x = torch.rand(50, 1, 8, 8)
    out = auto_augment(x, torch.Generator().manual_seed(1))
    assert out.dtype == torch.uint8
    unchanged = (out == (x * 255).round()).flatten(1).all(1)
    assert 0 < unchanged.sum() < 50
