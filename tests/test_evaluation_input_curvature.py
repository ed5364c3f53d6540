"""Curvature of the loss in the inputs, against whole Hessians, closed forms and a search of the ball."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import hessian, vmap

from rctaf.activations import RCTAF
from rctaf.evaluation import input_curvature
from rctaf.evaluation.input_curvature import _derivatives, _linearity_error
from rctaf.models import make_model

module = sys.modules[_derivatives.__module__]  # the package has the function under the module's name


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(alpha: float = 14.0, beta: int = 1) -> nn.Module:
    """Batch norm and a convolution, so that pixels and channels meet."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_var.uniform_(0.1, 1)
    layers = nn.Conv2d(1, 4, 3, padding=1), norm, RCTAF(alpha, beta), nn.Flatten(), nn.Linear(4 * 25, 3)
    return nn.Sequential(*layers).double().train()


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(12, 1, 5, 5, generator=generator()).double()
    return x, torch.randint(0, 3, (12,), generator=generator(1))


def test_norms_are_those_of_the_whole_derivatives(images, monkeypatch) -> None:
    model, (x, y) = network(), images
    # 5 images at once: each gives 100 values after the convolution, norm, activation and flattening, and 3 logits
    monkeypatch.setattr(module, "_LAYER_ELEMENTS", 5 * (4 * 100 + 3))
    sizes = []
    with model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]))):
        found = input_curvature(model, x, y, 0.1)
    assert sizes[0] == 1
    assert set(sizes[1:]) == {5, 2}
    assert model.training
    model.eval()

    def loss(image, label):
        return F.cross_entropy(model(image[None]), label[None])

    whole = vmap(hessian(loss))(x, y).reshape(12, 25, 25)
    gradient = vmap(torch.func.grad(loss))(x, y).flatten(1)
    assert (found.images, found.epsilon) == (12, 0.1)
    assert found.gradient_l1 == pytest.approx(gradient.abs().sum(1).mean().item(), rel=1e-12)
    assert found.gradient_l2 == pytest.approx(gradient.norm(dim=1).mean().item(), rel=1e-12)
    exact = torch.linalg.eigvalsh(whole).abs().amax(1)
    # from below; the power method has not quite arrived where two eigenvalues are close
    assert 0.99 * exact.mean() < found.spectral_norm <= exact.mean() * (1 + 1e-12)
    assert found.normalised == pytest.approx(found.spectral_norm / found.gradient_l2, rel=1e-12)
    each = _derivatives(model, x, y, generator(2))[2]
    assert (each <= exact * (1 + 1e-12)).all()
    assert (each > 0.8 * exact).all()


def test_two_classes_and_linear_logits_in_closed_form() -> None:
    """With margin m = wᵀx the loss is ln(1 + e^-m): its Hessian is s(m) s(-m) w wᵀ, its slope -s(-m) w."""
    w = torch.tensor([3.0, -1.0, 2.0, 0.5]).double()
    model = nn.Linear(4, 2, bias=False).double()
    model.weight.data = torch.stack([w, 0 * w])
    x = torch.rand(6, 4, generator=generator()).double()
    found = input_curvature(model, x, torch.zeros(6, dtype=torch.long), 0.25)
    m = x @ w
    s = torch.sigmoid(-m)
    assert found.spectral_norm == pytest.approx((s * (1 - s) * (w @ w)).mean().item(), rel=1e-12)
    assert found.gradient_l1 == pytest.approx((s * w.abs().sum()).mean().item(), rel=1e-12)
    # ln(1 + e^-m) is convex in m, so its distance from a tangent is largest at one of the two ends of the ball
    far = torch.stack(
        [torch.where(w > 0, (x + d).clamp(0, 1), (x - d).clamp(0, 1)) @ w for d in (-0.25, 0.25)]
    )  # fmt: skip
    error = F.softplus(-far) - F.softplus(-m) + s * (far - m)
    assert found.linearity_error == pytest.approx(error.amax(0).mean().item(), rel=1e-9)


