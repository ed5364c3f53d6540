"""Each loss against a plain loop over its formula, with gradients by central differences, in float64."""

import copy
import math

import pytest
import torch
from torch import nn

from rctaf.config import RunConfig
from rctaf.models import make_model
from rctaf.training.attacks import divergence_from, evaluating, pgd
from rctaf.training.methods import View, make_method
from rctaf.training.schedules import Budget

CLASSES, BATCH = 4, 3


class Table(nn.Module):
    """A "network" whose logits are parameters: image i holds the row numbers of its own logits."""

    def __init__(self, rows):
        super().__init__()
        torch.manual_seed(0)
        self.logits = nn.Parameter(2 * torch.randn(rows, CLASSES, dtype=torch.float64))

    def forward(self, x):
        return self.logits[x.flatten().long()]


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def ce(z, y):
    return -math.log(softmax(z)[y])


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def check(method, formula, n_views=1):
    """Compare value and gradient of ``method.loss`` with ``formula(logits, labels, held)``.

    ``logits[v][which][i]`` is a list of logits of view v, image i (which: 0 clean, 1 attacked); ``held`` is a copy
    that the differences below do not move: the formula uses it wherever the method must stop the gradient.
    """
    rows = 2 * n_views * BATCH
    model = Table(rows)
    index = torch.arange(rows).reshape(n_views, 2, BATCH, 1, 1, 1)
    views = [View(index[v, 0], index[v, 1], norm_set=min(v, 1)) for v in range(n_views)]
    y = torch.tensor([2, 0, 3])
    outcome = method.loss(model, views, y)
    outcome.loss.backward()

    def value(flat):
        return formula(flat.reshape(n_views, 2, BATCH, CLASSES).tolist(), y.tolist(), held)

    base = model.logits.detach().clone()
    held = base.reshape(n_views, 2, BATCH, CLASSES).tolist()
    assert outcome.loss.item() == pytest.approx(value(base), rel=1e-12)
    step = 1e-5  # the difference is then right to about step^2 + rounding / step = 1e-10 + 1e-11
    for i in range(rows):
        for j in range(CLASSES):
            up, down = base.clone(), base.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (value(up) - value(down)) / (2 * step)
            assert model.logits.grad[i, j].item() == pytest.approx(slope, rel=1e-7, abs=1e-8)
    return outcome, base.reshape(n_views, 2, BATCH, CLASSES)


def make(**settings):
    return make_method(RunConfig(**settings))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_standard_loss():
    outcome, logits = check(make(method="standard"), lambda z, y, held: mean(map(ce, z[0][0], y)))
    assert torch.equal(outcome.clean_logits, logits[0, 0])
    assert outcome.attacked_logits is None


def test_pgd_loss_sees_attacked_images_only():
    outcome, logits = check(make(method="pgd"), lambda z, y, held: mean(map(ce, z[0][1], y)))
    assert torch.equal(outcome.attacked_logits, logits[0, 1])
    assert outcome.clean_logits is None


def trades_formula(lam):
    def formula(z, y, held):
        clean, attacked = z[0]
        return mean(
            ce(c, label) + lam * kl(softmax(c), softmax(a)) for c, a, label in zip(clean, attacked, y, strict=True)
        )

    return formula


def test_trades_loss_moves_both_sides_of_the_divergence():
    outcome, logits = check(make(method="trades", lam=6.0), trades_formula(6.0))
    assert torch.equal(outcome.clean_logits, logits[0, 0])
    assert torch.equal(outcome.attacked_logits, logits[0, 1])


@pytest.fixture
def network():
    torch.manual_seed(1)
    model = make_model("resnet_small", activation=nn.Softplus, in_channels=1, n_classes=10, width=2).train()
    g = torch.Generator().manual_seed(2)
    return model, torch.rand(16, 1, 8, 8, generator=g), torch.arange(16) % 10


def test_trades_updates_batch_norm_three_times_as_the_original(network):
    model, x, y = network
    other = copy.deepcopy(model)
    attacked = (x + 0.1).clamp(0, 1)
    make(method="trades").loss(model, [View(x, attacked)], y).loss.backward()
    with torch.no_grad():
        for images in (x, attacked, x):
            other(images)
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        if "running" in name:
            # one update is recovered by a subtraction that costs a factor 10 of float32's 1e-7
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("method", "updates"), [("standard", 1), ("pgd", 1), ("trades", 2)])
def test_training_mode_forwards_per_step(network, method, updates):
    model, x, y = network
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    make(method=method).loss(model, [View(x, x)], y)
    assert modes == [True] * updates


@pytest.mark.parametrize(("method", "forwards"), [("standard", 0), ("pgd", 3), ("trades", 4)])
def test_attacks_run_in_evaluation_mode_with_one_natural_forward(network, method, forwards):
    model, x, y = network
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    attacked = make(method=method).attack(model, x, y, Budget(0.1, 3, 0.05), torch.Generator().manual_seed(0))
    assert modes == [False] * forwards
    assert model.training
    assert (attacked is x) == (method == "standard")


def test_the_trades_attack_ascends_the_divergence_from_a_gaussian_start(network):
    model, x, y = network
    ours = make(method="trades").attack(model, x, y, Budget(0.1, 3, 0.05), torch.Generator().manual_seed(0))
    with evaluating(model), torch.no_grad():
        objective = divergence_from(model(x))
    generator = torch.Generator().manual_seed(0)
    expected = pgd(model, x, objective, epsilon=0.1, steps=3, step_size=0.05, start="gaussian", generator=generator)
    assert torch.equal(ours, expected)
