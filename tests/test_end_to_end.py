"""Every method on every family of networks: narrow ones on real images, full-size ones for one step."""

import math

import pytest
import torch

from rctaf.config import RunConfig
from rctaf.data import Dataset, load
from rctaf.models import from_config
from rctaf.training import train

# what each recipe composes, so that every piece of the loop meets every network
METHODS = {
    "standard": {"method": "standard"},
    "pgd": {"method": "pgd", "augment": "crop"},
    "trades": {"method": "trades"},
    "mart": {"method": "mart", "lam": 5.0},
    "dajat": {
        "method": "dajat", "auto_views": 1, "epsilon_ramp": True, "awp": 0.005, "awp_from": 2,
        "averaging": "step", "averaging_decay": 0.5, "averaging_from": 2,
    },
    "dkl": {
        "method": "dkl", "lam": 4.0, "epsilon_ramp": True, "awp": 0.005, "awp_from": 2,
        "averaging": "epoch", "averaging_decay": 0.5, "averaging_from": 2,
    },
}  # fmt: skip
FAMILIES = ("resnet_small", "resnet18", "preact_resnet18", "wrn_28_10")


@pytest.fixture(scope="module")
def digits():
    return load("digits", 300)


@pytest.mark.parametrize("network", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_two_epochs_on_real_images(method, network, digits):
    config = RunConfig(
        **METHODS[method],
        network=network,
        width=8,
        alpha=4.0,
        epochs=2,
        batch_size=50,
        epsilon="0.05",
        attack_steps=2,
        n_train=300,
    )
    model = from_config(config, in_channels=1, n_classes=10)
    history = train(model, digits, config)
    first, last = history["loss"]
    assert math.isfinite(last)
    assert last < first
    with torch.no_grad():
        assert torch.isfinite(model(digits.test_x[:100])).all()


@pytest.fixture(scope="module")
def two_images():
    """In the shape of CIFAR's."""
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([3, 7])
    return Dataset("cifar10", x, y, x, y, 10)


@pytest.mark.parametrize("network", ["resnet18", "wrn_28_10"])
@pytest.mark.parametrize("method", METHODS)
def test_one_step_at_full_size(method, network, two_images):
    settings = {**METHODS[method], "awp_from": 1, "averaging_from": 1, "epsilon_ramp": False}
    config = RunConfig(
        **settings, dataset="cifar10", epsilon="8/255", network=network, alpha=14.0, epochs=1, attack_steps=1, lr=0.01
    )
    model = from_config(config, in_channels=3, n_classes=10)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    history = train(model, two_images, config)
    assert math.isfinite(history["loss"][0])
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert sum(moved) >= 0.9 * len(moved)  # gains of channels that are dead for both images may stay
    assert all(torch.isfinite(p).all() for p in model.parameters())