def test_linearity_error_finds_what_a_search_of_the_ball_finds() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 8), RCTAF(20.0, 0), nn.Linear(8, 3)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p *= 2
    x, y = torch.rand(10, 2, generator=generator()).double(), torch.randint(0, 3, (10,), generator=generator(1))
    loss, gradient, _ = _derivatives(model, x, y, generator())
    found = _linearity_error(model, x, y, 0.2, loss, gradient, generator(3))
    line = torch.linspace(-0.2, 0.2, 201).double()
    ball = torch.cartesian_prod(line, line)
    searched = []
    for i in range(10):
        moved = (x[i] + ball).clamp(0, 1)
        with torch.no_grad():
            there = F.cross_entropy(model(moved), y[i].expand(len(moved)), reduction="none")
        searched.append((there - loss[i] - (moved - x[i]) @ gradient[i]).abs().max())
    # the largest lie on the edge, where both look; between two points of the search it changes by less than 1e-3
    assert (found - torch.stack(searched)).abs().max() < 1e-3
    assert found.min() > 5e-3


def test_kinks_are_seen_by_steps_only() -> None:
    """|x| by two ReLUs, as a margin: where the Hessian sees a line, a step across the kink does not."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.copy_(torch.tensor([-0.5, 0.5]))
        model[2].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    x, y = torch.tensor([[0.4]]).double(), torch.tensor([1])
    found = input_curvature(model, x, y, 0.3)
    m, s = torch.tensor(0.1).double(), torch.sigmoid(torch.tensor(-0.1)).double()
    assert found.spectral_norm == pytest.approx((s * (1 - s)).item(), rel=1e-6)  # of the softmax alone
    # to the far end across the kink: |x - 0.5| is 0.2 there, where the tangent says -0.2
    far = F.softplus(torch.tensor(-0.2).double()) - F.softplus(-m) + s * (-0.3)
    near = F.softplus(torch.tensor(-0.4).double()) - F.softplus(-m) + s * 0.3
    assert found.linearity_error == pytest.approx(max(abs(far.item()), abs(near.item())), rel=1e-6)


def test_one_function_has_one_value_whatever_alpha_it_is_written_with(images) -> None:
    x, y = images
    model, other = network(14.0), network(3.5)
    with torch.no_grad():  # gains and shifts take up the factor 4, the layer behind gives it back
        other[1].weight *= 4
        other[1].bias *= 4
        other[4].weight /= 4
    first, second = (input_curvature(m, x, y, 0.1) for m in (model, other))
    assert second.spectral_norm == pytest.approx(first.spectral_norm, rel=1e-9)
    assert second.linearity_error == pytest.approx(first.linearity_error, rel=1e-9)


def test_single_precision_is_enough() -> None:
    torch.manual_seed(0)
    model = make_model("resnet_small", activation=lambda: RCTAF(14.0, 1), in_channels=1, n_classes=10)
    x, y = torch.rand(8, 1, 8, 8, generator=generator()), torch.arange(8)
    single, double = input_curvature(model, x, y, 0.15), input_curvature(model.double(), x.double(), y, 0.15)
    # the starts are drawn in the precision of the images, so only what both have reached can agree
    assert single.gradient_l1 == pytest.approx(double.gradient_l1, rel=1e-4)
    assert single.spectral_norm == pytest.approx(double.spectral_norm, rel=0.02)
    assert single.linearity_error == pytest.approx(double.linearity_error, rel=0.05)


def test_radius_0_and_no_slope() -> None:
    x, y = torch.rand(4, 3, generator=generator()), torch.zeros(4, dtype=torch.long)
    flat = nn.Linear(3, 2)
    with torch.no_grad():
        flat.weight.zero_()
    found = input_curvature(flat, x, y, 0.1)
    assert (found.spectral_norm, found.gradient_l2, found.normalised, found.linearity_error) == (0, 0, None, 0)
    curved = nn.Linear(3, 2)
    assert input_curvature(curved, x, y, 0.0).linearity_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "at least one"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), "2 and 3 given"),
        (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.long), "labels must be a vector"),
        (torch.full((2, 3), 2.0), torch.zeros(2, dtype=torch.long), "images must lie in"),
    ],
)
def test_refusals(x, y, message) -> None:
    with pytest.raises(ValueError, match=message):
        input_curvature(nn.Linear(3, 2), x, y, 0.1)


def test_a_diverged_network_is_named() -> None:
    model = nn.Linear(3, 2)
    model.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="has the training diverged"):
        input_curvature(model, torch.rand(2, 3), torch.zeros(2, dtype=torch.long), 0.1)
